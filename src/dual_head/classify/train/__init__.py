"""Training a classifier, and the same classifier under several controls."""

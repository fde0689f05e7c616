"""A command and its terminal: progress, escaped and masked text, signals."""

"""A way out: guides folded into the lm_head, and a plain Hugging Face folder that holds the result."""

"""Networks, their training steps, and their weights on disk. Knows nothing of data sets or Ray."""

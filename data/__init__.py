"""Images on disk to batches in memory. Knows nothing of models, of Ray or of studies."""

"""Batch normalization with the statistics of the batch."""

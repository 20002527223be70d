"""The final models on all splits: quality and robustness, then latencies."""

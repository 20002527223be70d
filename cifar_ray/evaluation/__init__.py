"""The final models on the test split: scores, then latencies."""

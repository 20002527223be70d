"""A run's records on disk, and what follows from them in numbers."""

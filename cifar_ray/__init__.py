"""Ray-distributed hyperparameter search for image classifiers."""

import time

__version__ = "0.1.0"

BEGAN = time.monotonic()
"""When this program began: before anything else of it is imported, some 0.03 s after Python's own start."""

"""Ray-distributed hyperparameter search for image classifiers."""

import time
from typing import Any

__version__ = "0.1.0"

BEGAN = time.monotonic()
"""When this program began: before anything else of it is imported, some 0.03 s after Python's own start."""


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from cifar_ray.models.saved import load_model  # not at once: torch takes seconds to import

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Ray-distributed hyperparameter search for image classifiers."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_ray.api import Run, ablate, evaluate, predict, train, tune
    from cifar_ray.errors import InputError
    from cifar_ray.models.saved import load_model

__all__ = ["InputError", "Run", "ablate", "evaluate", "load_model", "predict", "train", "tune"]

__version__ = "0.1.0"

BEGAN = time.monotonic()
"""When this program began: before anything else of it is imported, some 0.03 s after Python's own start."""


def __getattr__(name: str) -> Any:
    # Not at once: the commands need none of it, and torch, which a model needs, takes seconds to import.
    if name == "load_model":
        from cifar_ray.models.saved import load_model

        return load_model
    if name in __all__:
        from cifar_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

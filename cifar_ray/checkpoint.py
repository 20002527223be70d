"""`load_model` under the name that it had before `cifar_ray.load_model`."""

from cifar_ray.models.saved import load_model

__all__ = ["load_model"]

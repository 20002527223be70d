"""Rows of results and comparisons, made up."""

from __future__ import annotations

from typing import Any

from cifar_ray.results.records import Row


def row(config: str, seed: int = 0, val: float | None = 0.9, loss: float | None = 0.3, **more: Any) -> Row:
    """One row of results.csv."""
    values = {"model": f"{config}-seed{seed}", "config": config, "seed": seed, "val_metric": val, "val_loss": loss}
    return values | {"val_accuracy": val, "test_accuracy": val, "num_params": 1000} | more

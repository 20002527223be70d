"""What a report is made of: sections with text, tables and images, and numbers as text."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cifar_ray.results.statistics import Interval
from cifar_ray.text import thousands

SPLITS = ("train", "val", "test")
"""In the order in which the report shows them."""

NUM_CLASSES_SHOWN = 20
"""Rows of a table of classes, at most."""


@dataclass
class Table:
    """Cells as text: the first `num_text` columns are words, the others numbers."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    num_text: int = 1
    marks: dict[int, list[str]] = field(default_factory=dict)
    """Labels of a row (by its index), such as `best`; they stand behind its last text cell."""
    shares: list[float] | None = None
    """A share in 0..1 for each row, drawn as a bar in its last cell."""


@dataclass
class Image:
    """A figure of evaluation/; a wide one takes the whole width of the page."""

    name: str
    title: str
    png: bytes
    wide: bool = False


@dataclass
class Tile:
    """Pixels (H, W) or (H, W, 3) uint8 of an image, or of several side by side, and what stands below them."""

    pixels: np.ndarray
    caption: str


@dataclass
class Sheet:
    """A contact sheet: images of the data beside each other. Its file in evaluation/ has the tiles alone."""

    name: str
    title: str
    tiles: list[Tile]


@dataclass
class Section:
    """A heading with paragraphs, terms and what is said of each, images, tables, points, contact sheets, folded code.

    One without any is left out.
    """

    heading: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: tuple[str, str] | None = None
    points: list[str] = field(default_factory=list)
    entries: list[tuple[str, list[str]]] = field(default_factory=list)
    """Terms, each with what is said of it first, and then in small print."""

    @property
    def empty(self) -> bool:
        listed = self.entries or self.points or self.tables or self.images or self.sheets
        return not (self.text or listed or self.folded)


def shared_images(data: Mapping[str, Any]) -> list[str]:
    """What is to be said, of `data` in run.json, about images that two splits share; nothing where none do."""
    said = []
    if num := data.get("num_test_copies"):
        said.append(
            f"{thousands(num)} of {thousands(data.get('num_test'))} test images are also training or validation "
            "images: expect less than the test scores of new images"
        )
    if num := data.get("num_val_copies"):
        said.append(
            f"{thousands(num)} of {thousands(data.get('num_val'))} validation images are also training images: "
            "models that learn them by heart rank too high"
        )
    return said


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + letter if letter in "\\`*_[]|~#" else letter for letter in text)


def score_text(value: float | Interval | None, metric: str = "accuracy") -> str:
    """A score, or a mean with its interval: accuracy in percent, `97.21` or `97.21 (96.10 to 98.02)`, others as 0.9721.

    The same digits everywhere: what two means differ by is seen, and their intervals say what it is worth.
    """
    if isinstance(value, Interval):
        bounds = f" ({score_text(value.low, metric)} to {score_text(value.high, metric)})"
        return score_text(value.mean, metric) + ("" if value.low is None else bounds)
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4f}"


def difference_text(value: float, metric: str = "accuracy") -> str:
    """A signed difference of scores: of accuracies in percentage points, such as `+0.45`, of others as `+0.0045`."""
    return f"{100 * value:+.2f}" if metric == "accuracy" else f"{value:+.4f}"


def with_unit(metric: str, value: float | Interval | None) -> str:
    """A value of a metric as text: accuracy in percent, others as fractions."""
    return score_text(value, metric) + (" %" if metric == "accuracy" else "")

"""What a report is made of: sections with text, tables and images, and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
class Section:
    """A heading with paragraphs, tables, images and folded code, in this order; one without any is left out."""

    heading: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    folded: tuple[str, str] | None = None


def decimals(value: float | None, digits: int = 4) -> str:
    """A number of so many decimals, or `-`."""
    return "-" if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """Three significant digits, with thousands and millions as `12.3k` and `1.23M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value is not None and abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return "-" if value is None else f"{value:.3g}"


def thousands(count: Any) -> str:
    """A count such as `45,000`, or `?`."""
    return "?" if count is None else f"{int(count):,}"


def counted(count: Any, thing: str) -> str:
    """So many of a thing, such as `1 trial` or `2 trials`."""
    return f"{'?' if count is None else count} {thing}{'' if count == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent, such as `12.5 %`, or `-`."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


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

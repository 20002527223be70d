"""Numbers, durations and names as text."""

from __future__ import annotations

import unicodedata
from typing import Any


def printable(text: str) -> str:
    """Text for one line of a terminal: no control characters, line ends or bytes that are no text."""
    if text.isprintable():
        return text
    return "".join("?" if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - num_columns(text))


def shorten(text: str, width: int, *, middle: bool) -> str:
    """Shorten text that is too wide: leave out its middle, or else its beginning."""
    if num_columns(text) <= width:
        return text
    kept = width - 1
    while True:
        head = kept // 2 if middle else 0
        short = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if num_columns(short) <= width:
            return short
        kept -= 1  # some characters take two columns


def num_columns(text: str) -> int:
    """Columns that a terminal needs for a text: two for wide characters (Chinese, emoji), none for combining marks."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    marks = sum(unicodedata.category(char) in ("Mn", "Me") for char in text)
    return len(text) + wide - marks


def duration(seconds: float) -> str:
    """A duration for people: `8 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def decimals(value: float | None, digits: int = 4) -> str:
    """A number of so many decimals, or `-`: numbers that differ in their last bits alone read the same."""
    return "-" if value is None else f"{round(value, 12):.{digits}f}"


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

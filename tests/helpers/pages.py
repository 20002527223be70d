"""Reading a report: its page, its sections, its tables."""

from __future__ import annotations

import html
import html.parser
import re

from cifar_ray.results.records import RunFolder


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


FIGURES = ("curves-1", "curves-2", "curves-3", "curves-4", "confusion", "roc", "speed", "search", "sizes")
"""Of a run of one family."""

TWO_FAMILIES = {"trial-0013": 0.972, "default": 0.82, "default-resnet": 0.94, "trial-0012": 0.89, "trial-0010": 0.87}
"""Finalists of a search of the spaces cnn and resnet: odd numbers are ResNets."""


def section(folder: RunFolder, heading: str) -> str:
    """A section of report.md, as its reader sees it; empty where the report has none."""
    found = re.search(rf"^## {heading}$.*?(?=^## |\Z)", folder.report_md.read_text(), re.MULTILINE | re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found.group()) if found else ""


def table_rows(text: str, *first: str) -> list[list[str]]:
    """Cells of the rows of Markdown tables whose first cells are these."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[: len(first)] == list(first)]

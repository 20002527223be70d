"""What a real browser makes of the report."""

from __future__ import annotations

import html
import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import records
from helpers.pages import FIGURES
from matplotlib.image import imread

from cifar_ray.results.records import RunFolder

CHROMIUM = shutil.which("chromium")
# fmt: off
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]
# fmt: on
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the report with")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Open a page in headless chromium with a new profile and return its standard output."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_the_report_without_sideways_scrolling(run: RunFolder, tmp_path: Path, width: int) -> None:
    probe = """<script>addEventListener("load", () => {
        const view = document.querySelector("iframe").contentWindow, data = document.body.dataset;
        data.window = view.innerWidth;
        data.width = view.document.documentElement.scrollWidth;
        data.shown = [...view.document.images].filter(one => one.naturalWidth > 700 && one.width > 300).length;
        const entries = view.performance.getEntriesByType("resource");
        data.loaded = entries.filter(one => !one.name.startsWith("data:")).length;
        data.text = view.document.body.innerText;
    })</script>"""
    report = html.escape(run.report_html.read_text())  # in a frame, since a window has at least 500 pixels
    page = tmp_path / "frame.html"
    page.write_text(f'<body><iframe style="border: 0; width: {width}px" srcdoc="{report}"></iframe>{probe}</body>')
    dom = browse(page, tmp_path / "profile", "--window-size=1400,2400", "--dump-dom")
    measured = dict(re.findall(r'data-(window|width|shown|loaded)="(\d+)"', dom))
    assert measured == {"width": str(width), "window": str(width), "shown": str(len(FIGURES)), "loaded": "0"}
    (seen,) = re.findall(r'data-text="([^"]*)"', dom)
    assert records.CLASS_NAMES[3] in html.unescape(seen) and "Take trial-0012" in seen


@needs_chromium
def test_browser_screenshots_differ_in_the_dark(run: RunFolder, tmp_path: Path) -> None:
    corners = []
    for scheme in ("light", "dark"):
        shot = tmp_path / f"{scheme}.png"
        flags = [f"--screenshot={shot}", "--window-size=1280,2400"]
        flags += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        browse(run.report_html, tmp_path / scheme, *flags)
        pixels = imread(shot)  # (H, W, C)
        assert pixels.shape[:2] == (2400, 1280) and pixels.std() > 0.05
        corners.append(float(pixels[0, 0, :3].mean()))
    assert corners[0] > 0.9 and corners[1] < 0.2

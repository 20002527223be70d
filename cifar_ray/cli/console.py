"""What the terminal shows: lasting lines, and one live status line (a line now and then where it is no terminal)."""

import math
import os
import sys
import time
from typing import TextIO

from cifar_ray.text import num_columns

PLAIN_INTERVAL_S = 10.0
"""Seconds between status lines where the output is a file or a pipe."""

LIVE_INTERVAL_S = 0.2
"""Seconds between updates of the live line on a terminal."""

PART = " | "
"""Between the parts of a status line; the last ones are left out where the terminal is too narrow for them."""

ERASE = "\r\x1b[K"
"""Back to the start of the line, and clear it, however long it is and however wide the terminal has become."""


class Console:
    """Writes to a copy of standard output (or to `stream`), so that redirecting descriptor 1 does not silence it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        # A name that the terminal's encoding lacks shows as question marks; it must not end a run.
        self.stream = stream or os.fdopen(
            os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding, errors="replace"
        )
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._status = ""
        self._shown_at = -math.inf

    def line(self, text: str = "") -> None:
        """Print a lasting line (or several). The terminal wraps one that is too long, so that paths can be copied."""
        self._clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def status(self, text: str, force: bool = False) -> None:
        """Show the current state, of parts joined by ` | `, most important first.

        Updates that come too fast are left out unless `force` is set, or a lasting line has just replaced the status.
        """
        now = time.monotonic()
        replaced = self.live and not self._status
        if not force and not replaced and now - self._shown_at < (LIVE_INTERVAL_S if self.live else PLAIN_INTERVAL_S):
            return
        self._shown_at = now
        if not self.live:
            self.line(text)
            return
        self._clear()
        columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0 where the terminal does not know
        self._status = fit(text, columns - 1)  # what fills the last column too may wrap
        self.stream.write(self._status)
        self.stream.flush()

    def _clear(self) -> None:
        if self._status:
            self.stream.write(ERASE)
            self._status = ""


def fit(text: str, columns: int) -> str:
    """Return what of a status line fits in so many columns of a terminal: whole parts, if the first one fits."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    while num_columns(text) > columns and PART in text:
        text = text.rpartition(PART)[0]
    while num_columns(text) > columns:
        text = text[:-1]
    return text

"""What the terminal shows: lasting lines, and one live status line (a line now and then where it is no terminal)."""

import os
import sys
import time
from typing import TextIO

PLAIN_INTERVAL_S = 10.0
"""Seconds between status lines where the output is a file or a pipe."""

LIVE_INTERVAL_S = 0.2
"""Seconds between updates of the live line on a terminal."""


class Console:
    """Writes to a copy of standard output (or to `stream`), so that redirecting descriptor 1 does not silence it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or os.fdopen(os.dup(sys.stdout.fileno()), "w")
        self.live = self.stream.isatty()
        self._status = ""
        self._shown_at = 0.0

    def line(self, text: str = "") -> None:
        """Print a lasting line (or several)."""
        self._clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def status(self, text: str, force: bool = False) -> None:
        """Show the current state; updates that come too fast are left out unless `force` is set."""
        now = time.monotonic()
        if not force and now - self._shown_at < (LIVE_INTERVAL_S if self.live else PLAIN_INTERVAL_S):
            return
        self._shown_at = now
        if not self.live:
            self.line(text)
            return
        self._clear()
        columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0 where the terminal does not know
        self._status = text[: columns - 1]
        self.stream.write(self._status)
        self.stream.flush()

    def _clear(self) -> None:
        if self._status:
            self.stream.write("\r" + " " * len(self._status) + "\r")
            self._status = ""


def duration(seconds: float) -> str:
    """A duration for people: `8 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

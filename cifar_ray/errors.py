"""What is told to the user in one line."""

from __future__ import annotations

import traceback


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, where and what to do."""


def one_line(error: BaseException) -> str:
    """What an error says, or else its name."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def place_of(error: BaseException, file: str) -> str:
    """Where in the user's `file` an error arose, rather than in a library that it called: `FILE:LINE`."""
    lines = [line for line in traceback.extract_tb(error.__traceback__) if line.filename == file]
    return f"{file}:{lines[-1].lineno}" if lines else file

"""What is told to the user in one line."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, where and what to do."""


def one_line(error: BaseException) -> str:
    """What an error says, or else its name."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__

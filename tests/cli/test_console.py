"""The live line and lasting lines, on a real terminal of some width and in a real pipe."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cifar_ray.cli import console
from cifar_ray.cli.console import Console
from cifar_ray.results.records import RunFolder
from cifar_ray.text import duration, num_columns
from cifar_ray.tracking.live import SearchWatch

WIDE = "数字画像🚗"
"""Characters that take two columns."""

MARK = "\u0301"
"""An accent that goes onto the character before it."""


class Terminal:
    """A pseudo-terminal, the console that writes to it, and what its screen shows."""

    def __init__(self, columns: int) -> None:
        self._primary, self._secondary = pty.openpty()
        os.set_blocking(self._primary, False)
        self.rows = [""]
        self._column = 0
        self.resize(columns)
        self.stream = os.fdopen(self._secondary, "w", encoding="utf-8")
        self.console = Console(self.stream)

    def resize(self, columns: int) -> None:
        """Change the width; like xterm, what then is too long is cut off."""
        fcntl.ioctl(self._secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.columns = columns
        self.rows = [row[:columns] for row in self.rows]
        self._column = min(self._column, columns)

    def raw(self) -> str:
        """What has been written since the last look."""
        data = b""
        while True:
            try:
                data += os.read(self._primary, 4096)
            except BlockingIOError:
                return data.decode()

    def screen(self) -> list[str]:
        """The rows of the screen; \\0 fills the second column of a wide character."""
        text = self.raw()
        while text:
            if text.startswith("\x1b[K"):
                self.rows[-1] = self.rows[-1][: self._column]
                text = text[3:]
                continue
            char, text = text[0], text[1:]
            if char == "\r":
                self._column = 0
            elif char == "\n":
                self.rows.append("")
            elif char != MARK:
                self._put(char if char not in WIDE else char + "\0")
        return self.rows

    def _put(self, cells: str) -> None:
        assert cells.isprintable() or cells[0] in WIDE, repr(cells)
        if self._column + len(cells) > self.columns:
            self.rows.append("")
            self._column = 0
        row = self.rows[-1].ljust(self._column)
        self.rows[-1] = row[: self._column] + cells + row[self._column + len(cells) :]
        self._column += len(cells)

    def close(self) -> None:
        self.stream.close()
        os.close(self._primary)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Terminal]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    opened: list[Terminal] = []

    def open_terminal(columns: int) -> Terminal:
        opened.append(Terminal(columns))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the console believes in, to be set."""
    now = [1000.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, "112/500 done, 45 pruned, 1012 infeasible, 3 failed | 1 h 00 min left | best 0.6250 trial-0112"),
        (80, "112/500 done, 45 pruned, 1012 infeasible, 3 failed | 1 h 00 min left"),
        (40, "112/500 done, 45 pruned, 1012 infeasible"[:39]),
    ],
)
def test_the_live_line_of_a_search_fits_the_terminal(
    terminal: Callable[[int], Terminal], tmp_path: Path, columns: int, shown: str
) -> None:
    screen = terminal(columns)
    watch = SearchWatch(RunFolder(tmp_path), screen.console, 500, {})
    watch.states = {"complete": 67, "pruned": 45, "infeasible": 1012, "failed": 3}
    watch.best = (0.625, "trial-0112")
    watch.began -= 3600 * 112 / 388
    for _ in range(3):
        screen.console.status(watch.status(), force=True)
    (row,) = screen.screen()
    assert row.startswith(shown)
    assert len(row) < columns
    assert columns == 200 or row == shown


def test_a_lasting_line_takes_the_place_of_the_live_line(terminal: Callable[[int], Terminal]) -> None:
    screen = terminal(80)
    screen.console.status("a live line that is longer than the lasting one")
    screen.console.line("lasting")
    assert screen.screen() == ["lasting", ""]


def test_a_shorter_live_line_leaves_nothing_of_a_longer_one(terminal: Callable[[int], Terminal]) -> None:
    screen = terminal(80)
    screen.console.status("a long live line | with parts", force=True)
    screen.console.status("short", force=True)
    assert screen.screen() == ["short"]


def test_the_live_line_comes_back_at_once_after_a_lasting_line(
    terminal: Callable[[int], Terminal], clock: list[float]
) -> None:
    screen = terminal(80)
    screen.console.status("first")
    screen.console.line("lasting")
    screen.console.status("second")
    assert screen.screen() == ["lasting", "second"]


def test_a_terminal_gets_a_few_updates_a_second(terminal: Callable[[int], Terminal], clock: list[float]) -> None:
    screen = terminal(80)
    screen.console.status("first")
    clock[0] += 0.1
    screen.console.status("second")
    assert screen.screen() == ["first"]
    clock[0] += 0.2
    screen.console.status("third")
    assert screen.screen() == ["third"]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_lasting_line_is_left_whole_so_that_a_path_can_be_copied(
    terminal: Callable[[int], Terminal], columns: int
) -> None:
    path = "/a/long/path" * 20
    screen = terminal(columns)
    screen.console.status("live")
    screen.console.line(f"report      {path}")
    assert screen.raw().endswith(f"report      {path}\r\n")


@pytest.mark.parametrize("columns", [80, 40, 3, 2])
@pytest.mark.parametrize("text", [WIDE * 30, f"e{MARK}" * 90, f"best {WIDE} e{MARK} | " * 9, "x" * 500])
def test_wide_characters_and_accents_do_not_make_the_live_line_wrap(
    terminal: Callable[[int], Terminal], columns: int, text: str
) -> None:
    screen = terminal(columns)
    for _ in range(2):
        screen.console.status(text, force=True)
    assert len(screen.screen()) == 1
    screen.console.line("ok")
    assert screen.screen() == ["ok", ""]


def test_the_width_of_a_text_is_that_of_its_characters() -> None:
    assert [num_columns(text) for text in ("", "é", f"e{MARK}", "数字", "🚗 a", "ﬁ")] == [0, 1, 1, 4, 4, 1]


def test_a_name_with_a_line_feed_or_an_escape_does_not_leave_the_live_line(
    terminal: Callable[[int], Terminal],
) -> None:
    screen = terminal(80)
    screen.console.status("best cat\n\x1b[2J\tdog")
    assert screen.screen() == ["best cat??[2J?dog"]


def test_a_terminal_made_narrower_or_wider_is_used_as_it_is_now(terminal: Callable[[int], Terminal]) -> None:
    screen = terminal(80)
    text = f"{'first part':<30} | {'second part':<30} | {'third part':<30}"
    screen.console.status(text, force=True)
    assert screen.screen() == [f"{'first part':<30} | {'second part':<30}"]
    screen.resize(40)
    screen.console.status(text, force=True)
    assert screen.screen() == [f"{'first part':<30}"]
    screen.resize(120)
    screen.console.status(text, force=True)
    assert screen.screen() == [text]
    screen.console.line("lasting")
    assert screen.screen() == ["lasting", ""]


def test_a_terminal_that_does_not_know_its_width_is_taken_for_80_columns(terminal: Callable[[int], Terminal]) -> None:
    screen = terminal(0)
    screen.console.status("x" * 200)
    assert screen.raw() == "x" * 79


def test_a_terminal_without_escape_codes_gets_plain_lines(
    terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = terminal(80)
    screen.console.status("first", force=True)
    screen.console.status("second", force=True)
    assert screen.raw() == "first\r\nsecond\r\n"


def test_a_pipe_gets_a_status_line_every_ten_seconds_and_no_control_codes(clock: list[float]) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        console = Console(stream)
        for second in range(26):
            console.status(f"{'long ' * 30}{second}")
            if second == 5:
                console.line("lasting")
            clock[0] += 1
    with os.fdopen(reader) as stream:
        shown = stream.read()
    assert shown.splitlines() == [f"{'long ' * 30}0", "lasting", f"{'long ' * 30}10", f"{'long ' * 30}20"]
    assert shown.isascii() and shown.replace("\n", "").isprintable()


def test_a_pipe_is_written_at_once_and_in_the_encoding_that_python_was_told() -> None:
    code = "from cifar_ray.cli.console import Console; c = Console(); c.line('ends: 数字 é'); import os; os._exit(7)"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"ends: ?? ?\n", b"")


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 200, 18_730)] == ["0 s", "59 s", "3 min 20 s", "5 h 12 min"]

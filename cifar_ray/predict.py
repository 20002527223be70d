"""`python -m cifar_ray.predict`: the class of each image, how probable it is, and the runners-up."""

from __future__ import annotations

import heapq
import io
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from cifar_ray.cli.flags import PredictSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.errors import InputError
from cifar_ray.evaluation.predictions import classify, find_images, prediction
from cifar_ray.results.config_json import MODULE, read_card, require_trust, temperature_of
from cifar_ray.text import num_columns, pad, printable, shorten

MAX_RUNNERS_UP = 3

MIN_RUNNER_UP = 0.01
"""Probability of a runner-up that is shown: where the model is sure there is none, and the doubtful rows stand out."""

NOT_SURE = "not sure"
"""Stands for the class where the model abstains; the best candidates follow, the first of that probability."""

MIN_COLUMNS = 60
"""A terminal narrower than this breaks the rows, which are not shortened any further."""

EPILOG = """\
examples:
  python -m cifar_ray.predict runs/NAME/best photo.jpg
  python -m cifar_ray.predict runs/NAME/best holiday_photos --json --at-least 95%
"""


def main(argv: Sequence[str]) -> int:
    settings = PredictSettings(**parse_flags(PredictSettings, "predict", argv, EPILOG))
    config, card = read_card(settings.model)
    require_trust(settings.model / MODULE, config, settings.trust_code)
    files = find_images(settings.images)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this as it ends other commands, without a word
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal's encoding lacks must not end the rest
    # torch takes seconds to import: wrong flags and paths are told, and --help shown, before that.
    import torch

    from cifar_ray.models.saved import load_model

    model = load_model(settings.model, "cuda" if torch.cuda.is_available() else "cpu", settings.trust_code)
    names = card["class_names"]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    table = None if settings.json else Table(files, names, width, settings.at_least)
    if table:
        print(table.header, flush=True)
    num_bad = 0
    for file, result in classify(model, card["resize"], files, temperature_of(card)):
        if isinstance(result, InputError):
            num_bad += 1
            print(f"error: {printable(str(result))}", file=sys.stderr)
        else:
            said = prediction(file, names, result, settings.at_least)
            print(table.row(file, result) if table else json.dumps(said), flush=True)
    return 2 if num_bad else 0


class Table:
    """Rows `image  class  probability  runners-up` that line up, whatever comes later.

    With `width` (of a terminal, in columns) what is too long is shortened; without, nothing is. With `at_least` an
    image of whose classes none is so probable has none: its row says so, and the best candidates follow.
    """

    def __init__(
        self, files: Sequence[Path], class_names: Sequence[str], width: int | None, at_least: float | None = None
    ) -> None:
        self.at_least = at_least
        self.class_names = [printable(name) for name in class_names]
        self.path_width = max(len("image"), *(num_columns(printable(str(file))) for file in files))
        self.class_width = max(len("class" if at_least is None else NOT_SURE), *map(num_columns, self.class_names))
        self.width = width and max(width, MIN_COLUMNS)
        if self.width:
            # One runner-up always fits: the path, the class, another class, and 20 columns between and behind them.
            room = self.width - 20
            self.class_width = min(self.class_width, (room - min(self.path_width, room * 2 // 5)) // 2)
            self.path_width = min(self.path_width, room - 2 * self.class_width)
            self.class_names = [shorten(name, self.class_width, middle=True) for name in self.class_names]
        self.header = f"{pad('image', self.path_width)}  {pad('class', self.class_width)}           runners-up"

    def row(self, file: Path, probabilities: Sequence[float]) -> str:
        path = shorten(printable(str(file)), self.path_width, middle=False)
        ranked = heapq.nlargest(1 + MAX_RUNNERS_UP, zip(self.class_names, probabilities, strict=True), itemgetter(1))
        (name, probability), *others = ranked
        if self.at_least is not None and probability < self.at_least:
            name, others = NOT_SURE, ranked[:MAX_RUNNERS_UP]
        row = f"{pad(path, self.path_width)}  {pad(name, self.class_width)}  {_percent(probability):>7}"
        separator = "  "
        for name, probability in others:
            entry = f"{separator}{name} {_percent(probability)}"
            if probability < MIN_RUNNER_UP or (self.width and num_columns(row + entry) > self.width):
                break
            row, separator = row + entry, ", "
        return row


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


if __name__ == "__main__":
    run_command(main)

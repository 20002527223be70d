"""`python -m cifar_ray.predict`: the class of each image, how probable it is, and the runners-up."""

from __future__ import annotations

import heapq
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_ray.cli.flags import PredictSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.data.decode import decode_image, map_images
from cifar_ray.data.folder import IMAGE_SUFFIXES
from cifar_ray.errors import InputError
from cifar_ray.results.config_json import read_card, temperature_of
from cifar_ray.text import num_columns, pad, printable, shorten

if TYPE_CHECKING:
    from cifar_ray.models.classifier import Classifier


BATCH_SIZE = 64
"""Images classified at once: few, so that the first rows come soon."""

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
    _, card = read_card(settings.model)
    files = find_images(settings.images)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this as it ends other commands, without a word
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal's encoding lacks must not end the rest
    # torch takes seconds to import: wrong flags and paths are told, and --help shown, before that.
    import torch

    from cifar_ray.models.saved import load_model

    model = load_model(settings.model, "cuda" if torch.cuda.is_available() else "cpu")
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
            row = table.row(file, result) if table else json_row(file, names, result, settings.at_least)
            print(row, flush=True)
    return 2 if num_bad else 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return the images that were named, and those below the folders that were named, each folder's in order.

    Raises:
        InputError: one of them does not exist, or has no images below it.
    """
    files: list[Path] = []
    for path in given:
        try:
            path.stat()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}: give images, and folders of images") from None
        found = _images_below(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: no images in this folder: they are known by {' '.join(sorted(IMAGE_SUFFIXES))}")
        files += found
    return files


def _images_below(root: Path) -> list[Path]:
    found: list[Path] = []

    def keep_unreadable(error: OSError) -> None:  # as if it were an image: decoding will name it, and the rest goes on
        found.append(Path(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=keep_unreadable, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] != "." and not _leads_back(os.path.join(folder, name))]
        found += [Path(folder, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]
    return sorted(found)


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    return os.path.islink(folder) and Path(os.path.realpath(os.path.dirname(folder))).is_relative_to(
        os.path.realpath(folder)
    )


def classify(
    model: Classifier, resize: dict[str, Any], files: Sequence[Path], temperature: float = 1.0
) -> Iterator[tuple[Path, list[float] | InputError]]:
    """Yield every file with its class probabilities, or with what is wrong with it, in order and as they come.

    Images are decoded and scored as in the evaluation, whose probabilities these are with a temperature of 1.
    """
    import torch

    from cifar_ray.training.loop import eval_model

    device = next(model.parameters()).device
    named = ((str(file), file) for file in files)
    with map_images(lambda name, file: decode_image(file, resize, name), named) as images:
        pairs = zip(files, images, strict=True)
        while batch := list(itertools.islice(pairs, BATCH_SIZE)):
            good = [image for _, image in batch if not isinstance(image, InputError)]
            rows: Iterator[list[float]] = iter(())
            if good:
                logits = eval_model(model, torch.from_numpy(np.stack(good)).to(device))
                # In float64, in which no temperature makes two classes equally probable that were not.
                rows = iter((logits.cpu().double() / temperature).softmax(1).tolist())
            for file, image in batch:
                yield file, image if isinstance(image, InputError) else next(rows)


def json_row(
    file: Path, class_names: Sequence[str], probabilities: Sequence[float], at_least: float | None = None
) -> str:
    """One object; with `at_least` it says whether the model abstains, and then has no class (null)."""
    named = dict(zip(class_names, probabilities, strict=True))
    best = max(named, key=named.__getitem__)
    row: dict[str, Any] = {"image": str(file), "class": best, "probability": named[best]}
    if at_least is not None:
        abstains = named[best] < at_least
        row |= {"class": None if abstains else best, "abstains": abstains}
    return json.dumps(row | {"probabilities": named})


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

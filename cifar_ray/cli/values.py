"""What the texts of flags become: values, or a ValueError that says what is wrong with them."""

import math
import os
import re
from pathlib import Path

from cifar_ray.cli.parser import at_least
from cifar_ray.config import WEIGHTS, WEIGHTS_SUFFIXES
from cifar_ray.data.sources import DATA_SETS

LARGEST_IMAGE = 1024
"""Side in pixels: of larger images a few thousand do not fit into memory."""


def not_empty(text: str) -> str:
    # Such as that of a shell variable that is not set; as a path it would be the working folder.
    if not text:
        raise ValueError("must not be empty")
    return text


def data_source(text: str) -> str:
    return text if text in DATA_SETS else str(path(text))


def spaces(text: str) -> str:
    names = [part.strip() for part in text.split(",")]
    # Absolute, so that a run can be taken up from another folder.
    return ",".join(os.path.abspath(os.path.expanduser(name)) if name.endswith(".py") else name for name in names)


def path(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(not_empty(text))))


def module(text: str) -> str:
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"must be FILE.py:NAME such as my_cnn.py:Net, not {text!r}")
    return f"{path(file)}:{name}"


def weights(text: str) -> str:
    if text in WEIGHTS:
        return text
    file = path(text)
    # A name in the wrong case would otherwise be a file that is not there, and only be told after all else is loaded.
    if file.suffix.lower() not in WEIGHTS_SUFFIXES and not os.path.exists(file):
        raise ValueError(f"must be {', '.join(WEIGHTS)} or a file ({', '.join(WEIGHTS_SUFFIXES)}), not {text!r}")
    return str(file)


def key_and_value(text: str) -> str:
    key, _, value = text.partition("=")
    if not key or not value:
        raise ValueError(f"must be KEY=VALUE such as model/dropout=0.2, not {text!r}")
    if key == "precision":
        raise ValueError(f"cannot give the precision; --precision {value} does, to all models")
    return text


def image_size(text: str) -> int | None:
    size = None if text == "auto" else at_least(1)(text)
    if size is not None and size > LARGEST_IMAGE:
        raise ValueError(f"must be at most {LARGEST_IMAGE} pixels, not {text}")
    return size


def _fraction(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return math.nan


def probability(text: str) -> float:
    value = _fraction(text)
    if not 0 < value <= 1:
        raise ValueError(f"must be a probability such as 95% or 0.95, not {text!r}")
    return value


def share_of_trials(text: str) -> float:
    value = _fraction(text)
    if not 0 <= value <= 0.5:
        raise ValueError(f"must be a share of the trials from 0 to 0.5, such as 0.1 or 10%, not {text!r}")
    return value


def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"must be a number above 0, not {text!r}")
    return value


def gpus_per_trial(text: str) -> int | None:
    return None if text == "auto" else at_least(0)(text)


def count(text: str) -> int:
    """Parse a positive count such as `150000`, `150k` or `1.5M`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kKmMgGbB]?)", text)
    number = found and round(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}[found[2].lower()])
    if not number:
        raise ValueError(f"must be a number above 0 such as 150k or 1M, not {text!r}")
    return number


def seconds(text: str) -> float:
    """Parse a duration such as `90s`, `10m` or `1h30m` into seconds."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    total = (
        sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0
    )
    if not total:
        raise ValueError(f"must be a duration such as 90s, 10m or 1h30m, not {text!r}")
    return total

"""Pretrained weights of torchvision's classification networks: torchvision's own, or a file with the same keys."""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import pickle
import re
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cifar_ray.config import WEIGHTS, WEIGHTS_SUFFIXES, BackboneConfig
from cifar_ray.errors import InputError, one_line
from cifar_ray.files import download_timeout
from cifar_ray.models.families import POSITIONS, backbones, check_backbone, make_backbone

logger = logging.getLogger(__name__)

DTYPES = (torch.float16, torch.float32, torch.bfloat16)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "relative_coords_table")
"""Endings of the keys of what is no parameter."""
POSITION_INDEX = "relative_position_index"
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""Parts of keys in files of torchvision's DenseNets and ViTs that have another name in its networks by now."""
NUM_BATCHES = "num_batches_tracked"  # counted by batch norm, used by none of torchvision's; old files lack it

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class BackboneWeights:
    """What a backbone starts from: all its weights and buffers, without the classifier."""

    backbone: str
    """torchvision's name of it, such as `resnet18`."""
    source: str
    """`IMAGENET1K_V1` or `IMAGENET1K_V2` of torchvision, or the absolute path of the file."""
    sha256: str
    """SHA-256 of the file, as 64 hexadecimal digits."""
    tensors: dict[str, np.ndarray]
    """By torchvision's key, in its order and without the classifier's: fp16 or fp32 as in the file (bf16 becomes fp32,
    which numpy has), and int64, such as the scalars `num_batches_tracked`, 0 where the file has none."""


def published(backbone: str) -> tuple[str, ...]:
    """Return which of `WEIGHTS` torchvision publishes of a backbone, such as `IMAGENET1K_V1`.

    Raises:
        InputError: there is no such backbone.
    """
    # (Not DEFAULT, which is another name of one of them.)
    return tuple(choice.name for choice in _published(backbone) if choice.name in WEIGHTS)


def load_weights(backbone: str, weights: str) -> BackboneWeights:
    """Return the weights of a backbone.

    Args:
        backbone: one of :func:`~cifar_ray.models.families.backbones`.
        weights: `IMAGENET1K_V1` or `IMAGENET1K_V2`, torchvision's, from the cache of `torch.hub` or downloaded to it;
            `DEFAULT`, the better of those that there are; or the path of a file, see :func:`weights_of_file`.

    Raises:
        InputError: there is no such backbone, or no such weights of it, or they cannot be downloaded; the file is
            unfit, or has the weights of another backbone.
    """
    assert weights != "none", "there is nothing to load"
    choices = _published(backbone)
    if weights not in WEIGHTS:
        found = weights_of_file(Path(weights))
    elif weights not in choices.__members__:
        raise _no_such_weights(weights, backbone)
    else:
        choice = choices[weights]
        found = replace(weights_of_file(_cached_file(backbone, choice.url)), source=choice.name)
    if found.backbone != backbone:
        raise InputError(
            f"{found.source}: has the weights of {found.backbone}, not of {backbone}; give others, or use that backbone"
        )
    return found


def _no_such_weights(weights: str, backbone: str) -> InputError:
    names = " or ".join(published(backbone)) or "DEFAULT"
    return InputError(f"weights {weights}: torchvision has none of that name for {backbone}; use {names}")


def normalisation(config: BackboneConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour (0..1) that goes with the weights of a backbone.

    Of a file they are those of torchvision's default weights.
    """
    choices = _published(config.backbone)
    transforms = choices.__members__.get(config.weights, choices.DEFAULT).transforms()
    return transforms.mean, transforms.std


def weights_of_file(path: Path) -> BackboneWeights:
    """Read a state dict with torchvision's keys, in fp16, fp32 or bf16; the backbone is the one that it fits.

    Keys of the classifier are left out, whatever their shapes are.

    Args:
        path: a file of `torch.save` (.pth, .pt), of which only tensors are read, no code is run; or a .safetensors.

    Raises:
        InputError: the file is missing or damaged, holds anything but the weights of a known backbone, or has numbers
            in it that are not finite.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    sha256, content = _read(path)
    state = {_renamed(key): value for key, value in _state_dict(path, content).items()}
    backbone = _matching_backbone(path, state)
    tensors = {}
    for key in _layout(backbone).shapes:
        tensors[key] = _num_batches(state.get(key)) if key.endswith(NUM_BATCHES) else _array(path, key, state[key])
    return BackboneWeights(backbone, str(path), sha256, tensors)


def _published(backbone: str) -> Any:
    """Return torchvision's enumeration of the published weights of a backbone."""
    from torchvision.models import get_model_weights  # lazily: torchvision takes as long to import as torch

    check_backbone(backbone)
    return get_model_weights(backbone)


def _cached_file(backbone: str, url: str) -> Path:
    """Return where `torch.hub` keeps the file at `url`; it is downloaded if absent, and its checksum is right."""
    file = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / os.path.basename(url)
    checksum = re.search(r"-([0-9a-f]{8,})\.", file.name)  # its beginning: torchvision has it in all names
    if not os.path.exists(file):
        _download(backbone, url, file, checksum and checksum[1])
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)}); remove it to have it downloaded again") from None
    if checksum and not found.startswith(checksum[1]):
        raise InputError(f"{file}: is damaged (wrong checksum); remove it to have it downloaded again")
    return file


def _download(backbone: str, url: str, file: Path, checksum: str | None) -> None:
    logger.info("downloading %s to %s", url, file.parent)
    try:
        with download_timeout():
            file.parent.mkdir(parents=True, exist_ok=True)
            # What load_state_dict_from_url does too (it moves the file when it is whole), but that prints to stdout,
            # and does not tell a download that failed from a file that is damaged.
            torch.hub.download_url_to_file(url, str(file), checksum)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise InputError(
            f"weights of {backbone}: cannot download {url} to {file.parent} ({one_line(error)}); put {file.name} into "
            f"that folder, or use `--weights PATH` with a file of your own, or `--weights none` (random weights)"
        ) from None


def _read(path: Path) -> tuple[str, Any]:
    """Return the SHA-256 of a file, and what it holds."""
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give a file in it ({', '.join(WEIGHTS_SUFFIXES)})")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; weights are {', '.join(WEIGHTS)} or the path of a file")
    if path.suffix.lower() not in WEIGHTS_SUFFIXES:
        raise InputError(f"{path}: the name of a file of weights must end in {', '.join(WEIGHTS_SUFFIXES)}")
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            start = stream.read(1)
            stream.seek(0)
            return sha256, _parse(path, stream, start)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}); give another, or change its permissions"
        ) from None


def _parse(path: Path, stream: BinaryIO, start: bytes) -> Any:
    """Return what is in a file, of which `start` is the first byte."""
    is_safetensors = path.suffix.lower() == ".safetensors"
    try:
        if is_safetensors:
            return safetensors.torch.load(stream.read())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of files that it then refuses
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # damage takes any form
        if _is_refusal(error, start):
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise InputError(
                f"{path}: holds more than tensors{f' ({name[1]})' if name else ''}, which could run code, and was not "
                f"opened for safety; save the state dict alone: torch.save(model.state_dict(), PATH)"
            ) from None
        kind = "safetensors file" if is_safetensors else "file of torch.save"
        reason = "" if isinstance(error, pickle.UnpicklingError) or not start else f": {one_line(error):.80}"
        raise InputError(
            f"{path}: is no whole {kind} ({'it is empty' if not start else 'damaged or something else'}{reason}); "
            f"copy or download it anew"
        ) from None


def _is_refusal(error: Exception, start: bytes) -> bool:
    """Whether `torch.load` understood the file and would not have it, rather than found that it is none of its own."""
    if isinstance(error, pickle.UnpicklingError):
        # Any text is full of instructions that torch does not know; a pickle, of whatever version, begins so.
        return "Unsupported operand" not in str(error) or start == pickle.PROTO
    return isinstance(error, RuntimeError) and "weights_only=True" in str(error)  # TorchScript, and tar files of old


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return what a file holds if it is a plain dict of tensors by name."""
    save = "save the state dict alone: torch.save(model.state_dict(), PATH)"
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors by name; {save}")
    if not content:
        raise InputError(f"{path}: holds no tensors; {save}")
    nested = [key for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
    if nested:
        key = min(nested, key=lambda key: key not in ("state_dict", "model"))  # beside an average of them, say
        raise InputError(
            f"{path}: has the weights inside of {key!r}; save them alone: "
            f"torch.save(torch.load({path.name!r}, weights_only=True)[{key!r}], PATH)"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: {key!r:.80} is a {type(value).__name__}, not a tensor with a name; {save}")
        if value.layout is not torch.strided or value.is_meta:
            raise InputError(f"{path}: {key!r:.80} is a sparse tensor or has no values; {save}")
    return content


def _renamed(key: str) -> str:
    for pattern, new in RENAMED:
        key = pattern.sub(new, key)
    return key


def _has_tensors(values: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


@dataclass(frozen=True)
class _Layout:
    """What a state dict of a backbone looks like."""

    shapes: Shapes
    """Of everything but the classifier, in its order."""
    classifier: str
    """What the keys of the classifier begin with, such as `fc.`."""

    def without_classifier(self, shapes: Shapes) -> Shapes:
        return {key: shape for key, shape in shapes.items() if not key.startswith(self.classifier)}


@lru_cache
def _layout(backbone: str) -> _Layout:
    made = make_backbone(backbone)
    shapes = {key: tuple(tensor.shape) for key, tensor in made.network.state_dict().items()}
    return _Layout(shapes, f"{made.classifier}.")


def _matching_backbone(path: Path, state: dict[str, Tensor]) -> str:
    """Return the backbone that has exactly the keys and shapes of `state`, `num_batches_tracked` apart."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    totals = _totals(shapes)

    def distance(backbone: str) -> int:
        # The right one, which alone is at distance 0, is built first: to build all of them takes seconds.
        num_params = _published(backbone).DEFAULT.meta["num_params"]
        return min(abs(num_params - total) for total in totals)

    problems: dict[str, list[str]] = {}
    for backbone in sorted(backbones(), key=distance):
        layout = _layout(backbone)
        if prefix := _prefix(shapes, layout.shapes):
            made_by = " (by DataParallel or DistributedDataParallel)" if prefix == "module." else ""
            raise InputError(
                f"{path}: its keys begin with {prefix!r}{made_by}; save them without: "
                f"{{key.removeprefix({prefix!r}): tensor for key, tensor in state_dict.items()}}"
            )
        problems[backbone] = _differences(layout.without_classifier(shapes), layout.shapes)
        if not problems[backbone]:
            return backbone
    nearest = min(problems, key=lambda backbone: len(problems[backbone]))
    more = f" and {len(problems[nearest]) - 3} more" if len(problems[nearest]) > 3 else ""
    raise InputError(
        f"{path}: fits no known backbone of torchvision; nearest is {nearest}, but {', '.join(problems[nearest][:3])}"
        f"{more}; give weights with torchvision's keys and shapes"
    )


def _totals(shapes: Shapes) -> set[int]:
    """How many parameters a network may have in all with a classifier of 1,000 classes, as torchvision counts them.

    The classifier is one of the matrices, of any number of classes, or left out: then something in front of it, norm or
    bias, is as wide as its features.
    """
    counted = sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(BUFFERS))
    replaced = {counted + (1000 - shape[0]) * (shape[1] + 1) for shape in shapes.values() if len(shape) == 2}
    added = {counted + 1000 * (shape[0] + 1) for shape in shapes.values() if len(shape) == 1}
    return replaced | added | {counted}


def _prefix(shapes: Shapes, expected: Shapes) -> str | None:
    """What the keys expected stand behind, if all of them do."""
    first = next(iter(expected))
    prefixes = [key.removesuffix(first) for key in shapes if key.endswith(first) and key != first]
    wanted = [key for key in expected if not key.endswith(NUM_BATCHES)]
    return next((prefix for prefix in prefixes if all(prefix + key in shapes for key in wanted)), None)


def _differences(shapes: Shapes, expected: Shapes) -> list[str]:
    """Say of each key, but `num_batches_tracked`, in what way `shapes` are not those expected."""
    found = []
    for key, shape in expected.items():
        if key.endswith(NUM_BATCHES):
            continue
        if key not in shapes:
            found.append(f"{key} is missing")
        elif shapes[key] != shape and not (key == POSITIONS and _are_positions(shapes[key], shape)):
            found.append(f"{key} is {shapes[key]} instead of {shape}")
    extra = [key for key in shapes if key not in expected and not key.endswith(NUM_BATCHES)]
    return found + [f"{key!r:.80} is unknown" for key in extra]


def _are_positions(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether they are those of another size of images: that is no difference, since they are interpolated."""
    return len(shape) == 3 and shape[::2] == expected[::2] and math.isqrt(max(0, shape[1] - 1)) ** 2 == shape[1] - 1 > 0


def _num_batches(tensor: Tensor | None) -> np.ndarray:
    # Casting a whole state dict to fp16 casts this as well, into infinity where it was above 65,504.
    known = tensor is not None and tensor.numel() == 1 and tensor.dtype is torch.int64
    return np.array(int(tensor) if tensor is not None and known else 0, dtype=np.int64)


def _array(path: Path, key: str, tensor: Tensor) -> np.ndarray:
    if key.endswith(POSITION_INDEX):
        return tensor.long().numpy(force=True)
    if tensor.dtype not in DTYPES:
        raise InputError(f"{path}: {key} is of type {tensor.dtype}; save it as float32 or float16")
    if not tensor.isfinite().all():
        raise InputError(
            f"{path}: {key} has numbers that are not finite; the training that made it failed: use another"
        )
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return tensor.contiguous().numpy(force=True)


def backbones_with(weights: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The backbones that a space may draw: those of `usual` that have such weights, or that of a file.

    Raises:
        InputError: none has, or it is a file without such weights.
    """
    if weights in ("DEFAULT", "none"):
        return usual
    if weights not in WEIGHTS:
        return (weights_of_file(Path(weights)).backbone,)
    found = tuple(backbone for backbone in usual if weights in published(backbone))
    if not found:
        raise _no_such_weights(weights, usual[0])
    return found

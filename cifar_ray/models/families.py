"""The backbones that are known: torchvision's classification networks, without classifier and cut into stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cifar_ray.config import family_of
from cifar_ray.errors import InputError

CONTAINERS = ("features", "trunk_output", "encoder", "encoder.layers")
"""What holds the layers of a network, in the order in which they run; of others the network itself does."""

POSITIONS = "encoder.pos_embedding"
"""Key of what a vision transformer knows of the places of its patches: (1, 1 + how many there are, D)."""


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision without its classifier: (B, 3, S, S) floats -> features (B, `width`)."""

    network: nn.Module
    width: int
    classifier: str
    """Name of the last dense layer, which the network has no more: `fc`, `classifier.3` ..."""
    stages: list[list[str]]
    """Names of what stands in each stage, modules and parameters, from the stem to the last."""


def backbones() -> tuple[str, ...]:
    """Return torchvision's names of all that are known."""
    # Lazily, here and below: torchvision takes as long to import as torch.
    import torchvision

    return tuple(name for name in torchvision.models.list_models(module=torchvision.models) if family_of(name))


def check_backbone(backbone: str) -> None:
    """Raise InputError where torchvision has none of that name."""
    if backbone not in backbones():
        family = family_of(backbone)
        known = ", ".join(name for name in backbones() if family in (None, family_of(name)))
        raise InputError(f"model/backbone: torchvision has no {backbone!r}; take one of {known}")


def patch_size(backbone: str) -> int:
    """Side in pixels of the patches of a vision transformer, which torchvision names it after."""
    return int(backbone.rpartition("_")[2])


def make_backbone(backbone: str, image_size: int | None = None, drawn: bool = False) -> Backbone:
    """Build a backbone.

    Args:
        backbone: one of :func:`backbones`.
        image_size: side of the images in pixels; None is what torchvision's weights were trained on.
        drawn: whether its parameters are drawn, from torch's global random state and on the default device; else they
            are on the device "meta", and take neither memory nor time.

    Raises:
        InputError: there is no such backbone.
    """
    from torchvision.models import get_model

    check_backbone(backbone)
    # Only these networks are made for one size.
    fixed = family_of(backbone) == "vision_transformer" and image_size is not None
    options = {"image_size": image_size} if fixed else {}
    with nullcontext() if drawn else torch.device("cpu"), nullcontext() if drawn else _WithoutMemory():
        network = get_model(backbone, weights=None, **options)
    stages = _stages(network)
    dense = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    classifier = network.get_submodule(dense[-1])
    assert isinstance(classifier, nn.Linear)
    network.set_submodule(dense[-1], nn.Identity())
    _without_last_dropout(network)
    return Backbone(network, classifier.in_features, dense[-1], stages)


class _WithoutMemory(TorchFunctionMode):
    """What `torch.empty` makes, such as the parameters of layers, is on the device "meta".

    All else is not, other than with `torch.device("meta")`, since a RegNet computes its widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _without_last_dropout(network: nn.Module) -> None:
    """The dropout in front of the classifier goes with it: the head has its own."""
    name, module = [(name, module) for name, module in network.named_modules() if not list(module.children())][-2]
    if isinstance(module, nn.Dropout):
        network.set_submodule(name, nn.Identity())


# ---- stages ----


def _stages(network: nn.Module) -> list[list[str]]:
    """Cut a network where its resolution falls; a vision transformer, whose does not, after each quarter of its blocks.

    A cut in front of which nothing could train is none. What belongs to no layer, such as the embedding of positions,
    belongs to the stem.
    """
    from torchvision.models.vision_transformer import EncoderBlock

    layers = list(_layers(network))
    blocks = [name for name, module in layers if isinstance(module, EncoderBlock)]
    quarters = blocks[:: max(1, len(blocks) // 4)]
    stages: list[list[str]] = [[]]
    trainable = False
    for name, module in layers:
        if trainable and (name in quarters or _falls_in(module)):
            stages.append([])
            trainable = False
        stages[-1].append(name)
        trainable |= any(True for _ in module.parameters())
    names = [name for name, _ in layers]
    stages[0] += [
        name for name, _ in network.named_parameters() if not any(name.startswith(f"{one}.") for one in names)
    ]
    return stages


def _layers(network: nn.Module, container: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers by name, in their order; those in `CONTAINERS` one by one."""
    for child, module in network.get_submodule(container).named_children():
        name = f"{container}.{child}".lstrip(".")
        if name in CONTAINERS:
            yield from _layers(network, name)
        else:
            yield name, module


def _falls_in(module: nn.Module) -> bool:
    """Whether the resolution falls in a layer."""
    from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2

    return isinstance(module, PatchMerging | PatchMergingV2) or any(
        getattr(one, "stride", 1) not in (1, (1, 1)) for one in module.modules()
    )

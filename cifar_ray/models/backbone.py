"""A network of torchvision with a head of its own, fine-tuned as :class:`~cifar_ray.config.BackboneConfig` says."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from cifar_ray.config import FINETUNED_STAGES, BackboneConfig, family_of
from cifar_ray.errors import InputError
from cifar_ray.models.families import POSITIONS, make_backbone, patch_size

LEAST_SIZE = {"alexnet": 63}
"""Side of the images in pixels below which the last stage would see less than one pixel, by family; of others 32."""

CIFAR_STEM_SIZE = 8
"""The same of a ResNet with that stem."""


class BackboneNet(nn.Module):
    """A backbone of torchvision and a head: (B, C, H, W) floats -> logits (B, num_classes); C is 1 or 3.

    A backbone with weights is all zeros until :meth:`load_backbone` or a saved model brings them.

    Raises:
        InputError: there is no such backbone, or it cannot take such images.
    """

    def __init__(self, config: BackboneConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        _check_size(config, image_size)
        self.config = config
        self.image_size = image_size
        # Weights that will be replaced need not be drawn: that takes as long as a trial of a head.
        device = torch.get_default_device()
        drawn = config.weights == "none" and device.type != "meta"
        backbone = make_backbone(config.backbone, image_size, drawn)
        self.backbone, self.stages, width = backbone.network, backbone.stages, backbone.width
        if config.stem == "cifar":
            filters = self.backbone.get_parameter("conv1.weight")
            with torch.device(filters.device):
                self.backbone.set_submodule("conv1", nn.Conv2d(3, len(filters), 3, padding=1, bias=False))
            self.backbone.set_submodule("maxpool", nn.Identity())
        if not drawn:
            self.backbone.to_empty(device=device)
            for tensor in self.backbone.state_dict().values():
                tensor.zero_()
        layers: list[nn.Module] = []
        for hidden in config.head_hidden:
            layers += [nn.Dropout(config.head_dropout), nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Dropout(config.head_dropout), nn.Linear(width, num_classes))
        self.unfreeze(1, 1)

    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters of the backbone, part by part, from the last stage to the stem."""
        named = list(self.backbone.named_parameters())
        return [
            [parameter for name, parameter in named if any(f"{name}.".startswith(f"{one}.") for one in stage)]
            for stage in reversed(self.stages)
        ]

    def lr_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """The parameters that ever train, with the learning rate of each group as a multiple of the head's."""
        config = self.config
        parts = self.parts()[: FINETUNED_STAGES[config.finetune]]
        if config.weights == "none":
            return [(1.0, [*self.head.parameters(), *chain.from_iterable(parts)])]
        rates = [config.backbone_lr * config.layer_decay**depth for depth in range(len(parts))]
        return [(1.0, list(self.head.parameters())), *zip(rates, parts, strict=True)]

    def unfreeze(self, epoch: int, max_epochs: int) -> bool:
        """Let those parts train that do in `epoch` (from 1); return whether that changes anything.

        `gradual` adds a part after each tenth of the horizon.
        """
        parts = self.parts()
        trained = parts[: FINETUNED_STAGES[self.config.finetune]]
        number = 10 * (epoch - 1) // max_epochs if self.config.finetune == "gradual" else len(trained)
        before = [part[0].requires_grad for part in parts]
        for index, part in enumerate(parts):
            for parameter in part:
                parameter.requires_grad_(index < number)
        return before != [part[0].requires_grad for part in parts]

    def train(self, mode: bool = True) -> "BackboneNet":
        """As of any module, but what is frozen stays in eval mode, with its batch norm and dropout."""
        super().train(mode)
        modules = dict(self.backbone.named_modules())
        for stage, part in zip(reversed(self.stages), self.parts(), strict=True):
            if not part[0].requires_grad:
                for name in modules.keys() & set(stage):
                    modules[name].eval()
        for module in modules.values():
            if self.config.freeze_norm_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @torch.no_grad()
    def load_backbone(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take pretrained weights, by torchvision's keys; positions are interpolated where images have another size."""
        state = OrderedDict((name, torch.as_tensor(array)) for name, array in tensors.items())
        if self.config.stem == "cifar":
            state["conv1.weight"] = state["conv1.weight"][:, :, 2:5, 2:5]
        if POSITIONS in state:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state[POSITIONS] = state[POSITIONS].float()
            state = interpolate_embeddings(self.image_size, patch_size(self.config.backbone), state)
        self.backbone.load_state_dict(state)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D), pooled, in front of the head."""
        return self.backbone(x.expand(-1, 3, -1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _check_size(config: BackboneConfig, image_size: int) -> None:
    family = family_of(config.backbone)
    least = CIFAR_STEM_SIZE if config.stem == "cifar" else LEAST_SIZE.get(family or "", 32)
    if image_size < least:
        stem = f" with stem {config.stem!r}" if family == "resnet" else ""
        raise InputError(
            f"image_size: {config.backbone}{stem} needs images of at least {least} pixels, not {image_size}; set a "
            "larger image_size"
        )
    if family == "vision_transformer" and image_size % patch_size(config.backbone):
        raise InputError(
            f"image_size: {config.backbone} cuts images into patches of {patch_size(config.backbone)} pixels, and "
            f"{image_size} is no multiple of that; set an image_size that is one"
        )

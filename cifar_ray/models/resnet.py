"""A ResNet of torchvision with a head of its own, fine-tuned as :class:`~cifar_ray.config.ResNetConfig` says."""

from collections.abc import Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from cifar_ray.config import FINETUNED_STAGES, ResNetConfig
from cifar_ray.errors import InputError
from cifar_ray.models.pretrained import backbones

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels (0..1) that torchvision's weights were trained on."""

LEAST_SIZE = {"imagenet": 32, "cifar": 8}
"""Side of the images in pixels below which the last stage would see less than one pixel, by stem."""


class ResNet(nn.Module):
    """A torchvision ResNet and a head: (B, C, H, W) floats -> logits (B, num_classes); C is 1 or 3.

    A backbone with weights is all zeros until :meth:`load_backbone` or a saved model brings them.

    Raises:
        InputError: there is no such backbone, or the images are too small for it.
    """

    def __init__(self, config: ResNetConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        if image_size < LEAST_SIZE[config.stem]:
            raise InputError(
                f"image_size: {config.backbone} with stem {config.stem!r} needs images of at least "
                f"{LEAST_SIZE[config.stem]} pixels, not {image_size}; set a larger image_size"
            )
        self.config = config
        self.backbone, width = _make_backbone(config)
        layers: list[nn.Module] = []
        for hidden in config.head_hidden:
            layers += [nn.Dropout(config.head_dropout), nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Dropout(config.head_dropout), nn.Linear(width, num_classes))
        self.unfreeze(1, 1)

    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters of the backbone in five parts, from the last stage to the stem."""
        parts = [("layer4",), ("layer3",), ("layer2",), ("layer1",), ("conv1", "bn1")]
        named = dict(self.backbone.named_children())
        return [[parameter for name in part for parameter in named[name].parameters()] for part in parts]

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
        number = FINETUNED_STAGES[self.config.finetune]
        if self.config.finetune == "gradual":
            number = min(number, 10 * (epoch - 1) // max_epochs)
        before = [part[0].requires_grad for part in self.parts()]
        for index, part in enumerate(self.parts()):
            for parameter in part:
                parameter.requires_grad_(index < number)
        return before != [part[0].requires_grad for part in self.parts()]

    def train(self, mode: bool = True) -> "ResNet":
        """As of any module, but batch norm that is frozen stays in eval mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = self.config.freeze_norm_statistics or not module.weight.requires_grad
                module.train(mode and not frozen)
        return self

    @torch.no_grad()
    def load_backbone(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take pretrained weights, by torchvision's keys."""
        state = {name: torch.as_tensor(array) for name, array in tensors.items()}
        if self.config.stem == "cifar":
            state["conv1.weight"] = state["conv1.weight"][:, :, 2:5, 2:5]
        self.backbone.load_state_dict(state)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (B, D) of the last stage."""
        return self.backbone(x.expand(-1, 3, -1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _make_backbone(config: ResNetConfig) -> tuple[nn.Module, int]:
    """The network without its classifier, and the width of its features."""
    from torchvision import models  # takes a second, which trials of CNNs need not pay

    if config.backbone not in backbones():
        known = ", ".join(backbones())
        raise InputError(f"model/backbone: torchvision has no ResNet {config.backbone!r}; take one of {known}")
    # Weights that will be replaced need not be drawn: that takes as long as a trial of a head.
    device = torch.get_default_device()
    with torch.device(device if config.weights == "none" else "meta"):
        backbone = models.get_model(config.backbone, weights=None)
        width = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if config.stem == "cifar":
            backbone.conv1 = nn.Conv2d(3, backbone.conv1.out_channels, 3, padding=1, bias=False)
            backbone.maxpool = nn.Identity()
    if config.weights != "none":
        backbone = backbone.to_empty(device=device)
        for tensor in backbone.state_dict().values():
            tensor.zero_()
    return backbone, width

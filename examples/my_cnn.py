"""A network of your own, for `--module examples/my_cnn.py:Net`.

It is called as `Net(num_classes=..., channels=..., image_size=..., **params)`; what has a default here is a parameter
that `--set model/params/width=64` changes. One file holds all of it: what it imports has to be installed.
"""

from itertools import pairwise

from torch import Tensor, nn


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution that halves the resolution: (B, C, H, W) -> (B, D, H/2, W/2), rounded up."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(out_channels), nn.ReLU())


class Net(nn.Module):
    """`depth` blocks, each twice as wide as the one before it: (B, C, S, S) floats -> logits (B, num_classes)."""

    def __init__(
        self, num_classes: int, channels: int, image_size: int, width: int = 32, depth: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [channels, *(width * 2**index for index in range(depth))]
        self.blocks = nn.Sequential(*(block(i, o) for i, o in pairwise(widths)))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)  # (B, D, H', W')
        x = x.mean((2, 3))  # (B, D)
        return self.classifier(self.dropout(x))

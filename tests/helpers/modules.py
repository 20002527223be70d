"""Networks of the user's own, as their files are read."""

from pathlib import Path
from typing import Any

from cifar_ray.config import ModuleConfig, OptimizerConfig, TrialConfig
from cifar_ray.models.module import read_module

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

VIEW = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, channels, image_size, width=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(width * image_size**2, num_classes)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.out(x.view(len(x), -1))
"""
"""A small network as tutorials have them: `view` wants its images in the plain order. A part of it is not used."""

VIEW_NETWORK = ModuleConfig("my_net.py", "Net", VIEW, {"width": 4})


def own_module(folder: Path, source: str, name: str = "Net") -> ModuleConfig:
    """What `--module` makes of a file with this source."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_net.py").write_text(source)
    return read_module(f"{folder / 'my_net.py'}:{name}")


def own_config(folder: Path, source: str = VIEW, **changes: Any) -> TrialConfig:
    """A configuration with such a network."""
    given: dict[str, Any] = {"batch_size": 16, "optimizer": OptimizerConfig(lr=0.05), **changes}
    return TrialConfig(family="module", model=own_module(folder, source), **given)

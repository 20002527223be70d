"""What processes that train have in common: data and weights, and a state that every training finds alike."""

import ctypes
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from cifar_ray.config import BackboneConfig, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.families import check_backbone
from cifar_ray.models.pretrained import load_weights
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment

Pretrained = dict[str, "ray.ObjectRef[dict[str, np.ndarray]]"]
"""References to the weights by :func:`_key`."""


def put_weights(configs: Iterable[TrialConfig]) -> tuple[Pretrained, list[dict[str, Any]]]:
    """Read all weights that the configurations start from, and put them where every process finds them.

    Returns:
        What :func:`get_weights` takes, and the facts for run.json: `backbone`, `source` and `sha256`.

    Raises:
        InputError: some cannot be read or downloaded, or torchvision has no such backbone.
    """
    refs: Pretrained = {}
    facts = []
    for config in configs:
        if isinstance(config.model, BackboneConfig):
            check_backbone(config.model.backbone)
        key = _key(config)
        if key is None or key in refs:
            continue
        assert isinstance(config.model, BackboneConfig)
        found = load_weights(config.model.backbone, config.model.weights)
        refs[key] = ray.put(found.tensors)
        facts.append({"backbone": found.backbone, "source": found.source, "sha256": found.sha256})
    return refs, facts


def get_weights(refs: Pretrained, config: TrialConfig) -> Mapping[str, np.ndarray] | None:
    """The weights that a configuration starts from, if it has any; shared by the processes of a machine."""
    key = _key(config)
    if key is not None and key not in refs:
        raise InputError(f"the weights {key} were not among those of the configurations sampled at the start")
    return None if key is None else ray.get(refs[key])


def give_back_memory() -> None:
    """Have the C library return what it keeps of tensors that are freed; some do by themselves, and have no such call.

    Networks of other sizes leave it in pieces that are too small for the next one: hundreds of megabytes after some
    dozen trials (`benchmarks/memory.py`).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def granted_device() -> torch.device:
    """The device that Ray gave to this process."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def _key(config: TrialConfig) -> str | None:
    model = config.model
    return (
        f"{model.backbone} {model.weights}" if isinstance(model, BackboneConfig) and model.weights != "none" else None
    )


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a search share."""

    data: list["ray.ObjectRef[dict[str, np.ndarray]]"]
    """References to the arrays of `DeviceData.from_arrays`, one for each way that the images are split; all but an
    ablation have one. In a list, so that Ray passes them on as they are."""
    num_classes: int
    max_epochs: int
    patience: int | None
    """See `loop.Experiment`; None is none."""
    metric: str
    """What best weights are chosen by, and what is told to ASHA and Optuna."""
    num_threads: int
    """CPU threads of a trial."""
    pretrained: Pretrained = field(default_factory=dict)
    """What backbones start from."""

    def experiment(self, config: TrialConfig, seed: int) -> Experiment:
        """The training of one configuration."""
        return Experiment(config, seed, self.max_epochs, self.metric, self.patience)


class Process:
    """What a process keeps from one training to the next: the data on its device.

    Ray calls functions, one after another, in a process that it uses again. What they are to find there has to belong
    to the process: there is one object of this class in each, `PROCESS`.
    """

    def __init__(self) -> None:
        self._data: tuple[str, DeviceData] | None = None
        """With the reference that it came from; one data set at most."""

    def reset(self, seed: int, num_threads: int) -> None:
        """Bring the process into the state of a fresh one, as far as a training can see it."""
        give_back_memory()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        torch.set_num_threads(num_threads)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = False
        torch.set_grad_enabled(True)

    def load_data(
        self, ref: "ray.ObjectRef[dict[str, np.ndarray]]", num_classes: int, device: torch.device
    ) -> DeviceData:
        """Return the data of `ref` on a device, uploaded once."""
        key = ref.hex()
        if self._data is None or self._data[0] != key:
            self._data = None  # what it held is free before more is uploaded
            self._data = key, DeviceData.from_arrays(ray.get(ref), num_classes, device)
        return self._data[1]


PROCESS = Process()
"""This one."""

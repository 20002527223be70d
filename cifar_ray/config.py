"""The configuration of one model and its training, as validated dataclasses.

A search space returns a plain nested dict; :func:`trial_config` turns it into a :class:`TrialConfig` or says in
one line what is wrong with it. Budgets (epochs, patience) are not part of a configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from cifar_ray.errors import InputError

WEIGHTS = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2", "none")
"""Names of backbone weights; all else is the path of a file."""

WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
Rate = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]

Flip = Literal["none", "random", "alternating"]

Precision = Literal["fp32", "bf16"]

STRICT_KEYS = pydantic.ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a search space may look at: facts that stay fixed for a whole run."""

    num_classes: int
    """Number of classes."""
    channels: int
    """Image channels: 1 (grayscale) or 3 (RGB)."""
    image_size: int
    """Side of the square images, in pixels."""
    num_train: int
    """Number of training images (validation excluded)."""
    device: Literal["cpu", "cuda"]
    """Kind of device that trials run on."""
    flips: tuple[Flip, ...] = ("none", "random", "alternating")
    """Values of `augment/flip` that make sense: only `none` where a mirrored image is another class."""
    imbalance: float = 1.0
    """Training images of the largest class over those of the smallest."""
    weights: str = "DEFAULT"
    """Backbone weights, see `BackboneConfig.weights`."""
    backbones: tuple[str, ...] = ("resnet18", "resnet50")
    """Names of the backbones that have such weights."""


@dataclass(frozen=True, config=STRICT_KEYS)
class CNNConfig:
    """A convolutional network of stages. Each stage halves the resolution (max pooling in its first block)."""

    widths: list[Positive] = field(default_factory=lambda: [32, 64, 128])
    """Channels of each stage; its length is the number of stages."""
    blocks: list[Positive] = field(default_factory=lambda: [1, 1, 1])
    """Blocks (one convolution each) of each stage."""
    whitening: bool = False
    """Put a 2x2 convolution in front, whose frozen filters whiten the patches of the training images, with a learned
    bias and the activation (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv:2404.00498)."""
    init: Literal["kaiming", "dirac"] = "kaiming"
    """How filters begin: `kaiming` draws all of them (He et al. 2015, arXiv:1502.01852), with `dirac` the first of a
    block's pass on its input channels (Zagoruyko and Komodakis 2017, arXiv:1706.00388; Jordan 2024)."""
    kernel_sizes: list[Literal[1, 3, 5, 7]] = field(default_factory=lambda: [3, 3, 3])
    """Side of the square filters of each stage, in pixels."""
    activation: Literal["relu", "mish", "silu", "gelu"] = "relu"
    """Activation function of the blocks and of the hidden dense layer."""
    norm: Literal["none", "batch", "group", "evonorm_s0", "evonorm_b0"] = "batch"
    """Normalisation layer. The two EvoNorms are normalisation and activation in one: with them the blocks ignore
    `activation` and `norm_placement`."""
    norm_placement: Literal["before_activation", "after_activation", "before_conv"] = "before_activation"
    """Where the normalisation stands: conv-norm-act, conv-act-norm or norm-conv-act."""
    pool_placement: Literal["before_norm", "after_norm"] = "before_norm"
    """Whether a pooling block pools before or after its normalisation."""
    residual: bool = False
    """Whether a block that keeps its shape adds its input to its output."""
    dropout: Rate = 0.0
    """Probability of dropping a whole channel at the end of each block."""
    head_pool: Literal["avg", "max", "flatten"] = "avg"
    """What becomes of the last stage's pixels: their mean, their maximum, or `flatten`, which keeps them all (the next
    layer then grows with the square of the image size)."""
    head_hidden: NonNegative = 0
    """Width of a hidden dense layer, with activation, in front of the classifier; 0 is none."""
    head_dropout: Rate = 0.0
    """Probability of dropping a feature in front of the classifier."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.blocks) == len(self.kernel_sizes) > 0:
            raise ValueError("widths, blocks and kernel_sizes need one entry per stage, and at least one stage")


FAMILIES = {
    "alexnet": ("alexnet",), "convnext": ("convnext_",), "densenet": ("densenet",), "efficientnet": ("efficientnet_",),
    "mobilenetv2": ("mobilenet_v2",), "mobilenetv3": ("mobilenet_v3_",),
    "regnet": ("regnet_",), "resnet": ("resnet", "resnext", "wide_resnet"), "shufflenetv2": ("shufflenet_v2_",),
    "swin_transformer": ("swin_",), "vgg": ("vgg",), "vision_transformer": ("vit_",),
}  # fmt: skip
"""Families of backbones, by the name of torchvision's module, and how the names of theirs begin."""


MOSTLY_DENSE = ("alexnet", "convnext", "swin_transformer", "vgg", "vision_transformer")
"""Families of which most parameters are those of dense layers, not of filters."""


def family_of(backbone: str) -> str | None:
    """The family of a backbone, by its name; None where it is of none that is known."""
    return next((family for family, starts in FAMILIES.items() if backbone.startswith(starts)), None)


FINETUNED_STAGES = {"head": 0, "last_stage": 1, "last_two_stages": 2, "all": None, "gradual": None}
"""How many parts of the backbone each choice of `BackboneConfig.finetune` trains, counted from the head: its stages and
the stem. None is all of them."""


@dataclass(frozen=True, config=STRICT_KEYS)
class BackboneConfig:
    """A network of torchvision with a head of its own, and how its pretrained weights are fine-tuned."""

    backbone: str
    """torchvision's name of a classification network of `FAMILIES`: `resnet18`, `efficientnet_b0` ..."""
    weights: str = "DEFAULT"
    """What the backbone starts from: `IMAGENET1K_V1` or `IMAGENET1K_V2` (torchvision's download), `DEFAULT` (the better
    one), `none` (random), or the path of a file with torchvision's keys."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """`imagenet` is the backbone's own, which of a ResNet reduces the image four times before the first stage. `cifar`,
    for ResNets alone, does not: a 3x3 convolution (of pretrained filters the centre) without stride or pooling."""
    finetune: Literal["head", "last_stage", "last_two_stages", "all", "gradual"] = "all"
    """What trains beside the head. `gradual` adds a stage after each tenth of the horizon, from the last to the stem
    (Howard and Ruder 2018, arXiv:1801.06146)."""
    backbone_lr: PositiveFloat = 0.1
    """Learning rate of the backbone, as a multiple of the head's."""
    layer_decay: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate for each further stage away from the head (as arXiv:1801.06146)."""
    freeze_norm_statistics: bool = False
    """Keep the batch-norm statistics of the pretrained weights also in the parts that train."""
    head_hidden: list[Positive] = field(default_factory=list)
    """Widths of hidden dense layers, with ReLU and dropout, in front of the classifier."""
    head_dropout: Rate = 0.0
    """Probability of dropping a feature in front of each dense layer of the head."""
    feature_views: Positive = 1
    """With `finetune` `head`: versions of each training image whose features are computed, once, before the head trains
    on them. The first is the image itself, the others are drawn by `augment`; epochs take turns."""

    def __post_init__(self) -> None:
        family = family_of(self.backbone)
        if family is None:
            known = ", ".join(f"{start}..." for starts in FAMILIES.values() for start in starts)
            raise ValueError(f"backbone {self.backbone!r} is not known; take one of torchvision's {known}")
        if self.stem == "cifar" and family != "resnet":
            raise ValueError(f"{self.backbone} has no stem 'cifar', which is for ResNets; use 'imagenet'")
        if self.weights == "none" and self.finetune != "all":
            raise ValueError(f"finetune {self.finetune!r} freezes a backbone of random weights; use 'all', or weights")
        if self.stem == "cifar" and self.finetune not in ("all", "gradual"):
            raise ValueError(
                f"finetune {self.finetune!r} would freeze the stem 'cifar', which needs training; use 'all'"
            )
        if self.weights == "none" and self.freeze_norm_statistics:
            raise ValueError("freeze_norm_statistics needs weights; a network of random weights has no statistics")
        if self.finetune != "head" and self.feature_views != 1:
            raise ValueError(f"feature_views goes with finetune 'head', not {self.finetune!r}")


@dataclass(frozen=True, config=STRICT_KEYS)
class ModuleConfig:
    """A network of the user's own, from a Python file: a class or a function that gives an `nn.Module`.

    It is called as `name(num_classes=..., channels=..., image_size=..., **params)`. The network takes normalised floats
    (B, channels, image_size, image_size) and gives logits (B, num_classes).
    """

    file: str
    """Name of the file, for messages."""
    name: str
    """Of the class or function in it."""
    source: str = field(repr=False)
    """Text of the file: it travels with the configuration, and is run wherever the network is built."""
    params: dict[str, pydantic.JsonValue] = field(default_factory=dict)
    """What else it is called with."""


@dataclass(frozen=True, config=STRICT_KEYS)
class OptimizerConfig:
    """The optimizer and its peak learning rate."""

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """`sgd` is SGD with Nesterov momentum; `muon` is Muon for convolution filters and AdamW for all else."""
    lr: PositiveFloat = 0.1
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay of convolution and linear weights; norm parameters and biases have none."""
    momentum: Rate = 0.9
    """Nesterov momentum of `sgd` and `muon`, first beta of AdamW."""
    lookahead: bool = False
    """Let the weights go half of the way back to where they were five steps before, every five steps (Zhang et al.
    2019, arXiv:1907.08610)."""


@dataclass(frozen=True, config=STRICT_KEYS)
class LRScheduleConfig:
    """How the learning rate moves from its peak over the training horizon."""

    name: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "one_cycle"
    """`step` divides by 10 at 1/2 and 3/4 of the horizon; `one_cycle` warms up linearly and anneals linearly to zero: a
    triangle (Smith and Topin 2017, arXiv:1708.07120); `plateau` divides by 3 when the validation loss has not fallen
    for 2 epochs."""
    warmup: Rate = 0.25
    """Fraction of the horizon spent warming up (`one_cycle` and `cosine`)."""

    @property
    def anneals(self) -> bool:
        """Whether the rate falls up to the last epoch, so that a training that ends early is cut short."""
        return self.name in ("one_cycle", "cosine")


@dataclass(frozen=True, config=STRICT_KEYS)
class AugmentConfig:
    """Batched augmentation of the training images."""

    crop_padding: NonNegative = 0
    """Random crop after padding this many pixels on each side by reflection; 0 is off."""
    flip: Flip = "none"
    """Mirror images left to right: `random` half of them, drawn anew in each epoch; `alternating` half of them in the
    first epoch, and from then on each image in every other epoch (Jordan 2024, arXiv:2404.00498)."""
    cutout: NonNegative = 0
    """Side of a square blanked at a random place, in pixels; 0 is off."""
    policy: Literal["none", "trivialaugment", "randaugment"] = "none"
    """Operations such as rotate, posterize or sharpen, after crop, flip and cutout: `trivialaugment` draws one and how
    strong it is (Mueller and Hutter 2021, arXiv:2103.10158; of its wide space, whose shifts by up to 32 pixels empty
    smaller images), `randaugment` two of moderate strength (Cubuk et al. 2020, arXiv:1909.13719)."""
    color_jitter: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] = 0.0
    """How far brightness, contrast and saturation change: each is multiplied by a number drawn from 1 - x to 1 + x; 0
    is off. Images of one channel have no saturation."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Mix each image of a batch, and its label, with another one: `mixup` their pixels (Zhang et al. 2018,
    arXiv:1710.09412), `cutmix` puts a rectangle of the other into it (Yun et al. 2019, arXiv:1905.04899)."""
    mix_alpha: Annotated[float, pydantic.Field(ge=0.01, le=1000.0)] = 1.0
    """The share of each image in the mix is drawn from Beta(alpha, alpha), once for a batch: 1 is uniform, less mixes
    less. What is below 0.01 float32 cannot draw."""

    @pydantic.field_validator("flip", mode="before")
    @classmethod
    def _flip_of_older_records(cls, flip: Any) -> Any:
        """In configurations that were saved before flips could alternate, it is true or false."""
        return {True: "random", False: "none"}[flip] if isinstance(flip, bool) else flip


@dataclass(frozen=True, config=STRICT_KEYS)
class TrialConfig:
    """Everything that defines a model and how it is trained, but its data, its budget and its seed."""

    family: str = "cnn"
    """Model family: `cnn`, `module`, or that of the backbone, see `FAMILIES`."""
    model: CNNConfig | BackboneConfig | ModuleConfig = field(default_factory=CNNConfig)
    """Architecture, and what of it trains."""
    image_size: Annotated[int, pydantic.Field(ge=8, le=1024)] | None = None
    """Side in pixels that the model itself brings its images to; None takes them as they are."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    lr_schedule: LRScheduleConfig = field(default_factory=LRScheduleConfig)
    """Learning-rate schedule."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    batch_size: Positive = 128
    """Images per optimizer step, over all workers together."""
    label_smoothing: Rate = 0.0
    """Label smoothing of the training loss."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all workers of a model, instead of each worker's own (GPUs only)."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much an image counts in the training loss: `balanced` gives all classes the same share of it."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation: with `flip` the logits of an image are the mean of its own and of its mirror image's. It
    is part of the model, which takes twice as long for it, wherever it is evaluated or used."""
    precision: Precision = "fp32"
    """What the network computes in, in training and afterwards; with `bf16` weights stay fp32, and PyTorch's autocast
    chooses what is computed in bfloat16. The models of a run all have the same: `--precision`."""

    @pydantic.field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        if family not in MODEL_CONFIGS:
            raise ValueError(f"must be one of {', '.join(MODEL_CONFIGS)}")
        return family

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _model_of_family(cls, model: Any, info: pydantic.ValidationInfo) -> Any:
        kind = MODEL_CONFIGS.get(info.data.get("family", ""))
        return kind.validate_python(model) if kind else model

    def __post_init__(self) -> None:
        if self.family in FAMILIES and not isinstance(self.model, BackboneConfig):
            raise ValueError(f"family {self.family} needs a model with a backbone")
        if self.family == "module" and not isinstance(self.model, ModuleConfig):
            raise ValueError("family module needs a model with a source")
        if isinstance(self.model, BackboneConfig) and self.family != family_of(self.model.backbone):
            raise ValueError(f"{self.model.backbone} is of family {family_of(self.model.backbone)}, not {self.family}")
        if isinstance(self.model, BackboneConfig) and self.family in MOSTLY_DENSE and self.optimizer.name == "muon":
            raise ValueError(
                f"optimizer muon trains filters, and most of {self.model.backbone} are dense layers; use adamw or sgd"
            )
        if self.augment.mix != "none" and self.batch_size == 1:
            raise ValueError(
                f"augment/mix {self.augment.mix!r} mixes the images of a batch, and batch_size is 1; use a larger one"
            )
        if isinstance(self.model, BackboneConfig) and self.model.finetune == "head":
            if self.augment.mix != "none":
                raise ValueError(
                    f"augment/mix {self.augment.mix!r} needs images, and with finetune 'head' features of them are "
                    "kept; use 'none', or fine-tune more"
                )
            if self.model.feature_views == 1 and self.augment != AugmentConfig():
                raise ValueError(
                    "augment needs feature_views of 2 or more with finetune 'head', whose features are kept"
                )
            if self.tta != "none":
                raise ValueError(f"tta {self.tta!r} needs images, and with finetune 'head' features of them are kept")
            if self.optimizer.name == "muon":
                raise ValueError("optimizer muon trains filters, and finetune 'head' trains none; use adamw or sgd")

    @property
    def trains_head_only(self) -> bool:
        """Whether all but the head is frozen, so that its inputs can be computed once."""
        return isinstance(self.model, BackboneConfig) and self.model.finetune == "head"

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a plain nested dict that :func:`trial_config` reads back."""
        return dataclasses.asdict(self)


MODEL_CONFIGS: dict[str, pydantic.TypeAdapter[Any]] = {
    "cnn": pydantic.TypeAdapter(CNNConfig),
    **dict.fromkeys(FAMILIES, pydantic.TypeAdapter(BackboneConfig)),
    "module": pydantic.TypeAdapter(ModuleConfig),
}
"""By family."""

PARAMS = "model/params"
"""Path of what has keys of the user's own: see `ModuleConfig.params`. Any other key is one of a configuration."""

_TRIAL_CONFIG = pydantic.TypeAdapter(TrialConfig)


def trial_config(values: Any, source: str) -> TrialConfig:
    """Validate a nested dict from `source` (a name for messages).

    Raises:
        InputError: an unknown key, a missing or wrong value; the message names the key.
    """
    try:
        return _TRIAL_CONFIG.validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(part) for part in first["loc"]) or "configuration"
        given = f" (got {first['input']!r:.60})" if first["type"] != "missing" else ""
        raise InputError(f"{source}: {' '.join(where.split())}: {first['msg']}{given}") from None


def with_values(config: TrialConfig, texts: Mapping[str, str], source: str) -> TrialConfig:
    """Return a configuration in which some values are others.

    Args:
        config: stays as it is.
        texts: by path, such as `model/dropout`, what :func:`from_text` makes a value of.
        source: a name for messages.

    Raises:
        InputError: there is nothing at such a path, or the configuration is not valid with these values.
    """
    return replaced(config, {path: from_text(text) for path, text in texts.items()}, source)


def replaced(config: TrialConfig, values: Mapping[str, Any], source: str) -> TrialConfig:
    """The same with values in place of texts. Raises as :func:`with_values`."""
    if not values:
        return config
    changed = config.to_dict()
    for path, value in values.items():
        holder, where = _holder(changed, path)
        key = path.removeprefix(f"{where}/")
        if key not in holder and where != PARAMS:
            raise InputError(f"{source}: {path}: no such key; {where or 'a configuration'} has {', '.join(holder)}")
        holder[key] = value
    if "model/backbone" in values and "family" not in values:  # which is no choice of its own
        changed["family"] = family_of(str(values["model/backbone"])) or config.family
    return trial_config(changed, source)


def has_value(config: TrialConfig, path: str) -> bool:
    """Whether there is anything at a path, such as `model/dropout`, of a configuration."""
    holder, where = _holder(config.to_dict(), path)
    return path.removeprefix(f"{where}/") in holder or where == PARAMS


def _holder(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The innermost dict on the way to a path, and the path of that dict."""
    where: list[str] = []
    for key in path.split("/")[:-1]:
        if not isinstance(values.get(key), dict):
            break
        values = values[key]
        where.append(key)
    return values, "/".join(where)


def source_sha256(source: str) -> str:
    """SHA-256 of `ModuleConfig.source`, in hexadecimal."""
    return hashlib.sha256(source.encode()).hexdigest()


def from_text(text: str) -> Any:
    """The value that a text stands for: what it is as JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text

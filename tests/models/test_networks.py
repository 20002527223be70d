"""The CNN family: shapes, the order of layers, where it pools and adds residuals, and what it takes as input."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.tiny import random_images
from torch import nn
from torch.nn import functional

from cifar_ray.config import CNNConfig, Task, TrialConfig
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.models.cnn import CNN, ConvBlock
from cifar_ray.models.norms import EvoNormB0, EvoNormS0
from cifar_ray.search.space import load_space

NAMES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.GroupNorm: "norm",
    EvoNormS0: "evonorm",
    EvoNormB0: "evonorm",
    nn.Identity: "no norm",
    nn.ReLU: "act",
    nn.GELU: "act",
    nn.MaxPool2d: "pool",
    nn.Dropout2d: "dropout",
}


def layer_names(block: ConvBlock) -> list[str]:
    assert isinstance(block.layers, nn.Sequential)
    return [NAMES[type(layer)] for layer in block.layers]


def conv_of(block: ConvBlock) -> nn.Conv2d:
    return next(layer for layer in block.layers.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("activation", ["relu", "mish", "silu", "gelu"])
@pytest.mark.parametrize("pool_placement", ["before_norm", "after_norm"])
@pytest.mark.parametrize("norm_placement", ["before_activation", "after_activation", "before_conv"])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "evonorm_s0", "evonorm_b0"])
def test_every_architecture_gives_logits_and_trains_all_its_weights(
    norm: str, norm_placement: str, pool_placement: str, activation: str
) -> None:
    model_config = CNNConfig(
        widths=[8, 12],
        blocks=[1, 2],
        kernel_sizes=[3, 5],
        activation=activation,  # type: ignore[arg-type]
        norm=norm,  # type: ignore[arg-type]
        norm_placement=norm_placement,  # type: ignore[arg-type]
        pool_placement=pool_placement,  # type: ignore[arg-type]
        residual=True,
        head_hidden=32,
    )
    torch.manual_seed(0)
    model = build_model(TrialConfig(model=model_config), num_classes=5, channels=3, image_size=8)
    logits = model(random_images(4))  # (4, 5)
    assert logits.shape == (4, 5)
    assert logits.dtype == torch.float32
    (logits**2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        # A layer that is built but never used, or a bias that its norm subtracts again, would stay without.
        assert bool((parameter.grad.abs() > 1e-7).any()), name


@pytest.mark.parametrize("head_pool", ["avg", "max", "flatten"])
@pytest.mark.parametrize("head_hidden", [0, 5])
@pytest.mark.parametrize(("channels", "size", "num_classes"), [(1, 8, 2), (1, 28, 10), (3, 9, 3), (3, 1, 2)])
def test_logits_have_one_row_an_image_and_one_column_a_class(
    head_pool: str, head_hidden: int, channels: int, size: int, num_classes: int
) -> None:
    model_config = CNNConfig(widths=[8, 8, 16], head_pool=head_pool, head_hidden=head_hidden)  # type: ignore[arg-type]
    config = TrialConfig(model=model_config)
    model = build_model(config, num_classes=num_classes, channels=channels, image_size=size).eval()
    assert model(random_images(3, channels, size)).shape == (3, num_classes)


@pytest.mark.parametrize(
    ("norm_placement", "pool_placement", "expected"),
    [
        ("before_activation", "before_norm", ["conv", "pool", "norm", "act"]),
        ("before_activation", "after_norm", ["conv", "norm", "pool", "act"]),
        ("after_activation", "before_norm", ["conv", "act", "pool", "norm"]),
        ("after_activation", "after_norm", ["conv", "act", "norm", "pool"]),
        ("before_conv", "before_norm", ["norm", "conv", "pool", "act"]),
        ("before_conv", "after_norm", ["norm", "conv", "pool", "act"]),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_block_has_its_layers_in_the_order_of_its_placement(
    norm_placement: str, pool_placement: str, expected: list[str], norm: str, pool: bool, dropout: float
) -> None:
    config = CNNConfig(
        norm=norm,  # type: ignore[arg-type]
        norm_placement=norm_placement,  # type: ignore[arg-type]
        pool_placement=pool_placement,  # type: ignore[arg-type]
        dropout=dropout,
    )
    block = ConvBlock(8, 16, 3, pool, config)
    wanted = [name for name in expected if pool or name != "pool"] + (["dropout"] if dropout else [])
    assert layer_names(block) == wanted


@pytest.mark.parametrize(
    ("norm", "norm_placement", "has_bias"),
    [
        ("batch", "before_activation", False),
        ("group", "before_activation", False),
        ("none", "before_activation", True),
        ("batch", "after_activation", True),
        ("batch", "before_conv", True),
        ("evonorm_s0", "before_activation", True),
        ("evonorm_b0", "before_activation", True),
    ],
)
def test_a_convolution_has_a_bias_only_where_no_norm_takes_it_away(
    norm: str, norm_placement: str, has_bias: bool
) -> None:
    config = CNNConfig(norm=norm, norm_placement=norm_placement)  # type: ignore[arg-type]
    assert (conv_of(ConvBlock(4, 8, 3, False, config)).bias is not None) == has_bias


@pytest.mark.parametrize("norm", ["evonorm_s0", "evonorm_b0"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_evonorm_stands_for_norm_and_activation(norm: str, dropout: float) -> None:
    config = CNNConfig(norm=norm, dropout=dropout)  # type: ignore[arg-type]
    last = ["dropout"] if dropout else []
    assert layer_names(ConvBlock(8, 16, 3, False, config)) == ["conv", "evonorm", *last]
    assert layer_names(ConvBlock(8, 16, 3, True, config)) == ["conv", "pool", "evonorm", *last]
    after = replace(config, pool_placement="after_norm")
    assert layer_names(ConvBlock(8, 16, 3, True, after)) == ["conv", "evonorm", "pool", *last]


@pytest.mark.parametrize("norm", ["evonorm_s0", "evonorm_b0"])
@pytest.mark.parametrize("norm_placement", ["after_activation", "before_conv"])
def test_the_blocks_of_an_evonorm_ignore_activation_and_placement(norm: str, norm_placement: str) -> None:
    def logits(**ignored: str) -> torch.Tensor:
        torch.manual_seed(0)
        model_config = CNNConfig(norm=norm, **ignored)  # type: ignore[arg-type]
        return build_model(TrialConfig(model=model_config), num_classes=3, channels=3, image_size=8)(random_images(4))

    assert torch.equal(logits(activation="gelu", norm_placement=norm_placement), logits())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_a_block_keeps_the_size_and_pooling_halves_it(size: int, kernel_size: int) -> None:
    x = torch.randn(2, 4, size, size)
    assert ConvBlock(4, 6, kernel_size, False, CNNConfig())(x).shape == (2, 6, size, size)
    if size >= 2:
        assert ConvBlock(4, 6, kernel_size, True, CNNConfig())(x).shape == (2, 6, size // 2, size // 2)


@pytest.mark.parametrize(
    ("in_channels", "pool", "residual", "adds"),
    list(itertools.product([6], [False], [True], [True]))
    + [(4, False, True, False), (6, True, True, False), (6, False, False, False)],
)
def test_a_residual_is_added_only_where_the_block_keeps_its_shape(
    in_channels: int, pool: bool, residual: bool, adds: bool
) -> None:
    block = ConvBlock(in_channels, 6, 3, pool, CNNConfig(norm="none", residual=residual))
    x = torch.randn(2, in_channels, 4, 4)
    y = block(x)
    assert y.shape == (2, 6, 2, 2) if pool else (2, 6, 4, 4)
    plain = block.layers(x)
    torch.testing.assert_close(y, x + plain if adds else plain, rtol=0, atol=0)


def test_in_a_network_the_blocks_after_a_stages_first_are_residual() -> None:
    config = TrialConfig(model=CNNConfig(widths=[8, 8], blocks=[3, 2], kernel_sizes=[3, 3], residual=True))
    model = build_model(config, num_classes=2, channels=8, image_size=8)
    blocks = [block for block in model.modules() if isinstance(block, ConvBlock)]
    assert [block.residual for block in blocks] == [False, True, True, False, True]
    assert ["pool" in layer_names(block) for block in blocks] == [True, False, False, True, False]


@pytest.mark.parametrize(("size", "pools"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (8, 3), (16, 4), (32, 4)])
def test_pooling_stops_when_one_pixel_is_left(size: int, pools: int) -> None:
    widths = [8, 8, 8, 8]
    model_config = CNNConfig(widths=widths, blocks=[1, 1, 2, 1], kernel_sizes=[3] * 4)
    model = build_model(TrialConfig(model=model_config), num_classes=2, channels=1, image_size=size).eval()
    blocks = [block for block in model.modules() if isinstance(block, ConvBlock)]
    assert len(blocks) == 5
    pooled = ["pool" in layer_names(block) for block in blocks]
    # Only a stage's first block pools, and the first stages do while there is something left to halve.
    assert pooled == [stage < pools for stage in (0, 1, 2)] + [False, pools > 3]
    assert model(random_images(2, 1, size)).shape == (2, 2)


@pytest.mark.parametrize(("size", "pixels"), [(1, 1), (2, 1), (3, 1), (9, 4), (16, 16)])
def test_a_flat_head_sees_every_pixel_of_the_last_stage(size: int, pixels: int) -> None:
    config = CNNConfig(widths=[4, 6], blocks=[1, 1], kernel_sizes=[1, 1], norm="none", head_pool="flatten")
    network = CNN(config, num_classes=2, channels=3, image_size=size)
    assert network.classifier.in_features == 6 * pixels
    x = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    maps = network.blocks(x)  # (1, 6, H, W)
    logits = maps.reshape(1, -1) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), logits)


@pytest.mark.parametrize("head_pool", ["avg", "max"])
def test_a_pooled_head_sees_the_mean_or_the_maximum_of_the_last_stage(head_pool: str) -> None:
    config = CNNConfig(widths=[4], blocks=[1], kernel_sizes=[3], head_pool=head_pool)  # type: ignore[arg-type]
    network = CNN(config, num_classes=2, channels=3, image_size=8).eval()
    x = torch.randn(2, 3, 8, 8)
    maps = network.blocks(x)  # (2, 4, 4, 4)
    pooled = maps.mean((2, 3)) if head_pool == "avg" else maps.amax((2, 3))
    torch.testing.assert_close(network(x), network.classifier(pooled))


@pytest.mark.parametrize("norm", ["batch", "evonorm_s0"])
def test_a_hidden_layer_stands_between_the_pool_and_the_dropout(norm: str) -> None:
    config = CNNConfig(activation="gelu", norm=norm, head_hidden=5, head_dropout=0.5)  # type: ignore[arg-type]
    network = CNN(config, num_classes=2, channels=3, image_size=16).eval()
    x = torch.randn(2, 3, 16, 16)
    dense = network.hidden[0]
    assert isinstance(dense, nn.Linear)
    hidden = functional.gelu(network.blocks(x).mean((2, 3)) @ dense.weight.T + dense.bias)  # (2, 5)
    torch.testing.assert_close(network(x), network.classifier(hidden))
    names = [name for name, _ in network.named_modules()]
    assert names.index("pool") < names.index("hidden") < names.index("dropout") < names.index("classifier")
    dropped = []
    network.train().classifier.register_forward_pre_hook(lambda _, given: dropped.append(given[0]))
    network(torch.randn(64, 3, 16, 16))
    # A hidden feature of gelu is never exactly 0 but where it was dropped.
    assert 0.3 < float((dropped[0] == 0).float().mean()) < 0.7


def test_without_a_hidden_layer_a_model_has_the_parameters_it_always_had() -> None:
    model = build_model(TrialConfig(), num_classes=2, channels=3, image_size=8)
    assert not [key for key in model.state_dict() if "hidden" in key]


def test_dropout_is_at_work_in_training_only() -> None:
    config = TrialConfig(model=CNNConfig(widths=[8], blocks=[1], kernel_sizes=[3], dropout=0.5, head_dropout=0.5))
    model = build_model(config, num_classes=2, channels=3, image_size=8)
    batch = random_images(4)
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8, torch.bool])
def test_a_model_takes_uint8_images_only(dtype: torch.dtype) -> None:
    # Floats scaled to 0..1 would be normalised once more, which gives nonsense without an error.
    model = build_model(TrialConfig(), num_classes=2, channels=3, image_size=8)
    with pytest.raises(TypeError, match="uint8"):
        model(random_images(2).to(dtype))


def test_the_normalisation_is_part_of_the_model() -> None:
    torch.manual_seed(0)
    model = build_model(TrialConfig(), num_classes=2, channels=3, image_size=8).eval()
    state = model.state_dict()
    assert state["normalize.mean"].shape == state["normalize.std"].shape == (1, 3, 1, 1)
    assert not [name for name, _ in model.named_parameters() if "normalize" in name]
    mean, std = torch.tensor([10.0, 100.0, 200.0]), torch.tensor([1.0, 50.0, 70.0])
    model.normalize.mean.copy_(mean.view(1, 3, 1, 1))
    model.normalize.std.copy_(std.view(1, 3, 1, 1))
    batch = random_images(2)
    by_hand = (batch.float() - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(model.normalize(batch), by_hand)
    assert torch.equal(model(batch), model.network(by_hand))


def test_the_same_random_state_gives_the_same_weights() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model(TrialConfig(), num_classes=2, channels=3, image_size=8).state_dict()

    first, second, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.classifier.weight"], other["network.classifier.weight"])


def test_parameters_are_counted_without_buffers() -> None:
    config = TrialConfig(model=CNNConfig(widths=[8], blocks=[1], kernel_sizes=[3]))
    model = build_model(config, num_classes=4, channels=3, image_size=8)
    # 3x3 filters without bias, scale and shift of the norm, classifier with bias.
    assert count_params(model) == 8 * 3 * 9 + 2 * 8 + 8 * 4 + 4
    dense = replace(config, model=replace(config.model, head_pool="flatten", head_hidden=7))
    model = build_model(dense, num_classes=4, channels=3, image_size=8)
    assert count_params(model) == 8 * 3 * 9 + 2 * 8 + (8 * 4 * 4 + 1) * 7 + (7 + 1) * 4


@pytest.mark.parametrize(("num_classes", "channels", "size"), [(10, 3, 32), (10, 1, 28), (10, 1, 8), (100, 3, 64)])
def test_the_small_cnn_has_at_most_150k_parameters(num_classes: int, channels: int, size: int) -> None:
    import optuna

    space = load_space("cnn")
    task = Task(num_classes, channels, size, 1000, "cpu")
    config = space.config(optuna.trial.FixedTrial(space.default(task)), task)
    model = build_model(config, num_classes=num_classes, channels=channels, image_size=size)
    assert 10_000 < count_params(model) <= 150_000

"""Search spaces: whatever is drawn is a valid configuration whose model runs; a broken space is told in one line."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import optuna
import pytest
import torch

from cifar_ray.config import Task, TrialConfig, family_of, trial_config
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.models.families import backbones
from cifar_ray.search.space import Space, check_fixed, load_space, load_spaces, sample_space

SPACES = ["cnn", "resnet"]
TASKS = [
    Task(10, 1, 8, 200, device, flips=("none",))  # type: ignore[arg-type]
    for device in ("cpu", "cuda")
] + [
    Task(num_classes, channels, size, 40_000, device)  # type: ignore[arg-type]
    for num_classes, channels, size in ((2, 1, 28), (10, 3, 32), (200, 3, 64))
    for device in ("cpu", "cuda")
]
IMBALANCED = replace(TASKS[4], imbalance=1.6)
NUM_SAMPLES = 200


def task_name(task: Task) -> str:
    return f"{task.image_size}px-{task.channels}c-{task.device}"


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def samples(space: Space, task: Task, count: int) -> list[tuple[dict[str, Any], TrialConfig]]:
    """Parameters and configurations drawn at random; a warning of Optuna's about a range is an error."""
    study = new_study()
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(count):
            trial = study.ask()
            config = space.config(trial, task)
            drawn.append((trial.params, config))
    return drawn


def runs_forward(config: TrialConfig, task: Task, device: str) -> bool:
    with torch.device(device):
        sizes = {"num_classes": task.num_classes, "channels": task.channels, "image_size": task.image_size}
        model = build_model(config, **sizes)
        images = torch.zeros(2, task.channels, task.image_size, task.image_size, dtype=torch.uint8)
        return model(images).shape == (2, task.num_classes)


@pytest.mark.parametrize("num_shapes, num_run", [(4, 1), pytest.param(40, 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", [*TASKS, IMBALANCED], ids=task_name)
@pytest.mark.parametrize("name", SPACES)
def test_whatever_a_space_draws_is_a_model_that_runs(name: str, task: Task, num_shapes: int, num_run: int) -> None:
    drawn = samples(load_space(name), task, NUM_SAMPLES)
    for index, (_, config) in enumerate(drawn):
        assert trial_config(config.to_dict(), "here") == config
        # Without memory or arithmetic: this shows that the shapes fit.
        if index < num_shapes:
            assert runs_forward(config, task, "meta")
        if task.device == "cpu" and index < num_run:
            assert runs_forward(config, task, "cpu")
        assert config.augment.crop_padding < task.image_size
        assert config.augment.cutout < task.image_size
    assert len({str(config) for _, config in drawn}) > NUM_SAMPLES * 0.9


@pytest.mark.parametrize("task", [TASKS[4], TASKS[5], IMBALANCED], ids=task_name)
@pytest.mark.parametrize("name", SPACES)
def test_a_space_uses_every_choice_of_a_configuration_that_it_offers(name: str, task: Task) -> None:
    drawn = samples(load_space(name), task, NUM_SAMPLES)
    names: dict[str, set[object]] = {}
    for params, _ in drawn:
        for key, value in params.items():
            names.setdefault(key, set()).add(value)
    assert names.keys() >= load_space(name).default(task).keys()
    assert all(len(values) > 1 for values in names.values())


@pytest.mark.parametrize("task", [TASKS[4], TASKS[5]], ids=task_name)
def test_the_cnn_space_reaches_every_norm_activation_and_optimizer(task: Task) -> None:
    configs = [config for _, config in samples(load_space("cnn"), task, NUM_SAMPLES)]
    assert {c.model.norm for c in configs} == {"none", "batch", "group", "evonorm_s0", "evonorm_b0"}
    assert {c.model.activation for c in configs} == {"relu", "mish", "silu", "gelu"}
    assert {c.optimizer.name for c in configs} == {"sgd", "adamw", "muon"}
    assert {0} < {c.model.head_hidden for c in configs}
    # Filter sizes are drawn stage by stage.
    assert len({tuple(c.model.kernel_sizes) for c in configs if len(c.model.kernel_sizes) == 3}) == 2**3


def test_the_cnn_space_draws_nothing_that_a_model_ignores() -> None:
    for params, config in samples(load_space("cnn"), TASKS[4], NUM_SAMPLES):
        norm = config.model.norm
        assert ("model/activation" in params) == (not norm.startswith("evonorm"))
        assert ("model/norm_placement" in params) == (norm in ("batch", "group"))
        assert {key for key in params if key.startswith("optimizer/")} == {
            "optimizer/name",
            f"optimizer/{config.optimizer.name}_lr",
            f"optimizer/{config.optimizer.name}_weight_decay",
        }
        assert config.optimizer.lr == params[f"optimizer/{config.optimizer.name}_lr"]
        assert config.optimizer.weight_decay == params[f"optimizer/{config.optimizer.name}_weight_decay"]
        kernel_sizes = [params[f"model/stage{stage}/kernel_size"] for stage in range(1, params["model/stages"] + 1)]
        assert config.model.kernel_sizes == kernel_sizes
        assert sum(key.endswith("kernel_size") for key in params) == params["model/stages"]


@pytest.mark.parametrize(("imbalance", "drawn"), [(1.0, {"none"}), (1.5, {"none"}), (1.6, {"none", "balanced"})])
def test_class_weights_are_drawn_only_where_the_classes_differ_in_size(imbalance: float, drawn: set[str]) -> None:
    space, task = load_space("cnn"), replace(TASKS[4], imbalance=imbalance)
    assert {config.class_weights for _, config in samples(space, task, 50)} == drawn
    assert space.default_config(task) == space.default_config(TASKS[4])


def test_pieces_of_recipes_are_drawn_where_they_pay() -> None:
    space = load_space("cnn")
    drawn = {task_name(task): [config for _, config in samples(space, task, 60)] for task in TASKS}
    for task in TASKS:
        configs, tiny, gpu = drawn[task_name(task)], task.image_size <= 16, task.device == "cuda"
        mirrors = len(task.flips) > 1
        assert {c.model.whitening for c in configs} == ({False} if tiny else {False, True})
        assert {c.model.init for c in configs} == ({"kaiming"} if tiny else {"dirac"})
        assert {c.tta for c in configs} == ({"none", "flip"} if gpu and mirrors else {"none"})
        assert {c.augment.flip for c in configs} == {"none", *(["alternating" if gpu else "random"] if mirrors else [])}
        assert not any(c.optimizer.lookahead for c in configs)


@pytest.mark.parametrize("task", TASKS[:2], ids=task_name)
@pytest.mark.parametrize("name", SPACES)
def test_images_that_must_not_be_mirrored_never_are(name: str, task: Task) -> None:
    assert task.flips == ("none",)
    space = load_space(name)
    assert {config.augment.flip for _, config in samples(space, task, NUM_SAMPLES)} == {"none"}
    assert space.config(optuna.trial.FixedTrial(space.default(task)), task).augment.flip == "none"


@pytest.mark.parametrize("size", [*range(1, 65), 96, 160])
@pytest.mark.parametrize("name", SPACES)
def test_a_space_takes_every_image_size(name: str, size: int) -> None:
    # `--image-size auto` keeps uniform images of up to 64 pixels as they are, whatever their size.
    space = load_space(name)
    task = Task(3, 3, size, 1000, "cpu")
    for _, config in samples(space, task, 3):
        assert runs_forward(config, task, "meta")
    assert enqueued(space, task)[0].params == space.default(task)


def enqueued(space: Space, task: Task) -> tuple[optuna.Trial, TrialConfig]:
    """Trial 0 as the search asks for it; a warning about a value outside its range is an error."""
    study = new_study()
    study.enqueue_trial(space.default(task))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial = study.ask()
        return trial, space.config(trial, task)


@pytest.mark.parametrize("task", [*TASKS, IMBALANCED], ids=task_name)
@pytest.mark.parametrize("name", SPACES)
def test_the_default_recipe_is_drawn_as_it_is_written(name: str, task: Task) -> None:
    space = load_space(name)
    trial, config = enqueued(space, task)
    assert trial.params == space.default(task)
    assert config == space.config(optuna.trial.FixedTrial(space.default(task)), task)
    assert runs_forward(config, task, "cpu")


def test_the_default_recipe_is_small_on_a_cpu_and_larger_on_a_gpu() -> None:
    space = load_space("cnn")

    def size(device: str) -> int:
        task = Task(10, 3, 32, 40_000, device)  # type: ignore[arg-type]
        return count_params(build_model(enqueued(space, task)[1], num_classes=10, channels=3, image_size=32))

    assert size("cpu") <= 150_000 < size("cuda")


def test_sampling_a_space_does_not_copy_all_samples_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    num_copied = 0
    get_all_trials = optuna.storages.InMemoryStorage.get_all_trials

    def counting(self: Any, study_id: int, deepcopy: bool = True, states: Any = None) -> Any:
        nonlocal num_copied
        trials = get_all_trials(self, study_id, deepcopy, states)
        num_copied += len(trials) if deepcopy else 0
        return trials

    monkeypatch.setattr(optuna.storages.InMemoryStorage, "get_all_trials", counting)
    drawn = sample_space(load_space("cnn"), TASKS[0], 20)
    assert [trial.number for trial, _ in drawn] == list(range(21))
    assert drawn[0][0].params == load_space("cnn").default(TASKS[0])
    assert num_copied <= len(drawn)


# ---- what is fixed ----

PLAIN = TASKS[4]  # colour images of 32 pixels on a CPU


def fixed(name: str, *settings: str) -> Space:
    return replace(load_space(name), fixed=dict(setting.split("=", 1) for setting in settings))


@pytest.mark.parametrize(
    ("name", "setting", "seen"),
    [
        ("cnn", "model/dropout=0.15", lambda config: config.model.dropout == 0.15),
        ("cnn", "model/dropout=0.35", lambda config: config.model.dropout == 0.35),  # outside the space's range
        ("cnn", "optimizer/name=adamw", lambda config: config.optimizer.name == "adamw"),
        ("cnn", "model/residual=true", lambda config: config.model.residual),
        ("cnn", "model/stages=2", lambda config: len(config.model.widths) == 2),  # no value of a configuration
        ("cnn", "model/stage2/kernel_size=5", lambda config: config.model.kernel_sizes[1] == 5),
        ("cnn", "model/blocks=1", lambda config: set(config.model.blocks) == {1}),
        ("cnn", "batch_size=256", lambda config: config.batch_size == 256),
        ("cnn", "model/init=kaiming", lambda config: config.model.init == "kaiming"),  # no parameter of the space
        ("cnn", "lr_schedule/warmup=0.1", lambda config: config.lr_schedule.warmup == 0.1),
        ("resnet", "model/finetune=head", lambda config: config.trains_head_only),
        (
            "resnet",
            "model/head=256",
            lambda config: config.model.head_hidden == [256],
        ),  # a name that looks like a number
    ],
)
def test_what_is_fixed_is_not_drawn_and_stands_in_every_configuration(name: str, setting: str, seen: Any) -> None:
    space, key = fixed(name, setting), setting.partition("=")[0]
    drawn = sample_space(space, PLAIN, 30)
    assert all(seen(config) for _, config in drawn)
    assert not any(key in trial.params for trial, _ in drawn)
    assert len({str(trial.params) for trial, _ in drawn}) > 20  # all else is drawn as before
    check_fixed(space, PLAIN, drawn)


@pytest.mark.parametrize("weights", ["DEFAULT", "none"])
@pytest.mark.parametrize(
    ("backbone", "on_a_cpu", "optimizers"),
    [
        ("mobilenet_v3_small", {"head", "all", "gradual"}, {"sgd", "adamw", "muon"}),
        ("convnext_tiny", {"head"}, {"sgd", "adamw"}),
        ("vit_b_16", {"head"}, {"sgd", "adamw"}),
    ],
)
def test_the_resnet_space_takes_any_backbone_that_is_fixed(
    backbone: str, on_a_cpu: set[str], optimizers: set[str], weights: str
) -> None:
    space = fixed("resnet", f"model/backbone={backbone}")
    for task in (TASKS[4], TASKS[5]):
        configs = [
            config
            for _, config in sample_space(space, replace(task, backbones=(backbone,), weights=weights), NUM_SAMPLES)
        ]
        assert {config.model.backbone for config in configs} == {backbone}
        assert {config.family for config in configs} == {family_of(backbone)}
        assert {config.model.stem for config in configs} == {"imagenet"}
        assert {config.optimizer.name for config in configs if config.model.finetune != "head"} <= optimizers
        finetuned = {config.model.finetune for config in configs}
        if weights == "none":
            assert finetuned == {"all"}
        elif task.device == "cpu":
            assert finetuned >= on_a_cpu and len(finetuned) == (1 if on_a_cpu == {"head"} else 5)
        else:
            assert len(finetuned) == 5
        assert runs_forward(configs[0], task, "meta")


def test_the_backbones_that_a_cpu_may_train_do_no_more_than_a_resnet18() -> None:
    from torchvision.models import get_model_weights

    from search_spaces.resnet import SMALL

    work = {name: get_model_weights(name).DEFAULT.meta["_ops"] for name in backbones()}
    assert sorted(SMALL) == sorted(name for name in work if work[name] <= work["resnet18"])


@pytest.mark.parametrize(
    ("name", "settings", "lost", "more"),
    [
        ("cnn", ["model/dropout=0.1"], {"model/dropout"}, {}),
        ("cnn", ["model/init=kaiming"], set(), {}),
        (
            "cnn",
            ["optimizer/name=adamw"],
            {"optimizer/name", "optimizer/sgd_lr", "optimizer/sgd_weight_decay"},
            {"optimizer/adamw_lr": (5e-4 * 2e-2) ** 0.5, "optimizer/adamw_weight_decay": (1e-3 * 0.2) ** 0.5},
        ),
        (
            "cnn",
            ["model/norm=evonorm_s0"],
            {f"model/{it}" for it in ("norm", "activation", "norm_placement", "pool_placement")},
            {},
        ),
        ("cnn", ["model/stages=4"], {"model/stages"}, {"model/stage4/kernel_size": 3}),
    ],
)
def test_trial_0_has_what_is_fixed_and_of_what_it_then_lacks_the_middle(
    name: str, settings: list[str], lost: set[str], more: dict[str, Any]
) -> None:
    space = fixed(name, *settings)
    assert space.default is not None
    expected = {key: value for key, value in space.default(PLAIN).items() if key not in lost} | more
    assert space.default_params(PLAIN) == pytest.approx(expected)
    assert sample_space(space, PLAIN, 1)[0] == (ANY, space.default_config(PLAIN))
    assert space.default_config(PLAIN) == space.config(optuna.trial.FixedTrial(space.default_params(PLAIN)), PLAIN)


def test_the_middle_of_a_range_is_a_value_of_it(tmp_path: Path) -> None:
    (tmp_path / "ranges.py").write_text(
        "def space(trial, task):\n"
        "    if trial.suggest_categorical('all', [False, True]):\n"
        "        trial.suggest_int('steps', 2, 14, step=4)\n"
        "        trial.suggest_int('log', 1, 100, log=True)\n"
        "        trial.suggest_float('float', 0.0, 1.0, step=0.25)\n"
        "    return {}\n"
        "def default(task):\n"
        "    return {'all': False}\n"
    )
    space = replace(load_space(str(tmp_path / "ranges.py")), fixed={"all": "true"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.default_params(PLAIN) == {"steps": 6, "log": 10, "float": 0.5}


def test_a_space_without_a_default_has_what_is_fixed_in_the_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def space(trial, task):\n    return {'batch_size': trial.suggest_int('mine', 8, 9)}\n"
    )
    space = replace(load_space(str(tmp_path / "mine.py")), fixed={"mine": "16", "label_smoothing": "0.3"})
    expected = replace(load_space("cnn").default_config(PLAIN), label_smoothing=0.3)
    assert space.default_config(PLAIN) == expected and space.default_params(PLAIN) == {}
    assert {config.batch_size for _, config in sample_space(space, PLAIN, 3)} == {16}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("cnn", "optimizer/name=adma", "--set: optimizer/name=adma: must be one of sgd, adamw, muon"),
        ("cnn", "model/residual=1", "--set: model/residual=1: must be one of False, True"),
        ("cnn", "model/stages=2.5", "--set: model/stages=2.5: must be a whole number"),
        ("cnn", "model/dropout=much", "--set: model/dropout=much: must be a number"),
        ("cnn", "model/width=NaN", "--set: model/width=NaN: must be one of 16, 24, 32, 48"),
        (
            "cnn",
            "model/dropout=1.5",
            "space cnn with --set model/dropout=1.5: model/dropout: Input should be less than 1 (got 1.5)",
        ),
        (
            "cnn",
            "model/init=random",
            "space cnn with --set model/init=random: model/init: Input should be 'kaiming' or 'dirac' (got 'random')",
        ),
        (
            "resnet",
            "model/stem=cifar",
            "space resnet with --set model/stem=cifar: model: Value error, finetune 'head' would freeze the stem",
        ),
    ],
)
def test_what_cannot_be_fixed_is_told(name: str, setting: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        sample_space(fixed(name, setting), PLAIN, 30)
    assert str(error.value).startswith(message)


def test_a_key_that_is_neither_drawn_nor_in_a_configuration_is_told_with_those_there_are() -> None:
    space = fixed("cnn", "model/dropuot=0.2")
    with pytest.raises(InputError) as error:
        check_fixed(space, PLAIN, sample_space(space, PLAIN, 100))
    told, drawn = str(error.value).split("; space cnn draws ")
    assert told.startswith("--set: model/dropuot: no such key; model has widths, blocks, whitening, ")
    assert {"model/stages", "model/width", "model/stage4/kernel_size"} < set(drawn.split(", "))
    assert all(name.startswith("model/") for name in drawn.split(", "))


# ---- files of the user's own ----


def told(path: Path, source: str) -> str:
    """The message about a file that cannot be loaded as a space."""
    path.write_text(source)
    return one_line(str(path))


def one_line(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_space(name)
    message = str(caught.value)
    assert "\n" not in message
    assert "--space" in message and name in message
    return message


def test_a_copied_space_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my_space.py"
    path.write_text((Path(__file__).resolve().parents[2] / "search_spaces" / "cnn.py").read_text())
    space = load_space(str(path))
    assert space.name == "my_space"
    assert samples(space, TASKS[0], 5) == samples(load_space("cnn"), TASKS[0], 5)
    assert space.default(TASKS[0]) == load_space("cnn").default(TASKS[0])


def test_a_space_is_another_one_once_a_file_that_it_imports_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "sizes.py").write_text("WIDTHS = [8, 16]\n")
    (tmp_path / "stages.py").write_text("import json.tool, cifar_ray.presets\nfrom deeper.sizes import WIDTHS\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "mine.py").write_text("from stages import WIDTHS\ndef space(trial, task):\n    return {}\n")

    def hashes() -> list[str]:
        spaces = load_spaces(f"{tmp_path / 'mine.py'},cnn")
        for name in ("stages", "deeper.sizes", "deeper"):  # as in another process
            del sys.modules[name]
        return [space.sha256 for space in spaces]

    seen = [hashes()]
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert hashes() == seen[0]
    for edited in ("mine.py", "stages.py", "deeper/sizes.py"):
        (tmp_path / edited).write_text((tmp_path / edited).read_text() + "# edited\n")
        seen.append(hashes())
    assert len({mine for mine, _ in seen}) == 4 and len({cnn for _, cnn in seen}) == 1


def test_a_space_without_a_default_starts_with_the_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text("def space(trial, task):\n    return {'batch_size': trial.suggest_int('batch_size', 8, 9)}\n")
    space = load_space(str(path))
    assert space.default_config(TASKS[0]) == load_space("cnn").default_config(TASKS[0])
    assert {config.batch_size for _, config in samples(space, TASKS[0], 20)} == {8, 9}


@pytest.mark.parametrize("name", ["resnet9000", "", "absent.py", "no/such/folder/space.py", "__init__"])
def test_an_unknown_space_is_told_with_the_known_ones(name: str) -> None:
    assert "cnn" in one_line(name)


def test_what_is_no_python_file_is_no_space(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    one_line(str(tmp_path / "folder.py"))
    one_line(str(tmp_path))
    (tmp_path / "space.txt").write_text("def space(trial, task):\n    return {}\n")
    one_line(str(tmp_path / "space.txt"))


@pytest.mark.parametrize("source", ["", "x = 1\n", "space = 3\n", "def spaces(trial, task):\n    return {}\n"])
def test_a_file_without_the_function_is_told(tmp_path: Path, source: str) -> None:
    assert "space(trial, task)" in told(tmp_path / "mine.py", source)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def space(trial, task:\n    return {}\n", "SyntaxError"),
        ("def space(trial, task):\nreturn {}\n", "IndentationError"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("raise ValueError('first\\nsecond')\n", "ValueError"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_with_its_error(tmp_path: Path, source: str, kind: str) -> None:
    assert kind in told(tmp_path / "mine.py", source)


def drawing_error(path: Path, body: str) -> str:
    """The message about a space that loads but fails when a trial is drawn from it."""
    path.write_text(f"def space(trial, task):\n    {body}\n")
    with pytest.raises(InputError) as caught:
        load_space(str(path)).config(new_study().ask(), TASKS[0])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"space {path.stem}: ")
    return message


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return {}['x']", "KeyError"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError"),
        ("return trial.suggest_int('x', 5, 1)", "ValueError"),
        ("return trial.suggest_nothing('x')", "AttributeError"),
    ],
)
def test_an_error_in_a_space_is_told_with_its_place_in_the_file(tmp_path: Path, body: str, kind: str) -> None:
    message = drawing_error(tmp_path / "mine.py", body)
    assert kind in message
    # The user's own line, not one of Optuna's that it called.
    assert f"{tmp_path / 'mine.py'}:2" in message


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ("return None", "configuration"),
        ("return {'model': {'width': 3}}", "model/width"),
        ("return {'batch_size': 0}", "batch_size"),
        ("return {'optimizer': {'name': 'lion'}}", "optimizer/name"),
    ],
)
def test_a_space_that_returns_no_configuration_is_told_with_the_key(tmp_path: Path, body: str, key: str) -> None:
    assert f"mine: {key}: " in drawing_error(tmp_path / "mine.py", body)


@pytest.mark.parametrize("name", ["cnn", "mine.py"])
def test_all_configurations_of_a_space_have_the_precision_of_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def space(trial, task):\n    return {'precision': 'fp32'}\n")  # has no default
    space = load_space(str(tmp_path / name) if name.endswith(".py") else name)
    task = Task(10, 3, 32, 1000, "cpu")
    for precision in ("fp32", "bf16"):
        drawn = sample_space(replace(space, precision=precision), task, 3)
        default = replace(space, precision=precision).default_config(task)
        assert {config.precision for _, config in drawn} | {default.precision} == {precision}

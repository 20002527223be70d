"""A network of the user's own in a search space and in an ablation: its parameters are drawn, fixed and varied."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.modules import EXAMPLES, VIEW_NETWORK

from cifar_ray.config import Task, trial_config
from cifar_ray.errors import InputError
from cifar_ray.models.check import check_network
from cifar_ray.models.classifier import count_params
from cifar_ray.models.module import read_module
from cifar_ray.presets import module_recipe, preset
from cifar_ray.search.design import Design, make_design
from cifar_ray.search.searcher import count_config_params
from cifar_ray.search.space import Space, check_fixed, load_space, sample_space

TASK = Task(10, 1, 8, 320, "cpu", flips=("none",))
TASKS = [TASK, Task(2, 3, 32, 4000, "cuda", imbalance=2.0)]
NETWORK = read_module(f"{EXAMPLES / 'my_cnn.py'}:Net")


def example(**changes: object) -> Space:
    return replace(load_space(str(EXAMPLES / "my_space.py")), module=NETWORK, **changes)


@pytest.mark.parametrize("task", TASKS, ids=["digits", "gpu"])
def test_the_example_space_draws_parameters_that_are_passed_on(task: Task) -> None:
    drawn = sample_space(example(), task, 60)
    for trial, config in drawn:
        assert config.family == "module" and config.model.source == NETWORK.source
        assert config.model.params == {name: trial.params[f"module/{name}"] for name in ("width", "depth", "dropout")}
        assert trial_config(json.loads(json.dumps(config.to_dict())), "here") == config
    assert drawn[0][1].model.params == {"width": 16, "depth": 2, "dropout": 0.0}
    assert len({str(config.model.params) for _, config in drawn}) > 20
    for _, config in drawn[:5]:
        assert count_config_params(config, task) == count_params(check_network(config, task))


@pytest.mark.parametrize("task", TASKS, ids=["digits", "gpu"])
def test_the_space_module_searches_the_recipe_of_the_network_as_it_is(task: Task) -> None:
    space = replace(load_space("module"), module=VIEW_NETWORK)
    drawn = sample_space(space, task, 60)
    assert all(config.model == VIEW_NETWORK for _, config in drawn)
    assert {config.optimizer.name for _, config in drawn} == {"sgd", "adamw", "muon"}
    assert space.default_config(task) == module_recipe(VIEW_NETWORK, task) == drawn[0][1]


def test_parameters_are_fixed_by_either_of_their_names() -> None:
    for key in ("module/width", "model/params/width"):
        space = example(fixed={key: "64"})
        drawn = sample_space(space, TASK, 20)
        check_fixed(space, TASK, drawn)
        assert {config.model.params["width"] for _, config in drawn} == {64}
    space = replace(load_space("module"), module=NETWORK, fixed={"model/params/depth": "1"})
    assert {config.model.params["depth"] for _, config in sample_space(space, TASK, 5)} == {1}


def test_a_space_of_this_family_needs_a_network() -> None:
    with pytest.raises(InputError) as caught:
        load_space("module").default_config(TASK)
    assert str(caught.value) == (
        "space module: its family module needs a network: give --module FILE.py:NAME, with the values that its "
        "default(task) gives"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": []}, "space own: model: Input should be a dictionary"),
        ({"model": {"params": 3}}, "space own: model/params: Input should be a valid dictionary"),
        ({"model": {"width": 3}}, "space own: model/width: Unexpected keyword argument"),
        ({"model": {"params": {"sizes": (3, 3)}}}, "space own: model/params/sizes: "),
    ],
)
def test_what_a_space_gives_that_is_no_network_is_told(values: dict[str, object], message: str) -> None:
    space = Space("own", lambda trial, task: {"family": "module", **values}, lambda task: {}, module=NETWORK)
    with pytest.raises(InputError) as caught:
        space.default_config(TASK)
    assert str(caught.value).startswith(message)


def test_a_trial_whose_parameters_do_not_fit_fails_with_the_reason() -> None:
    config = replace(module_recipe(NETWORK, TASK), model=replace(NETWORK, params={"depth": "two"}))
    with pytest.raises(InputError, match=r"^my_cnn.py: Net\(.*, depth='two'\) cannot be built: TypeError: "):
        count_config_params(config, TASK)


# ---- ablation ----


def design(*vary: str, cross: str | None = None) -> Design:
    return make_design(module_recipe(NETWORK, TASK), vary, cross, TASK, max_epochs=30)


def test_an_ablation_of_it_varies_how_it_is_trained() -> None:
    found = design()
    assert [factor.name for factor in found.factors] == ["lr-schedule", "early-stopping", "augmentation", "optimizer"]
    for name in ("norm", "dropout", "head", "head-dropout", "finetune"):
        with pytest.raises(InputError, match=f"^--vary: the base, a module, has no {name}; it has lr-schedule, early-"):
            design(name)
    with pytest.raises(InputError, match="the base, a resnet, has no norm; it has "):
        make_design(preset("resnet18-scratch", TASKS[1]), ["norm"], None, TASKS[1], 30)


def test_its_parameters_are_factors() -> None:
    found = design("model/params/depth=1,2,3", "model/params/width=8", cross="model.params.depth,model.params.width")
    levels = {factor.name: (factor.base_level, [one.name for one in factor.levels]) for factor in found.factors}
    assert levels == {"model.params.depth": ("3", ["1", "2"]), "model.params.width": ("32", ["8"])}
    params = {arm.name: arm.config.model.params for arm in found.arms}
    assert params["model.params.depth=1"] == {"width": 32, "depth": 1, "dropout": 0.0}
    assert params["model.params.depth=2 x model.params.width=8"] == {"width": 8, "depth": 2, "dropout": 0.0}
    recorded = json.dumps([arm.to_dict() for arm in found.arms])
    assert "sha256" in recorded and "import" not in recorded


def test_a_parameter_that_its_signature_does_not_name_has_its_default_as_base(tmp_path: Path) -> None:
    base = module_recipe(replace(NETWORK, params={}), TASK)
    found = make_design(base, ["model/params/groups=2,4"], None, TASK, 30)
    assert found.factors[0].base_level == "its default" and len(found.factors[0].levels) == 2

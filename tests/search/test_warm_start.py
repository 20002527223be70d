"""What a search takes over from other runs."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.searches import TASK

from cifar_ray.config import Task
from cifar_ray.errors import InputError
from cifar_ray.results.records import Row, write_trials
from cifar_ray.search.space import Space, load_space
from cifar_ray.search.warm_start import warm_starts

CNN = load_space("cnn")


def record(number: int, value: float, params: dict[str, Any], state: str = "complete", space: str = "cnn") -> Row:
    best = {"epoch": 3, "val_accuracy": value, "val_loss": 1 - value, "val_metric": value}
    return {"number": number, "name": f"trial-{number:04d}", "space": space, "params": params, "state": state,
            "best": best}  # fmt: skip


def earlier(folder: Path, *records: Row) -> Path:
    folder.mkdir()
    write_trials(folder / "trials.jsonl", list(records))
    return folder


def test_the_best_complete_trials_come_first(tmp_path: Path) -> None:
    default = CNN.default_params(TASK)
    wider = {**default, "model/width": 32}
    run = earlier(
        tmp_path / "run",
        record(0, 0.7, default),
        record(1, 0.9, wider),
        record(2, 0.99, wider, "pruned"),
        record(3, 0.8, {**default, "batch_size": 32}),
        record(4, 0.6, {**default, "batch_size": 128}),
    )
    found = warm_starts(run, [CNN], TASK)["cnn"]
    assert [one.trial for one in found] == ["trial-0001", "trial-0003", "trial-0000"]
    assert found[0].params == wider and not found[0].left_out


def test_what_the_space_does_not_draw_is_left_out_and_told(tmp_path: Path) -> None:
    default = CNN.default_params(TASK)
    params = {
        **default,
        "model/width": 999,
        "model/whitening": True,
        "optimizer/name": "muon",
        "optimizer/muon_lr": 0.02,
    }
    del params["optimizer/sgd_lr"], params["optimizer/sgd_weight_decay"]
    run = earlier(tmp_path / "run", record(0, 0.7, params))
    (found,) = warm_starts(run, [CNN], TASK)["cnn"]
    assert found.left_out == ("model/width", "model/whitening")  # whitening: not of images as small as these
    assert found.params["optimizer/muon_lr"] == 0.02 and "optimizer/sgd_lr" not in found.params
    trial = optuna.create_study()
    trial.enqueue_trial(found.params)
    assert CNN.config(trial.ask(), TASK).optimizer.name == "muon"


def test_each_space_takes_its_own(tmp_path: Path) -> None:
    def other(trial: optuna.Trial, task: Task) -> dict[str, Any]:
        return {"batch_size": trial.suggest_categorical("batch_size", [16, 32])}

    run = earlier(
        tmp_path / "run", record(0, 0.7, CNN.default_params(TASK)), record(1, 0.9, {"batch_size": 16}, space="other")
    )
    found = warm_starts(run, [CNN, Space("other", other), Space("third", other)], TASK)
    assert [one.trial for one in found["cnn"]] == ["trial-0000"]
    assert [one.params for one in found["other"]] == [{"batch_size": 16}]
    assert found["third"] == []


def test_what_is_no_warm_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has no trials of a search \(trials.jsonl\); give the folder of a run of tune"
    ):
        warm_starts(tmp_path, [CNN], TASK)
    run = earlier(tmp_path / "resnets", record(0, 0.7, {"image_size": 32}, space="resnet"))
    with pytest.raises(InputError, match="searched resnet, and not cnn; give a run of that"):
        warm_starts(run, [CNN], TASK)
    run = earlier(tmp_path / "pruned", record(0, 0.7, CNN.default_params(TASK), "pruned"))
    with pytest.raises(InputError, match="none of its trials has come to its end"):
        warm_starts(run, [CNN], TASK)

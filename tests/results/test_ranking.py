"""How configurations rank."""

from __future__ import annotations

import itertools

import pytest
from helpers.scores import row

from cifar_ray.reporting import verdict
from cifar_ray.results.ranking import best_of_families, front, is_default, summarise
from cifar_ray.results.records import Row
from cifar_ray.results.statistics import (
    Interval,
)


def test_summaries_rank_by_validation_then_loss_then_size() -> None:
    rows = [
        row("large", loss=0.2, num_params=2000),
        row("small", loss=0.2, num_params=10),
        row("low-loss", loss=0.1, num_params=9000),
        row("unmeasured", val=None, loss=None),
        row("best", val=0.95, loss=0.9, test_accuracy=0.1),
        row("worst", val=0.5, loss=0.0, test_accuracy=1.0),
    ]
    ranked = [one.config for one in summarise(rows)]
    assert ranked == ["best", "low-loss", "small", "large", "worst", "unmeasured"]
    assert [one.config for one in summarise(reversed(rows))] == ranked


def test_means_that_differ_in_the_last_bit_are_ties() -> None:
    sums = [0.1, 0.2, 0.3]
    assert sum(sums) / 3 != 0.2  # else this tests nothing
    rows = [row("a", 0, sum(sums) / 3, loss=0.5), row("b", 0, 0.2, loss=0.1)]
    assert summarise(rows)[0].config == "b"
    assert summarise(rows[::-1])[0].config == "b"


def test_summary_holds_its_seeds_and_what_was_measured_once() -> None:
    rows = [
        row("a", 0, 0.8, latency_ms_p50=None, trial=12),
        row("a", 1, 0.9, latency_ms_p50=0.5, trial=12),
        row("a", 2, 0.9, loss=0.1, latency_ms_p50=None, trial=12),
    ]
    (one,) = summarise(rows)
    assert one.best_model == "a-seed2"  # of two equal metrics the lower loss
    assert one.models == ["a-seed0", "a-seed1", "a-seed2"]
    assert (one.latency_ms_p50, one.trial, one.val_metric) == (0.5, 12, pytest.approx(2.6 / 3))
    assert one.test_auc == Interval(None, None, None, 0)


def failed(config: str, seed: int, epoch: int = 1) -> Row:
    """The row of a model whose training failed."""
    values = {"model": f"{config}-seed{seed}", "config": config, "seed": seed}
    return values | {"failure": f"non-finite loss in epoch {epoch}"}


def test_survivor_of_failed_seeds_ranks_below_all_that_are_whole() -> None:
    rows = [row("lucky", 2, 0.99), failed("lucky", 0), failed("lucky", 1), failed("gone", 0, 1), failed("gone", 1, 2)]
    rows += [row("whole", seed, 0.5) for seed in range(3)]
    for order in itertools.permutations(rows[:5]):
        whole, lucky, gone = summarise([*order, *rows[5:]])
        assert (whole.config, whole.seeds, whole.best_model) == ("whole", "3", "whole-seed0")
        assert (lucky.config, lucky.seeds, lucky.best_model) == ("lucky", "1 of 3", "lucky-seed2")
    assert lucky.failed == "1 of 3 seeds; 2 failed: non-finite loss"
    assert (gone.config, gone.seeds, gone.models, gone.test_accuracy.n) == ("gone", "0 of 2", [], 0)
    assert gone.failed == "0 of 2 seeds; 2 failed: non-finite loss"  # in other epochs
    assert verdict.verdict([lucky, gone], []).startswith("Take lucky: ")
    assert "(on 1 of 3 seeds; 2 failed: non-finite loss)" in verdict.verdict([lucky, gone], [])
    said = verdict.verdict([whole, gone], [], default="gone", recipes={"gone": "the default recipe"})
    assert said.endswith("How it compares with the default recipe is unknown, since its trainings failed.")
    assert "runner-up" not in verdict.verdict([whole, gone], [])
    said = verdict.verdict([gone], [])
    assert said.startswith("Every final training failed") and "0 of 2 seeds; 2 failed: non-finite" in said


def test_default_recipes_are_known_by_their_names() -> None:
    names = ["default", "default-resnet", "defaults", "trial-0000", "my-default"]
    assert [is_default(name) for name in names] == [True, True, False, False, False]


def test_best_of_families_takes_the_first_of_each_that_is_known() -> None:
    rows = [
        row("a", 0, 0.7, family="cnn", test_accuracy=1.0, train_s=1.0),
        row("b", 0, 0.8, family="cnn", train_s=2.0),
        row("b", 1, 0.8, family="cnn", train_s=5.0),
        row("c", 0, 0.9, family="resnet"),
        row("d", 0, 0.95, family=None),
    ]
    best = best_of_families(summarise(rows))
    assert [(one.family, one.config, one.train_s) for one in best] == [("resnet", "c", None), ("cnn", "b", 3.5)]


def test_front_is_what_no_smaller_one_matches() -> None:
    def trial(name: str, value: float, num_params: int | None, state: str = "complete") -> Row:
        return {"name": name, "state": state, "num_params": num_params, "best": {"val_metric": value}}

    trials = [trial("large", 0.9, 300), trial("as good", 0.8, 250), trial("middle", 0.8, 200), trial("worse", 0.7, 100)]
    trials += [trial("small", 0.75, 100), trial("stopped", 0.99, 50, "pruned"), trial("unknown", 0.99, None)]
    assert [one["name"] for one in front(trials)] == ["small", "middle", "large"]
    assert front([]) == []

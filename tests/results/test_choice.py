"""Which configuration is taken under limits, and whether the test split confirms it."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.records import make_run

from cifar_ray.reporting.choice import choice
from cifar_ray.results.choice import Limits, choose
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.statistics import Comparison

ACCURACIES = {"trial-0012": 0.972, "trial-0007": 0.968, "default": 0.955}
"""Best first; the fewer its number, the smaller and faster a configuration is."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records(make_run(tmp_path_factory.mktemp("run") / "run", accuracies=ACCURACIES, seed_noise=0.0))


def compare(difference: float, low: float, counts_seeds: bool = True) -> Comparison:
    return Comparison("a", "b", difference, low, 2 * difference - low, 360, counts_seeds)


def names(records: Records, limits: Limits) -> dict[str, str]:
    chosen = choose(records.summaries, limits, lambda a, b: compare(0.0, -0.005))
    return {one.why: one.chosen.config for one in chosen}


def test_the_best_within_limits_of_size_and_latency_is_taken(records: Records) -> None:
    params = {one.config: one.num_params or 0 for one in records.summaries}
    latency = {one.config: one.latency_ms_p50 or 0.0 for one in records.summaries}
    assert params["default"] < params["trial-0007"] < params["trial-0012"]
    assert names(records, Limits(max_params=params["trial-0012"])) == {"best": "trial-0012"}
    assert names(records, Limits(max_params=params["trial-0012"] - 1)) == {"best": "trial-0007"}
    assert names(records, Limits(max_latency_ms=latency["default"])) == {"best": "default"}
    assert names(records, Limits(max_params=1)) == {}
    limits = Limits(max_params=params["trial-0012"], max_latency_ms=latency["trial-0007"])
    assert names(records, limits) == {"best": "trial-0007"}


@pytest.mark.parametrize(("within", "taken"), [(0.3, "trial-0012"), (0.4, "trial-0007"), (1.7, "default")])
def test_the_smallest_and_fastest_of_those_near_the_best_on_validation_are_taken(
    records: Records, within: float, taken: str
) -> None:
    assert names(records, Limits(within=within)) == {"smallest": taken, "fastest": taken}


def test_the_best_of_those_within_the_limits_is_what_others_are_measured_by(records: Records) -> None:
    most = next(one.num_params for one in records.summaries if one.config == "trial-0007")
    limits = Limits(max_params=most, within=1.0)  # the default is 1.3 points below trial-0007
    assert names(records, limits) == {"smallest": "trial-0007", "fastest": "trial-0007"}


def test_the_test_split_confirms_where_the_whole_interval_lies_within_the_margin(records: Records) -> None:
    for low, confirmed in ((-0.0099, True), (-0.0101, False)):
        one = choose(records.summaries, Limits(within=2.0), lambda a, b, low=low: compare(0.0, low))[0]  # type: ignore[misc]
        assert one.chosen.config == "default" and one.confirmed(1.0) is confirmed
    one = choose(records.summaries, Limits(within=2.0), lambda a, b: compare(0.0, 0.0, counts_seeds=False))[0]
    assert one.confirmed(1.0) is None
    assert choose(records.summaries, Limits(within=2.0), lambda a, b: None)[0].confirmed(1.0) is None


def test_the_report_says_what_was_chosen_how_much_it_gives_up_and_whether_that_is_confirmed(records: Records) -> None:
    assert choice(records, None).empty
    text = " ".join(choice(records, Limits(within=50.0)).text)
    assert "Take default, the smallest of all within 50 points of the best, trial-0012, on validation" in text
    assert "(95.50 % against 97.20 %); confirmed: on test it differs by -" in text
    text = " ".join(choice(records, Limits(within=1.8)).text)
    assert "not confirmed: on test it differs by -" in text and "it may be worse than that" in text
    text = " ".join(choice(records, Limits(within=0.1)).text)
    assert "Take trial-0012, which is both the best and the smallest of all within 0.1 points." in text
    text = " ".join(choice(records, Limits(max_params=2)).text)
    assert text.startswith("No configuration has at most 2 parameters: the smallest has ")
    section = choice(records, Limits(max_latency_ms=1000.0))
    assert "the best of those with a median latency of at most 1000 ms for one image" in section.text[0]
    assert section.tables[0].rows[0][:2] == ["best", "trial-0012"]


def test_of_one_seed_nothing_is_confirmed(tmp_path: Path) -> None:
    records = Records(make_run(tmp_path / "run", accuracies=ACCURACIES, seeds=1))
    text = " ".join(choice(records, Limits(within=50.0)).text)
    assert "which one seed is too few to judge by" in text


def test_the_report_command_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = (
        "import sys, cifar_ray.report as report; "
        f"assert report.main([{str(run.root)!r}]) == 0; "
        "print([name for name in ('torch', 'ray', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")

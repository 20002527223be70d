"""The HParams tab, as TensorBoard's own backend answers it: in this process, and asked over HTTP."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from cifar_ray.cli.console import Console
from cifar_ray.results.records import RunFolder
from cifar_ray.search.space import Domain, union
from cifar_ray.tracking.live import SearchWatch
from cifar_ray.tracking.tensorboard import Experiment

DOMAINS: dict[str, Domain] = {
    "optimizer/name": ["sgd", "adamw"],
    "optimizer/sgd_lr": (0.02, 0.6),
    "optimizer/adamw_lr": (5e-4, 2e-2),
    "batch_size": [32, 64, 128],
    "model/residual": [False, True],
    "model/stages": (2, 4),
}
SGD = {"optimizer/name": "sgd", "optimizer/sgd_lr": 0.25, "batch_size": 64, "model/residual": True, "model/stages": 3}
ADAMW = {"optimizer/name": "adamw", "optimizer/adamw_lr": 0.01, "batch_size": 32, "model/residual": False}
STATES = ["complete", "pruned", "infeasible", "failed"]
ALL_STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


def row(epoch: int) -> dict[str, Any]:
    value = {"val_accuracy": 0.125 * epoch, "val_metric": 0.125 * epoch, "best_val_metric": 0.125 * epoch}
    losses = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "lr": 0.1, "grad_norm_max": 1.0}
    return {"epoch": epoch, **losses, **value, "train_s": 1.5, "eval_s": 0.1, "finished": False}


def record(number: int, params: dict[str, Any], state: str = "complete", epochs: int = 2) -> dict[str, Any]:
    best = {"epoch": epochs, "val_accuracy": 0.25, "val_loss": 1.0, "val_metric": 0.125 * epochs} if epochs else None
    return {
        "number": number,
        "name": f"trial-{number:04d}",
        "space": "cnn",
        "params": params,
        "config": None,
        "state": state,
        "reason": None if state in ("complete", "pruned") else "why",
        "epochs": epochs,
        "num_params": 1000 * (number + 1),
        "best": best,
        "last": best,
        "seconds": {"startup": 1.0, "train": 1.5 * epochs} if epochs else {},
        "ended_s": 1.0,
    }


def watch_run(root: Path, domains: dict[str, Domain], finished: Sequence[dict[str, Any]] = ()) -> SearchWatch:
    return SearchWatch(RunFolder(root), Console(io.StringIO()), 10, domains, finished)


def run_trial(watch: SearchWatch, ended: dict[str, Any]) -> None:
    watch.trial_began(ended["number"], ended["params"])
    for epoch in range(1, ended["epochs"] + 1):
        watch.epoch_ended(ended["number"], row(epoch))
    watch.trial_ended(ended)


@dataclass
class Tab:
    """What the tab shows."""

    columns: dict[str, list[Any] | tuple[float, float] | None]
    """Domain of each parameter."""
    rows: dict[str, dict[str, Any]]
    """Parameters of each trial."""
    metrics: dict[str, dict[str, float]]
    statuses: dict[str, str]


Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


def look_at(ask: Ask, sort_by: str | None = None) -> Tab:
    infos = ask("experiment", {}).get("hparamInfos", [])
    columns: dict[str, Any] = {}
    for info in infos:
        interval = info.get("domainInterval")
        bounds = interval and (interval["minValue"], interval["maxValue"])
        columns[info["name"]] = info.get("domainDiscrete") or bounds
    # As the page asks.
    cols = [{"hparam": name, **({"order": "ORDER_ASC"} if name == sort_by else {})} for name in columns]
    request = {"allowedStatuses": ALL_STATUSES, "colParams": cols, "startIndex": 0, "sliceSize": 100}
    groups = ask("session_groups", request).get("sessionGroups", [])
    return Tab(
        columns,
        {group["name"]: group.get("hparams", {}) for group in groups},
        {g["name"]: {m["name"]["tag"]: m["value"] for m in g.get("metricValues", [])} for g in groups},
        {group["name"]: group["sessions"][0]["status"] for group in groups},
    )


def ask_backend(root: Path) -> Ask:
    """TensorBoard's backend, having read a run's folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(root))))

    def ask(what: str, body: dict[str, Any]) -> dict[str, Any]:
        if what == "experiment":
            handler: Any = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest())
        else:
            request = json_format.ParseDict(body, api_pb2.ListSessionGroupsRequest())
            handler = list_session_groups.Handler(RequestContext(), context, "", request)
        # As the server sends it.
        text = json_format.MessageToJson(handler.run(), always_print_fields_with_no_presence=True)
        answer: dict[str, Any] = json.loads(text)
        return answer

    return ask


def tab(root: Path, sort_by: str | None = None) -> Tab:
    return look_at(ask_backend(root), sort_by)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[Path, str], Ask]]:
    """Start a real TensorBoard on a folder, and ask it over HTTP."""
    servers = []

    def serve(root: Path, load_fast: str) -> Ask:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root), "--port", "0"]
        log = tmp_path / "tensorboard.log"
        with log.open("w") as file:
            servers.append(
                subprocess.Popen(
                    [*command, "--load_fast", load_fast, "--reload_interval", "1"], stdout=file, stderr=file
                )
            )
        address = wait_for(lambda: re.search(r"http://localhost:\d+/", log.read_text()))[0]

        def ask(what: str, body: dict[str, Any]) -> dict[str, Any]:
            url = f"{address}data/plugin/hparams/{what}"
            request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
                return answer

        return ask

    yield serve
    for server in servers:
        server.terminate()
        server.wait()


def wait_for(look: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Wait until `look` gives something."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)
    return found


def test_every_trial_is_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    watch = watch_run(tmp_path, DOMAINS)
    for number, state in enumerate(STATES):
        run_trial(watch, record(number, (SGD, ADAMW)[number % 2], state, epochs=0 if state == "infeasible" else 2))
    shown = tab(tmp_path)
    assert shown.rows == {
        f"trials/{number:04d}": {"(state)": state, **(SGD, ADAMW)[number % 2]} for number, state in enumerate(STATES)
    }
    assert shown.rows["trials/0001"]["model/residual"] is False  # and not 0
    assert "optimizer/adamw_lr" not in shown.rows["trials/0000"]  # an empty cell
    assert "optimizer/sgd_lr" not in shown.rows["trials/0001"]
    assert shown.statuses["trials/0003"] == "STATUS_FAILURE"
    assert {shown.statuses[f"trials/000{number}"] for number in range(3)} == {"STATUS_SUCCESS"}


def test_the_columns_have_the_domains_of_all_parameters(tmp_path: Path) -> None:
    watch_run(tmp_path, DOMAINS)
    shown = tab(tmp_path)
    assert shown.columns == {"(state)": STATES, **DOMAINS}
    assert all(type(value) is bool for value in shown.columns["model/residual"] or ())
    assert next(iter(shown.columns)) == "(state)"  # the page shows the first five
    assert shown.rows == {}


def test_the_metrics_of_a_row_are_scalars_of_its_trial(tmp_path: Path) -> None:
    watch = watch_run(tmp_path, DOMAINS)
    run_trial(watch, record(0, SGD, "complete", epochs=3))
    run_trial(watch, record(1, SGD, "infeasible", epochs=0))
    assert tab(tmp_path).metrics == {
        "trials/0000": {
            "trial/best_val_metric": 0.375,
            "trial/epochs": 3.0,
            "trial/num_params": 1000.0,
            "trial/train_s": 4.5,
        },
        "trials/0001": {"trial/epochs": 0.0, "trial/num_params": 2000.0},
    }


def test_a_trial_under_way_has_no_row_yet(tmp_path: Path) -> None:
    # TensorBoard would keep what it reads of a row, and miss its state when the trial ends.
    watch = watch_run(tmp_path, DOMAINS)
    watch.trial_began(0, SGD)
    watch.epoch_ended(0, row(1))
    assert tab(tmp_path).rows == {}


@pytest.mark.parametrize("load_fast", ["auto", "false"])  # TensorBoard's two ways to read event files
def test_a_running_tensorboard_shows_what_the_union_of_parameters_lacked(
    served: Callable[[Path, str], Ask], tmp_path: Path, load_fast: str
) -> None:
    root = tmp_path / "run"
    watch = watch_run(root, DOMAINS)
    run_trial(watch, record(0, SGD))
    ask = served(root, load_fast)
    wait_for(lambda: look_at(ask) == tab(root))

    new: dict[str, Any] = {**SGD, "model/rare": "yes", "model/depth": 7, "batch_size": 512, "optimizer/sgd_lr": 0.75}
    run_trial(watch, record(1, new, "infeasible", epochs=0))
    wait_for(lambda: look_at(ask) == tab(root))
    run_trial(watch, record(2, {**new, "model/depth": 9}, "pruned", epochs=1))
    wait_for(lambda: look_at(ask) == tab(root))
    shown = look_at(ask)
    assert shown.columns == {
        "(state)": STATES,
        **DOMAINS,
        "model/rare": ["yes"],
        "model/depth": (7, 9),
        "batch_size": [32, 64, 128, 512],
        "optimizer/sgd_lr": (0.02, 0.75),
    }
    assert shown.rows["trials/0000"] == {"(state)": "complete", **SGD}
    assert shown.rows["trials/0001"] == {"(state)": "infeasible", **new}
    assert len(shown.rows) == 3


def test_a_run_that_is_taken_up_again_shows_the_trials_of_both_sessions_under_one_record(tmp_path: Path) -> None:
    watch = watch_run(tmp_path, DOMAINS)
    finished = [record(0, SGD), record(1, {**ADAMW, "model/rare": 5})]
    for each in finished:
        run_trial(watch, each)
    watch.trial_began(2, ADAMW)  # and then the process was killed
    watch.epoch_ended(2, row(1))

    watch = watch_run(tmp_path, DOMAINS, finished)
    run_trial(watch, record(2, ADAMW, "pruned", epochs=1))
    shown = tab(tmp_path)
    assert shown.columns == {"(state)": STATES, **DOMAINS, "model/rare": (5, 5)}
    assert [shown.rows[f"trials/000{number}"]["(state)"] for number in range(3)] == ["complete", "complete", "pruned"]
    assert shown.rows["trials/0001"] == {"(state)": "complete", **ADAMW, "model/rare": 5}
    assert len(list((tmp_path / "hparams").rglob("events*"))) == 1


def test_choices_that_are_not_all_alike_are_shown_as_text(tmp_path: Path) -> None:
    domains: dict[str, Domain] = {"mixed": [None, "auto", 2, True], "clip": [1.0, float("inf")], "list": [[1, 2], "x"]}
    watch = watch_run(tmp_path, domains)
    drawn: list[dict[str, Any]] = [
        {"mixed": None, "clip": float("inf")},
        {"mixed": 2, "clip": 1.0, "list": [1, 2]},
        {"mixed": "auto"},
        {"mixed": True},
    ]
    for number, params in enumerate(drawn):
        run_trial(watch, record(number, params))
    shown = tab(tmp_path)
    assert shown.columns == {
        "(state)": STATES,
        "mixed": ["None", "auto", "2", "True"],
        "clip": ["1.0", "inf"],
        "list": ["[1, 2]", "x"],
    }
    assert [shown.rows[f"trials/000{number}"]["mixed"] for number in range(4)] == ["None", "2", "auto", "True"]
    assert shown.rows["trials/0001"]["list"] == "[1, 2]"
    for name in domains:  # numbers beside text could not be sorted
        assert len(tab(tmp_path, sort_by=name).rows) == 4


def test_the_tab_can_be_sorted_by_a_parameter_that_not_every_trial_has(tmp_path: Path) -> None:
    watch = watch_run(tmp_path, DOMAINS)
    for number, params in enumerate([{**SGD, "optimizer/sgd_lr": 0.5}, ADAMW, SGD]):
        run_trial(watch, record(number, params))
    assert list(tab(tmp_path, "optimizer/sgd_lr").rows)[:2] == ["trials/0002", "trials/0000"]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (["sgd", "adamw"], ["adamw", "muon"], ["sgd", "adamw", "muon"]),
        ((1, 3), (2, 5), (1, 5)),
        ([8, 16], (10, 12), (8, 16)),
        ((10, 12), [8, 16], (8, 16)),
        ([1, 2], [2.0, 4], [1, 2, 4]),
        ([1, 2], [True], [1, 2, True]),
        (["auto"], (0.0, 1.0), None),
        ((0.0, 1.0), ["auto"], None),
        (None, ["a"], None),
        (["a"], None, None),
    ],
)
def test_a_parameter_of_several_spaces_has_the_domains_of_all_of_them(
    first: Domain, second: Domain, both: Domain
) -> None:
    united = union({"x": first, "only first": [1]}, {"x": second, "only second": (0, 1)})
    assert united == {"x": both, "only first": [1], "only second": (0, 1)}
    assert repr(united["x"]) == repr(both)  # 1 equals True


def test_the_domains_of_a_space_are_left_as_they_were(tmp_path: Path) -> None:
    domains: dict[str, Domain] = {"x": ["a"]}
    experiment = Experiment(tmp_path / "hparams", union(domains, {"x": ["b"]}))
    experiment.cover({"x": "c", "y": 1})
    assert domains == {"x": ["a"]}


def test_a_parameter_with_any_value_is_shown_as_text(tmp_path: Path) -> None:
    watch = watch_run(tmp_path, union({"x": ["auto"]}, {"x": (0.0, 1.0)}))
    run_trial(watch, record(0, {"x": 0.5}))
    run_trial(watch, record(1, {"x": "auto"}))
    shown = tab(tmp_path, sort_by="x")
    assert shown.columns == {"(state)": STATES, "x": None}
    assert {name: values["x"] for name, values in shown.rows.items()} == {"trials/0000": "0.5", "trials/0001": "auto"}


def test_trials_of_several_spaces_are_rows_of_one_table(tmp_path: Path) -> None:
    watch = watch_run(
        tmp_path, union({"model/width": [8, 16], "lr": (0.1, 1.0)}, {"lr": (0.01, 0.2), "model/freeze": [1]})
    )
    run_trial(watch, record(0, {"model/width": 8, "lr": 0.9}))
    run_trial(watch, {**record(1, {"lr": 0.02, "model/freeze": 1}), "space": "resnet"})
    shown = tab(tmp_path)
    assert shown.columns["lr"] == (0.01, 1.0)
    assert shown.rows == {
        "trials/0000": {"(state)": "complete", "model/width": 8, "lr": 0.9},
        "trials/0001": {"(state)": "complete", "lr": 0.02, "model/freeze": 1},
    }


def test_two_runs_under_one_folder_keep_their_trials_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run_trial(watch_run(tmp_path / name, DOMAINS), record(0, SGD))
    assert set(tab(tmp_path).rows) == {"first/trials/0000", "second/trials/0000"}

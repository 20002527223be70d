"""TensorBoard: events of every training under way, and what the HParams tab shows of a search.

The tab has an experiment record for the run, and a session for each trial. The record alone says which columns there
are, and the tab takes one for all trials: it holds the union of what the trials draw. A session has the values of one
trial; a parameter that it did not draw stays empty.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import FileWriter

from cifar_ray.results.records import CHECKPOINT, Row, RunFolder, State
from cifar_ray.search.space import Domain, is_number, with_value

STATE = "(state)"
"""Column of a trial's state. The tab sorts columns by name and shows the first five: a bracket comes before letters."""

METRICS = ("best_val_metric", "epochs", "num_params", "train_s")
"""Numbers of the tab, below `trial/` among the scalars of each trial."""

SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "optimizer/lr",
    "grad_norm_max": "optimizer/grad_norm_max",
    "train_s": "seconds/train",
}
"""TensorBoard tag of each column of history.csv that is shown."""


def _data_type(domain: Domain) -> "api_pb2.DataType":
    """TensorBoard's type of a parameter; choices that are not all alike are shown as text."""
    if isinstance(domain, tuple) or (domain is not None and all(map(is_number, domain))):
        return api_pb2.DATA_TYPE_FLOAT64
    if domain is not None and all(isinstance(choice, bool) for choice in domain):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING


def _as_type(value: Any, data_type: "api_pb2.DataType") -> Any:
    return str(value) if data_type == api_pb2.DATA_TYPE_STRING else value


class Experiment:
    """The experiment record of a run, which is on disk from the start, and the sessions that fit it."""

    def __init__(self, folder: Path, domains: Mapping[str, Domain], finished: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write the record, in place of what an earlier session of the run wrote.

        Args:
            folder: for the record and nothing else.
            domains: of every parameter that a trial may draw, as far as is known.
            finished: parameters of the trials that an earlier session finished.
        """
        self.folder = folder
        self.domains: dict[str, Domain] = {STATE: list(State), **domains}
        self._version = 0
        for params in finished:
            self._widen(params)
        self._write()

    def cover(self, params: Mapping[str, Any]) -> None:
        """Make sure that the record covers what a trial has drawn.

        A running TensorBoard reads the record of a folder once, and of those in two folders it takes either. So a wider
        one goes to a folder of its own, and the former is deleted.
        """
        former = dict(self.domains)
        self._widen(params)
        if self.domains != former:
            self._version += 1
            self._write()

    def _widen(self, params: Mapping[str, Any]) -> None:
        for name, value in params.items():
            new: Domain = (value, value) if is_number(value) else [value]
            self.domains[name] = with_value(self.domains[name], value) if name in self.domains else new

    def _write(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        writer = FileWriter(str(self.folder / str(self._version)))
        writer.add_summary(_experiment(self.domains))
        writer.close()

    def session(self, record: Mapping[str, Any]) -> Summary:
        """The session of a trial that has ended, given its line of trials.jsonl: its parameters, state and metrics.

        Written while the trial ran it would lack the state, and TensorBoard keeps the first that it reads.
        """
        start, numbers = SessionStartInfo(), _metrics(record)
        for name, value in {STATE: record["state"], **record["params"]}.items():
            shown = _as_type(value, _data_type(self.domains[name]))
            if isinstance(shown, str):
                start.hparams[name].string_value = shown
            elif isinstance(shown, bool):
                start.hparams[name].bool_value = shown
            else:
                start.hparams[name].number_value = shown
        failed = record["state"] == State.FAILED
        end = SessionEndInfo(status=api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS)
        return Summary(
            value=[
                _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
                _value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
                *(Summary.Value(tag=f"trial/{name}", simple_value=number) for name, number in numbers.items()),
            ]
        )


def write_sessions(run: RunFolder, domains: Mapping[str, Domain], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Show trainings that have ended in the HParams tab: for those of an ablation, whose parameters are its factors.

    Args:
        run: where they are.
        domains: of every parameter.
        records: by name of the model, what :meth:`Experiment.session` takes.
    """
    experiment = Experiment(run.root / "hparams", domains)
    events = EventWriters()
    for name, record in records.items():
        events.add(run.model(name), experiment.session(record), record["epochs"] or 0)
    events.close_all()


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    values = (
        record["best"] and record["best"]["val_metric"],
        record["epochs"],
        record["num_params"],
        record["seconds"].get("train"),
    )
    return {name: value for name, value in zip(METRICS, values, strict=True) if value is not None}


def _experiment(domains: Mapping[str, Domain]) -> Summary:
    experiment = api_pb2.Experiment()
    for name, domain in domains.items():
        data_type = _data_type(domain)
        info = experiment.hparam_infos.add(name=name, type=data_type)
        # The tab shows first what may differ between trials.
        info.differs = domain is None or len(set(map(str, domain))) > 1
        if isinstance(domain, tuple):
            info.domain_interval.min_value, info.domain_interval.max_value = domain
        elif domain is not None:
            info.domain_discrete.extend([_as_type(choice, data_type) for choice in domain])
    for name in METRICS:
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=f"trial/{name}"), display_name=name)
    return Summary(value=[_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))])


def _value(tag: str, content: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content))


class EventWriters:
    """One TensorBoard run for each training under way, in its own folder."""

    def __init__(self) -> None:
        self._writers: dict[Path, FileWriter] = {}

    def epoch(self, folder: Path, row: Row) -> None:
        """Write one epoch's scalars; they are on disk when this returns, so that TensorBoard shows them live."""
        scalars = [Summary.Value(tag=tag, simple_value=row[column]) for column, tag in SCALARS.items()]
        self.add(folder, Summary(value=scalars), row["epoch"])

    def add(self, folder: Path, summary: Summary, epoch: int) -> None:
        """Write the values of one event; they are on disk when this returns."""
        if folder not in self._writers:
            self._writers[folder] = FileWriter(str(folder))
        self._writers[folder].add_summary(summary, epoch)
        self._writers[folder].flush()

    def close(self, folder: Path) -> None:
        """End the run in `folder`, if one was begun."""
        writer = self._writers.pop(folder, None)
        if writer is not None:
            writer.close()

    def close_all(self) -> None:
        for folder in list(self._writers):
            self.close(folder)


def clear_training(folder: Path) -> None:
    """Remove what an interrupted training left, since TensorBoard would show it beside the next one's; not its
    checkpoint, which is of use until a newer one takes its place.
    """
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != CHECKPOINT:
            path.unlink()

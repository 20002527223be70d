"""How a run begins, is interrupted, and goes on: its folder, its lock, its run.json, and the clock of its phases."""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from cifar_ray import BEGAN
from cifar_ray.cli.flags import RunSettings
from cifar_ray.config import TrialConfig
from cifar_ray.distributed.hardware import Hardware, Workers
from cifar_ray.errors import InputError
from cifar_ray.files import read_json, write_json
from cifar_ray.results.records import RunFolder, run_name

PACKAGES = ("cifar_ray", "torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn")

Settings = TypeVar("Settings", bound=RunSettings)

NEEDED_MB = 200
"""Free disk below which no run is begun: models, events and Ray's own logs take some tens of megabytes at least."""


class Phases:
    """Seconds of each phase of a run, in order, those of `earlier` sessions of the same run included.

    The first phase, `startup`, began with the program. (The process may be older: a shell's that became this one.)
    """

    def __init__(self, earlier: Mapping[str, float]) -> None:
        self.seconds: dict[str, float] = dict(earlier)
        self._current: str | None = "startup"
        self._began = BEGAN

    def next(self, phase: str | None) -> float:
        """End the phase under way and begin `phase`, if any; return the seconds of the one that ended."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        if self._current is not None:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + seconds
        self._current = phase
        return seconds

    @property
    def current(self) -> float:
        """Seconds of the phase under way, those of earlier sessions included."""
        earlier = self.seconds.get(self._current, 0.0) if self._current else 0.0
        return earlier + time.monotonic() - self._began

    @property
    def total(self) -> float:
        """Seconds of all phases, the one under way included."""
        return sum(self.seconds.values()) + time.monotonic() - self._began


class Run(Generic[Settings]):
    """A run's folder, its lock, and its run.json: what it is and how far it has come."""

    def __init__(self, settings: Settings, kind: str, label: str, resume: str | None = None) -> None:
        self.settings = settings
        self.kind = kind
        self.resumed = resume is not None
        self._lock: int | None = None
        self.about: dict[str, Any] = {}
        if resume is not None:
            self.folder = RunFolder(Path(resume))
            with contextlib.ExitStack() as refused:
                refused.callback(self.close)
                self._take_lock()
                self.about = read_json(self.folder.run_json)
                if not self.finished:
                    _check_room(self.folder.root)
                refused.pop_all()
        else:
            name = settings.name or run_name(f"{label}-{Path(settings.data or '').name}")
            self.folder = RunFolder((settings.runs_dir / name).absolute())
            self._check_place()
        self.phases = Phases(self.about.get("phases_s", {}))

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end already, and is not extended."""
        return bool(self.about.get("end")) and not self.extended

    @property
    def extended(self) -> dict[str, list[Any]]:
        """What a run that is taken up again is now given more of: by name, the value it had and the new one."""
        if not self.resumed:
            return {}
        recorded = self.about["settings"]
        values = {name: [recorded.get(name), getattr(self.settings, name)] for name in self.settings.extendable}
        return {name: pair for name, pair in values.items() if pair[0] is not None and pair[0] != pair[1]}

    @property
    def resume_command(self) -> str | None:
        """What goes on with it after an interruption; None where it is as well begun anew."""
        return (
            None
            if self.kind == "evaluate"
            else f"python -m cifar_ray.{self.kind} --resume {shlex.quote(str(self.folder.root))}"
        )

    def _check_place(self) -> None:
        """Refuse a folder that exists, or that could not be made and written to; makes nothing."""
        root = self.folder.root
        try:
            root.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:  # a path that is too long, or leads through a folder that may not be entered
            raise InputError(f"--runs-dir: cannot use {root}: {error.strerror}; choose another folder") from None
        else:
            raise InputError(f"--name: a run {root.name!r} exists in {root.parent}; choose another name")
        _check_room(next(parent for parent in root.parents if os.path.lexists(parent)))

    def _take_lock(self) -> None:
        # On the folder itself: the system lets go of it however this process ends, so it can never be stale.
        self._lock = os.open(self.folder.root, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--resume: the run {self.folder.root} is running; end it first, or wait") from None

    def check_unchanged(self, **facts: Any) -> None:
        """Refuse to go on with a run of which one of these facts has changed; note them for a new one.

        Args:
            facts: by name of what has changed, such as `data` and a fingerprint; of one that is a dict, it is told what
                in it has changed.
        """
        recorded = self.about.setdefault("unchanged", {})
        for name, value in json.loads(json.dumps(facts)).items():  # as run.json gives them back
            if (began := recorded.setdefault(name, value)) == value:
                continue
            told = ""
            if isinstance(value, dict):
                keys = [key for key in {**began, **value} if began.get(key) != value.get(key)]
                changes = [f"{key} was {began.get(key)!s:.60}, is {value.get(key)!s:.60}" for key in keys]
                told = f" ({'; '.join(changes)})"
            raise InputError(
                f"--resume: {name} has changed since {self.folder.root} began{told}: bring it back, or start a new run"
            )

    def note_device(self, hardware: Hardware, workers: Workers) -> None:
        """Note what a new run trains on; one that is taken up elsewhere keeps what it began on."""
        self.about.setdefault("device", {**asdict(hardware), "slots": workers.num_groups})

    def begin(self, data: Mapping[str, Any]) -> None:
        """Make the folder and write run.json, with what it says of the `data`, or add this session to it."""
        if self.resumed:
            self.about.setdefault("resumed", []).append(_now())
            if extended := self.extended:
                self.about.setdefault("extended", []).append({"at": _now(), **extended})
                self.about["settings"] |= {name: now for name, (_, now) in extended.items()}
                self.about["end"] = None
            self.save()
            return
        try:
            self.folder.root.mkdir(parents=True)
        except FileExistsError:
            raise InputError(
                f"--name: a run {self.folder.root.name!r} was begun meanwhile; choose another name"
            ) from None
        except OSError as error:
            raise InputError(f"--runs-dir: cannot make {self.folder.root}: {error.strerror}; choose another") from None
        self._take_lock()
        self.about = {
            "command": f"python -m cifar_ray.{self.kind} {shlex.join(sys.argv[1:])}",
            "kind": self.kind,
            "settings": asdict(self.settings),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "data": data,
            "seed": asdict(self.settings).get("seed"),
            "metric": self.settings.metric,
            **self.about,
            "start": _now(),
            "end": None,
            "phases_s": {},
        }
        self.save()

    def next_phase(self, phase: str | None) -> float:
        """End the phase under way, write that down, and begin the next; return the seconds of the one that ended."""
        seconds = self.phases.next(phase)
        self.save()
        return seconds

    def spend(self, phase: str, seconds: Mapping[str, float]) -> None:
        """Note seconds of a slot in a phase, by kind; see `records.slot_seconds`."""
        spent = self.about.setdefault("slots_s", {}).setdefault(phase, {})
        for kind, s in seconds.items():
            spent[kind] = spent.get(kind, 0.0) + s

    def save(self) -> None:
        """Write run.json."""
        self.about["phases_s"] = self.phases.seconds
        write_json(self.folder.run_json, self.about)

    def end(self) -> None:
        """The run has come to its end."""
        self.about["end"] = _now()
        self.save()

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_batch_sizes(workers: Workers, flag: str, configs: Iterable[tuple[str, TrialConfig]]) -> None:
    """Refuse a number of workers, asked for by `flag`, that cannot share the batches of one of these named configs."""
    for name, config in configs:
        if config.batch_size % workers.workers_per_model:
            raise InputError(
                f"{flag}: {workers.workers_per_model} workers cannot share batches of {config.batch_size} images "
                f"({name}); give a number that divides them"
            )
        if config.augment.mix != "none" and config.batch_size == workers.workers_per_model:
            raise InputError(
                f"{flag}: of batches of {config.batch_size} images {workers.workers_per_model} workers have one each, "
                f"and augment/mix {config.augment.mix!r} mixes several ({name}); give fewer"
            )


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does. To be entered after Ray's start, which sets a handler of its own."""

    def interrupt(number: int, frame: Any) -> None:
        # A script's background jobs ignore Ctrl-C; that was not meant for SIGTERM.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_room(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--runs-dir: cannot write in {folder}: {error.strerror}; choose another folder") from None
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < NEEDED_MB:
        raise InputError(f"--runs-dir: {free_mb:.0f} MB are free in {folder}, a run needs {NEEDED_MB}: make room there")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")

"""The desk between those who want models trained and the groups of workers that train them.

A plain class of coroutines, of which `workers.open_pool` makes an actor that holds no CPU. All ranks of a group ask the
desk for themselves, and it gives every one of them the same answer: they agree without talking to each other.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cifar_ray.config import TrialConfig
from cifar_ray.results.records import Row

DIED = "a worker process died"

MAX_CRASHES = 1
"""How often a training that took its workers along is run again."""


@dataclass(frozen=True)
class Job:
    """A training to do."""

    key: str
    """Tells it from every other one of the desk."""
    config: TrialConfig
    seed: int
    resume: bytes | None = None
    """Packed by an earlier session, see `loop.run_experiment`."""
    kept_patiences: tuple[int, ...] = ()
    """See `loop.Experiment`."""
    split: int = 0
    """Which of the data it is trained on, see `process.TrialSettings`."""


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training under way."""

    key: str
    row: Row


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from if it is interrupted."""

    key: str
    packed: bytes


@dataclass(frozen=True)
class Kept:
    """The model that a patience would have left."""

    weights: bytes
    epochs: int
    """That it would have taken."""
    best: Row
    train_accuracy: float
    """See :class:`Trained`."""


@dataclass(frozen=True)
class Trained:
    """What came of a training in the end; `failure` says why there is no model."""

    key: str
    weights: bytes = b""
    history: list[Row] | None = None
    best: Row | None = None
    train_accuracy: float | None = None
    """Of the best weights, on the training images without augmentation."""
    num_params: int | None = None
    seconds: float = 0.0
    failure: str | None = None
    kept: dict[int, Kept] = field(default_factory=dict)
    """By the job's `kept_patiences`."""


Message = Epoch | Checkpoint | Trained


@dataclass
class _Training:
    job: Job
    mailbox: str
    seen: int = 0
    """The last epoch that was told to who wants it."""
    judged: int = 0
    """The last epoch after which it may go on."""
    crashes: int = 0
    ended: bool = False

    def forget_checkpoint(self) -> None:
        """Let go of what it would go on from, which is as large as a few models. For one that has ended."""
        self.job = replace(self.job, resume=None)


class Desk:
    """Hands out trainings in order, and carries what becomes of them to who wants them.

    Args:
        judged: whether a training goes on after an epoch only when `judge` says so. It then ends with its last epoch,
            and no model is handed over.
    """

    def __init__(self, judged: bool) -> None:
        self._judged = judged
        self._trainings: dict[str, _Training] = {}
        self._waiting: deque[_Training] = deque()
        self._taken: dict[tuple[int, int], _Training] = {}
        """By the index of the group and the number of its training."""
        self._mail: defaultdict[str, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self._generation = 0
        self._lost: dict[int, tuple[str, bool]] = {}
        self._closed = False
        self._given_up: str | None = None
        self._changed = asyncio.Event()

    # ---- for those who want models trained ----

    async def submit(self, job: Job, mailbox: str | None = None) -> None:
        """Put a training at the end of the line; its messages go to `mailbox`, one of its own if none is given."""
        training = self._trainings[job.key] = _Training(job, mailbox or job.key)
        if self._given_up:
            self._end(training, Trained(job.key, failure=self._given_up))
        else:
            self._waiting.append(training)
        self._notify()

    async def next_message(self, mailbox: str) -> Message:
        """Wait for a message."""
        return await self._mail[mailbox].get()

    async def judge(self, key: str, epoch: int) -> None:
        """Let a training go on after `epoch`."""
        self._trainings[key].judged = epoch
        self._notify()

    async def drop(self, key: str) -> None:
        """Stop a training after the epoch under way, if it has not ended; nobody wants to hear of it any more."""
        if training := self._trainings.get(key):
            training.ended = True
            self._mail.pop(key, None)
        self._notify()

    async def close(self, stop: bool = False) -> None:
        """No more trainings come; `stop` ends those that are there."""
        self._closed = True
        for training in self._trainings.values():
            training.ended |= stop
        self._notify()

    async def give_up(self, reason: str) -> None:
        """There are no workers any more: every training that has not ended, or is still to come, fails."""
        self._given_up = reason
        self._closed = True
        for training in self._trainings.values():
            self._end(training, Trained(training.job.key, failure=reason))
        self._notify()

    # ---- for the workers ----

    async def begin(self) -> int:
        """New workers have been started; return their generation. What the last ones left is trained again first.

        A training whose own group was lost, and not for the first time, is failed. Where nobody told which group was
        lost, it may have been any.
        """
        for (group, _), training in reversed(self._taken.items()):
            if not training.ended and (group in self._lost or not self._lost):
                reason, again = self._lost.get(group, (DIED, True))
                training.crashes += 1
                if training.crashes > MAX_CRASHES or not again:
                    self._end(training, Trained(training.job.key, failure=reason))
            if training.ended:
                training.forget_checkpoint()
            else:
                self._waiting.appendleft(training)
        self._taken.clear()
        self._lost.clear()
        self._generation += 1
        self._notify()
        return self._generation

    async def lose(self, groups: dict[int, tuple[str, bool]]) -> None:
        """Learn which groups lost a worker, for what reason, and whether their trainings are worth another try."""
        self._lost = {**groups, **self._lost}

    async def next_job(self, generation: int, group: int, number: int) -> Job | None:
        """Wait for a group's training of this number; None when there are no more."""
        place = group, number
        # Not as soon as it ends: a rank that comes late is given the same as the others of its group.
        before = self._taken.get((group, number - 1))
        if generation == self._generation and before is not None and before.ended:
            before.forget_checkpoint()
        await self._until(
            lambda: generation != self._generation or place in self._taken or self._next_waiting() or self._closed
        )
        if generation != self._generation:
            return None
        if place not in self._taken and self._next_waiting():
            self._taken[place] = self._waiting.popleft()
        training = self._taken.get(place)
        return None if training is None else training.job

    async def report(self, generation: int, key: str, epoch: int, row: Row | None) -> bool:
        """Learn of an epoch, from the rank that gives its row; tell every rank whether the training goes on."""
        training = self._trainings[key]
        if generation == self._generation and row is not None and not training.ended:
            if epoch > training.seen:  # a training that is run again tells nothing twice
                training.seen = epoch
                self._send(training, Epoch(key, row))
            if not self._judged or row["finished"]:
                training.judged = max(training.judged, epoch)
                training.ended = self._judged
            self._notify()
        await self._until(lambda: generation != self._generation or training.ended or training.judged >= epoch)
        # Not whether it has ended by now: another rank may have been told to go on before.
        return generation == self._generation and training.judged >= epoch

    async def post(self, generation: int, message: Checkpoint | Trained) -> None:
        """Learn how a training ended, or from where it goes on if its workers are lost."""
        training = self._trainings[message.key]
        if generation != self._generation or training.ended:
            return
        if isinstance(message, Trained):
            self._end(training, message)
        else:
            training.job = replace(training.job, resume=message.packed)
            self._send(training, message)

    # ----

    def _next_waiting(self) -> bool:
        while self._waiting and self._waiting[0].ended:
            self._waiting.popleft().forget_checkpoint()
        return bool(self._waiting)

    def _end(self, training: _Training, message: Trained) -> None:
        if not training.ended:
            training.ended = True
            self._send(training, message)

    def _send(self, training: _Training, message: Message) -> None:
        self._mail[training.mailbox].put_nowait(message)

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

"""The desk between those who want models trained and the groups of workers that train them.

A plain class of coroutines, of which `workers.open_pool` makes an actor that holds no CPU. All ranks of a group ask the
desk for themselves, and it gives every one of them the same answer: they agree without talking to each other.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
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
    decisive: frozenset[int] | None = None
    """Epochs after which a judged training waits for its verdict; None is all of them."""


@dataclass(frozen=True)
class Seat:
    """Where a worker sits: what one of an earlier generation says is not heard."""

    group: int
    """Index of the group of workers that trains one model."""
    generation: int


@dataclass(frozen=True)
class Epochs:
    """Epochs of a training under way."""

    key: str
    rows: Sequence[Row]


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
    seconds: dict[str, float] | None = None
    """Of the worker's slot, see `rank.SlotClock`; None where the worker was lost, and could not tell."""
    failure: str | None = None
    kept: dict[int, Kept] = field(default_factory=dict)
    """By the job's `kept_patiences`."""


Message = Epochs | Checkpoint | Trained


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
        judged: whether a training goes on after its decisive epochs only when `judge` says so. It then ends with its
            last epoch, and no model is handed over.
    """

    def __init__(self, judged: bool) -> None:
        self._judged = judged
        self._trainings: dict[str, _Training] = {}
        self._waiting: deque[_Training] = deque()
        self._taken: dict[tuple[int, int], _Training] = {}
        """By the index of the group and the number of its training."""
        self._mail: defaultdict[str, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self._generations: dict[int, int] = {}
        """Of each group."""
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

    async def begin(self, groups: Collection[int]) -> int:
        """New workers of these groups have been started; return their generation.

        What the last ones left is trained again first. A training whose own group was lost, and not for the first time,
        is failed. Where nobody told which group was lost, it may have been any.
        """
        left = [place for place in self._taken if place[0] in groups]
        for place in reversed(left):
            training, group = self._taken.pop(place), place[0]
            if not training.ended and (group in self._lost or not self._lost):
                reason, again = self._lost.get(group, (DIED, True))
                training.crashes += 1
                if training.crashes > MAX_CRASHES or not again:
                    self._end(training, Trained(training.job.key, failure=reason))
            if training.ended:
                training.forget_checkpoint()
            else:
                self._waiting.appendleft(training)
        generation = 1 + max(self._generations.values(), default=0)
        for group in groups:
            self._lost.pop(group, None)
            self._generations[group] = generation
        self._notify()
        return generation

    async def lose(self, groups: dict[int, tuple[str, bool]]) -> None:
        """Learn which groups lost a worker, for what reason, and whether their trainings are worth another try."""
        self._lost = {**groups, **self._lost}

    async def next_job(self, seat: Seat, number: int) -> Job | None:
        """Wait for a group's training of this number; None when there are no more."""
        place = seat.group, number
        # Not as soon as it ends: a rank that comes late is given the same as the others of its group.
        before = self._taken.get((seat.group, number - 1))
        if self._is_current(seat) and before is not None and before.ended:
            before.forget_checkpoint()
        await self._until(
            lambda: not self._is_current(seat) or place in self._taken or self._next_waiting() or self._closed
        )
        if not self._is_current(seat):
            return None
        if place not in self._taken and self._next_waiting():
            self._taken[place] = self._waiting.popleft()
        training = self._taken.get(place)
        return None if training is None else training.job

    async def report(self, seat: Seat, key: str, epoch: int, rows: Sequence[Row]) -> bool:
        """Learn of a training's epochs up to this one, and tell the rank whether it goes on.

        One rank of a group gives the rows, since the last ones that it gave; every one of them asks.
        """
        training = self._trainings[key]
        if self._is_current(seat) and rows and not training.ended:
            # A training that is run again tells nothing twice.
            if new := [row for row in rows if row["epoch"] > training.seen]:
                training.seen = epoch
                self._send(training, Epochs(key, new))
            finished = rows[-1]["finished"]
            decisive = training.job.decisive
            if finished or not self._judged or (decisive is not None and epoch not in decisive):
                training.judged = max(training.judged, epoch)
            training.ended = self._judged and finished
            self._notify()
        await self._until(lambda: not self._is_current(seat) or training.ended or training.judged >= epoch)
        # Not whether it has ended by now: another rank may have been told to go on before.
        return self._is_current(seat) and training.judged >= epoch

    async def post(self, seat: Seat, message: Checkpoint | Trained) -> None:
        """Learn how a training ended, or from where it goes on if its workers are lost."""
        training = self._trainings[message.key]
        if not self._is_current(seat) or training.ended:
            return
        if isinstance(message, Trained):
            self._end(training, message)
        else:
            training.job = replace(training.job, resume=message.packed)
            self._send(training, message)

    # ----

    def _is_current(self, seat: Seat) -> bool:
        return self._generations.get(seat.group) == seat.generation

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

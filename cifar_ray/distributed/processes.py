"""The processes of a run: one for each worker, up from the start, in which everything is computed in turn.

They are probed, train the trials and the final models that one worker trains alone, and score what was trained: what
they import and the data that they hold is paid for once. Models that several workers train together are Ray Train's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool

from cifar_ray.distributed.hardware import Workers

MAX_ROUNDS = 3
"""How often what processes that died left behind is given to others."""

PATIENCE_S = 20.0
"""How long the first process that is up waits for the others. On a cluster other runs may hold what they need."""


class Processes:
    """Worker processes, each an actor that calls one function after another; a context manager, which ends them.

    Args:
        workers: how many, and what each of them holds.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._actors: list[Any] = []
        self._up: list[Any] = []
        """Of each actor, a reference that is there once it is up."""

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def start(self) -> None:
        """Start what is not there, and do not wait for it; everything here does so by itself."""
        while len(self._actors) < self.workers.num_workers:
            actor = self._start_one()
            self._actors.append(actor)
            self._up.append(actor.call.remote(_import_all))

    def _start_one(self) -> Any:
        resources = self.workers.resources
        return _Process.options(num_cpus=resources["CPU"], num_gpus=resources["GPU"]).remote()  # type: ignore[attr-defined]

    def replace(self, index: int) -> None:
        """Start a process in the place of one that is there no more, or that nobody trusts any more."""
        ray.kill(self._actors[index])
        self._actors[index] = self._start_one()
        self._up[index] = self.call(index, _import_all)

    def release(self) -> None:
        """End all of them, so that what they hold is free; they are started anew when they are next needed."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._up.clear()

    def keep(self, indices: Sequence[int]) -> None:
        """End all but these, which are numbered anew; the others are started again when they are next needed."""
        kept = [(self._actors[index], self._up[index]) for index in indices]
        for index in {*range(len(self._actors))} - {*indices}:
            ray.kill(self._actors[index])
        self._actors, self._up = [actor for actor, _ in kept], [up for _, up in kept]

    def shrink(self, indices: Sequence[int]) -> None:
        """End all but these, for good."""
        self.keep(indices)
        self.workers = replace(self.workers, num_workers=len(indices))

    def call(self, index: int, function: Callable[..., Any], *args: Any) -> ray.ObjectRef[Any]:
        """Call a function of a module in one process, after what it is at."""
        return self._actors[index].call.remote(function, *args)

    def up(self) -> list[int]:
        """Which processes are up: at least one, and the others that are there soon after it."""
        self.start()
        ray.wait(self._up)
        there, _ = ray.wait(self._up, num_returns=len(self._up), timeout=PATIENCE_S)
        return [index for index, ref in enumerate(self._up) if ref in there]

    def call_all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in all processes that are up, at once; return what it returned."""
        return ray.get([self.call(index, function, *args) for index in self.up()])

    def map(
        self,
        function: Callable[..., Any],
        items: Mapping[str, Sequence[Any]],
        on_result: Callable[[str], None] = lambda key: None,
    ) -> dict[str, Any]:
        """Call a function with every item's arguments; what a process took along when it died goes to another one.

        Args:
            function: of a module.
            items: its arguments, by key.
            on_result: is told of each key whose result is there, as it comes.

        Returns:
            What it returned by key, in the order of the items.

        Raises:
            RuntimeError: items were lost in every round.
        """
        results: dict[str, Any] = {}
        for _ in range(MAX_ROUNDS):
            missing = {key: args for key, args in items.items() if key not in results}
            if not missing:
                break
            pool = ActorPool([self._actors[index] for index in self.up()])
            for key, args in missing.items():
                pool.submit(lambda actor, call: actor.call.remote(_with_key, *call), (key, function, args))
            some_died = False
            while pool.has_next():
                try:
                    key, result = pool.get_next_unordered()
                except RayActorError:
                    some_died = True
                    continue  # the pool drops the actor; its item is still missing and goes into the next round
                results[key] = result
                on_result(key)
            if some_died:
                self.release()
        lost = [key for key in items if key not in results]
        if lost:
            raise RuntimeError(f"processes died {MAX_ROUNDS} times over: no result for {', '.join(lost)}")
        return {key: results[key] for key in items}


@ray.remote
class _Process:
    """A worker's process."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def _import_all() -> None:
    """Import what all that follows needs, while the driver is at other things."""
    import torch._dynamo  # noqa: F401 - a process's first optimizer does so

    import cifar_ray.distributed.rank
    import cifar_ray.distributed.speed  # noqa: F401


def _with_key(key: str, function: Callable[..., Any], args: Sequence[Any]) -> tuple[str, Any]:
    return key, function(*args)

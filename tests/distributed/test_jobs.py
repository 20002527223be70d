"""The desk: every rank of a group gets the same answer, nothing is told twice, and nobody waits for ever."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from cifar_ray.config import TrialConfig
from cifar_ray.distributed.jobs import DIED, Checkpoint, Desk, Epochs, Job, Seat, Trained

SOON_S = 5.0
GROUPS = (0, 1)


def job(key: str) -> Job:
    return Job(key, TrialConfig(), seed=0)


def row(epoch: int, finished: bool = False) -> dict[str, Any]:
    return {"epoch": epoch, "finished": finished}


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, SOON_S))


async def waits(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Start it, and see to it that it waits."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


def key_of(given: Job | None) -> str | None:
    return given and given.key


def test_groups_take_trainings_in_order_and_all_ranks_of_a_group_the_same_one() -> None:
    async def story() -> None:
        desk = Desk(judged=False)
        generation = await desk.begin(GROUPS)
        early = await waits(desk.next_job(Seat(0, generation), 0))
        for key in "abc":
            await desk.submit(job(key), "driver")
        assert key_of(await early) == "a"
        assert key_of(await desk.next_job(Seat(1, generation), 0)) == "b"
        assert key_of(await desk.next_job(Seat(0, generation), 0)) == "a"  # the other rank of group 0
        assert key_of(await desk.next_job(Seat(1, generation), 1)) == "c"
        last = [await waits(desk.next_job(Seat(0, generation), 1)) for _ in range(2)]
        await desk.close()
        assert [await one for one in last] == [None, None]

    run(story())


def test_a_judged_training_waits_for_its_verdict_on_every_rank() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        await desk.submit(job("a"))
        await desk.next_job(Seat(0, generation), 0)
        second = await waits(desk.report(Seat(0, generation), "a", 1, []))
        first = await waits(desk.report(Seat(0, generation), "a", 1, [row(1)]))
        assert await desk.next_message("a") == Epochs("a", [row(1)])
        await desk.judge("a", 1)
        assert await first and await second
        # Two ranks are told of one verdict, with the end of the trial between.
        assert not (await waits(desk.report(Seat(0, generation), "a", 2, [row(2)]))).done()
        await desk.judge("a", 2)
        await desk.drop("a")
        assert await desk.report(Seat(0, generation), "a", 2, [])
        assert not await desk.report(Seat(0, generation), "a", 3, [row(3)])
        assert not await desk.report(Seat(0, generation), "a", 3, [])

    run(story())


def test_the_last_epoch_of_a_judged_training_needs_no_verdict() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        await desk.submit(job("a"))
        await desk.next_job(Seat(0, generation), 0)
        assert await desk.report(Seat(0, generation), "a", 1, [row(1, finished=True)])
        assert await desk.report(Seat(0, generation), "a", 1, [])
        assert await desk.begin(GROUPS) == generation + 1  # it has ended, and is not run again
        await waits(desk.next_job(Seat(0, generation + 1), 0))

    run(story())


def test_a_judged_training_waits_after_its_decisive_epochs_alone() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        seat = Seat(0, await desk.begin(GROUPS))
        await desk.submit(replace(job("a"), decisive=frozenset({3})))
        await desk.next_job(seat, 0)
        assert await desk.report(seat, "a", 2, [row(1), row(2)])
        assert await desk.next_message("a") == Epochs("a", [row(1), row(2)])
        third = await waits(desk.report(seat, "a", 3, [row(3)]))
        await desk.judge("a", 3)
        assert await third
        await desk.drop("a")
        assert not await desk.report(seat, "a", 4, [row(4)])

    run(story())


def test_a_training_that_nobody_wants_any_more_is_not_begun() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        for key in "ab":
            await desk.submit(job(key))
        await desk.drop("a")
        assert key_of(await desk.next_job(Seat(0, generation), 0)) == "b"

    run(story())


def test_what_lost_workers_left_is_trained_again_first_and_told_once() -> None:
    async def story() -> None:
        desk = Desk(judged=False)
        old = await desk.begin(GROUPS)
        for key in "abc":
            await desk.submit(job(key), "driver")
        await desk.next_job(Seat(0, old), 0)
        await desk.next_job(Seat(1, old), 0)
        await desk.report(Seat(0, old), "a", 1, [row(1)])
        await desk.post(Seat(0, old), Checkpoint("a", b"packed"))
        new = await desk.begin(GROUPS)
        assert await desk.next_job(Seat(0, old), 1) is None and not await desk.report(Seat(0, old), "a", 2, [row(2)])
        again = await desk.next_job(Seat(0, new), 0)
        assert again is not None and (again.key, again.resume) == ("a", b"packed")
        assert key_of(await desk.next_job(Seat(1, new), 0)) == "b"
        assert await desk.report(Seat(0, new), "a", 1, [row(1)])
        assert await desk.report(Seat(0, new), "a", 2, [row(2)])
        await desk.post(Seat(0, old), Trained("a"))  # of a process that was thought dead
        await desk.post(Seat(0, new), Trained("a", weights=b"a"))
        messages = [await desk.next_message("driver") for _ in range(4)]
        assert messages == [
            Epochs("a", [row(1)]),
            Checkpoint("a", b"packed"),
            Epochs("a", [row(2)]),
            Trained("a", weights=b"a"),
        ]

    run(story())


def test_when_one_group_begins_anew_the_others_go_on() -> None:
    async def story() -> None:
        desk = Desk(judged=False)
        seats = [Seat(group, await desk.begin([group])) for group in GROUPS]
        for key, seat in zip("ab", seats, strict=True):
            await desk.submit(job(key), "driver")
            await desk.next_job(seat, 0)
        await desk.lose({1: ("bad luck", True)})
        again = Seat(1, await desk.begin([1]))
        assert await desk.report(seats[0], "a", 1, [row(1)])
        assert not await desk.report(seats[1], "b", 1, [row(1)])
        assert key_of(await desk.next_job(again, 0)) == "b"
        assert await desk.report(again, "b", 1, [row(1)])

    run(story())


@pytest.mark.parametrize(
    ("lost", "failed"),
    [
        ([{}, {}], {"a": DIED, "b": DIED}),  # nobody knows whose worker it was
        ([{1: ("bad luck", True)}, {1: ("again", True)}], {"b": "again"}),
        ([{0: ("bad luck", True)}, {1: ("bad luck", True)}], {}),
        ([{0: ("too large", False)}], {"a": "too large"}),
    ],
)
def test_a_training_is_failed_when_its_own_group_is_lost_again(
    lost: list[dict[int, tuple[str, bool]]], failed: dict[str, str]
) -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        for key in "ab":
            await desk.submit(job(key), "driver")
        for groups in lost:
            await desk.next_job(Seat(0, generation), 0)
            await desk.next_job(Seat(1, generation), 0)
            await desk.lose(groups)
            generation = await desk.begin(GROUPS)
        messages = [await desk.next_message("driver") for _ in failed]
        assert {message.key: message.failure for message in messages if isinstance(message, Trained)} == failed
        await desk.close()
        left = [key_of(await desk.next_job(Seat(0, generation), number)) for number in range(3)]
        assert left == [key for key in "ab" if key not in failed] + [None] * (1 + len(failed))

    run(story())


def test_when_there_are_no_workers_any_more_everybody_who_waits_learns_it() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        await desk.submit(job("under way"))
        await desk.submit(job("in line"))
        await desk.next_job(Seat(0, generation), 0)
        waiting = [await waits(desk.next_message(key)) for key in ("under way", "in line")]
        rank = await waits(desk.report(Seat(0, generation), "under way", 1, []))
        await desk.give_up("no workers")
        await desk.submit(job("late"))
        told = [await one for one in waiting] + [await desk.next_message("late")]
        assert told == [Trained(key, failure="no workers") for key in ("under way", "in line", "late")]
        assert not await rank
        assert await desk.next_job(Seat(0, generation), 1) is None

    run(story())


def test_an_interruption_stops_every_training_after_its_epoch() -> None:
    async def story() -> None:
        desk = Desk(judged=False)
        seat = Seat(0, await desk.begin(GROUPS))
        await desk.submit(job("a"), "driver")
        await desk.submit(job("b"), "driver")
        await desk.next_job(seat, 0)
        assert await desk.report(seat, "a", 1, [row(1)]) and await desk.report(seat, "a", 1, [])
        await desk.close(stop=True)
        assert not await desk.report(seat, "a", 2, [row(2)]) and not await desk.report(seat, "a", 2, [])
        assert await desk.next_job(seat, 1) is None

    run(story())


def checkpoints_kept(desk: Desk) -> set[bytes]:
    """What trainings of the desk would go on from, and what stands in its mail."""
    jobs = [training.job for training in desk._trainings.values()]
    mail = [message for box in desk._mail.values() for message in box._queue]  # type: ignore[attr-defined]
    return {job.resume for job in jobs if job.resume} | {m.packed for m in mail if isinstance(m, Checkpoint)}


def test_the_checkpoint_of_a_training_is_let_go_of_when_its_group_is_done_with_it() -> None:
    async def story() -> None:
        desk = Desk(judged=False)
        generation = await desk.begin(GROUPS)
        for key in "abc":
            await desk.submit(Job(key, TrialConfig(), 0, b"first of " + key.encode()), "driver")
        await desk.next_job(Seat(0, generation), 0)
        await desk.post(Seat(0, generation), Checkpoint("a", b"second of a"))
        await desk.next_message("driver")
        assert checkpoints_kept(desk) == {b"second of a", b"first of b", b"first of c"}
        await desk.post(Seat(0, generation), Trained("a"))
        late = await desk.next_job(Seat(0, generation), 0)  # the other rank of the group
        assert late is not None and late.resume == b"second of a"
        await desk.next_job(Seat(0, generation), 1)
        assert checkpoints_kept(desk) == {b"first of b", b"first of c"}
        await desk.post(Seat(0, generation), Trained("b"))
        await desk.drop("c")
        await waits(desk.next_job(Seat(0, generation), 2))
        assert checkpoints_kept(desk) == set()

    run(story())


def test_the_checkpoint_of_a_training_that_took_its_workers_along_is_let_go_of() -> None:
    async def story() -> None:
        desk = Desk(judged=True)
        generation = await desk.begin(GROUPS)
        for key in "ab":
            await desk.submit(Job(key, TrialConfig(), 0, key.encode()), "driver")
        for group in (0, 1):
            await desk.next_job(Seat(group, generation), 0)
        await desk.lose({0: ("too large", False)})
        await desk.drop("b")
        await desk.begin(GROUPS)
        assert checkpoints_kept(desk) == set()

    run(story())

"""The ledger of how often test splits were read."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cifar_ray.results.readings import LEDGER, note_reading


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cifar_ray"


def test_readings_and_runs_are_counted_for_each_test_split(cache: Path) -> None:
    assert note_reading("one", Path("/runs/a")) == {"readings": 1, "runs": 1}
    assert note_reading("one", Path("/runs/a")) == {"readings": 2, "runs": 1}
    assert note_reading("two", Path("/runs/a")) == {"readings": 1, "runs": 1}
    assert note_reading("one", Path("/runs/b")) == {"readings": 3, "runs": 2}


def test_readings_at_the_same_time_are_all_counted(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        noted = list(pool.map(lambda i: note_reading("one", Path(f"/runs/{i % 4}")), range(40)))
    assert sorted(one["readings"] for one in noted) == list(range(1, 41))
    assert note_reading("one", Path("/runs/0")) == {"readings": 41, "runs": 4}


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_ledger_is_told_and_kept(cache: Path, damage: str) -> None:
    cache.mkdir(parents=True)
    (cache / LEDGER).write_text(damage + "\n")
    assert LEDGER in note_reading("one", Path("/runs/a"))["error"]
    assert (cache / LEDGER).read_text().startswith(damage)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert str(tmp_path / "file" / "cifar_ray") in note_reading("one", Path("/runs/a"))["error"]
    assert os.listdir(tmp_path) == ["file"]

"""The copy of a decoded folder in the user cache: when it is used, when it is not, and two runs at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.images import flip_a_byte, make_tree, noise, private_cache, run_python, sizes  # noqa: F401 (a fixture)

from cifar_ray.data import cache as data_cache
from cifar_ray.data import decode
from cifar_ray.data.splits import load_data


def cached_entries(cache: Path) -> list[Path]:
    return sorted((cache / "decoded").iterdir())


def test_decoded_copy_is_reused_until_a_file_changes(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    file = root / "a" / "0000.png"
    noise(98).save(file, compress_level=0)
    before = file.stat()
    first = load_data(str(root))
    assert "decoded in" in caplog.text and "kept the decoded copy" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_image", lambda *_: pytest.fail("decoded again"))
        again = load_data(str(root))
        load_data(str(root), train_size=6)  # splitting comes after the cache
        os.utime(file)
        load_data(str(root))
    assert "reused the decoded copy" in caplog.text
    assert (again.fingerprint, again.resize, again.class_names) == (first.fingerprint, first.resize, first.class_names)
    assert len(cached_entries(cache)) == 1
    assert load_data(str(root), image_size=4).train.images.shape[2:] == (4, 4)
    noise(99).save(file, compress_level=0)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size, "neither its size nor its time tells"
    assert load_data(str(root)).fingerprint != first.fingerprint
    file.unlink()
    assert sum(sizes(load_data(str(root)))) == 9


def test_an_image_that_moves_to_another_class_is_decoded_anew(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 6, "b": 5})
    load_data(str(root))
    (root / "a" / "0005.png").rename(root / "b" / "000.png")  # the same images in the same order
    splits = load_data(str(root))
    labels = [*splits.train.labels, *splits.val.labels, *splits.test.labels]
    assert (labels.count(0), labels.count(1)) == (5, 6)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def damage_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"False", b"True ").replace(b"{", b"[", 1))


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_byte, damage_the_header, Path.unlink, lambda file: file.write_text("[]")]
)
@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "meta.json"])
def test_damaged_copy_is_rebuilt(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    first = load_data(str(root))
    (entry,) = cached_entries(cache)
    damage(entry / name)
    assert load_data(str(root)).fingerprint == first.fingerprint
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged decoded copy" in caplog.text
    caplog.clear()
    assert load_data(str(root)).fingerprint == first.fingerprint
    assert not caplog.records
    assert cached_entries(cache) == [entry]


def test_without_a_cache_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sum(sizes(load_data(str(root)))) == 10
    assert "cannot keep the decoded copy" in caplog.text


def test_interrupted_write_leaves_no_copy(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    with monkeypatch.context() as patch:
        patch.setattr(data_cache.json, "dumps", interrupt)  # the last file of the copy
        with pytest.raises(KeyboardInterrupt):
            load_data(str(root))
    assert cached_entries(cache) == []
    assert sum(sizes(load_data(str(root)))) == 10
    assert not caplog.records


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    make_tree(tmp_path / "d", {"a": 200, "b": 200}, (64, 64))
    # Each waits for the other in front of the write, so that both have decoded and both want to keep their copy.
    code = """
import logging, pathlib, sys, time
from cifar_ray.data import cache, splits
logging.basicConfig(level="INFO")
write, me, other = cache.write_cache, *map(pathlib.Path, sys.argv[2:])
def wait_and_write(*arguments):
    me.touch()
    while not other.exists():
        time.sleep(0.001)
    write(*arguments)
cache.write_cache = wait_and_write
print(splits.load_data(sys.argv[1]).fingerprint)
"""
    one, two = tmp_path / "one", tmp_path / "two"
    processes = [run_python(code, tmp_path / "d", one, two), run_python(code, tmp_path / "d", two, one)]
    results = [process.communicate(timeout=60) for process in processes]
    assert results[0][0] == results[1][0] == load_data(str(tmp_path / "d")).fingerprint + "\n"
    assert all("decoded in" in log and "WARNING" not in log for _, log in results)
    assert sorted("kept the decoded copy" in log for _, log in results) == [False, True]
    assert len(cached_entries(cache)) == 1  # and nothing half-written

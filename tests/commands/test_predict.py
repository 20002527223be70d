"""`predict` as its user runs it: the numbers of the evaluation, rows for people and for programs, and bad images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import launcher
from PIL import Image

from cifar_ray.config import CNNConfig, TrialConfig
from cifar_ray.data.decode import decode_image
from cifar_ray.errors import InputError
from cifar_ray.evaluation.predictions import BATCH_SIZE, classify, find_images, prediction
from cifar_ray.models.classifier import build_model
from cifar_ray.models.saved import load_model, pack_weights, save_model
from cifar_ray.predict import MIN_COLUMNS, Table
from cifar_ray.results.config_json import read_card, write_card
from cifar_ray.training.loop import eval_model

Command = Callable[..., "subprocess.CompletedProcess[str]"]
CLASS_NAMES = ["chat noir", "großer Hund", "猫"]
RESIZE = {"channels": 3, "image_size": 8, "rule": "native"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model, whose answers differ from image to image."""
    torch.manual_seed(0)
    config = TrialConfig(model=CNNConfig(widths=[8], blocks=[1], kernel_sizes=[3], norm="none"))
    built = build_model(config, num_classes=len(CLASS_NAMES), channels=3, image_size=8)
    built.normalize.mean.fill_(120.0)
    built.normalize.std.fill_(20.0)
    folder = tmp_path_factory.mktemp("model") / "best"
    save_model(folder, pack_weights(built), config, {"class_names": CLASS_NAMES, "resize": RESIZE})
    return folder


def noise(file: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
    """Write an image, another one for every name, and return its pixels (H, W, C)."""
    rng = np.random.default_rng(list(file.name.encode()))
    pixels = (rng.integers(0, 256, (*size[::-1], 3)) * rng.uniform(0.2, 1, 3)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(file)
    return pixels


def objects(stdout: str) -> list[dict]:
    return [json.loads(line) for line in stdout.splitlines()]


def test_probabilities_are_those_of_the_evaluation(model: Path, tmp_path: Path, run_command: Command) -> None:
    names = [f"{number:03}.png" for number in range(BATCH_SIZE + 10)]
    pixels = np.stack([noise(tmp_path / "photos" / name) for name in names])
    logits = eval_model(load_model(model), torch.tensor(pixels).permute(0, 3, 1, 2))
    expected = logits.softmax(1).numpy()
    assert len(set(expected.argmax(1))) > 1 and expected.std(0).min() > 0.01, "images that tell models apart"
    done = run_command("predict", str(model), "photos", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = objects(done.stdout)
    assert [one["image"] for one in found] == [f"photos/{name}" for name in names]
    assert [list(one["probabilities"]) for one in found] == [CLASS_NAMES] * len(names)
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in found], expected, atol=1e-6)
    assert [one["class"] for one in found] == [CLASS_NAMES[best] for best in expected.argmax(1)]
    assert [one["probability"] for one in found] == [max(one["probabilities"].values()) for one in found]


def test_a_model_is_as_sure_as_its_temperature_says(model: Path, tmp_path: Path, run_command: Command) -> None:
    warm = tmp_path / "warm"
    shutil.copytree(model, warm)
    config, card = read_card(model)
    write_card(warm, config, card | {"temperature": 3.0})
    names = [f"{number}.png" for number in range(5)]
    pixels = np.stack([noise(tmp_path / "photos" / name) for name in names])
    logits = eval_model(load_model(warm), torch.tensor(pixels).permute(0, 3, 1, 2))
    torch.testing.assert_close(logits, eval_model(load_model(model), torch.tensor(pixels).permute(0, 3, 1, 2)))
    done = run_command("predict", str(warm), "photos", "--json", "--at-least", "40%")
    found, expected = objects(done.stdout), (logits / 3).softmax(1).numpy()
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in found], expected, atol=1e-6)
    assert [one["abstains"] for one in found] == [bool(highest < 0.4) for highest in expected.max(1)]
    assert (
        all((one["class"] is None) == one["abstains"] for one in found) and len({row["abstains"] for row in found}) == 2
    )
    assert [one["probability"] for one in found] == pytest.approx(expected.max(1), abs=1e-6)


def test_a_row_says_where_the_model_abstains() -> None:
    table = Table([Path("a.png")], ["cat", "dog"], None, at_least=0.95)
    assert table.header == "image  class              runners-up"
    assert table.row(Path("a.png"), [0.05, 0.95]) == "a.png  dog        95.0 %  cat 5.0 %"
    assert table.row(Path("a.png"), [0.06, 0.94]) == "a.png  not sure   94.0 %  dog 94.0 %, cat 6.0 %"


def test_images_of_any_size_and_mode_in_a_table(model: Path, tmp_path: Path, run_command: Command) -> None:
    files = ["wide.png", "tall.jpg", "small.gif", "gray.png", f"{'folder ' * 20}/cmyk.jpg", "no suffix"]
    sizes = [(300, 40), (40, 300), (3, 5), (9, 9), (50, 50)]
    for name, size, mode in zip(files, sizes, ["RGBA", "RGB", "P", "L", "CMYK"], strict=False):
        noise(tmp_path / name, size, mode)
    (tmp_path / "no suffix").write_bytes((tmp_path / "wide.png").read_bytes())
    images = np.stack([decode_image(tmp_path / name, RESIZE) for name in files])
    probabilities = eval_model(load_model(model), torch.tensor(images)).softmax(1).tolist()
    done = run_command("predict", str(model), *files)
    assert (done.returncode, done.stderr) == (0, "")
    table = Table([Path(name) for name in files], CLASS_NAMES, None)
    rows = [table.row(Path(name), row) for name, row in zip(files, probabilities, strict=True)]
    assert done.stdout.splitlines() == [table.header, *rows]


def test_an_image_that_cannot_be_read_costs_no_other_one(model: Path, tmp_path: Path, run_command: Command) -> None:
    for number in range(4):
        noise(tmp_path / f"{number}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no\nimage.png").write_text("hello")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dead link.png").symlink_to("nowhere.png")
    done = run_command("predict", str(model), "0.png", "1.png", "2.png", "no\nimage.png", "photos", "3.png")
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["image", "0.png", "2.png", "3.png"]
    cut, text, link = done.stderr.splitlines()
    assert cut.startswith("error: 1.png: ")
    assert text == "error: no?image.png: not an image of a known format"
    assert link == "error: photos/dead link.png: No such file or directory"


def test_nothing_but_bad_images(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    ((file, result),) = classify(load_model(model), RESIZE, [tmp_path / "a.png"])
    assert file == tmp_path / "a.png" and isinstance(result, InputError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "the following arguments are required: IMAGE (see --help)"),
        (["MODEL", "good.png", "--at-least", "95"], "--at-least: must be a probability such as 95% or 0.95, not '95'"),
        (["MODEL", "good.png", "--yaml"], "unrecognized arguments: --yaml (see --help)"),
        (["nowhere", "good.png"], "nowhere: not a saved model: give a folder such as runs/NAME/best"),
        (["full", "good.png"], "full: not a saved model: give a folder such as runs/NAME/best"),
        (["good.png", "good.png"], "good.png: not a saved model: give a folder such as runs/NAME/best"),
        (["MODEL", "good.png", "*.jpg"], "*.jpg: No such file or directory: give images, and folders of images"),
        (["MODEL", "good.png/x"], "good.png/x: Not a directory: give images, and folders of images"),
        (["MODEL", "good.png", "empty"], "empty: no images in this folder: they are known by .bmp .gif .jpeg .jpg"),
    ],
)
def test_what_was_given_is_wrong(
    model: Path, tmp_path: Path, refused: Callable[..., str], arguments: list[str], message: str
) -> None:
    noise(tmp_path / "good.png")
    noise(tmp_path / "full" / "good.png")
    noise(tmp_path / "empty" / ".hidden.png")
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    line = refused("predict", *(str(model) if argument == "MODEL" else argument for argument in arguments))
    assert line.replace(f"{tmp_path}/", "").startswith(message)


def test_a_broken_model(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    noise(tmp_path / "good.png")
    (tmp_path / "broken").mkdir()
    for file in model.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[:-10])
    assert refused("predict", "broken", "good.png").startswith(f"{tmp_path / 'broken'}: not a saved model: ")


def loaded(*arguments: str) -> set[str]:
    """What of the slow packages is imported at the end of the command."""
    code = """
import sys
from cifar_ray.predict import main
try:
    main(sys.argv[1:])
except (ValueError, SystemExit):
    pass
print(*{"torch", "ray", "optuna"} & set(sys.modules), file=sys.stderr)
"""
    return set(subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True).stderr.split())


def test_slow_packages_are_imported_late_or_never(model: Path, tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    assert loaded("--help") == set()
    assert loaded(str(model), str(tmp_path / "nowhere.png")) == set()
    assert loaded(str(model), str(tmp_path / "a.png")) == {"torch"}


def test_a_reader_that_has_seen_enough_ends_it_quietly(model: Path, tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    images = [str(tmp_path / "a.png")] * 2000  # far more than a pipe holds
    process = launcher.start("predict", str(model), "--json", *images, folder=tmp_path)
    assert process.stdout and process.stderr
    assert json.loads(process.stdout.readline())["image"] == str(tmp_path / "a.png")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == -signal.SIGPIPE


def test_rows_come_before_the_last_image_is_there(model: Path, tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    os.mkfifo(tmp_path / "late.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    images = ["a.png"] * (BATCH_SIZE + 1) + ["late.png"]
    process = launcher.start("predict", str(model), "--json", *images, folder=tmp_path, env=environment)
    assert process.stdout
    watchdog = threading.Timer(120, process.kill)  # else rows that do not come would be waited for
    watchdog.start()
    for _ in range(BATCH_SIZE):
        assert json.loads(process.stdout.readline())["image"] == "a.png"
    (tmp_path / "late.png").write_text("hello")  # opens it, for which the process waits
    rest, errors = process.communicate(timeout=300)
    watchdog.cancel()
    assert [one["image"] for one in objects(rest)] == ["a.png"]
    assert errors.startswith("error: late.png: ") and errors.count("\n") == 1
    assert process.returncode == 2


def test_on_a_terminal_rows_fit_it(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("folder " * 10)
    noise(folder / "one.png")
    noise(folder / "two.png")
    terminal, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 64))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # it would come first
    process = launcher.start("predict", str(model), str(folder), folder=tmp_path, env=environment, stdout=inside)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    lines = os.read(terminal, 10_000).decode().splitlines()
    os.close(terminal)
    os.close(inside)
    assert len(lines) == 3
    assert all(
        line[0] == "…" and f"/{name}.png  " in line for name, line in zip(["one", "two"], lines[1:], strict=True)
    )
    assert all(columns(line) <= 64 for line in lines)


def test_names_that_the_terminal_cannot_show(model: Path, tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    odd = os.fsdecode(b"\xff.png")
    (tmp_path / "a.png").rename(tmp_path / odd)
    (tmp_path / os.fsdecode(b"\xfe.png")).write_text("hello")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = launcher.start("predict", str(model), ".", folder=tmp_path, env=environment)
    output, errors = process.communicate(timeout=300)
    assert output.splitlines()[1].startswith("?.png  ")
    assert errors == "error: ?.png: not an image of a known format\n"
    row = json.dumps(prediction(Path(odd), CLASS_NAMES, [0.5, 0.3, 0.2]))
    assert row.isascii() and json.loads(row)["image"] == odd, "a program gets the name itself"


def columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def test_rows_of_a_table() -> None:
    files = [Path("a.png"), Path("photos/b.png")]
    table = Table(files, ["cat", "dog", "emu", "fox", "gnu"], None)
    probabilities = [[0.021, 0.97, 0.009, 0.0, 0.0], [0.2, 0.2, 0.15, 0.25, 0.2], [0.0, 0.0, 0.0, 0.0, 1.0]]
    assert [table.header, *(table.row(files[i % 2], row) for i, row in enumerate(probabilities))] == [
        "image         class           runners-up",
        "a.png         dog     97.0 %  cat 2.1 %",
        "photos/b.png  fox     25.0 %  cat 20.0 %, dog 20.0 %, gnu 20.0 %",
        "a.png         gnu    100.0 %",
    ]


LONG_NAMES = [
    "american_pit_bull_terrier",
    "staffordshire_bull_terrier",
    "Große Schweizer Sennenhündin",
    "猫" * 20,
    "ox",
]
LONG_PATHS = [Path("/data/far/away/photos of animals") / name for name in ("IMG_0001.jpg", "猫猫.png", "e\u0301.png")]


@pytest.mark.parametrize("width", [20, 60, 80, 132])
@pytest.mark.parametrize("paths", [LONG_PATHS, [Path("a.png")], [Path("photos/IMG_0001.jpg"), *LONG_PATHS]])
@pytest.mark.parametrize("names", [LONG_NAMES, [str(number) for number in range(1000)], ["cat", "dog"]])
def test_rows_of_a_terminal(width: int, paths: list[Path], names: list[str]) -> None:
    table = Table(paths, names, width)
    rng = np.random.default_rng(0)
    for path in paths:
        for best in range(min(len(names), 20)):
            probabilities = rng.uniform(0, 1 / len(names), len(names))
            probabilities[best] = 0.5
            probabilities[best - 1] = 0.2
            row = table.row(path, probabilities.tolist())
            assert columns(row) <= max(width, MIN_COLUMNS)
            head = row[: row.index("50.0 %")]
            assert columns(head) == columns(table.header[: table.header.index("runners-up")]) - len("50.0 %  ")
            assert path.name in head, "the end of a path tells images apart"
            assert "20.0 %" in row, "the first runner-up has its place"
            name, runner_up = names[best], names[best - 1]
            for shown, whole in (
                (head.rstrip().rsplit("  ", 1)[1], name),
                (row.split("50.0 %  ")[1].split(" 20.0 %")[0], runner_up),
            ):
                start, _, end = shown.partition("…")
                assert shown == whole or (start and end and whole.startswith(start) and whole.endswith(end))


def test_what_has_room_is_not_shortened() -> None:
    table = Table([Path("a" * 40)], ["dog", "cat"], 80)
    assert table.row(Path("a" * 40), [0.4, 0.6]) == "a" * 40 + "  cat     60.0 %  dog 40.0 %"
    pit_bull, staffordshire, sennenhund, cat, _ = LONG_NAMES
    assert Table(LONG_PATHS, LONG_NAMES, None).row(LONG_PATHS[0], [0.1, 0.2, 0.3, 0.4, 0]) == (
        f"{LONG_PATHS[0]}  {cat}   40.0 %  {sennenhund} 30.0 %, {staffordshire} 20.0 %, {pit_bull} 10.0 %"
    )


def test_control_characters_do_not_reach_the_terminal() -> None:
    path = Path("a\x1b[31m\r\n\u2028b.png")
    row = Table([path], ["cat\t", "dog"], None).row(path, [0.7, 0.3])
    assert row == "a?[31m???b.png  cat?    70.0 %  dog 30.0 %"


def test_folders_give_their_images_in_order(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ["b.png", "a/2.JPEG", "a/1.tiff", "a/z/9.webp", ".hidden.png", ".hidden/1.png", "a.png"]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text("")
    (photos / "notes.txt").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.png").write_text("")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "a" / "back").symlink_to(photos)
    found = ["a/1.tiff", "a/2.JPEG", "a/z/9.webp", "a.png", "b.png", "linked/3.png"]
    assert find_images([photos]) == [photos / name for name in found]
    named = [photos / ".hidden.png", photos / "notes.txt", photos / "b.png"]
    assert find_images([*named, photos / "a" / "z", photos / "b.png"]) == [
        *named,
        photos / "a" / "z" / "9.webp",
        photos / "b.png",
    ]


def test_a_folder_that_cannot_be_read_is_told_like_an_image() -> None:
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder, which only its owner may enter
        root = Path(name)
        root.chmod(0o755)
        (root / "a.png").write_text("")
        (root / "private").mkdir(mode=0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            assert find_images([root]) == [root / "a.png", root / "private"]
            with pytest.raises(InputError, match=r"private: Permission denied$"):
                decode_image(root / "private", RESIZE)
        finally:
            os.seteuid(user)

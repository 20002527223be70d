"""The key facts of a run."""

from __future__ import annotations

from pathlib import Path

from helpers import records

from cifar_ray.files import read_json, write_json
from cifar_ray.reporting.render import build_report


def test_the_facts_name_the_pretrained_weights_and_the_workers_of_a_model(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "run")
    html_file, _ = build_report(folder.root)
    assert "Weights" not in html_file.read_text()
    assert "workers each" not in html_file.read_text()
    about = read_json(folder.run_json)
    about["settings"]["workers_per_trial"] = 3
    about["unchanged"] = {"weights": [{"backbone": "resnet18", "source": "/a/b.pth", "sha256": "0123456789abcdef" * 4}]}
    write_json(folder.run_json, about)
    html_file, markdown = build_report(folder.root)
    for text in (html_file.read_text(), markdown.read_text()):
        assert "resnet18: /a/b.pth (SHA-256 0123456789ab)" in text
        assert "2 trials at a time, 3 workers each" in text


def test_the_facts_say_how_many_images_are_in_two_splits(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "run")
    html_file, _ = build_report(folder.root)
    assert "In two splits" not in html_file.read_text()
    about = read_json(folder.run_json)
    about["data"] |= {"num_test_copies": 34, "num_val_copies": 1}
    write_json(folder.run_json, about)
    html_file, markdown = build_report(folder.root)
    for text in (html_file.read_text(), markdown.read_text()):
        assert "34 of 360 test images are also training or validation images" in text
        assert "1 of 288 validation images" in text

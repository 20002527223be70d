"""The model card that goes with the chosen model, `best/README.md`: what it does, how well, and where not to trust it.

After Mitchell et al., Model Cards for Model Reporting, 2019, https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cifar_ray.reporting.parts import SPLITS, escaped, score_text
from cifar_ray.reporting.robustness import corrupted
from cifar_ray.results.config_json import MODULE, read_card
from cifar_ray.results.ranking import ConfigSummary
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted, decimals, share, short, thousands

NUM_WORST = 3
"""Classes named as those that it fails on most."""

SEVERITY = 2
"""Of the corruptions that are told."""


def model_card(records: Records) -> str:
    """Markdown about the model in `best/`, of a run that has one."""
    best = records.summaries[0]
    config, card = read_card(records.folder.best)
    has_code = config.family == "module"
    parts = [
        [f"# {escaped(best.best_model)}", _what(records, card)],
        ["## Use", *_use(card, has_code)],
        ["## How well", *_scores(records, best)],
        ["## Where it fails", *_failures(records, best)],
        ["## Size and speed", *_speed(records, best)],
        ["## How it came about", *_origin(records, best, has_code)],
    ]
    return "\n\n".join(text for part in parts if len(part) > 1 for text in part) + "\n"


def _what(records: Records, card: Row) -> str:
    names = ", ".join(escaped(str(name)) for name in card["class_names"])
    source = escaped(str(records.data.get("source", "?")))
    return f"An image classifier of {len(card['class_names'])} classes, trained on {source}: {names}."


def _use(card: Row, has_code: bool) -> Iterator[str]:
    flag, trusted = (" --trust-code", ", trust_code=True") if has_code else ("", "")
    yield f"```sh\npython -m cifar_ray.predict{flag} FOLDER_OF_THIS_FILE IMAGE ...\n```"
    loaded = f'cifar_ray.load_model("FOLDER_OF_THIS_FILE"{trusted})'
    yield f"```python\nmodel = {loaded}  # an nn.Module: images to logits\n```"
    if has_code:
        yield f"Its network is the code in `{MODULE}`, which is run wherever the model is loaded."
    resize = card["resize"]
    side, kind = resize["image_size"], "grayscale" if resize["channels"] == 1 else "colour"
    cut = ", their shorter side brought to that and the middle cut out" if "crop" in resize["rule"] else ""
    yield (
        f"`predict` takes images of any size and mode. `model` takes {kind} ones of {side} x {side} pixels{cut}, as a "
        f"uint8 tensor (B, {resize['channels']}, {side}, {side})."
    )
    if "temperature" in card:
        yield (
            f"Its probabilities are `softmax(logits / {card['temperature']:.4g})`: the temperature was chosen on "
            "validation, and `predict` uses it."
        )


def _scores(records: Records, best: ConfigSummary) -> Iterator[str]:
    rows = {row["split"]: row for row in records.quality if row["model"] == best.best_model}
    if not rows:
        return
    columns = {
        "accuracy %": lambda row: score_text(row["accuracy"]),
        "log-loss": lambda row: decimals(row["log_loss"], 3),
        "macro AUC": lambda row: score_text(row["auc_macro_ovr"], "auc"),
        "macro F1": lambda row: score_text(row["f1_macro"], "f1"),
        "calibration error": lambda row: decimals(
            row.get("scaled_calibration_error") or row.get("calibration_error"), 3
        ),
    }
    lines = ["| images | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for split in SPLITS:
        if row := rows.get(split):
            cells = " | ".join(cell(row) for cell in columns.values())
            lines.append(f"| {thousands(row['n'])} {split} | {cells} |")
    yield "\n".join(lines)
    if best.test_accuracy.low is not None:
        yield (
            f"Its configuration, over {counted(len(best.models), 'seed')}: {score_text(best.test_accuracy)} % of the "
            "test images (95 % interval over seeds and images). Of the seeds this is the one of best validation."
        )
    if (readings := records.test_readings.get("readings", 1)) > 1:
        yield f"The test split was read {readings} times so far: what was chosen by it makes these scores too good."


def _failures(records: Records, best: ConfigSummary) -> Iterator[str]:
    rows = [row for row in records.classes if row["model"] == best.best_model and row["split"] == "test" and row["n"]]
    worst = sorted(rows, key=lambda row: row["recall"])[:NUM_WORST]
    if worst:
        told = ", ".join(
            f"{escaped(records.class_name(row['class']))} ({share(row['recall'] * row['n'], row['n'])} of "
            f"{thousands(row['n'])})"
            for row in worst
        )
        yield f"Classes that it finds least of, on test: {told}."
    if found := corrupted(records).get(best.config):
        told = ", ".join(
            f"{kind} {score_text(value)} %"
            for (kind, severity), value in found.accuracies.items()
            if severity == SEVERITY
        )
        yield f"On corrupted test images (severity {SEVERITY} of 3; as they are {score_text(found.clean)} %): {told}."
    yield (
        "It gives one of its classes to any image, also to one that shows none of them. On images from elsewhere it "
        "may be worse than here: `python -m cifar_ray.evaluate FOLDER_OF_THIS_FILE --data THEIR_FOLDER` tells."
    )


def _speed(records: Records, best: ConfigSummary) -> Iterator[str]:
    size = f"{short(best.num_params)} parameters, {decimals(best.size_mb, 2)} MB."
    rows = [row for row in records.latency if row["config"] == best.config]
    told = [
        f"a batch of {row['batch_size']}{_in_precision(row)}: {short(row['latency_ms_p50'])} ms (median; 95 % below "
        f"{short(row['latency_ms_p95'])} ms, n = {row['n']}), {short(row['images_per_s'])} images/s"
        for row in rows
    ]
    where = f" On {escaped(str(rows[0]['device']))}, {counted(rows[0]['threads'], 'thread')}: " if rows else ""
    yield size + where + "; ".join(told) + ("." if told else "")


def _in_precision(row: Row) -> str:
    return f" in {row['precision']}" if row.get("precision") else ""


def _origin(records: Records, best: ConfigSummary, has_code: bool) -> Iterator[str]:
    numbers = " / ".join(
        f"{thousands(n)} {split}" for split in ("train", "val", "test") if (n := records.data.get(f"num_{split}"))
    )
    versions = ", ".join(f"{name} {number}" for name, number in (records.run.get("versions") or {}).items())
    facts: Sequence[tuple[str, str]] = [
        ("Images", numbers),
        ("Command", f"`{records.run.get('command', '?')}`"),
        ("Training", "" if best.train_s is None else f"{best.train_s:,.1f} s a seed, on {_device(records)}"),
        ("Versions", versions),
    ]
    yield "\n".join(f"- {label}: {text}" for label, text in facts if text)
    again = f"python -m cifar_ray.train{' --trust-code' if has_code else ''} --config config.json"
    yield f"`config.json` holds the configuration; `{again}` trains it again."


def _device(records: Records) -> str:
    return escaped(str(records.device.get("name") or records.device.get("kind") or "?"))

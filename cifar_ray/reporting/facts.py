"""The key facts of a run: its data, its device, its versions; a function each, empty where there is nothing to say."""

from __future__ import annotations

from cifar_ray.reporting.parts import SPLITS, shared_images
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import counted, duration, thousands


def facts_of(records: Records) -> list[tuple[str, str]]:
    """Label and text of the key facts."""
    facts = [
        ("Data", _data(records)),
        ("Images", _images(records)),
        ("In two splits", "; ".join(shared_images(records.data))),
        ("Data fingerprint", str(records.data.get("fingerprint") or "")[:12]),
        ("Together", " · ".join(f"{one['run']}: {one['command']}" for one in records.run.get("merged") or ())),
        ("Left out", " · ".join(records.run.get("left_out") or ())),
        ("Weights", _weights(records)),
        ("Device", _device(records)),
        ("Precision", "{used}: {why}".format_map(chosen) if (chosen := records.run.get("precision")) else ""),
        ("Ranked by", f"validation {records.metric_name}"),
        ("Seed", "" if (seed := records.run.get("seed")) is None else str(seed)),
        ("Start and end", _start_and_end(records)),
        ("Wall-clock", " · ".join(f"{phase} {duration(s)}" for phase, s in records.phases.items()) or "not recorded"),
        ("Versions", " · ".join(f"{name} {version}" for name, version in (records.run.get("versions") or {}).items())),
    ]
    return [(label, text) for label, text in facts if text]


def _data(records: Records) -> str:
    data = records.data
    side = data.get("image_size", "?")
    size = f"{side} x {side} pixels, {'grayscale' if data.get('channels') == 1 else 'colour'}"
    return f"{data.get('source', '?')}: {len(data.get('class_names') or [])} classes, {size}"


def _images(records: Records) -> str:
    numbers = {split: records.data.get(f"num_{split}") for split in SPLITS}
    return " / ".join(f"{thousands(number)} {split}" for split, number in numbers.items() if number is not None)


def _weights(records: Records) -> str:
    weights = (records.run.get("unchanged") or {}).get("weights") or ()
    return " · ".join(f"{one['backbone']}: {one['source']} (SHA-256 {one['sha256'][:12]})" for one in weights)


def _device(records: Records) -> str:
    device, settings = records.device, records.run.get("settings") or {}
    used = f"{counted(device.get('num_cpus'), 'CPU')}, {counted(device.get('num_gpus'), 'GPU')}, "
    used += f"{counted(device.get('slots'), 'trial')} at a time"
    workers = settings.get("workers_per_trial") or settings.get("workers") or 1
    used += f", {workers} workers each" if workers > 1 else ""
    return f"{device.get('name') or device.get('kind', '?')} ({used})"


def _start_and_end(records: Records) -> str:
    started, ended = (str(records.run.get(key) or "")[:19].replace("T", " ") for key in ("start", "end"))
    text = started + (f" to {ended}" if ended else "; not finished: interrupted, or still running")
    times = len(records.run.get("resumed") or [])
    return text + (f" (interrupted and taken up again {'once' if times == 1 else f'{times} times'})" if times else "")

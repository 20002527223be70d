"""What the report says of the data: what its images look like, and how its classes are distributed over the splits."""

from __future__ import annotations

from cifar_ray.reporting.parts import NUM_CLASSES_SHOWN, SPLITS, Section, Sheet, Table, Tile, shared_images
from cifar_ray.reporting.sheets import pixels_of, strip
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import counted, share, thousands

NUM_BAD_SHOWN = 5


def data(records: Records) -> Section:
    section = Section("The data")
    section.text = [*shared_images(records.data), *_bad_images(records), *_readings(records)]
    section.text = [text if text.endswith(".") else f"{text}." for text in section.text]
    section.tables = _distribution(records)
    if records.samples:
        most = max(len(images) for images in records.samples.values())
        tiles = [
            Tile(strip([pixels_of(image) for image in images], most), records.class_name(label))
            for label, images in records.samples.items()
        ]
        section.sheets.append(Sheet("samples.png", "Training images of each class", tiles))
    return section


def _bad_images(records: Records) -> list[str]:
    bad = records.data.get("bad_images") or []
    if not bad:
        return []
    first = ", ".join(str(one) for one in bad[:NUM_BAD_SHOWN])
    more = f" and {len(bad) - NUM_BAD_SHOWN} more, all in run.json" if len(bad) > NUM_BAD_SHOWN else ""
    return [f"{counted(len(bad), 'image')} could not be read and {'is' if len(bad) == 1 else 'are'} left out: "
            f"{first}{more}"]  # fmt: skip


def _readings(records: Records) -> list[str]:
    """How often this test split was read: choices that follow a reading make later scores too good."""
    readings = records.test_readings
    if "error" in readings:
        return [f"How often this test split has been read is not known: {readings['error']}"]
    if not readings:
        return []
    times = "once" if readings["readings"] == 1 else f"{readings['readings']} times"
    said = f"This test split has been read {times} so far, in {counted(readings['runs'], 'run')}"
    if readings["readings"] == 1:
        return [said]
    return [f"{said}: what was chosen after a reading makes the scores of the next one look too good"]


def _distribution(records: Records) -> list[Table]:
    """Images of each class in each split that is known, the rarest in training first, or else in the first of them."""
    splits = [split for split in SPLITS if split in records.class_counts]
    if not splits:
        return []
    first, counts = splits[0], records.class_counts
    sizes = counts[first]
    shown = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))[:NUM_CLASSES_SHOWN]
    rows = [
        [records.class_name(i), *(thousands(counts[split][i]) for split in splits), share(sizes[i], sum(sizes))]
        for i in shown
    ]
    note = f"Images by class, the rarest in {first} first"
    note += f" ({NUM_CLASSES_SHOWN} of {len(sizes)} classes)" if len(sizes) > len(shown) else ""
    if 0 < min(sizes) < max(sizes):
        note += f". The largest class has {max(sizes) / min(sizes):.1f} times the {first} images of the smallest"
    return [
        Table(["class", *splits, f"share of {first}"], rows, f"{note}.", shares=[sizes[i] / max(sizes) for i in shown])
    ]

"""What the report says of size and speed."""

from __future__ import annotations

from cifar_ray.reporting.figures import png, speed_figure, styles_of
from cifar_ray.reporting.parts import Image, Section, Table
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import counted, short


def speed(records: Records) -> Section:
    section = Section("Speed")
    figure = speed_figure(records.summaries, styles_of(records), records.metric)
    if figure:
        title = f"Test {records.metric_name}, with its 95 % interval over seeds and images, against latency"
        title += "; a shape for each family" if records.several_families else ""
        section.images.append(Image("speed.png", title, png(figure)))
    columns = {"config": "configuration", "device": "device", "threads": "threads", "batch_size": "batch"}
    columns |= {"n": "n", "latency_ms_p50": "p50 ms", "latency_ms_p95": "p95 ms", "images_per_s": "images/s"}
    note = "Latency of a whole batch, over n of them"
    for name in ("threads", "device"):  # what is the same in every row goes into the note
        values = {row.get(name) for row in records.latency}
        if len(values) == 1:
            del columns[name]
            value = values.pop()
            note += "" if value is None else f", {counted(value, 'thread')}" if name == "threads" else f", on {value}"
    rows = []
    for row in records.latency:
        cells = [row.get(name) for name in columns]
        rows.append([short(cell) if isinstance(cell, float) else str(cell or "-") for cell in cells])
    if rows:
        section.tables.append(Table(list(columns.values()), rows, f"{note}.", num_text=2 if "device" in columns else 1))
    return section

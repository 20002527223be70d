"""What the report says of size and speed."""

from __future__ import annotations

from cifar_ray.reporting.figures import png, speed_figure, styles_of
from cifar_ray.reporting.parts import Image, Section, Table
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted, short


def speed(records: Records) -> Section:
    section = Section("Speed")
    figure = speed_figure(records.summaries, styles_of(records), records.metric)
    if figure:
        title = f"Test {records.metric_name}, with its 95 % interval over seeds and images, against latency"
        title += "; a shape for each family" if records.several_families else ""
        section.images.append(Image("speed.png", title, png(figure)))
    columns = {"config": "configuration", "device": "device", "precision": "precision", "threads": "threads"}
    columns |= {"batch_size": "batch"}
    columns |= {"n": "n", "latency_ms_p50": "p50 ms", "latency_ms_p95": "p95 ms", "images_per_s": "images/s"}
    note = "Latency of a whole batch, over n of them"
    for name in ("threads", "device", "precision"):  # what is the same in every row goes into the note
        values = {row.get(name) for row in records.latency}
        if len(values) == 1:
            del columns[name]
            value = values.pop()
            said = {"threads": f"{counted(value, 'thread')}", "device": f"on {value}", "precision": f"in {value}"}
            note += "" if value is None else f", {said[name]}"
    rows = []
    in_rounds = any(row.get("round_ms_low") for row in records.latency)
    for row in records.latency:
        cells = [row.get(name) for name in columns]
        rows.append([short(cell) if isinstance(cell, float) else str(cell or "-") for cell in cells])
        if in_rounds:
            rows[-1].append(_rounds(row))
    if in_rounds:
        columns["rounds"] = "p50 by round"
        note += ". Models were timed in turn, in rounds: how far a median moves from one to another is what noise does"
    section.text = [text for text in (_in_fp32(records), *map(_again, records.latency)) if text]
    if rows:
        num_text = 1 + ("device" in columns) + ("precision" in columns)
        section.tables.append(Table(list(columns.values()), rows, f"{note}.", num_text=num_text))
    return section


def _in_fp32(records: Records) -> str:
    """What computing in fp32 changes about models that were trained in something else."""
    rows = [row for row in records.rows if row.get("test_accuracy_fp32") is not None]
    if not rows:
        return ""
    points = [100 * (row["test_accuracy_fp32"] - row["test_accuracy"]) for row in rows]
    return (
        f"Scores are in {rows[0]['precision']}, as models were trained. In fp32 the test accuracy of these "
        f"{counted(len(rows), 'model')} differs from it by {min(points):+.2f} to {max(points):+.2f} points; how long "
        "they take in either stands below."
    )


def _rounds(row: Row) -> str:
    """The lowest and the highest of the rounds' medians."""
    return "-" if row.get("round_ms_low") is None else f"{short(row['round_ms_low'])} to {short(row['round_ms_high'])}"


def _again(row: Row) -> str:
    """How far one model, timed as if it were two, agrees with itself."""
    again, low, high = (row.get(name) for name in ("again_ms_p50", "round_ms_low", "round_ms_high"))
    if again is None or low is None or high is None or not row["latency_ms_p50"]:
        return ""
    apart = abs(again / row["latency_ms_p50"] - 1)
    images = "one image" if row["batch_size"] == 1 else f"a batch of {row['batch_size']}"
    said = (
        f"{row['config']} was timed a second time, as one more model among the others: {short(again)} instead of "
        f"{short(row['latency_ms_p50'])} ms for {images}, {100 * apart:.1f} % apart. "
    )
    if low <= again <= high:
        return (
            said + f"That lies within its rounds ({_rounds(row)} ms); smaller differences between models mean nothing."
        )
    return said + (
        f"That is more than its rounds differ by ({_rounds(row)} ms): the machine was not quiet, and differences below "
        f"{max(1, round(200 * apart))} % mean nothing."
    )

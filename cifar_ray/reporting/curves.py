"""What the report says of the course of things: the search trial by trial, the final trainings epoch by epoch."""

from __future__ import annotations

from cifar_ray.reporting.figures import curves_figure, png, search_figure
from cifar_ray.reporting.parts import Image, Section
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted


def search(records: Records) -> Section:
    """The best value so far over the trials."""
    section = Section("The course of the search")
    figure = search_figure(records.trials, records.metric_name)
    if figure:
        title = "Search: best value so far. Trials on the lower edge have no value, or one below this range"
        section.images.append(Image("search.png", title, png(figure)))
    return section


def curves(records: Records) -> Section:
    """Loss and accuracy of each finalist, by epoch."""
    section = Section("Learning curves")
    best_epochs = {row["model"]: row.get("best_epoch") for row in records.rows}
    of_configs = {one.config: [records.histories[model] for model in one.models] for one in records.summaries}
    limits = limits_of([rows for seeds in of_configs.values() for rows in seeds])
    for rank, one in enumerate(records.summaries, start=1):
        seeds = [rows for rows in of_configs[one.config] if rows]
        if not seeds:
            continue
        best = [best_epochs[model] for model in one.models if records.histories[model]]
        also = None if records.metric == "accuracy" else records.metric_name
        image = png(curves_figure(seeds, best, limits, also))
        title = f"{one.config}: {counted(len(seeds), 'seed')}" + (", the thick line their mean" * (len(seeds) > 1))
        section.images.append(Image(f"curves-{rank}.png", title, image))
    if section.images:
        section.text.append(
            "All panels have the same scales, which leave out the first epochs. Training values are measured while "
            "training, on augmented or mixed images and with dropout, so that they may be worse than validation. Dots: "
            "the epoch whose weights were kept."
        )
    return section


def limits_of(histories: list[list[Row]]) -> dict[str, tuple[float, float]]:
    """Range of loss and accuracy that all curves are drawn in: theirs, without the first fifth of the epochs."""
    limits = {}
    for what in ("loss", "accuracy"):
        values = [
            row[f"{split}_{what}"]
            for rows in histories
            for row in rows[len(rows) // 5 :]
            for split in ("train", "val")
            if row[f"{split}_{what}"] is not None
        ]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        pad = 0.04 * (high - low) + 0.002
        limits[what] = (low - pad, high + pad)
    return limits

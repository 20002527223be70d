"""What the report says of quality: learning curves and errors."""

from __future__ import annotations

import numpy as np

from cifar_ray.reporting.figures import confusion_figure, curves_figure, png, search_figure, styles_of
from cifar_ray.reporting.parts import Image, Section, Table
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import share, thousands


def curves(records: Records) -> Section:
    configs = {row["model"]: str(row["config"]) for row in records.rows}
    finals = curves_figure(records.histories, configs, styles_of(records))
    drawn = [
        ("search", "Search: best value so far. Trials on the lower edge have no value, or one below this range",
         search_figure(records.trials, records.metric_name)),
        ("curves", "Final training: a line for each seed", finals),
    ]  # fmt: skip
    return Section(
        "Figures", images=[Image(f"{name}.png", title, png(figure)) for name, title, figure in drawn if figure]
    )


def errors(records: Records) -> Section:
    section = Section("Where the best model errs")
    model = records.summaries[0].best_model if records.summaries else ""
    if model not in records.predictions:
        return section
    probabilities, labels = records.predictions[model], records.predictions["labels"]  # (N, C), (N,)
    num_classes = probabilities.shape[1]
    pairs = labels * num_classes + probabilities.argmax(axis=1)
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)  # (true, predicted)
    names = [records.class_name(index) for index in range(num_classes)]
    totals, right = counts.sum(axis=1), counts.diagonal()
    section.text.append(
        f"{model} on the test split: {thousands(right.sum())} of {thousands(totals.sum())} images right."
    )
    title = "Confusion matrix: the darker, the larger the share of the true class"
    title += "; with numbers of test images" if num_classes <= 20 else ""
    section.images.append(Image("confusion.png", title, png(confusion_figure(counts, names)), wide=num_classes > 12))

    wrong = counts - np.diag(right)
    order = [divmod(int(i), num_classes) for i in np.argsort(-wrong, axis=None, kind="stable")[:6]]
    rows = [[names[i], names[j], str(wrong[i, j]), share(wrong[i, j], totals[i])] for i, j in order if wrong[i, j]]
    if rows:
        section.tables.append(
            Table(
                ["true", "predicted", "images", "share"],
                rows,
                "Most frequent confusions, with their share of the true class.",
                2,
            )
        )
    recall = np.where(totals > 0, right / np.maximum(totals, 1), np.inf)  # classes without images come last
    order_by_recall = np.argsort(recall, kind="stable")[:20]
    rows = [[names[i], str(totals[i]), share(right[i], totals[i])] for i in order_by_recall]
    note = "Recall by class, lowest first" + (f" (20 of {num_classes} classes)." if num_classes > 20 else ".")
    section.tables.append(Table(["class", "images", "recall"], rows, note))
    return section

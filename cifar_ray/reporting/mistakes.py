"""What the report says of mistakes: for the best model of each family, which classes fail and how."""

from __future__ import annotations

import numpy as np

from cifar_ray.reporting.figures import confusion_figure, png, roc_figure
from cifar_ray.reporting.parts import NUM_CLASSES_SHOWN, Image, Section, Sheet, Table, Tile
from cifar_ray.reporting.sheets import pixels_of, strip
from cifar_ray.results.examples import NUM_OF_PAIR, find_examples
from cifar_ray.results.ranking import ConfigSummary
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import counted, decimals, share, thousands


def mistakes(records: Records, only: str | None = None) -> list[Section]:
    """A section for the best of each family, or for the configuration `only`; without families, for the best of all."""
    best = records.best_of_families or records.summaries[:1]
    if only is not None:
        best = [one for one in records.summaries if one.config == only]
    sections = [_of_model(records, one) for one in best if one.best_model in records.predictions]
    for section in sections if only is not None else ():
        section.heading = f"Where the {only} errs"
    return sections


def confusion_counts(records: Records, model: str) -> np.ndarray:
    """Test images (C, C) of a model by their true and their predicted class."""
    probabilities, labels = records.predictions[model], records.predictions["labels"]  # (N, C), (N,)
    num_classes = probabilities.shape[1]
    pairs = labels * num_classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _of_model(records: Records, one: ConfigSummary) -> Section:
    model, of_family = one.best_model, f"-{one.family}" if records.several_families else ""
    section = Section(f"Where the best {one.family if records.several_families else 'model'} errs")
    counts = confusion_counts(records, model)
    num_classes = len(counts)
    names = [records.class_name(index) for index in range(num_classes)]
    section.text.append(
        f"{model} on the test split: {thousands(counts.trace())} of {thousands(counts.sum())} images right."
    )
    title = "Confusion matrix: the darker, the larger the share of the true class"
    title += "; with numbers of test images" if num_classes <= 20 else ""
    image = png(confusion_figure(counts, names))
    section.images.append(Image(f"confusion{of_family}.png", title, image, wide=num_classes > 12))
    roc = roc_figure(records.predictions[model], records.predictions["labels"], names)
    if roc:
        title = "ROC curves on the test split, each class against all others, from one false positive on (log scale)"
        section.images.append(Image(f"roc{of_family}.png", title, png(roc)))
    section.sheets = _sheets(records, model, of_family)
    section.tables = [table for table in (_classes(records, model, counts), _pairs(counts, names)) if table.rows]
    return section


def _sheets(records: Records, model: str, of_family: str) -> list[Sheet]:
    """Contact sheets of mistakes, of hits that were close, and of pairs that are mixed up, with their images."""
    probabilities, labels = records.predictions[model], records.predictions["labels"]
    found = find_examples(probabilities, labels)

    def tile(index: int) -> Tile:
        predicted = int(probabilities[index].argmax())
        names = [records.class_name(label) for label in dict.fromkeys((int(labels[index]), predicted))]
        return Tile(pixels_of(records.examples[index]), f"{' → '.join(names)} {100 * probabilities[index].max():.0f} %")

    def tiles(indices: np.ndarray) -> list[Tile]:
        return [tile(index) for index in indices.tolist() if index in records.examples]

    pairs = []
    for pair in found.pairs:
        images = [pixels_of(records.examples[index]) for index in pair.examples.tolist() if index in records.examples]
        if images:
            names = f"{records.class_name(pair.true)} → {records.class_name(pair.predicted)}"
            pairs.append(Tile(strip(images, NUM_OF_PAIR), f"{names}: {counted(pair.count, 'image')}"))
    sheets = [
        Sheet(f"mistakes{of_family}.png", "The most confident mistakes: true → predicted class, and its probability",
              tiles(found.mistakes)),
        Sheet(f"unsure{of_family}.png", "The least sure hits: the class, and its probability", tiles(found.unsure)),
        Sheet(f"pairs{of_family}.png", "The pairs most often confused: true → predicted class, and examples", pairs),
    ]  # fmt: skip
    return [sheet for sheet in sheets if sheet.tiles]


def _classes(records: Records, model: str, counts: np.ndarray) -> Table:
    """Precision, recall, F1 and AUC of each class, the worst first; classes without test images come last."""
    true, predicted, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    areas = {row["class"]: row.get("auc_ovr") for row in records.classes
             if row["model"] == model and row["split"] == "test"}  # fmt: skip
    f1 = np.where(true > 0, 2 * right / np.maximum(true + predicted, 1), np.inf)
    rows = []
    for index in map(int, np.argsort(f1, kind="stable")[:NUM_CLASSES_SHOWN]):
        row = [records.class_name(index), str(true[index]), share(right[index], predicted[index])]
        row += [share(right[index], true[index]), decimals(f1[index]) if true[index] else "-"]
        rows.append([*row, decimals(areas.get(index))] if areas else row)
    shown = f" ({NUM_CLASSES_SHOWN} of {len(counts)} classes)" if len(counts) > NUM_CLASSES_SHOWN else ""
    columns = ["class", "images", "precision", "recall", "F1", *(["AUC"] if areas else [])]
    note = f"By class on the test split, lowest F1 first{shown}."
    return Table(columns, rows, f"{note} AUC: this class against all others." if areas else note)


def _pairs(counts: np.ndarray, names: list[str]) -> Table:
    """The most frequent confusions."""
    wrong, totals = counts - np.diag(counts.diagonal()), counts.sum(axis=1)
    order = [divmod(int(i), len(counts)) for i in np.argsort(-wrong, axis=None, kind="stable")[:6]]
    rows = [[names[i], names[j], str(wrong[i, j]), share(wrong[i, j], totals[i])] for i, j in order if wrong[i, j]]
    note = "Most frequent confusions, with their share of the true class."
    return Table(["true", "predicted", "images", "share"], rows, note, 2)

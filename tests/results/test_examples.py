"""Which images a report shows, against sorting by hand."""

import numpy as np

from cifar_ray.results.examples import find_examples


def predictions(*rows: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Images of three classes from (label, predicted, its probability); the rest is shared by the other two."""
    probabilities = np.empty((len(rows), 3), np.float32)
    for place, (_, predicted, probability) in enumerate(rows):
        probabilities[place] = (1 - probability) / 2
        probabilities[place, predicted] = probability
    return probabilities, np.array([label for label, _, _ in rows])


def test_mistakes_come_by_confidence_and_hits_by_lack_of_it() -> None:
    found = find_examples(*predictions((0, 0, 0.9), (0, 1, 0.5), (1, 1, 0.4), (2, 0, 0.8), (2, 2, 0.4), (1, 2, 0.8)))
    assert found.mistakes.tolist() == [3, 5, 1]
    assert found.unsure.tolist() == [2, 4, 0]
    assert found.indices.tolist() == list(range(6))


def test_pairs_come_by_how_many_they_are_then_by_class() -> None:
    rows = [(0, 1, 0.5 + place / 100) for place in range(6)] + [(2, 1, 0.6)] * 2 + [(1, 0, 0.7)] * 2 + [(0, 2, 0.9)]
    found = find_examples(*predictions(*rows))
    assert [(pair.true, pair.predicted, pair.count) for pair in found.pairs] == [
        (0, 1, 6),
        (1, 0, 2),
        (2, 1, 2),
        (0, 2, 1),
    ]
    assert [pair.examples.tolist() for pair in found.pairs] == [[5, 4, 3, 2], [8, 9], [6, 7], [10]]


def test_there_are_no_more_than_a_report_can_show() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), size=500).astype(np.float32)
    labels = rng.integers(0, 10, 500)
    found = find_examples(probabilities, labels)
    predicted = probabilities.argmax(1)
    assert (len(found.mistakes), len(found.unsure), len(found.pairs)) == (12, 12, 6)
    assert all(len(pair.examples) == 4 for pair in found.pairs)
    assert (predicted[found.mistakes] != labels[found.mistakes]).all()
    assert (predicted[found.unsure] == labels[found.unsure]).all()
    assert (
        probabilities[found.unsure, labels[found.unsure]].max()
        <= np.sort(probabilities.max(1)[predicted == labels])[11]
    )
    counts = [int(((labels == pair.true) & (predicted == pair.predicted)).sum()) for pair in found.pairs]
    assert [pair.count for pair in found.pairs] == counts == sorted(counts, reverse=True)


def test_where_all_is_right_or_all_is_wrong_there_is_nothing_of_the_other_kind() -> None:
    right = find_examples(*predictions((0, 0, 0.9), (1, 1, 0.5)))
    assert (right.mistakes.tolist(), right.unsure.tolist(), right.pairs) == ([], [1, 0], ())
    wrong = find_examples(*predictions((0, 1, 0.9)))
    assert (wrong.mistakes.tolist(), wrong.unsure.tolist(), wrong.indices.tolist()) == ([0], [], [0])

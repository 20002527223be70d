"""The images that are kept for a report."""

import numpy as np

from cifar_ray.evaluation.pictures import sample_indices, thumbnails


def test_large_images_are_shrunk_and_others_stay_as_they_are() -> None:
    small = np.full((2, 3, 96, 96), 7, np.uint8)
    assert thumbnails(small) is small
    large = np.full((2, 1, 160, 160), 200, np.uint8)
    large[1, :, :, :80] = 0
    shrunk = thumbnails(large)
    assert shrunk.shape == (2, 1, 96, 96) and shrunk.dtype == np.uint8
    assert (shrunk[0] == 200).all() and (shrunk[1, :, :, :47] == 0).all() and (shrunk[1, :, :, 49:] == 200).all()
    assert thumbnails(large[:0]).shape == (0, 1, 96, 96)


def test_up_to_five_images_of_up_to_twenty_classes_are_shown() -> None:
    labels = np.arange(300) % 25
    labels[labels == 3] = 4
    labels[0] = 3
    index = sample_indices(labels)
    shown, counts = np.unique(labels[index], return_counts=True)
    assert shown.tolist() == list(range(20)) and counts.tolist() == [5] * 3 + [1] + [5] * 16
    assert len(set(index.tolist())) == len(index)
    np.testing.assert_array_equal(index, sample_indices(labels))
    assert not np.array_equal(index[:5], np.flatnonzero(labels == 0)[:5])  # not the first ones

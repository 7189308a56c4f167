"""The rules that choose, held against tables of facts."""

import pytest

from headstart.training.rules import (
    VIEWS,
    CutCost,
    choose_class_weights,
    choose_flip,
    count_folds,
    count_views,
    plan_cut,
)


@pytest.mark.parametrize(
    ("images", "scheme"),
    [((5, 5), "none"), ((29, 10), "none"), ((30, 10), "balanced"), ((1, 90, 40), "balanced")],
)
def test_classes_are_weighted_alike_from_three_times_the_images_on(images, scheme):
    assert choose_class_weights(images) == scheme


@pytest.mark.parametrize(("rarest", "folds"), [(0, 0), (1, 0), (2, 2), (4, 4), (5, 5), (900, 5)])
def test_as_many_folds_as_the_rarest_class_allows(rarest, folds):
    assert count_folds(rarest) == folds


@pytest.mark.parametrize(
    ("lost", "error", "flip"),
    [
        (-0.3, 0.01, True),
        (0.02, 0.001, True),  # clear, and too little to matter
        (0.06, 0.001, False),
        (0.06, 0.04, True),  # much, and may be chance
        (0.5, 0.1, False),
        (0.0, 0.0, True),
    ],
)
def test_views_are_mirrored_unless_that_clearly_costs_accuracy(lost, error, flip):
    assert choose_flip(lost, error) == flip


@pytest.mark.parametrize(
    ("given", "augmented", "views"), [(None, True, VIEWS), (None, False, 1), (3, True, 3)]
)
def test_views_that_differ_are_cached(given, augmented, views):
    assert count_views(given, augmented=augmented) == views


COSTS = [CutCost("a", 0.2, 50.0), CutCost("b", 0.1, 20.0), CutCost("c", 0.05, 5.0)]


@pytest.mark.parametrize(
    ("minutes", "disk_mb", "expected"),
    [
        (100, 1e6, ("a", 8)),  # 1,000 images x 10 epochs x 50 ms are 8.3 minutes
        (4, 1e6, ("b", 8)),
        (1, 1e6, ("c", 8)),
        (0.01, 1e6, ("c", 8)),  # nothing fits: the cheapest
        (100, 450, ("a", 2)),
        (100, 250, ("b", 2)),
        (100, 60, ("c", 1)),
        (100, 1, ("c", 1)),
    ],
)
def test_the_earliest_cut_that_time_and_disk_allow(minutes, disk_mb, expected):
    assert plan_cut(COSTS, images=1000, epochs=10, minutes=minutes, disk_mb=disk_mb) == expected

"""Takes facts about the data and the machine, chooses the settings that the user did not give.

The rules measure and read nothing; docs/strategies.md has the measurements behind the numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

__all__ = [
    "DISK_SHARE",
    "FLIP_ERRORS",
    "FLIP_LOSS",
    "IMBALANCE",
    "MAX_FOLDS",
    "MINUTES",
    "PENALTY_WITHOUT_FOLDS",
    "VIEWS",
    "CutCost",
    "choose_class_weights",
    "choose_flip",
    "count_epochs",
    "count_folds",
    "count_views",
    "expect_gain",
    "plan_cut",
]

# From this ratio of the largest class to the smallest, a classifier that ignores the small class starts to
# look good, so classes are weighted alike.
IMBALANCE = 3.0

# Cross-validation has as many folds as the rarest class has images, or groups of them, up to this.
MAX_FOLDS = 5
PENALTY_WITHOUT_FOLDS = 1e-2

# Steps that a pre-trained network needs to adapt, and the epochs at most that they are made in. From 100 to
# 300 images, 30 epochs instead of 15 were worth 2 to 7 points on three of five data sets.
ENOUGH_STEPS, MOST_EPOCHS = 400, 60

# Mirroring is left out if a probe loses more accuracy on mirrored images than this many standard errors of
# the difference, and than this fraction.
FLIP_ERRORS, FLIP_LOSS = 2.0, 0.05

# How far the gain of training over a probe may be from none, where nothing is known.
NO_EXPECTATION = 0.1

# Cached views of a training image; the fraction of the free disk they may take; the minutes of training.
VIEWS = 8
DISK_SHARE = 0.25
MINUTES = 5.0


def choose_class_weights(images: Sequence[int]) -> Literal["balanced", "none"]:
    """Choose how to weight classes that have this many images each, at least one."""
    return "balanced" if max(images) >= IMBALANCE * min(images) else "none"


def count_epochs(images: int, *, batch: int, least: int) -> int:
    """Count the epochs of training a pre-trained network: as many as make enough steps, in bounds."""
    enough = math.ceil(ENOUGH_STEPS * batch / max(1, images))
    return max(least, min(MOST_EPOCHS, enough))


def count_folds(rarest: int) -> int:
    """Count the folds of cross-validation; 0 where the rarest class has too few images."""
    return min(MAX_FOLDS, rarest) if rarest >= 2 else 0


def choose_flip(accuracy_lost: float, standard_error: float) -> bool:
    """Decide whether to mirror views, by the accuracy that a probe loses on mirrored images."""
    return not accuracy_lost > max(FLIP_ERRORS * standard_error, FLIP_LOSS)


def expect_gain(
    won: int, lost: int, images: int, *, expected: float = 0.0, spread: float = NO_EXPECTATION
) -> float:
    """Expect the gain in accuracy of one classifier over another, from what was known and what was seen.

    The mean of two normal distributions multiplied: that of the expectation before, and that of the
    difference on the same images, whose variance is that of the images on which only one was right.

    Args:
        won, lost: of how many images only the first was right, and only the second.
        images: on which both were tried; may be none.
        expected, spread: the gain that was expected before, and its standard error.
    """
    if images < 1:
        return expected
    seen = (won - lost) / images
    variance = (
        won + lost + 1
    ) / images**2  # one more, so that no difference is not taken for certain
    weight, before = 1 / variance, 1 / spread**2
    return (weight * seen + before * expected) / (weight + before)


def count_views(given: int | None, *, augmented: bool) -> int:
    """Count the views of an image to cache, at most; without augmentation all are alike."""
    return given or (VIEWS if augmented else 1)


@dataclasses.dataclass(frozen=True)
class CutCost:
    """The measured cost of training above a cut point.

    Attributes:
        name: the cut point.
        megabytes: of the activations of one view of an image.
        milliseconds: of training on one image once, on a machine with nothing else to do.
    """

    name: str
    megabytes: float
    milliseconds: float


def plan_cut(
    costs: Sequence[CutCost],
    *,
    images: int,
    epochs: int,
    minutes: float,
    disk_mb: float,
    most_views: int = VIEWS,
) -> tuple[str, int]:
    """Choose (cut point, views): the earliest cut that fits the time, with at least two views on the disk.

    If none does, the cut that is cheapest to train. The earlier the cut, the more of the network adapts,
    which on the data sets tried helped down to a third of the network and no further (docs/strategies.md).

    Args:
        costs: in the order of the data.
        disk_mb: the space that the activations may take.
    """

    def views(cost: CutCost) -> int:
        return min(most_views, int(disk_mb / max(images * cost.megabytes, 1e-9)))

    for cost in costs:
        needed = images * epochs * cost.milliseconds / 60_000
        if needed <= minutes and views(cost) >= min(2, most_views):
            return cost.name, views(cost)
    cheapest = min(costs, key=lambda c: c.milliseconds)
    return cheapest.name, max(1, views(cheapest))

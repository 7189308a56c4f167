"""Takes what was measured of each class, gives what is worth saying of it: the weak classes, the confusions.

Pure functions; the terminal, the notebooks and the reports show the same. Shape letter: C classes.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headstart.arrays import IntCC
from headstart.metrics import ClassFigures, Estimate
from headstart.problem import MULTI_LABEL

__all__ = ["SHOWN", "Confusion", "Weak", "list_confusions", "list_weak"]

SHOWN = 3  # of each where there is little room


class Confusion(NamedTuple):
    """How many images of one class were taken for another, both as indices of classes."""

    true: int
    predicted: int
    images: int


class Weak(NamedTuple):
    """A class that is told less well than all are on the whole.

    Attributes:
        name: of the class.
        figure: its recall; its average precision where an image may have several labels.
        images: that are of it; 0 where nobody counted them.
        is_clear: whether its whole interval is below the figure of all.
    """

    name: str
    figure: Estimate
    images: int
    is_clear: bool


def list_confusions(confusion: IntCC) -> list[Confusion]:
    """List what was taken for what, the most frequent first; (C, C), row true class, column predicted."""
    off = confusion - np.diag(confusion.diagonal())
    true, predicted = off.nonzero()
    counts = off[true, predicted]
    order = np.lexsort((predicted, true, -counts))
    return [Confusion(int(true[k]), int(predicted[k]), int(counts[k])) for k in order]


def list_weak(
    metrics: Mapping[str, Estimate],
    per_class: Mapping[str, ClassFigures],
    problem: str,
    most: int = SHOWN,
) -> list[Weak]:
    """List the classes that are clearly below the whole, the lowest first; where none is, the lowest ones.

    Args:
        metrics, per_class: as a run or an evaluation has them.
        problem: the name of its kind.
        most: so many are listed.
    """
    several = problem == MULTI_LABEL.name
    # The most important figure is first.
    whole = next((e.value for e in metrics.values()), math.nan)
    found = []
    for name, figures in per_class.items():
        figure = figures.average_precision if several else figures.recall
        if figure.value < whole:  # which no NaN is
            found.append(Weak(name, figure, figures.images, figure.high < whole))
    clear = [weak for weak in found if weak.is_clear]
    return sorted(clear or found, key=lambda weak: weak.figure.value)[:most]

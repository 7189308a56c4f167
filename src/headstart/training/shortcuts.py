"""Takes labels and a few figures of images, gives the classes that the figures alone tell apart.

A class that its background or its size gives away need not be learnt by what is in the pictures, and a
classifier may fail where the background is another. Shape letters: N images, D figures, C classes.
"""

import dataclasses

import numpy as np

from headstart.arrays import FloatND, IntN
from headstart.metrics import Estimate, confusion_matrix, wilson_interval
from headstart.training.heads import cross_validate

__all__ = ["Shortcut", "find_shortcuts"]

# A class is given away where the fraction of its images that are found, at the low end of its interval,
# exceeds that of the other images which are taken for it by this much; and where, were all classes as large,
# most of the images that are taken for it would be of it.
EXCESS, MOST = 0.5, 0.5
PENALTY = 1e-2  # of so few figures hardly any is needed


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """A class that a few figures alone give away.

    Attributes:
        label: its index.
        recall: the fraction of its images that are told by the figures, out of fold.
        false_alarms: the fraction of the other images that are taken for it.
        accuracy: of the probe over all classes, each weighted alike.
        majority: the fraction of images that are of the largest class.
    """

    label: int
    recall: Estimate
    false_alarms: float
    accuracy: Estimate
    majority: float


def find_shortcuts(
    figures: FloatND, labels: IntN, units: tuple[str, ...], classes: int, *, seed: int = 0
) -> list[Shortcut]:
    """Find the classes that a cross-validated probe on the figures and their squares tells apart.

    Args:
        figures: float (N, D), finite.
        labels: int (N,).
        units: N names; images of one unit stay in one fold, and every class has two units at least.

    Returns:
        The classes by their index.
    """
    scale = figures.std(axis=0)
    scaled = (figures - figures.mean(axis=0)) / np.where(scale > 0, scale, 1)
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (classes * counts)
    table = np.concatenate([scaled, scaled**2], axis=1)
    probabilities = cross_validate(
        table, labels, units, classes, penalty=PENALTY, weights=weights[labels], seed=seed
    )
    confused = confusion_matrix(labels, probabilities.argmax(axis=1), classes)
    taken, right = confused.sum(axis=0), confused.diagonal()
    alarms = (taken - right) / np.maximum(len(labels) - counts, 1)
    accuracy, majority = wilson_interval(right.sum(), len(labels)), counts.max() / len(labels)
    found = []
    for label in range(classes):
        recall = wilson_interval(right[label], counts[label])
        precision = recall.low / max(recall.low + (classes - 1) * alarms[label], 1e-12)
        if recall.low - alarms[label] >= EXCESS and precision >= MOST:
            found.append(Shortcut(label, recall, float(alarms[label]), accuracy, float(majority)))
    return found

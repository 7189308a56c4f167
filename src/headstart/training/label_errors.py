"""Takes labels and out-of-fold probabilities, gives the images whose label is likely wrong.

By confident learning (Northcutt, Jiang, Chuang: Confident Learning, JAIR 2021). Shape letters: N images, C
classes, E likely errors.
"""

import numpy as np

from headstart.arrays import FloatN, FloatNC, IntN

__all__ = ["count_likely", "find_label_errors"]

# Of the likely ones this share at least is wrong.
LIKELY = 0.5


def find_label_errors(labels: IntN, probabilities: FloatNC) -> tuple[IntN, IntN, FloatN]:
    """Find the images whose label is likely wrong, the likeliest first.

    Their number is estimated by confident learning; they are those with the lowest probability of their own
    label, which on CIFAR-10 with 5 % of the labels changed ranks better than the margin to the best
    other class (0.85 against 0.67 of the changed ones among the first tenth of the images).

    Args:
        labels: int (N,), each class at least once.
        probabilities: float (N, C), of each image by a classifier that has not seen it.

    Returns:
        (rows, suggested classes, scores in [0, 1]), all (E,). A score is how improbable the label is.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels].astype(np.float64)
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    count = _estimate_errors(labels, probabilities)
    order = np.argsort(own, kind="stable")
    order = order[others[order, suggested[order]] > own[order]][:count]
    return order, suggested[order], 1 - own[order]


def count_likely(probabilities: FloatNC, scores: FloatN) -> int:
    """Count how many of the first label errors are, together, more likely wrong than right.

    By a probe that is calibrated, as the lowest log loss makes it, so many correct labels as the sum of all
    probabilities up to p are expected to have one up to p. Where twice as many have, half of them are wrong.
    A weak probe, which doubts most labels, expects as much, and so accuses nobody.

    Args:
        probabilities: float (N, C), as of `find_label_errors`.
        scores: (E,) of it, the highest first.
    """
    values = np.sort(probabilities.ravel().astype(np.float64))
    below = np.concatenate([[0.0], values.cumsum()])
    # A float32 probability is not moved below itself by the way to its score and back.
    places = np.searchsorted(values, (1 - scores) * (1 + 1e-9), side="right")
    count = np.arange(1, len(scores) + 1)
    likely = np.flatnonzero(below[places] <= (1 - LIKELY) * count)
    return int(likely[-1]) + 1 if len(likely) else 0


def _estimate_errors(labels: IntN, probabilities: FloatNC) -> int:
    """Estimate how many labels are wrong, from the confident joint of given and likely true labels."""
    classes = probabilities.shape[1]
    images = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    # A class is confident where its probability is above the mean of the images that are labelled so.
    thresholds = np.bincount(labels, own, minlength=classes) / np.maximum(images, 1)
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    known = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[known], confident[known].argmax(axis=1)), 1)
    # Scaled, so that each given class counts with all of its images.
    joint *= (images / np.maximum(joint.sum(axis=1), 1))[:, None]
    return round(float(joint.sum() - joint.trace()))

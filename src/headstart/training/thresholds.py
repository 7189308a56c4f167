"""Takes the probabilities of images that were not trained on, gives the threshold of each label.

Pure functions on arrays. Shape letters: N images, C labels.
"""

import numpy as np

from headstart.arrays import FloatC, FloatN, FloatNC, IntN, Targets
from headstart.label_metrics import THRESHOLD

__all__ = ["FEWEST_IMAGES", "choose_thresholds", "choose_thresholds_apart"]

# With fewer images of a label the best threshold among them is chance, and that for all labels is taken.
FEWEST_IMAGES = 10


def choose_thresholds(targets: Targets, probabilities: FloatNC) -> FloatC:
    """Choose from which probability on each label is given, float64 (C,), in (0, 1): where its F1 is highest.

    It lies halfway between two probabilities, so that rounding changes no answer; of several that are as good
    it is the one nearest to one half. A label that fewer than `FEWEST_IMAGES` have is given from where the F1
    of all labels together is highest; one half where those are fewer, too.

    Args:
        targets: int8 (N, C), 1 for a label that an image has.
        probabilities: float (N, C), by a classifier that was trained without the image.
    """
    true, scores = np.asarray(targets) > 0, np.asarray(probabilities)
    common = _choose(true.ravel(), scores.ravel(), THRESHOLD)
    columns = zip(true.T, scores.T, strict=True)
    return np.array([_choose(*column, common) for column in columns], dtype=np.float64)


def _choose(true: np.ndarray, scores: FloatN, default: float) -> float:
    images = int(true.sum())
    if images < FEWEST_IMAGES:
        return default
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    # Images of one score are given the label together: where it changes, and after the last.
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(true[order])[ends]
    f1 = 2 * hits / (ends + 1 + images)
    below = np.append(ranked[ends[:-1] + 1], 0.0)
    middles = (ranked[ends] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = middles[best[np.argmin(np.abs(middles[best] - THRESHOLD))]]
    return float(np.clip(chosen, 1e-6, 1 - 1e-6))


def choose_thresholds_apart(targets: Targets, probabilities: FloatNC, parts: IntN) -> FloatNC:
    """Give the thresholds of each image, float64 (N, C), chosen on the images of the other parts.

    Figures with these do not flatter, as those with thresholds that were chosen on the same images would.

    Args:
        targets, probabilities: as `choose_thresholds`.
        parts: (N,), images that belong together in the same.
    """
    result = np.empty(probabilities.shape)
    for part in np.unique(parts):
        inside = parts == part
        result[inside] = choose_thresholds(targets[~inside], probabilities[~inside])
    return result

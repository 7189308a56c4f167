"""Takes labels of images that may have several, and probabilities, gives figures with 95 % intervals.

Shape letters: N images, C labels. Targets are int8 (N, C), 1 for a label that an image has and 0 for one that
it has not. A label is given from its threshold on.

A figure that no image of a label allows is NaN, and left out of means. Intervals are those of a bootstrap
over images, whose labels stay together, widened to Wilson's for as many images as have the label (or, for
means, for the number that gives a mean of proportions the same variance): a bootstrap alone collapses where
nothing was wrong.
"""

import dataclasses
import math

import numpy as np

from headstart.arrays import FloatC, FloatN, FloatNC, IntCC, Targets
from headstart.metrics import (
    SMALLEST_PROBABILITY,
    Estimate,
    mean_loss,
    wilson_interval,
)

__all__ = [
    "THRESHOLD",
    "LabelFigures",
    "confuse_labels",
    "give_labels",
    "label_losses",
    "label_overlap",
    "measure_each_label",
    "measure_label_recall",
    "measure_labels",
]

THRESHOLD = 0.5  # where none was chosen

# The bootstrap sorts no more than so many numbers, in at least and at most so many draws.
BOOTSTRAP_NUMBERS, LEAST_DRAWS, MOST_DRAWS = 50_000_000, 200, 2000
CHUNK_NUMBERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class LabelFigures:
    """How well one label is found.

    Attributes:
        images: that have it.
        threshold: from which probability on it is given; NaN where that differs from image to image.
        average_precision: the area under the curve of precision by recall, as a sum over thresholds.
        f1, precision, recall: of giving it from the threshold on.
    """

    images: int
    threshold: float
    average_precision: Estimate
    f1: Estimate
    precision: Estimate
    recall: Estimate


def give_labels(
    probabilities: FloatNC, thresholds: FloatC | FloatNC | float = THRESHOLD
) -> np.ndarray:
    """Say which labels are given to which image, bool (N, C); thresholds: of all, (C,) or (N, C)."""
    return np.asarray(probabilities >= thresholds)


def label_losses(targets: Targets, probabilities: FloatNC) -> FloatN:
    """Give -log(probability of the labels that each image has and has not), in nats, float64 (N,)."""
    right = np.where(targets > 0, probabilities, 1 - np.asarray(probabilities, dtype=np.float64))
    return np.asarray(-np.log(np.maximum(right, SMALLEST_PROBABILITY)).sum(axis=1))


def label_overlap(targets: Targets, probabilities: FloatNC) -> FloatN:
    """Give labels rightly given over those that an image has or was given, float64 (N,); 1 for none of both.

    Its mean is the accuracy of Godbole and Sarawagi (PAKDD 2004), at a threshold of one half.
    """
    given, true = give_labels(probabilities), targets > 0
    either = (given | true).sum(axis=1)
    both = (given & true).sum(axis=1)
    return np.asarray(np.where(either > 0, both / np.maximum(either, 1), 1.0))


def measure_labels(
    targets: Targets,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    thresholds: FloatC | FloatNC | float = THRESHOLD,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measure a classifier on images with several labels, N at least 1.

    Args:
        probabilities: float (N, C), each of its own.
        thresholds: from which on a label is given: one, (C,), or of every image (N, C).
        seed: of the bootstrap.

    Returns:
        mean_average_precision and macro_f1, over the labels that occur in `targets`; micro_f1, of all labels
        of all images together; log_loss, of all labels of an image together.
    """
    sample = _Sample(targets, probabilities, thresholds, seed)
    images = sample.images[sample.images > 0]
    effective = len(images) ** 2 / (1 / images).sum() if len(images) else 0.0
    whole, draws = sample.whole, sample.draws
    return {
        "mean_average_precision": _widen(
            _mean(whole.precisions)[0], _mean(draws.precisions), effective
        ),
        "macro_f1": _widen(_mean(whole.f1)[0], _mean(draws.f1), effective),
        "micro_f1": _widen(whole.micro_f1[0], draws.micro_f1, float(images.sum())),
        "log_loss": mean_loss(label_losses(targets, probabilities)),
    }


def measure_each_label(
    targets: Targets,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    thresholds: FloatC | FloatNC | float = THRESHOLD,
    seed: int = 0,
) -> dict[str, LabelFigures]:
    """{label: its figures}; arguments as in `measure_labels`."""
    sample = _Sample(targets, probabilities, thresholds, seed)
    chosen = np.asarray(thresholds, dtype=np.float64)
    of_label = np.broadcast_to(chosen if chosen.ndim < 2 else np.nan, (len(classes),))
    result = {}
    for c, name in enumerate(classes):
        images = int(sample.images[c])
        hit, given = int(sample.whole.hit[0, c]), int(sample.whole.given[0, c])
        result[name] = LabelFigures(
            images=images,
            threshold=float(of_label[c]),
            average_precision=_widen(
                sample.whole.precisions[0, c], sample.draws.precisions[:, c], images
            ),
            f1=_widen(sample.whole.f1[0, c], sample.draws.f1[:, c], images),
            precision=wilson_interval(hit, given),
            recall=wilson_interval(hit, images),
        )
    return result


def measure_label_recall(
    targets: Targets,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    thresholds: FloatC | FloatNC | float = THRESHOLD,
) -> dict[str, Estimate]:
    """{label: the fraction of its images that it was given to}; arguments as in `measure_labels`."""
    given, true = give_labels(probabilities, thresholds), targets > 0
    hits, totals = (given & true).sum(axis=0), true.sum(axis=0)
    return {n: wilson_interval(h, t) for n, h, t in zip(classes, hits, totals, strict=True)}


def confuse_labels(
    targets: Targets,
    probabilities: FloatNC,
    *,
    thresholds: FloatC | FloatNC | float = THRESHOLD,
) -> IntCC:
    """(C, C): on the diagonal how often each label was found; in row i, column j, on how many images i was
    missed and j wrongly given."""
    given, true = give_labels(probabilities, thresholds), targets > 0
    missed, wrong = true & ~given, given & ~true
    counts = missed.T.astype(np.float64) @ wrong.astype(np.float64)
    counts[np.diag_indices_from(counts)] = (given & true).sum(axis=0)
    return np.asarray(counts.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class _Figures:
    """Of B draws of the images: average precision and F1 (B, C), micro F1 (B,), and counts (B, C)."""

    precisions: np.ndarray
    f1: np.ndarray
    micro_f1: np.ndarray
    hit: np.ndarray
    given: np.ndarray


class _Sample:
    """The figures of all images, and of draws of them with replacement."""

    def __init__(
        self,
        targets: Targets,
        probabilities: FloatNC,
        thresholds: FloatC | FloatNC | float,
        seed: int,
    ) -> None:
        self._true = targets > 0
        self._given = give_labels(probabilities, thresholds)
        self._probabilities = probabilities
        count, classes = self._true.shape
        self.images = self._true.sum(axis=0)
        self.whole = self._measure(np.ones((1, count)))
        draws = BOOTSTRAP_NUMBERS // max(1, count * classes)
        draws = max(LEAST_DRAWS, min(MOST_DRAWS, draws))
        generator = np.random.default_rng(seed)
        parts = []
        step = max(1, CHUNK_NUMBERS // count)
        for first in range(0, draws, step):
            rows = min(step, draws - first)
            drawn = generator.integers(count, size=(rows, count))
            parts.append(
                self._measure(np.array([np.bincount(row, minlength=count) for row in drawn]))
            )
        names = [field.name for field in dataclasses.fields(_Figures)]
        self.draws = _Figures(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))

    def _measure(self, weights: np.ndarray) -> _Figures:
        """The figures of images that count as often as `weights` (B, N) say."""
        weights = weights.astype(np.float64)
        hit, given, true = (
            weights @ which.astype(np.float64)
            for which in (self._given & self._true, self._given, self._true)
        )
        columns = [
            _average_precision(self._true[:, c], self._probabilities[:, c], weights)
            for c in range(self._true.shape[1])
        ]
        return _Figures(
            precisions=np.stack(columns, axis=1),
            f1=np.where(true > 0, 2 * hit / np.maximum(given + true, 1), np.nan),
            micro_f1=np.where(
                true.sum(axis=1) > 0,
                2 * hit.sum(axis=1) / np.maximum((given + true).sum(axis=1), 1),
                np.nan,
            ),
            hit=hit,
            given=given,
        )


def _average_precision(true: np.ndarray, scores: FloatN, weights: np.ndarray) -> np.ndarray:
    """(B,): sum over thresholds of (recall here - recall before) * precision here; NaN without a true one."""
    order = np.argsort(-scores, kind="stable")
    # Images of one score are given the label together.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    ordered = weights[:, order]
    total = np.cumsum(ordered, axis=1)[:, ends]
    hits = np.cumsum(ordered * true[order], axis=1)[:, ends]
    gains = np.diff(hits, axis=1, prepend=0)
    area = (gains * hits / np.maximum(total, 1)).sum(axis=1)
    return _divide(area, hits[:, -1])


def _mean(values: np.ndarray) -> np.ndarray:
    """(B, C) -> (B,), over what is defined."""
    there = ~np.isnan(values)
    return _divide(np.where(there, values, 0).sum(axis=1), there.sum(axis=1))


def _divide(parts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """NaN where the total is none."""
    return np.asarray(np.divide(parts, totals, out=np.full(len(parts), np.nan), where=totals > 0))


def _widen(value: float, draws: np.ndarray, effective: float) -> Estimate:
    """The interval of the bootstrap, or Wilson's where that is wider."""
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(draws):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.quantile(draws, [0.025, 0.975])
    score = wilson_interval(value * effective, effective)
    return Estimate(float(value), min(float(low), score.low), max(float(high), score.high))

"""Takes labels of images that may have several, and probabilities, gives figures with 95 % intervals.

Shape letters: N images, C labels. Targets are int8 (N, C), 1 for a label that an image has and 0 for one that
it has not. A label is given from its threshold on.

A figure that no image of a label allows is NaN, and left out of means. Intervals are those of `metrics`; the
labels of an image count as drawn together.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from headstart.arrays import FloatC, FloatN, FloatNC, IntCC, IntN, Targets
from headstart.metrics import (
    SMALLEST_PROBABILITY,
    UNDEFINED,
    ClassFigures,
    Detection,
    Estimate,
    bound_share,
    calibration_error,
    mean_loss,
    measure_class,
    measure_means,
    number_units,
)

__all__ = [
    "THRESHOLD",
    "confuse_labels",
    "give_labels",
    "label_losses",
    "label_overlap",
    "measure_each_label",
    "measure_labels",
]

THRESHOLD = 0.5  # where none was chosen


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
    groups: Sequence[str] = (),
) -> dict[str, Estimate]:
    """Measure a classifier on images with several labels, N at least 1.

    Args:
        probabilities: float (N, C), each of its own.
        thresholds: from which on a label is given: one, (C,), or of every image (N, C).
        groups: as in `metrics.measure`.

    Returns:
        mean_average_precision and macro_f1, over the labels that occur in `targets`; micro_f1, of all labels
        of all images together; log_loss and brier, of all labels of an image together; calibration_error, of
        all their probabilities; roc_auc, the mean over labels that some images have and some have not.
    """
    units = number_units(groups)
    given, true = give_labels(probabilities, thresholds), targets > 0
    means = measure_means(_detect(targets, probabilities, thresholds), units)
    overlap = bound_share((given & true).sum(axis=1), (given | true).sum(axis=1), units)
    micro = (2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high))
    each = np.arange(len(targets)) if units is None else units
    p = np.asarray(probabilities, dtype=np.float64)
    if_true, if_false = (-np.log(np.maximum(q, SMALLEST_PROBABILITY)) for q in (p, 1 - p))
    losses = label_losses(targets, probabilities)
    return {
        "mean_average_precision": means["average_precision"],
        "macro_f1": means["macro_f1"],
        "micro_f1": Estimate(*micro) if true.any() else UNDEFINED,
        "log_loss": _bound_losses(losses, if_true, if_false, p, units),
        "calibration_error": calibration_error(
            probabilities.ravel(), true.ravel(), np.repeat(each, targets.shape[1])
        ),
        "brier": _bound_losses(((true - p) ** 2).sum(axis=1), (1 - p) ** 2, p**2, p, units),
        "roc_auc": means["roc_auc"],
    }


def measure_each_label(
    targets: Targets,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    thresholds: FloatC | FloatNC | float = THRESHOLD,
    groups: Sequence[str] = (),
) -> dict[str, ClassFigures]:
    """{label: its figures}; arguments as in `measure_labels`."""
    units = number_units(groups)
    chosen = np.asarray(thresholds, dtype=np.float64)
    of_label = np.broadcast_to(chosen if chosen.ndim < 2 else np.nan, (len(classes),)).tolist()
    detections = _detect(targets, probabilities, thresholds)
    return {
        name: measure_class(detection, units, threshold)
        for name, detection, threshold in zip(classes, detections, of_label, strict=True)
    }


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


def _detect(
    targets: Targets, probabilities: FloatNC, thresholds: FloatC | FloatNC | float
) -> Iterator[Detection]:
    given = give_labels(probabilities, thresholds)
    for c in range(targets.shape[1]):
        yield Detection(targets[:, c] > 0, given[:, c], probabilities[:, c])


def _bound_losses(
    losses: FloatN, if_true: FloatNC, if_false: FloatNC, p: FloatNC, units: IntN | None
) -> Estimate:
    """Mean of the losses (N,) that sum what each label costs if an image has it and if not, (N, C)."""
    first = (p * if_true + (1 - p) * if_false).sum(axis=1)
    variance = (p * (1 - p) * (if_true - if_false) ** 2).sum(axis=1)
    return mean_loss(losses, units, expected=(first, variance + first**2))

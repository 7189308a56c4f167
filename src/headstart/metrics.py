"""Takes labels and probabilities, gives figures with 95 % intervals; pure functions on arrays.

Shape letters: N images, C classes.

Intervals. A proportion (accuracy, recall) has Wilson's score interval (Wilson 1927), which stays honest
at 0, at 1 and for few images. Balanced accuracy is a mean of C proportions: Wilson's interval for
the number of images that gives a mean of proportions the same variance, C^2 / sum(1 / n_c). Macro F1
has no such form: 2,000 bootstrap draws of the confusion matrix, widened to the interval of balanced
accuracy's kind around the F1, since the bootstrap alone collapses when nothing was misclassified. Log
loss is a mean over images: its mean plus and minus Student's t times the standard error.
"""

import dataclasses
import math

import numpy as np

from headstart.arrays import FloatN, FloatNC, IntCC, IntN

__all__ = [
    "Estimate",
    "confusion_matrix",
    "image_losses",
    "log_loss",
    "mean_loss",
    "measure",
    "measure_recall",
    "wilson_interval",
]

Z95 = 1.959963984540054
STUDENT95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646)
BOOTSTRAP_DRAWS = 2000
SMALLEST_PROBABILITY = 1e-12


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def measure(
    labels: IntN, probabilities: FloatNC, classes: tuple[str, ...], *, seed: int = 0
) -> dict[str, Estimate]:
    """Measure a classifier on labelled images.

    Args:
        labels: int array (N,), N at least 1, indices into `classes`.
        probabilities: float array (N, C), rows sum to one.
        seed: of the bootstrap.

    Returns:
        accuracy, balanced_accuracy, macro_f1 and log_loss. Balanced accuracy and macro F1 run over the
        classes that occur in `labels`.
    """
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    per_class = counts.sum(axis=1)
    correct = counts.diagonal()
    present = per_class > 0
    recalls = correct[present] / per_class[present]
    balanced = float(recalls.mean())
    effective = present.sum() ** 2 / (1 / per_class[present]).sum()
    f1 = float(_macro_f1(correct, counts.sum(axis=0), per_class))
    return {
        "accuracy": wilson_interval(correct.sum(), counts.sum()),
        "balanced_accuracy": wilson_interval(balanced * effective, effective),
        "macro_f1": _f1_interval(counts, f1, effective, seed),
        "log_loss": log_loss(labels, probabilities),
    }


def measure_recall(
    labels: IntN, probabilities: FloatNC, classes: tuple[str, ...]
) -> dict[str, Estimate]:
    """{class: the fraction of its images that were predicted to be of it}; arguments as in `measure`."""
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    return {
        name: wilson_interval(hit, total)
        for name, hit, total in zip(classes, counts.diagonal(), counts.sum(axis=1), strict=True)
    }


def confusion_matrix(labels: IntN, predicted: IntN, classes: int) -> IntCC:
    """Count images, (C, C): row true class, column predicted class."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def wilson_interval(successes: float, total: float) -> Estimate:
    """A proportion with Wilson's 95 % interval; NaN for a total of 0."""
    if total <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    p = successes / total
    z2 = Z95 * Z95 / total
    centre = (p + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    # Rounding must not push the interval off the estimate at 0 and 1.
    return Estimate(
        float(p), float(max(0.0, min(centre - half, p))), float(min(1.0, max(centre + half, p)))
    )


def image_losses(labels: IntN, probabilities: FloatNC) -> FloatN:
    """Give -log(probability of the true class) of each image, in nats, float64 (N,)."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, SMALLEST_PROBABILITY)))


def log_loss(labels: IntN, probabilities: FloatNC) -> Estimate:
    """Mean of `image_losses`."""
    return mean_loss(image_losses(labels, probabilities))


def mean_loss(losses: FloatN) -> Estimate:
    """Mean of the losses of N images."""
    mean = float(losses.mean())
    if len(losses) < 2:
        return Estimate(mean, math.nan, math.nan)
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    half = float(_student_quantile(len(losses) - 1) * error)
    return Estimate(mean, max(0.0, mean - half), mean + half)


def _student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.001: by table, then by Cornish and Fisher's series.

    scipy has it too, but takes 0.3 s to import, a good part of a fit on known features.
    """
    if freedom <= len(STUDENT95):
        return STUDENT95[freedom - 1]
    # Abramowitz and Stegun, 26.7.5.
    z, n = Z95, freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _macro_f1(hit: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Give the mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur, (…), from how often each
    class was right, predicted and true: (…, C), (…, C) and (C,)."""
    total, present = predicted + true, true > 0
    f1 = np.divide(2 * hit, total, out=np.zeros(hit.shape), where=total > 0)
    return np.asarray((f1 * present).sum(axis=-1) / max(present.sum(), 1))


def _f1_interval(counts: np.ndarray, f1: float, effective: float, seed: int) -> Estimate:
    generator = np.random.default_rng(seed)
    # Classes are resampled within themselves: the test set's make-up is given, not drawn.
    true = counts.sum(axis=1)
    hit, predicted = np.zeros((2, BOOTSTRAP_DRAWS, len(counts)), dtype=np.int64)
    for row, total in enumerate(true):
        if total > 0:  # whole matrices of 1,000 classes would take 8 GB
            # The last class takes what is left, so it is always among them.
            columns = np.union1d(counts[row].nonzero()[0], [len(counts) - 1])
            drawn = generator.multinomial(total, counts[row, columns] / total, BOOTSTRAP_DRAWS)
            hit[:, row] = drawn[:, columns == row].sum(axis=1)
            predicted[:, columns] += drawn
    low, high = np.quantile(_macro_f1(hit, predicted, true), [0.025, 0.975])
    score = wilson_interval(f1 * effective, effective)
    return Estimate(f1, min(float(low), score.low), max(float(high), score.high))

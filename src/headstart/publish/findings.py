"""Takes the probabilities of measured images, gives what a report shows of them; pure functions on arrays.

Shape letters: N images, C classes, D features.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from headstart.arrays import FloatND, IntCC, IntN
from headstart.draws import draw
from headstart.metrics import Estimate, wilson_interval
from headstart.runs.record import Measured

__all__ = [
    "Bin",
    "ClassFigures",
    "calibration_error",
    "choose_classes",
    "list_doubtful",
    "list_right",
    "list_worst",
    "measure_bins",
    "measure_classes",
    "project",
]

BINS = 10
BLOCK, ITERATIONS = 8, 20  # of the projection


class Bin(NamedTuple):
    """The images whose highest probability is in the tenth from `low` on: its mean, how many are right."""

    low: float
    images: int
    confidence: float
    accuracy: Estimate


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """The figures of a class; NaN where they are not defined.

    Attributes:
        name: of the class.
        images: that are of it.
        predicted: images that were predicted to be of it.
        precision: the fraction of those that are of it.
        recall: the fraction of its images that were predicted to be of it.
        f1: the harmonic mean of both.
    """

    name: str
    images: int
    predicted: int
    precision: float
    recall: Estimate
    f1: float


def list_worst(measured: Measured, most: int) -> list[int]:
    """List rows that were predicted wrongly, the least probable true class first."""
    wrong = np.flatnonzero(measured.probabilities.argmax(axis=1) != measured.labels)
    true = measured.probabilities[wrong, measured.labels[wrong]]
    highest = measured.probabilities[wrong].max(axis=1)
    return [int(row) for row in wrong[np.lexsort((-highest, true))[:most]]]


def list_doubtful(measured: Measured, most: int) -> list[int]:
    """List the rows whose two most probable classes are closest, whether or not they are right."""
    best = np.partition(measured.probabilities, -2, axis=1)[:, -2:]
    return [int(row) for row in np.argsort(best[:, 1] - best[:, 0], kind="stable")[:most]]


def list_right(measured: Measured, most: int) -> list[int]:
    """List some rows that were predicted rightly, drawn so that each class has its turn."""
    right = np.flatnonzero(measured.probabilities.argmax(axis=1) == measured.labels)
    drawn = sorted(right.tolist(), key=lambda row: draw(0, "report", measured.ids[row]))
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for row in drawn:
        label = int(measured.labels[row])
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], len(turns), row))
    return [row for _, _, row in sorted(turns)[:most]]


def choose_classes(confusion: IntCC, most: int) -> IntN:
    """Choose the classes with the most confusions, in their own order; all where there are few."""
    count = len(confusion)
    if count <= most:
        return np.arange(count)
    off = confusion - np.diag(confusion.diagonal())
    errors = off.sum(axis=0) + off.sum(axis=1)
    return np.sort(np.argsort(-errors, kind="stable")[:most])


def measure_classes(confusion: IntCC, classes: tuple[str, ...]) -> list[ClassFigures]:
    """Measure each class."""
    found = []
    for k, name in enumerate(classes):
        hit, images, predicted = (
            int(v) for v in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum())
        )
        precision = hit / predicted if predicted else float("nan")
        f1 = 2 * hit / (images + predicted) if images + predicted else float("nan")
        recall = wilson_interval(hit, images)
        found.append(ClassFigures(name, images, predicted, precision, recall, f1))
    return found


def measure_bins(measured: Measured) -> list[Bin]:
    """Compare the highest probability of each image with how often such images are right, by tenths."""
    confidence = measured.probabilities.max(axis=1)
    right = measured.probabilities.argmax(axis=1) == measured.labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        own = place == number
        if own.any():
            accuracy = wilson_interval(int(right[own].sum()), int(own.sum()))
            mean = float(confidence[own].mean(dtype=np.float64))
            found.append(Bin(number / BINS, int(own.sum()), mean, accuracy))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error (Guo et al., On Calibration of Modern Neural Networks, 2017)."""
    total = sum(b.images for b in bins)
    return sum(b.images * abs(b.confidence - b.accuracy.value) for b in bins) / total


def project(features: FloatND) -> FloatND:
    """Project on the two directions of the largest variance (PCA): float (N, D) -> float64 (N, 2).

    By subspace iteration from a seeded start (Halko, Martinsson and Tropp, Finding Structure with
    Randomness, 2011): all directions of 1,280 take seconds, and two are drawn.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    width = centred.shape[1]
    basis = np.random.default_rng(0).normal(size=(width, min(BLOCK, width)))
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
    _, _, turned = np.linalg.svd(centred @ basis, full_matrices=False)
    axes = (basis @ turned.T)[:, :2]
    # The sign of a direction is open; its largest entry is made positive.
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    return np.asarray(centred @ axes)

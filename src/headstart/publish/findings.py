"""Takes the probabilities of measured images, gives what a report shows of them; pure functions on arrays.

Shape letters: N images, C classes, D features.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from headstart.arrays import BoolN, BoolNC, FloatN, FloatND, IntCC, IntN
from headstart.draws import draw
from headstart.label_metrics import give_labels, label_losses
from headstart.metrics import Estimate, image_losses, wilson_interval
from headstart.runs.documents import Measured

__all__ = [
    "Bin",
    "Verdicts",
    "choose_classes",
    "judge",
    "list_doubtful",
    "list_right",
    "list_worst",
    "measure_bins",
    "project",
]

BINS = 10
BLOCK, ITERATIONS = 8, 20  # of the projection


class Bin(NamedTuple):
    """Images, or labels, whose probability is in the tenth from `low` on: its mean, how many are right."""

    low: float
    images: int
    confidence: float
    accuracy: Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Verdicts:
    """What was said of each image, in one form for images of one label and of several.

    Attributes:
        ids: N image ids.
        true, given: bool (N, C), the classes of each image, and those that it was said to be of.
        losses: float (N,), by which the worst are told.
        margins: float (N,), how near another verdict was: between the two most probable classes, or from a
            label's probability to its threshold.
        stated: float (M,), the probabilities that can come true: of the class that was named, or of every
            label.
        came: bool (M,), which did.
    """

    ids: tuple[str, ...]
    true: BoolNC
    given: BoolNC
    losses: FloatN
    margins: FloatN
    stated: FloatN
    came: BoolN

    @property
    def right(self) -> BoolN:
        """Which images were said to be of their classes and of no others, bool (N,)."""
        return np.asarray((self.true == self.given).all(axis=1))


def judge(measured: Measured, thresholds: tuple[float, ...] = ()) -> Verdicts:
    """Say what was said of each image.

    Args:
        thresholds: of the C labels, where an image may have several.
    """
    labels, probabilities = measured.labels, measured.probabilities
    if labels.ndim > 1:
        chosen = np.array(thresholds, dtype=np.float32)
        true, given = labels > 0, give_labels(probabilities, chosen)
        margins = abs(probabilities - chosen).min(axis=1)
        losses, stated, came = label_losses(labels, probabilities), probabilities, true
    else:
        best = np.partition(probabilities, -2, axis=1)[:, -2:]
        margins, predicted = best[:, 1] - best[:, 0], probabilities.argmax(axis=1)
        classes = np.arange(probabilities.shape[1])
        true, given = labels[:, None] == classes, predicted[:, None] == classes
        losses, stated = image_losses(labels, probabilities), probabilities.max(axis=1)
        came = predicted == labels
    return Verdicts(measured.ids, true, given, losses, margins, stated.ravel(), came.ravel())


def list_worst(verdicts: Verdicts, most: int) -> list[int]:
    """List rows that are wrong, those first whose classes were given the least probability."""
    wrong = np.flatnonzero(~verdicts.right)
    return [int(row) for row in wrong[np.argsort(-verdicts.losses[wrong], kind="stable")[:most]]]


def list_doubtful(verdicts: Verdicts, most: int) -> list[int]:
    """List the rows that were nearest to another verdict, whether or not they are right."""
    return [int(row) for row in np.argsort(verdicts.margins, kind="stable")[:most]]


def list_right(verdicts: Verdicts, most: int) -> list[int]:
    """List some rows that are right, drawn so that each class has its turn."""
    right = np.flatnonzero(verdicts.right)
    drawn = sorted(right.tolist(), key=lambda row: draw(0, "report", verdicts.ids[row]))
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for row in drawn:
        label = int(verdicts.true[row].argmax())
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


def measure_bins(verdicts: Verdicts) -> list[Bin]:
    """Compare the probabilities that were stated with how often they came true, by tenths."""
    confidence, right = verdicts.stated, verdicts.came
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        own = place == number
        if own.any():
            accuracy = wilson_interval(int(right[own].sum()), int(own.sum()))
            mean = float(confidence[own].mean(dtype=np.float64))
            found.append(Bin(number / BINS, int(own.sum()), mean, accuracy))
    return found


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

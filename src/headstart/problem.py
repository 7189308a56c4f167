"""The kind of problem: how targets are kept, and how they and logits are read and measured.

A `Dataset` has a `Problem`, which loaders, splits, folds, figures and the training loop ask: one label an
image, or any number of them, none included. Another kind is one more `Problem` and its line in `PROBLEMS`, a
regression in `training.logistic` and an objective in `training.objectives`. `advise`, `audit` and the search
for groups are for single labels. Shape letters: N images, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from headstart.arrays import BoolN, FloatC, FloatN, FloatNC, IntCC, Targets
from headstart.label_metrics import (
    THRESHOLD,
    confuse_labels,
    label_losses,
    label_overlap,
    measure_each_label,
    measure_labels,
)
from headstart.metrics import (
    ClassFigures,
    Estimate,
    confusion_matrix,
    image_losses,
    measure,
    measure_each,
)

__all__ = [
    "MULTI_LABEL",
    "PROBLEMS",
    "SINGLE_LABEL",
    "Classes",
    "Measure",
    "Problem",
    "infer_problem",
    "multi_label",
    "problem_of",
    "sigmoid",
    "softmax",
]

# Indices of the classes of one image.
Classes = tuple[int, ...]


Figures = TypeVar("Figures")


class Measure(Protocol[Figures]):
    """Figures of probabilities (N, C) against targets, by name, as `metrics.measure` gives them."""

    def __call__(
        self,
        targets: Targets,
        probabilities: FloatNC,
        classes: tuple[str, ...],
        /,
        *,
        groups: Sequence[str] = (),
    ) -> dict[str, Figures]: ...


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        name: a key of `PROBLEMS`.
        loss: the key of its loss in `training.objectives`.
        encode: the classes of each image, None where they are unknown, and C -> targets (N, …).
        decode: targets -> the classes of each image, () for none. Counts and stratification go by them.
        known: targets -> which images have one.
        link: logits (N, C) -> probabilities (N, C).
        unlink: probabilities -> logits that have them, finite, so that heads can be averaged.
        losses: targets and probabilities -> the log loss of each image, in nats (N,).
        right: targets and probabilities -> how right each image is, in [0, 1] (N,).
        measure: targets, probabilities, classes and groups -> {figure: Estimate}, the most important first.
        measure_each: the same -> {class: its figures}.
        confuse: targets and probabilities -> the confusion matrix, int64 (C, C).
    """

    name: str
    loss: str
    encode: Callable[[Sequence[Classes | None], int], Targets] = dataclasses.field(repr=False)
    decode: Callable[[Targets], list[Classes]] = dataclasses.field(repr=False)
    known: Callable[[Targets], BoolN] = dataclasses.field(repr=False)
    link: Callable[[FloatNC], FloatNC] = dataclasses.field(repr=False)
    unlink: Callable[[FloatNC], FloatNC] = dataclasses.field(repr=False)
    losses: Callable[[Targets, FloatNC], FloatN] = dataclasses.field(repr=False)
    right: Callable[[Targets, FloatNC], FloatN] = dataclasses.field(repr=False)
    measure: Measure[Estimate] = dataclasses.field(repr=False)
    measure_each: Measure[ClassFigures] = dataclasses.field(repr=False)
    confuse: Callable[[Targets, FloatNC], IntCC] = dataclasses.field(repr=False)


def softmax(logits: FloatNC) -> FloatNC:
    """Compute the soft-max along the last axis, without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: FloatNC) -> FloatNC:
    """Compute 1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))


def _log(probabilities: FloatNC) -> FloatNC:
    """float32 (N, C) -> float64 (N, C); that of zero is finite."""
    least = np.finfo(np.float32).tiny
    return np.log(np.maximum(probabilities, least, dtype=np.float64))


def _log_odds(probabilities: FloatNC) -> FloatNC:
    """float32 (N, C) -> float64 (N, C); those of zero and one are finite."""
    exact = np.asarray(probabilities, dtype=np.float64)
    nearest = np.finfo(np.float32).epsneg / 2
    return np.asarray(_log(exact) - np.log(np.maximum(1 - exact, nearest)))


def _encode_label(classes: Sequence[Classes | None], count: int) -> Targets:
    """Give int64 (N,): the class, -1 where it is unknown."""
    return np.array([row[0] if row else -1 for row in classes], dtype=np.int64)


def _decode_label(targets: Targets) -> list[Classes]:
    return [(label,) if label >= 0 else () for label in targets.tolist()]


def _knows_label(targets: Targets) -> BoolN:
    return np.asarray(targets >= 0)


def _find_right(targets: Targets, probabilities: FloatNC) -> FloatN:
    return np.asarray(probabilities.argmax(axis=1) == targets, dtype=np.float64)


def _confuse_label(targets: Targets, probabilities: FloatNC) -> IntCC:
    """(C, C): row true class, column predicted class."""
    return confusion_matrix(targets, probabilities.argmax(axis=1), probabilities.shape[1])


SINGLE_LABEL = Problem(
    name="single-label",
    loss="cross-entropy",
    encode=_encode_label,
    decode=_decode_label,
    known=_knows_label,
    link=softmax,
    unlink=_log,
    losses=image_losses,
    right=_find_right,
    measure=measure,
    measure_each=measure_each,
    confuse=_confuse_label,
)


def _encode_labels(classes: Sequence[Classes | None], count: int) -> Targets:
    """Give int8 (N, C): 1 for a label that the image has, else 0; a row of -1 where they are unknown."""
    targets = np.zeros((len(classes), count), dtype=np.int8)
    for row, own in enumerate(classes):
        targets[row, slice(None) if own is None else list(own)] = -1 if own is None else 1
    return targets


def _decode_labels(targets: Targets) -> list[Classes]:
    found: list[list[int]] = [[] for _ in targets]
    for row, label in np.argwhere(targets > 0).tolist():
        found[row].append(label)
    return [tuple(own) for own in found]


def _knows_labels(targets: Targets) -> BoolN:
    return np.asarray((targets >= 0).all(axis=1))


def multi_label(thresholds: FloatC | FloatNC | float = THRESHOLD) -> Problem:
    """Make the kind of problem in which an image has any number of labels.

    Args:
        thresholds: the probability from which on a label is given: one for all, (C,), or of every image that
            is measured (N, C).
    """
    return Problem(
        name="multi-label",
        loss="binary-cross-entropy",
        encode=_encode_labels,
        decode=_decode_labels,
        known=_knows_labels,
        link=sigmoid,
        unlink=_log_odds,
        losses=label_losses,
        right=label_overlap,
        measure=functools.partial(measure_labels, thresholds=thresholds),
        measure_each=functools.partial(measure_each_label, thresholds=thresholds),
        confuse=functools.partial(confuse_labels, thresholds=thresholds),
    )


MULTI_LABEL = multi_label()

PROBLEMS = {problem.name: problem for problem in (SINGLE_LABEL, MULTI_LABEL)}


def problem_of(targets: Targets) -> Problem:
    """Say by their form which kind of problem targets are of: (N,) or (N, C)."""
    return SINGLE_LABEL if targets.ndim == 1 else MULTI_LABEL


def infer_problem(classes: Sequence[Sequence[object] | None]) -> Problem:
    """Say which kind of problem the classes of images are of: one each, or several or none of some.

    An image whose classes are not known, None, says nothing.
    """
    is_single = all(own is None or len(own) == 1 for own in classes)
    return SINGLE_LABEL if is_single else MULTI_LABEL

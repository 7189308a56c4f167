"""The kind of problem: how targets are kept, and how they and logits are read and measured.

A `Dataset` has a `Problem`, which loaders, splits, folds, figures and the training loop ask. The only kind so
far has exactly one label an image. Another one is one more `Problem` and its line in `PROBLEMS`, and needs a
solver and a penalty of its own (`training.logistic` and `training.heads` are for soft-max regression);
`runs.fitting`, `training.probes` and a saved classifier still take single labels for granted. Shape letters:
N images, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from headstart.arrays import BoolN, FloatNC, IntCC, Targets
from headstart.metrics import Estimate, confusion_matrix, measure, measure_recall

__all__ = ["PROBLEMS", "SINGLE_LABEL", "Classes", "Measure", "Problem", "softmax"]

# Indices of the classes of one image.
Classes = tuple[int, ...]


class Measure(Protocol):
    """Figures of probabilities (N, C) against targets, by name, as `metrics.measure` gives them."""

    def __call__(
        self,
        targets: Targets,
        probabilities: FloatNC,
        classes: tuple[str, ...],
        /,
        *,
        seed: int = 0,
    ) -> dict[str, Estimate]: ...


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
        measure: targets, probabilities, classes and a seed -> {figure: Estimate}, the most important first.
        measure_recall: targets, probabilities and classes -> {class: Estimate}.
        confuse: targets and probabilities -> the confusion matrix, int64 (C, C).
    """

    name: str
    loss: str
    encode: Callable[[Sequence[Classes | None], int], Targets] = dataclasses.field(repr=False)
    decode: Callable[[Targets], list[Classes]] = dataclasses.field(repr=False)
    known: Callable[[Targets], BoolN] = dataclasses.field(repr=False)
    link: Callable[[FloatNC], FloatNC] = dataclasses.field(repr=False)
    measure: Measure = dataclasses.field(repr=False)
    measure_recall: Callable[[Targets, FloatNC, tuple[str, ...]], dict[str, Estimate]] = (
        dataclasses.field(repr=False)
    )
    confuse: Callable[[Targets, FloatNC], IntCC] = dataclasses.field(repr=False)


def softmax(logits: FloatNC) -> FloatNC:
    """Compute the soft-max along the last axis, without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _encode_label(classes: Sequence[Classes | None], count: int) -> Targets:
    """Give int64 (N,): the class, -1 where it is unknown."""
    return np.array([row[0] if row else -1 for row in classes], dtype=np.int64)


def _decode_label(targets: Targets) -> list[Classes]:
    return [(label,) if label >= 0 else () for label in targets.tolist()]


def _knows_label(targets: Targets) -> BoolN:
    return np.asarray(targets >= 0)


def _confuse_labels(targets: Targets, probabilities: FloatNC) -> IntCC:
    """(C, C): row true class, column predicted class."""
    return confusion_matrix(targets, probabilities.argmax(axis=1), probabilities.shape[1])


SINGLE_LABEL = Problem(
    name="single-label",
    loss="cross-entropy",
    encode=_encode_label,
    decode=_decode_label,
    known=_knows_label,
    link=softmax,
    measure=measure,
    measure_recall=measure_recall,
    confuse=_confuse_labels,
)

PROBLEMS = {problem.name: problem for problem in (SINGLE_LABEL,)}

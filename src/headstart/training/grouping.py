"""Takes features, labels and suggested groupings, measures which of them a figure must keep together.

Images of one track, burst or patient are alike in more than their class. Where they lie on both sides of what
is measured, a probe knows them again, and its accuracy is that on images it has nearly seen. So a grouping
matters if accuracy falls when its groups are kept together, against random groups of the same sizes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from headstart.arrays import BoolN, FloatND, IntN
from headstart.parallel import Progress, no_progress
from headstart.training.heads import choose_penalty

__all__ = ["GroupingScore", "choose_grouping", "measure_groupings"]

# A fall of accuracy counts from so many standard errors, and from so much.
ERRORS, LEAST_FALL = 3.0, 0.02


@dataclasses.dataclass(frozen=True)
class GroupingScore:
    """The cross-validated accuracy of a probe, with the groups of a grouping kept together and torn apart.

    Attributes:
        name: what the groups are named by.
        groups: how many there are.
        apart: accuracy where random groups of the same sizes are kept together.
        together: accuracy where these groups are.
        error: standard error of the difference, over groups.
    """

    name: str
    groups: int
    apart: float
    together: float
    error: float

    @property
    def fall(self) -> float:
        """By how much the accuracy falls."""
        return self.apart - self.together

    @property
    def matters(self) -> bool:
        """Whether that is more than chance."""
        return self.fall > max(ERRORS * self.error, LEAST_FALL)


def measure_groupings(
    features: FloatND,
    labels: IntN,
    groupings: Mapping[str, Sequence[str]],
    classes: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[GroupingScore, ...]:
    """Measure groupings by five-fold cross-validation of a linear probe.

    Args:
        features: float (N, D), finite.
        labels: int (N,).
        groupings: {name: N names of groups}.

    Returns:
        Their scores, in their order; those of which a class has a single group are left out.
    """
    scores = []
    for step, (name, groups) in enumerate(groupings.items()):
        progress("groups", step, len(groupings))
        units = tuple(groups)
        together = _predict(features, labels, units, classes, seed)
        apart = _predict(features, labels, _shuffle(units, labels, seed), classes, seed)
        if together is None or apart is None:
            continue
        places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
        of_image = [places[unit] for unit in units]
        lost = np.bincount(of_image, apart.astype(float) - together) * (len(places) / len(units))
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        scores.append(
            GroupingScore(name, len(places), float(apart.mean()), float(together.mean()), error)
        )
    progress("groups", len(groupings), len(groupings))
    return tuple(scores)


def choose_grouping(scores: Sequence[GroupingScore]) -> GroupingScore | None:
    """Choose the finest grouping that is no more than chance above the lowest accuracy; None if none matters.

    Args:
        scores: the finest first.
    """
    mattering = [score for score in scores if score.matters]
    if not mattering:
        return None
    lowest = min(score.together for score in mattering)
    return next(s for s in mattering if s.together <= lowest + max(2 * s.error, LEAST_FALL))


def _shuffle(units: tuple[str, ...], labels: IntN, seed: int) -> tuple[str, ...]:
    """Exchange the groups of the images of each class: as many of each size, at random."""
    random = np.random.default_rng(seed)
    shuffled = np.array(units, dtype=object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled[rows] = shuffled[random.permutation(rows)]
    return tuple(shuffled)


def _predict(
    features: FloatND, labels: IntN, units: tuple[str, ...], classes: int, seed: int
) -> BoolN | None:
    """Say which images a probe is right on, out of fold (N,); None where there are no folds."""
    penalty = choose_penalty(features, labels, units, classes, seed=seed)
    if penalty.probabilities is None:
        return None
    return np.asarray(penalty.probabilities.argmax(axis=1) == labels)

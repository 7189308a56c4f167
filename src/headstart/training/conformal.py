"""Takes scores of images that a classifier has not seen, says how usual another image's score is.

Split conformal prediction (Vovk et al., Algorithmic Learning in a Random World, 2005). Where images come in
groups, a new image is one of a new group, and every group counts as one (Lee, Barber and Willett,
Distribution-free Inference with Hierarchical Data, 2023). Pure functions on arrays. Shape letters: N images,
M images that were scored, C classes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from headstart.arrays import BoolNC, FloatN, FloatNC, IntN
from headstart.draws import draw
from headstart.errors import UsageError

__all__ = [
    "MAX_SCORES",
    "Scores",
    "check_coverage",
    "draw_some",
    "find_sets",
    "score_labels",
]

# So many images say how usual another is; more would make the file larger, and nothing more certain.
MAX_SCORES = 5000

ROUNDING = 1e-9  # of sums of shares


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of known images; the larger, the less usual.

    Attributes:
        values: float32 (M,), M at least 1.
        units: int32 (M,), the number of the group of each.
    """

    values: FloatN
    units: IntN

    @classmethod
    def of(cls, values: FloatN, units: Sequence[str]) -> "Scores":
        """Make them of values, (M,), and the names of the groups, M."""
        numbers = np.unique(np.array(units, dtype=object), return_inverse=True)[1]
        return cls(np.asarray(values, np.float32), np.asarray(numbers, np.int32))

    @functools.cached_property
    def count(self) -> int:
        """K, the number of groups."""
        return len(np.unique(self.units))

    @functools.cached_property
    def _tail(self) -> tuple[FloatN, FloatN]:
        """(the values in ascending order, the share of groups with one at least as large, and of none)."""
        _, place, sizes = np.unique(self.units, return_inverse=True, return_counts=True)
        order = np.argsort(self.values, kind="stable")
        shares = 1 / sizes[place[order]]
        above = np.append(np.cumsum(shares[::-1])[::-1], 0.0)
        return self.values[order], (above + 1) / (self.count + 1)

    def p_values(self, values: FloatNC) -> FloatNC:
        """Give the share, float64 in (0, 1], of known images at least as unusual, the one asked among them.

        Of new images like the known ones at most a share p has a p-value of p or less.

        Args:
            values: float32, of any shape.
        """
        known, tail = self._tail
        return np.asarray(tail[np.searchsorted(known, values, side="left")])


def draw_some(ids: Sequence[str], count: int, seed: int) -> IntN:
    """Give the rows of all images, or of this many that are drawn by their ids, in ascending order."""
    if len(ids) <= count:
        return np.arange(len(ids))
    ranked = sorted(range(len(ids)), key=lambda row: (draw(seed, "known", ids[row]), ids[row]))
    return np.sort(np.array(ranked[:count]))


def score_labels(labels: IntN, probabilities: FloatNC) -> FloatN:
    """Give the scores of the true classes, float32 (N,): the less probable, the larger.

    By these, sets are of the classes from some probability on, and no others with their coverage are smaller
    on average (Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers, JASA 2019).
    """
    return np.asarray(-probabilities[np.arange(len(labels)), labels], dtype=np.float32)


def find_sets(scores: Scores, probabilities: FloatNC, coverage: float) -> BoolNC:
    """Say which classes are in the prediction set of each image, (N, C); the most probable one always is.

    Args:
        scores: of `score_labels`.
        probabilities: float32 (N, C).
        coverage: in (0, 1): the share of images whose set is to have their class.

    Raises:
        UsageError: the coverage is out of range, or too high for so few images.
    """
    check_coverage(scores, coverage)
    inside = scores.p_values(-np.asarray(probabilities, np.float32)) > 1 - coverage + ROUNDING
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside


def check_coverage(scores: Scores, coverage: float) -> None:
    """Refuse a coverage that there are no sets of.

    Raises:
        UsageError: it is not in (0, 1), or too high for so few images; says how many it takes.
    """
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage < 1:
        raise UsageError(
            f"coverage must be a number between 0 and 1, such as 0.9; got {coverage!r}"
        )
    needed = math.ceil(1 / (1 - coverage) - 1 - ROUNDING)
    if scores.count < needed:
        highest = math.floor(100 * scores.count / (scores.count + 1)) / 100
        raise UsageError(
            f"coverage {coverage:g} takes at least {needed:,} measured images (or groups of them), and this "
            f"classifier has {scores.count:,}; ask for {highest:g} at most, or fit with more images"
        )

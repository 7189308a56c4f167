"""Takes features of known images, says of others how unlike them they are.

Known images lie near a subspace of all that features can be, that of their principal components. The score is
the distance of an image's direction from it, as in ViM (Wang et al., Out-of-Distribution with Virtual-logit
Matching, CVPR 2022), without the logits. How usual a distance is, is told by images that did not help to find
the subspace. Pure functions on arrays. Shape letters: N images, D features, K components.
"""

import dataclasses

import numpy as np

from headstart.arrays import FloatCD, FloatD, FloatN, FloatND
from headstart.features.neighbours import to_directions
from headstart.training.conformal import Scores
from headstart.training.heads import assign_folds

__all__ = ["COMPONENTS", "FEWEST_IMAGES", "MAX_KNOWN", "NOVEL", "Novelty", "learn_novelty"]

# An image is none of the known ones where at most this share of those are as unlike the others.
NOVEL = 0.01
# Components of the subspace; of 1,280 features it was no matter whether 16 or 160 (benchmarks/novelty.py). At
# most a quarter of the features, which leaves directions for what is new, and half of the images.
COMPONENTS = 64
# With fewer images no subspace is found.
FEWEST_IMAGES = 20
# So many images are known; more do not change the subspace.
MAX_KNOWN = 2000
FOLDS = 5
ROUNDS = 4  # of subspace iteration


@dataclasses.dataclass(frozen=True, eq=False)
class Novelty:
    """What the known images have in common.

    Attributes:
        cut: the cut point whose features it reads.
        mean: float32 (D,), of their directions.
        components: float32 (K, D), orthonormal.
        scores: the distances of known images, each from the subspace of others.
    """

    cut: str
    mean: FloatD
    components: FloatCD
    scores: Scores

    def p_values(self, features: FloatND) -> FloatN:
        """Give the share of known images at least as unlike the others, float64 (N,) in (0, 1].

        Args:
            features: float32 (N, D), at `cut`.
        """
        return self.scores.p_values(_measure(features, self.mean, self.components))


def learn_novelty(features: FloatND, units: tuple[str, ...], cut: str, seed: int) -> Novelty | None:
    """Learn what known images have in common; None where they are too few.

    Args:
        features: float32 (N, D), of a network that was not trained on them.
        units: N names of groups, which are known or asked as a whole.
        cut: where they were taken.
        seed: of the folds.
    """
    if len(set(units)) < FEWEST_IMAGES:
        return None
    from threadpoolctl import threadpool_limits

    folds = assign_folds(np.zeros(len(units), dtype=np.int64), units, FOLDS, seed)
    distances = np.zeros(len(units), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"):  # small steps, between which threads would wait
        for fold in range(FOLDS):
            asked = folds == fold
            distances[asked] = _measure(features[asked], *_find_subspace(features[~asked], seed))
        subspace = _find_subspace(features, seed)
    return Novelty(cut, *subspace, Scores.of(distances, units))


def _find_subspace(features: FloatND, seed: int) -> tuple[FloatD, FloatCD]:
    """Give (the mean direction, float32 (D,); the principal components about it, float32 (K, D))."""
    directions = to_directions(features)
    mean = directions.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = directions - mean
    count = max(1, min(COMPONENTS, len(features) // 2, features.shape[1] // 4))
    start = np.random.default_rng(seed).standard_normal((features.shape[1], count))
    basis = np.linalg.qr(start.astype(np.float32))[0]
    for _ in range(ROUNDS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    return mean, np.ascontiguousarray(basis.T)


def _measure(features: FloatND, mean: FloatD, components: FloatCD) -> FloatN:
    """Give the distance of each direction from the subspace, float32 (N,)."""
    centred = to_directions(features) - mean
    inside = (centred @ components.T) @ components
    return np.asarray(np.linalg.norm(centred - inside, axis=1), dtype=np.float32)

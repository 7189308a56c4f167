"""Takes features, gives clusterings of images that are nearer to one another than independent ones are.

Shots of one scene are each other's nearest, and then comes a gap. Whether data have such gaps is told by
how distances grow, as in `near_copies`, but on average over all images, where it shows far sooner. Clusters
are joined by the mean of all distances between them: by the nearest alone they would run through a class.
Shape letters: N images, D features, K neighbours.
"""

import numpy as np

from headstart.arrays import FloatND
from headstart.features.near_copies import NEIGHBOURS
from headstart.features.neighbours import LEAST_SQUARE, find_nearest, to_directions

__all__ = ["MOST_CLUSTERED", "find_clusters"]

# All distances between so many images take 64 MB, and a second.
MOST_CLUSTERED = 4000
# The distances are cut where this share of the images has company.
SHARES = (0.8, 0.95)
# The mean spacing before a gap exceeds the usual one by this much, and by this many of its standard errors.
# It is at most 1.03 times in photographs, CIFAR-10 and hands, 1.75 in traffic signs by frames of tracks.
GAP, ERRORS = 1.3, 3.0
LARGEST_BURST = 12  # images after which a gap is looked for


def find_clusters(features: FloatND) -> list[tuple[int, ...]]:
    """Cluster images, finely to coarsely, if they lie in clusters at all; else give none.

    Args:
        features: float (N, D), finite, N at most `MOST_CLUSTERED`; compared by their direction.

    Returns:
        For each clustering N first rows of clusters; an image that is alone has its own.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    directions = to_directions(features)
    if len(directions) > MOST_CLUSTERED or not _has_gaps(directions):
        return []
    tree = linkage(directions, "average")
    # With every merger so many more images have company.
    company = (tree[:, :2] < len(directions)).sum(axis=1).cumsum()
    found = []
    for share in SHARES:
        merger = int(np.searchsorted(company, share * len(directions)))
        number = fcluster(tree, tree[merger, 2], "distance")
        _, first, place = np.unique(number, return_index=True, return_inverse=True)
        found.append(tuple(first[place].tolist()))
    return found


def _has_gaps(directions: FloatND) -> bool:
    """Whether the nearest images are nearer, on average, than they would be among independent ones."""
    count = min(NEIGHBOURS, len(directions) // 3)
    if count <= LARGEST_BURST:
        return False
    squares = 2 - 2 * find_nearest(directions, count)[0].astype(np.float64)
    logs = np.log(np.maximum(squares, LEAST_SQUARE)) / 2
    # Rényi's spacings: among independent images all have the same mean.
    spacings = np.diff(logs, axis=1) * np.arange(1, count)
    means = spacings.mean(axis=0)
    usual = float(np.median(means))
    errors = spacings.std(axis=0) / np.sqrt(len(spacings))
    excess = means - np.maximum(GAP * usual, usual + ERRORS * errors)
    return bool((excess[:LARGEST_BURST] > 0).any())

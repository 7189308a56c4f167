"""Takes features, gives each image's nearest others, and the images that are unlike all others.

Shape letters: N images, D features, K neighbours.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from headstart.arrays import FloatN, FloatND
from headstart.parallel import T, count_cpus

__all__ = [
    "BLOCK_NUMBERS",
    "FAR",
    "LEAST_SQUARE",
    "NEIGHBOURS",
    "find_nearest",
    "map_on_cpus",
    "measure_remoteness",
    "to_directions",
]

NEIGHBOURS = 10  # K by which an image is near others or not

# A robust z-score (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993) beyond which an image is
# unlike all others. Of six foreign images in each of four data sets 20 of the 21 that have nothing like them
# there are beyond it, and of their own 0 to 2 %.
FAR = 3.0
# The standard deviation of a normal distribution as a multiple of its median absolute deviation.
TO_DEVIATION = 1.4826

BLOCK_NUMBERS = 2**23  # similarities at a time, 32 MB

# float32 products of unit vectors are right to about 1e-7 times the square root of D.
LEAST_SQUARE = 1e-6


def to_directions(features: FloatND) -> FloatND:
    """Scale to unit length, float32 (N, D); a row of zeros stays one."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    scaled = features / np.maximum(norms, np.finfo(np.float32).tiny)
    return np.asarray(scaled, dtype=np.float32)


def find_nearest(
    directions: FloatND, count: int, queries: FloatND | None = None
) -> tuple[FloatND, np.ndarray]:
    """Find the nearest others of each image by cosine.

    Args:
        directions: float32 (N, D) of unit length.
        count: K at most; there are never more than N - 1.
        queries: float32 (N, D), the directions to find the nearest of, where they are not the same; a
            row is never its own neighbour.

    Returns:
        (cosines float32, rows int64), both (N, K), nearest first.
    """
    asked = directions if queries is None else queries
    total = len(directions)
    count = min(count, total - 1)
    cosines = np.empty((total, max(0, count)), dtype=np.float32)
    nearest = np.empty(cosines.shape, dtype=np.int64)
    if count < 1:
        return cosines, nearest
    step = max(1, BLOCK_NUMBERS // total)

    def search(start: int) -> None:
        products = asked[start : start + step] @ directions.T
        rows = np.arange(len(products))
        products[rows, start + rows] = -np.inf
        near = np.argpartition(products, total - count, axis=1)[:, total - count :]
        largest = np.take_along_axis(products, near, axis=1)
        order = np.lexsort((near, -largest), axis=1)
        nearest[start : start + step] = np.take_along_axis(near, order, axis=1)
        cosines[start : start + step] = np.take_along_axis(largest, order, axis=1)

    map_on_cpus(search, range(0, total, step))
    return cosines, nearest


def map_on_cpus(function: Callable[[T], None], items: Iterable[T]) -> None:
    """Call a function for each item on all CPUs, each with linear algebra on one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count_cpus()) as pool:
        for _ in pool.map(function, items):
            pass


def measure_remoteness(cosines: FloatND) -> FloatN:
    """Measure how far each image is from its nearest, as a robust z-score, float64 (N,).

    The distance is the mean to its K nearest; of its logarithm, which is near normal, the median is taken
    off and it is divided by the median absolute deviation. Above `FAR` an image is unlike all others.

    Args:
        cosines: (N, K) of `find_nearest`.
    """
    if cosines.size == 0:
        return np.zeros(len(cosines))
    squares = np.maximum(2 - 2 * cosines.astype(np.float64), LEAST_SQUARE)
    distances = np.log(np.sqrt(squares).mean(axis=1))
    from_median = distances - np.median(distances)
    deviation = TO_DEVIATION * np.median(np.abs(from_median))
    return np.asarray(from_median / max(deviation, np.finfo(np.float64).tiny))

"""Takes features and units, gives the pairs of images that are near copies of one another across units.

`fit` warns where such pairs lie on both sides of what it measures on. Shape letters: N images, D
features, K neighbours.

It looks for two kinds within each class, neither by a distance that would have to be tuned to the data:

- Copies (crops, re-encoded, retouched): an image whose 1 to 8 nearest are less than half as far as the next
  one, where that is unlikely by chance. Among independent images that vary in any number m of dimensions,
  k * log(r[k + 1] / r[k]) of the distance r[k] to the k-th nearest is exponential with the mean 1 / m
  (Rényi's spacings, and the estimator of Levina and Bickel, NIPS 2004); m comes from the median of the class,
  which a few copies do not move. So a class that varies little, but evenly, has none.
- Series (frames of a film, shots of one object): the nearest image is the one next to it by name, for far
  more of the images than would happen by chance.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from headstart.arrays import FloatND, IntN, IntP2
from headstart.choices import natural_key
from headstart.draws import draw
from headstart.features.neighbours import BLOCK_NUMBERS, LEAST_SQUARE, to_directions

__all__ = ["find_near_copies"]

NEIGHBOURS = 24  # to learn from how distances grow
MOST_COPIES = 8  # of one image
CLOSER = 2.0  # the next image is this many times as far as the copies
BY_CHANCE = 0.01  # probability of one false finding or more in a data set
SERIES = 0.25  # share of images with the next by name as the nearest, beyond chance, in a series
FEWEST_SPACINGS = 3  # in a class, to estimate in how many dimensions it varies
FEWEST_IMAGES = 4  # in a class, to judge its order of names

# In a class of more images, only this many are compared with all others of it.
COMPARED_IMAGES = 2000


def find_near_copies(
    features: FloatND,
    labels: IntN,
    units: Sequence[str],
    ids: Sequence[str],
    *,
    series: bool = True,
    seed: int = 0,
) -> IntP2:
    """Find pairs of near copies of one class in different units: int64 (P, 2), the smaller row first.

    Args:
        features: float (N, D), finite; compared by their direction.
        labels: int (N,).
        units: N names; images of one unit stay together anyway.
        ids: N names, whose natural order may be that of a series.
        series: whether to look for series, too.
        seed: of the draw of images in classes of more than `COMPARED_IMAGES`.
    """
    directions = to_directions(features)
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    of_unit = np.array([numbers[unit] for unit in units], dtype=np.int64)
    pairs: list[tuple[int, int]] = []
    orders: list[_Order] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(np.unique(of_unit[rows])) < FEWEST_IMAGES:
            continue
        by_name = sorted(rows.tolist(), key=lambda row: (natural_key(ids[row]), row))
        rows = np.array(by_name)
        asked = np.arange(len(rows))
        if len(rows) > COMPARED_IMAGES:
            draws = [draw(seed, "near copies", ids[row]) for row in by_name]
            asked = np.sort(np.argsort(draws, kind="stable")[:COMPARED_IMAGES])
        distances, nearest = _neighbours(directions[rows], of_unit[rows], asked)
        counts = _count_copies(distances, len(labels))
        for place, count in enumerate(counts):
            pairs += [(rows[asked[place]], rows[other]) for other in nearest[place, :count]]
        follows = (np.abs(nearest[:, 0] - asked) == 1) & np.isfinite(distances[:, 0])
        places = np.flatnonzero(follows)
        neighbours = list(zip(rows[asked[places]], rows[nearest[places, 0]], strict=True))
        orders.append(_Order(neighbours, len(asked), len(asked) * 2 / len(rows)))
    tests = len(orders) + 1
    orders = orders if series else []
    alone = [order for order in orders if _is_series([order], tests)]
    others = [order for order in orders if order not in alone]
    together = (
        others if _is_series(others, tests) else []
    )  # small classes are significant only together
    for order in alone + together:
        pairs += order.pairs
    unique = sorted({(int(min(pair)), int(max(pair))) for pair in pairs})
    return np.array(unique, dtype=np.int64).reshape(-1, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """How the nearest images of a class lie in the order of names.

    Attributes:
        pairs: (image, its nearest one) where that is next to it by name.
        images: how many were looked at.
        expected: how many pairs a random order would have.
    """

    pairs: list[tuple[int, int]]
    images: int
    expected: float


def _neighbours(directions: FloatND, of_unit: IntN, asked: IntN) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest images in other units: distances and places, both (len(asked), K + 1), nearest first.

    A distance is infinite where there are too few other units.
    """
    count = len(directions)
    columns = min(NEIGHBOURS, max(1, count // 3)) + 1
    distances = np.empty((len(asked), columns), dtype=np.float32)
    nearest = np.empty((len(asked), columns), dtype=np.int64)
    step = max(1, BLOCK_NUMBERS // count)
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        squares = np.maximum(2 - 2 * (directions[some] @ directions.T), LEAST_SQUARE)
        squares[of_unit[some][:, None] == of_unit] = np.inf
        near = np.argpartition(squares, columns - 1, axis=1)[:, :columns]
        smallest = np.take_along_axis(squares, near, axis=1)
        order = np.lexsort((near, smallest), axis=1)
        nearest[start : start + step] = np.take_along_axis(near, order, axis=1)
        distances[start : start + step] = np.sqrt(np.take_along_axis(smallest, order, axis=1))
    return distances, nearest


def _count_copies(distances: np.ndarray, images: int) -> np.ndarray:
    """Count how many of the nearest are copies, int64 (q,), for each row of distances (q, K + 1)."""
    counts = np.zeros(len(distances), dtype=np.int64)
    whole = np.isfinite(distances).all(axis=1)
    if distances.shape[1] <= FEWEST_SPACINGS or not whole.any():
        return counts
    ratios = np.log(distances[whole, 1:] / distances[whole, :-1])
    spacings = ratios * np.arange(1, ratios.shape[1] + 1)
    mean = np.median(spacings) / math.log(2)  # of an exponential, by its median
    least = mean * math.log(images * MOST_COPIES / BY_CHANCE)
    far = ((spacings >= least) & (ratios >= math.log(CLOSER)))[:, :MOST_COPIES]
    counts[whole] = np.where(far.any(axis=1), far.shape[1] - far[:, ::-1].argmax(axis=1), 0)
    return counts


def _is_series(orders: Sequence[_Order], tests: int) -> bool:
    """Say whether the next image by name is the nearest so often that the names are those of a series."""
    images = sum(order.images for order in orders)
    if images == 0:
        return False
    fraction = sum(len(order.pairs) for order in orders) / images
    chance = min(sum(order.expected for order in orders) / images, 0.5)
    if fraction <= chance or (fraction - chance) / (1 - chance) < SERIES:
        return False
    # Chernoff's bound. Two images may be each other's nearest, so half of the findings are independent.
    divergence = fraction * math.log(fraction / chance)
    if fraction < 1:
        divergence += (1 - fraction) * math.log((1 - fraction) / (1 - chance))
    return images / 2 * divergence >= math.log(tests / BY_CHANCE)

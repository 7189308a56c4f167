"""Takes hashes, small grey pictures and features, gives the pairs of images that are copies of one picture.

Copies are re-encoded, resized, mirrored, or slightly cropped. Those that may be are the nearest by features,
which a crop hardly changes, and by the pictures, which noise hardly changes; whether they are is told by
the pictures, laid over one another. `near_copies` looks for what is alike within classes, such as the frames
of a film; this for one picture, whatever its label says. Shape letters: N images, S the side of a picture,
K frequencies, P pairs, W windows.

A picture's signature is its low frequencies without the mean (as in a perceptual hash; Zauner 2010), each
multiplied by its height, since natural images have power that falls with its square, and scaled to unit
length. Signatures of pictures that have nothing in common have cosines near 0.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from headstart.arrays import BoolN, FloatN, FloatND, IntP2
from headstart.features.looks import SIDE_PX
from headstart.features.neighbours import find_nearest, map_on_cpus, to_directions

__all__ = ["Copies", "find_copies", "group_copies"]

# Frequencies an axis of the signature that candidates are found by, and of the one that they are judged by.
COARSE, FINE = 8, 12
CANDIDATES = 5  # of an image, by each kind of likeness

# What a slight crop may cut off each side.
CUT_OFF = (0.0, 0.05, 0.1)
CELLS = 8  # of a pixel, in which a window's edge is placed

# A copy's cosine, and how many times nearer (in squared distance) it is than a typical image's most similar
# one that is no copy. Of 2,700 planted copies of photographs, hands and CIFAR-10 all but 2 were found, with
# at most 2 false pairs. Of 900 of traffic signs, most of which are frames of one sign and alike, 97 % were.
LEAST_COSINE = 0.9
NEARER = 4.0
# The most similar image that is no copy: of an image with fewer copies than this.
TYPICAL = 3

# Copies have about the same contrast: the larger one is at most this many times the other.
LIKE_CONTRAST = 2.0
# A range of greys below this has no picture to compare.
LEAST_CONTRAST = 8.0


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
    """Pairs of copies.

    Attributes:
        pairs: int64 (P, 2), the smaller row first.
        cosines: float64 (P,) of their signatures, 1 for identical files.
        identical: (P,), whether the files are the same byte for byte.
        mirrored: (P,), whether one is the other's mirror image.
    """

    pairs: IntP2
    cosines: FloatN
    identical: BoolN
    mirrored: BoolN


def find_copies(
    sha256: Sequence[str], grey: FloatND, contrast: FloatN, nearest: np.ndarray
) -> Copies:
    """Find the pairs of images that show one picture.

    Args:
        sha256: N hashes; of identical files each is paired with the first.
        grey: float (N, S, S), finite; as in `Looks`.
        contrast: float (N,), the range of greys; where it is small, only identical files are found.
        nearest: int64 (N, any), rows of the nearest images by features.
    """
    firsts: dict[str, int] = {}
    first = np.array([firsts.setdefault(name, row) for row, name in enumerate(sha256)], dtype=int)
    found: dict[tuple[int, int], tuple[float, bool, bool]] = {}
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        found[int(first[row]), row] = (1.0, True, False)
    rows = np.flatnonzero((first == np.arange(len(first))) & (contrast >= LEAST_CONTRAST))
    place = np.full(len(first), -1)
    place[rows] = np.arange(len(rows))
    for (one, other), cosine, mirrored in _find_near(grey[rows], place[first[nearest[rows]]]):
        found[int(rows[one]), int(rows[other])] = (cosine, False, mirrored)
    pairs = sorted(found)
    facts = [found[pair] for pair in pairs]
    return Copies(
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.array([fact[0] for fact in facts]),
        np.array([fact[1] for fact in facts], dtype=bool),
        np.array([fact[2] for fact in facts], dtype=bool),
    )


def group_copies(pairs: IntP2, count: int) -> list[list[int]]:
    """Join pairs that have an image in common: the groups of rows, each sorted, by their first row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    members: dict[int, list[int]] = {}
    for row in np.unique(pairs).tolist():
        members.setdefault(int(group[row]), []).append(row)
    return sorted(members.values())


def _find_near(
    grey: FloatND, by_features: np.ndarray
) -> Iterator[tuple[tuple[int, int], float, bool]]:
    """Find near copies: (the smaller place and the larger, cosine, whether mirrored)."""
    fine = _sign(_transform(grey, _make_basis(FINE)))
    mirrors = _mirror(fine, FINE)
    candidates = _list_candidates(grey, by_features)
    windows = np.concatenate([_make_basis(FINE, *window) for window in _list_windows()])
    plain, mirrored = ([np.empty(0)] * len(grey) for _ in range(2))

    def compare(one: int) -> None:
        crops = _sign(_crop(grey[one], windows))
        plain[one] = (crops @ fine[candidates[one]].T).max(axis=0)
        mirrored[one] = (crops @ mirrors[candidates[one]].T).max(axis=0)

    map_on_cpus(compare, [one for one, found in enumerate(candidates) if found])
    cosines: dict[tuple[int, int], tuple[float, bool]] = {}
    for one, found in enumerate(candidates):
        for other, cosine, mirror in zip(
            found, plain[one].tolist(), mirrored[one].tolist(), strict=True
        ):
            pair = (min(one, other), max(one, other))
            new = (max(cosine, mirror), mirror > cosine)
            cosines[pair] = max(cosines.get(pair, new), new)
    least = _choose_least(cosines, len(grey))
    for pair, (cosine, is_mirrored) in cosines.items():
        if cosine >= least:
            yield pair, min(cosine, 1.0), is_mirrored


def _list_candidates(grey: FloatND, by_features: np.ndarray) -> list[list[int]]:
    """List the images that each may be a copy of, of like contrast."""
    coarse = _sign(_transform(grey, _make_basis(COARSE)))
    near = np.concatenate(
        [
            find_nearest(coarse, CANDIDATES)[1],
            find_nearest(coarse, CANDIDATES, _mirror(coarse, COARSE))[1],
            by_features[:, :CANDIDATES],
        ],
        axis=1,
    )
    pairs = np.stack([np.repeat(np.arange(len(grey)), near.shape[1]), near.ravel()], axis=1)
    pairs = pairs[(pairs[:, 1] >= 0) & (pairs[:, 1] != pairs[:, 0])]
    contrast = grey.std(axis=(1, 2))[pairs]
    pairs = pairs[contrast.max(axis=1) <= LIKE_CONTRAST * contrast.min(axis=1)]
    candidates: list[list[int]] = [[] for _ in grey]
    for one, other in np.unique(np.sort(pairs, axis=1), axis=0).tolist():
        candidates[one].append(other)  # either may be a crop of the other
        candidates[other].append(one)
    return candidates


def _choose_least(cosines: dict[tuple[int, int], tuple[float, bool]], count: int) -> float:
    """Choose the least cosine of a copy: where all images are alike, it has to be higher."""
    of_image: list[list[float]] = [[] for _ in range(count)]
    for pair, (cosine, _) in cosines.items():
        for row in pair:
            of_image[row].append(cosine)
    typical = [sorted(found)[-TYPICAL] for found in of_image if len(found) >= TYPICAL]
    return (
        max(LEAST_COSINE, 1 - (1 - float(np.median(typical))) / NEARER) if typical else LEAST_COSINE
    )


def _list_windows() -> list[tuple[float, float]]:
    """(start, end) along an axis of what a slight crop keeps."""
    return [(left, 1 - right) for left, right in itertools.product(CUT_OFF, CUT_OFF)]


def _make_basis(frequencies: int, start: float = 0.0, end: float = 1.0) -> FloatND:
    """Cosines over a window of an axis, float32 (K, S), as sums over its pixels."""
    cells = (np.arange(SIDE_PX * CELLS) + 0.5) / (SIDE_PX * CELLS)
    place = (cells - start) / (end - start)
    k = np.arange(frequencies)[:, None]
    waves = np.cos(math.pi * k * place) * np.where(k == 0, 1, math.sqrt(2))
    waves = np.where((place >= 0) & (place < 1), waves, 0) / (end - start)
    return np.asarray(waves.reshape(frequencies, SIDE_PX, CELLS).mean(axis=2), dtype=np.float32)


def _transform(grey: FloatND, basis: FloatND) -> FloatND:
    """(N, S, S) -> (N, K, K)."""
    return np.asarray(basis @ grey @ basis.T)


def _crop(grey: FloatND, windows: FloatND) -> FloatND:
    """(S, S) and bases of W windows one above the other -> (W * W, K, K)."""
    count = len(windows) // FINE
    values = (windows @ grey @ windows.T).reshape(count, FINE, count, FINE)
    return np.asarray(values.transpose(0, 2, 1, 3).reshape(count * count, FINE, FINE))


def _sign(frequencies: FloatND) -> FloatND:
    """(N, K, K) -> signatures of unit length, float32 (N, K * K)."""
    return to_directions(
        (frequencies * _heights(frequencies.shape[1])).reshape(len(frequencies), -1)
    )


@functools.cache
def _heights(count: int) -> FloatND:
    return np.asarray(np.hypot(*np.mgrid[:count, :count]), dtype=np.float32)


def _mirror(signatures: FloatND, frequencies: int) -> FloatND:
    """The signatures of the mirror images: odd waves along the width change sign."""
    odd = np.tile(np.arange(frequencies) % 2, frequencies)
    return np.asarray(np.where(odd, -signatures, signatures), dtype=np.float32)

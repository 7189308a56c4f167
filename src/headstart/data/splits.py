"""Takes a `Dataset`, gives every image its split: what must stay together, and which part is held out.

`fit` splits here, and `probes` keeps the same units in the folds of a cross-validation. A unit is
what one side of a split holds whole: a group, an image that is its own group, and whatever shares a
byte-identical image with it.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from headstart.data.dataset import Dataset
from headstart.draws import draw
from headstart.errors import BadImageError, ResourceError, UsageError

__all__ = ["find_identical", "join_units", "split_dataset"]

# So much of a file tells nearly all others of its size from it.
FIRST_BYTES = 2**16

# The first pass does nearly all; more are needed only where units are of several classes or sizes.
MAX_PASSES = 20
LEAST_GAIN = 1e-9  # above the error of summing shares in floating point

T = TypeVar("T")


def split_dataset(dataset: Dataset, *, val: float = 0.2, seed: int = 0) -> Dataset:
    """Give every image a split: what the source says, else a held-out part of the training images.

    The part is stratified: of every class as near to `val` as whole units allow, which is within one
    image where there are no groups, and one unit on either side wherever a class has two. Which
    units those are is drawn from their names, so the order of files changes nothing, and adding
    images moves few others (docs/decisions/0012-stratified-splits.md has the figures).

    Args:
        val: fraction held out in [0, 1); 0 holds nothing out. Without effect on a data set that
            brings its own validation images.
        seed: changes the draw.

    Raises:
        UsageError: `val` is out of range.
        ResourceError: out of file handles or memory while looking for identical images.
    """
    if not 0 <= val < 1:
        raise UsageError(f"val must be a fraction in [0, 1), got {val}")
    splits = [s or "train" for s in dataset.splits]
    if val > 0 and "val" not in splits:
        pool = np.array([i for i, s in enumerate(splits) if s == "train"], dtype=np.int64)
        training = dataset.select(pool)
        units = join_units(training.units(), find_identical(training))
        held = _hold_out(training, units, val, seed)
        for row, unit in zip(pool.tolist(), units, strict=True):
            if unit in held:
                splits[row] = "val"
    return dataclasses.replace(dataset, splits=tuple(splits))


def find_identical(dataset: Dataset) -> tuple[str, ...]:
    """N names of contents: the same where images are byte-identical, "" for an image without an equal.

    Only files of one size are opened, and read whole only where their beginnings are equal. A file
    that cannot be read equals none; whoever reads it for its pixels says why.

    Raises:
        ResourceError: out of file handles or memory.
    """

    def size_of(row: int) -> int:
        image = dataset.image(row)
        stamp = image.stamp()
        return len(image.read()) if stamp is None else stamp.size

    def beginning_of(row: int) -> str:
        return hashlib.sha256(dataset.image(row).read(FIRST_BYTES)).hexdigest()

    def content_of(row: int) -> str:
        return hashlib.sha256(dataset.image(row).read()).hexdigest()

    readable = [row for row, error in enumerate(dataset.errors) if not error]
    sizes = _equals(readable, size_of)
    sizes.pop(0, None)  # an empty file is no image
    names = [""] * len(dataset)
    for same_size in sizes.values():
        for alike in _equals(same_size, beginning_of).values():
            for content, rows in _equals(alike, content_of).items():
                for row in rows:
                    names[row] = content
    return tuple(names)


def _equals(rows: Iterable[int], key: Callable[[int], T]) -> dict[T, list[int]]:
    """Rows by key, where at least two have the same; those that cannot be read are left out."""
    found: dict[T, list[int]] = {}
    for row in rows:
        try:
            found.setdefault(key(row), []).append(row)
        except ResourceError:
            raise
        except BadImageError:
            continue
    return {name: same for name, same in found.items() if len(same) > 1}


def join_units(units: Sequence[str], contents: Sequence[str]) -> tuple[str, ...]:
    """N names of units, those that share a content taken as one under the first of their names.

    Args:
        units: N names of what stays together.
        contents: N names of contents, "" for one that no other image has.
    """
    parent = {unit: unit for unit in units}

    def find(unit: str) -> str:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    holder: dict[str, str] = {}
    for unit, content in zip(units, contents, strict=True):
        if content:
            first, last = sorted((find(holder.setdefault(content, unit)), find(unit)))
            parent[last] = first
    return tuple(find(unit) for unit in units)


def _hold_out(dataset: Dataset, units: Sequence[str], val: float, seed: int) -> set[str]:
    """The units that are held out.

    Units are gone through in the order of their draws, and one changes sides where that brings the
    held-out shares of its classes nearer to `val`, until none does. Where all images are units of
    their own, that holds out those with the lowest draws.
    """
    draws = {unit: draw(seed, "split", unit) for unit in units}
    images: dict[str, Counter[int]] = {unit: Counter() for unit in units}
    for unit, classes, error in zip(units, dataset.classes_of_rows(), dataset.errors, strict=True):
        if not error:  # the others count for no class, and follow their unit
            images[unit].update(classes)
    order = sorted(draws, key=lambda unit: (draws[unit], unit))
    part = _HeldOut(images, [draw(seed, "share", name) for name in dataset.classes], val)
    part.units |= {unit for unit in order if not images[unit] and draws[unit] < val}
    counted = [unit for unit in order if images[unit]]
    for _ in range(MAX_PASSES):
        before = part.moves
        for unit in counted:
            if part.may_move(unit) and part.gain(unit) > LEAST_GAIN:
                part.move(unit)
        if part.moves == before:
            break
    of_class: dict[int, list[str]] = {}
    for unit in counted:
        for label in images[unit]:
            of_class.setdefault(label, []).append(unit)
    for label, members in sorted(of_class.items()):
        able = [unit for unit in members if part.may_move(unit)]
        if not part.held[label] and able:
            part.move(max(able, key=part.gain))  # the first in the order where several are best
    return part.units


class _HeldOut:
    """The held-out part as it grows, and how near each class is to its share.

    Attributes:
        units: those in the part.
        held: images of each class in the part.
        moves: how often a unit changed sides.
    """

    def __init__(self, images: dict[str, Counter[int]], roundings: list[float], val: float) -> None:
        """`roundings`: a draw a class; so a share that is no whole number is right on average."""
        self.units: set[str] = set()
        self.held = Counter[int]()
        self.moves = 0
        self._images = images
        self._totals = Counter[int]()
        self._left = Counter[int]()  # units of each class that are trained on
        for counts in images.values():
            self._totals.update(counts)
            self._left.update(counts.keys())
        self._wanted = {
            label: math.floor(val * total + roundings[label])
            for label, total in self._totals.items()
        }

    def may_move(self, unit: str) -> bool:
        """Whether every class keeps something to train on."""
        return unit in self.units or all(self._left[label] > 1 for label in self._images[unit])

    def gain(self, unit: str) -> float:
        """By how much the shares come nearer, summed over classes, when the unit changes sides."""
        sign = -1 if unit in self.units else 1
        total = 0.0
        for label, count in sorted(self._images[unit].items()):
            off = self.held[label] - self._wanted[label]
            total += (abs(off) - abs(off + sign * count)) / self._totals[label]
        return total

    def move(self, unit: str) -> None:
        """To the other side."""
        sign = -1 if unit in self.units else 1
        self.units ^= {unit}
        self.moves += 1
        for label, count in self._images[unit].items():
            self.held[label] += sign * count
            self._left[label] -= sign

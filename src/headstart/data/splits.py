"""Takes a `Dataset`, gives every image its split, in units that stay on one side.

`fit` splits here, and `probes` keeps the same units in the folds of a cross-validation. A unit is a group or
an image that is its own group, together with all units that have a byte-identical image in common.
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

__all__ = ["find_identical", "hold_out", "join_units", "split_dataset"]

# The beginning of a file, enough to tell it from nearly all others of its size.
FIRST_BYTES = 2**16

# The first pass does nearly all; more are needed only where units are of several classes or sizes.
MAX_PASSES = 20
LEAST_GAIN = 1e-9  # above the error of summing shares in floating point

T = TypeVar("T")


def split_dataset(dataset: Dataset, *, val: float = 0.2, seed: int = 0) -> Dataset:
    """Give every image a split: that of the data, else a held-out part of the training images.

    The part is stratified: its fraction of every class is as near to `val` as whole units allow, within one
    image where there are no groups, and with one unit on either side wherever a class has two. Which
    units those are is drawn from their names, so the order of files changes nothing, and adding
    images moves few others (docs/decisions/0012-stratified-splits.md has the figures).

    Args:
        val: fraction held out in [0, 1); 0 holds nothing out. Without effect on a data set
            that has its own validation images.
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
        held = hold_out(training, units, val, seed)
        for row, unit in zip(pool.tolist(), units, strict=True):
            if unit in held:
                splits[row] = "val"
    return dataclasses.replace(dataset, splits=tuple(splits))


def find_identical(dataset: Dataset) -> tuple[str, ...]:
    """Name the content of each image: the same for byte-identical images, "" for an image without a copy.

    Only files of one size are opened, and read whole only where their beginnings are equal. A file
    that cannot be read has no copy; reading its pixels will say why.

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
    """Group rows by key where at least two have the same; those that cannot be read are left out."""
    by_key: dict[T, list[int]] = {}
    for row in rows:
        try:
            by_key.setdefault(key(row), []).append(row)
        except ResourceError:
            raise
        except BadImageError:
            continue
    return {name: same for name, same in by_key.items() if len(same) > 1}


def join_units(units: Sequence[str], contents: Sequence[str]) -> tuple[str, ...]:
    """Join the units that share a content, under the first of their names.

    Args:
        units: N names; images of one unit stay together.
        contents: N names of contents, "" for one that no other image has.

    Returns:
        N names of the joined units.
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


def hold_out(dataset: Dataset, units: Sequence[str], val: float, seed: int) -> set[str]:
    """Choose the units to hold out.

    Units are visited in the order of their draws, and a unit changes sides where that brings the
    held-out fractions of its classes nearer to `val`, until none does. Where all images are units of
    their own, that holds out those with the lowest draws.

    Args:
        dataset: N images.
        units: N names; images of one unit stay together.
        val: the fraction, in (0, 1).
        seed: changes the draw.
    """
    draws = {unit: draw(seed, "split", unit) for unit in units}
    images: dict[str, Counter[int]] = {unit: Counter() for unit in units}
    for unit, classes, error in zip(units, dataset.classes_of_rows(), dataset.errors, strict=True):
        if not error:  # unreadable images count for no class, and follow their unit
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
    """The held-out part as it grows, and how near each class is to its fraction.

    Attributes:
        units: in the part.
        held: images of each class in the part.
        moves: how often a unit changed sides.
    """

    def __init__(self, images: dict[str, Counter[int]], roundings: list[float], val: float) -> None:
        """Start empty; `roundings` has a draw for each class, so that counts are right on average."""
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
        """Say whether every class keeps a unit to train on when this one changes sides."""
        return unit in self.units or all(self._left[label] > 1 for label in self._images[unit])

    def gain(self, unit: str) -> float:
        """Compute how much nearer the fractions come, summed over classes, when the unit changes sides."""
        sign = -1 if unit in self.units else 1
        total = 0.0
        for label, count in sorted(self._images[unit].items()):
            off = self.held[label] - self._wanted[label]
            total += (abs(off) - abs(off + sign * count)) / self._totals[label]
        return total

    def move(self, unit: str) -> None:
        """Move the unit to the other side."""
        sign = -1 if unit in self.units else 1
        self.units ^= {unit}
        self.moves += 1
        for label, count in self._images[unit].items():
            self.held[label] += sign * count
            self._left[label] -= sign

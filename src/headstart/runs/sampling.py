"""Draws samples of a data set that stand for all of it."""

import dataclasses
from collections import Counter

import numpy as np

from headstart.arrays import IntN
from headstart.data.dataset import Dataset
from headstart.draws import draw
from headstart.training.heads import assign_folds

__all__ = ["LEAST_A_CLASS", "SAMPLE", "draw_parts", "draw_per_class"]

# The facts are measured on so many images: accuracies are then sure to about one point.
SAMPLE = 2000
# Of every class there are so many units in the sample, where it has them; cross-validation needs them.
LEAST_A_CLASS = 5


def draw_parts(dataset: Dataset, rows: IntN, count: int, seed: int) -> list[IntN]:
    """Draw stratified parts of some rows, units kept whole; together they are all.

    The first has `LEAST_A_CLASS` units of every class that has them, so that it can be cross-validated.
    """
    if count < 2:
        return [rows]
    some = dataset.select(rows)
    units = some.units()
    part = assign_folds(some.targets, units, count, seed, problem=some.problem)
    members: dict[str, list[int]] = {}
    of_class: dict[int, dict[str, None]] = {}  # as ordered sets
    for row, (unit, classes) in enumerate(zip(units, some.classes_of_rows(), strict=True)):
        members.setdefault(unit, []).append(row)
        for label in classes:
            of_class.setdefault(label, {})[unit] = None
    for own in of_class.values():
        others = [unit for unit in own if part[members[unit][0]] > 0]
        missing = LEAST_A_CLASS - (len(own) - len(others))
        others.sort(key=lambda unit: draw(seed, "sample", unit))
        for unit in others[: max(0, missing)]:
            part[members[unit]] = 0
    return [rows[part == number] for number in range(count)]


def draw_per_class(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Draw so many training images of each class, image by image; those of other splits all stay.

    A part of a group may be drawn: what is left of it is not used at all, so no split can part the two, and
    images of many groups teach more than as many of a few.

    Args:
        count: images a class, or as many as it has, which a warning says; None for all.
        seed: of the draw, which goes by the images' names.
    """
    if count is None:
        return dataset
    classes = dataset.classes_of_rows()
    of_train = [row for row, split in enumerate(dataset.splits) if split in ("train", "")]
    drawn: Counter[int] = Counter()
    left_out = set()
    for row in sorted(of_train, key=lambda row: draw(seed, "per class", dataset.ids[row])):
        if any(drawn[label] < count for label in classes[row]):
            drawn.update(classes[row])
        else:
            left_out.add(row)
    kept = dataset.select(np.array([r for r in range(len(dataset)) if r not in left_out], np.int64))
    few = [label for label in range(len(dataset.classes)) if drawn[label] < count]
    if not few:
        return kept
    least = min(few, key=lambda label: drawn[label])
    warning = (
        f"{len(few)} of {len(dataset.classes)} classes have fewer than {count:,} images to train on, of "
        f"which all are used (fewest: '{dataset.classes[least]}' with {drawn[least]:,})"
    )
    return dataclasses.replace(kept, warnings=(*kept.warnings, warning))

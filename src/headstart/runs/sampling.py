"""Draws samples of a data set that stand for all of it."""

from headstart.arrays import IntN
from headstart.data.dataset import Dataset
from headstart.draws import draw
from headstart.training.heads import assign_folds

__all__ = ["LEAST_A_CLASS", "SAMPLE", "draw_parts"]

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

"""Takes a training that was measured, gives what people should know of its data and figures, a line each."""

from collections import Counter

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.splits import join_units
from headstart.features.extraction import Features
from headstart.features.near_copies import find_near_copies
from headstart.features.reading import tell_bad_images
from headstart.runs.documents import Measured
from headstart.runs.record import Run
from headstart.training.decisions import Decisions
from headstart.training.heads import assign_folds
from headstart.training.task import HeadTask, Task

__all__ = ["find_warnings", "tell_choices"]


def find_warnings(task: HeadTask, measured: Measured | None, more: str = "") -> tuple[str, ...]:
    """List the warnings, one line each: of the data, the features, the figures and the training.

    Args:
        more: what those of copies end with: where there is more of them.
    """
    decisions, used = task.decisions, task.dataset
    features, val = task.features, task.settings.data.val
    warnings = [
        *used.warnings,
        *features.warnings,
        *_unreadable_warnings(features),
        *(told + more for told in _duplicate_warnings(used, features)),
        *_near_copy_warnings(task, measured, decisions),
        *decisions.warnings,
    ]
    if measured is None and val == 0:
        warnings.append(
            "nothing was held out to measure on; headstart evaluate tells how good this is on images "
            "of a test split"
        )
    elif measured is None:
        warnings.append(_say_why_unmeasured(used.select(task.rows), features.select(task.rows)))
    return tuple(warnings)


def tell_choices(run: Run) -> str:
    """Say what was chosen by the images that were measured, and what is free of it; "" where nothing was."""
    if not run.chosen_by:
        return ""
    were = "were" if len(run.chosen_by) > 1 or run.chosen_by[0].endswith("s") else "was"
    on_val = run.measured_on == "val"
    flattery = (
        f"{' and '.join(run.chosen_by)} {were} chosen by the same {'images' if on_val else 'folds'}, which "
        "flatters a little"
    )
    if not run.backbone:  # a head on features of a file
        return flattery if on_val else f"{flattery}; --validation FILE does not"
    where = " on data without a validation split" if on_val else ""
    return f"{flattery}; fit --folds 5{where}, or evaluate on test images, does not"


def _unreadable_warnings(features: Features) -> list[str]:
    bad = features.unreadable()
    images = "1 unreadable image was" if len(bad) == 1 else f"{len(bad)} unreadable images were"
    return [f"{images} left out: {tell_bad_images(bad)}"] if bad else []


def _duplicate_warnings(dataset: Dataset, features: Features) -> list[str]:
    """Warn of byte-identical images with different labels, or on both sides of the split."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(features.sha256):
        if digest and not features.errors[row]:
            rows.setdefault(digest, []).append(row)
    same = [r for r in rows.values() if len(r) > 1]
    labels = dataset.label_sets()
    conflicts = [r for r in same if len({int(labels[i]) for i in r}) > 1]
    leaks = [r for r in same if len({dataset.splits[i] for i in r}) > 1]
    result = []
    for sets, problem in (
        (conflicts, "with different labels"),
        (leaks, "in the training and in the validation part, so figures will flatter"),
    ):
        if sets:
            first = " and ".join(f"'{dataset.ids[i]}'" for i in sets[0][:2])
            count = f"{len(sets)} set{'s' if len(sets) > 1 else ''}"
            result.append(f"{count} of identical images {problem} (first: {first})")
    return result


def _near_copy_warnings(
    task: HeadTask, measured: Measured | None, decisions: Decisions
) -> list[str]:
    """Warn of near copies that the split or the folds have parted."""
    dataset, features, seed = task.dataset, task.features, task.settings.seed
    rows, val_rows = task.rows, task.val_rows
    if measured is None or not features.values:
        return []
    units = join_units(dataset.units(), features.sha256)
    side = np.zeros(len(dataset), dtype=np.int64)
    if measured.folds:
        side[rows], where = measured.folds, "in different folds of cross-validation"
    elif len(val_rows):
        side[val_rows], where = 1, "on both sides of the split"
    else:
        folds = decisions.settled["penalty"].evidence["folds"]
        where = "in different folds of cross-validation"
        own = tuple(units[i] for i in rows)
        side[rows] = assign_folds(dataset.targets[rows], own, folds, seed, problem=dataset.problem)
    both = np.sort(np.concatenate([rows, val_rows]))
    last = list(features.values)[-1]  # the others stay on disk
    pairs = both[
        find_near_copies(
            features.values[last][both],
            dataset.label_sets()[both],
            [units[i] for i in both],
            [dataset.ids[i] for i in both],
            seed=seed,
        )
    ]
    parted = pairs[side[pairs[:, 0]] != side[pairs[:, 1]]]
    if not len(parted):
        return []
    first = " and ".join(f"'{dataset.ids[i]}'" for i in parted[0])
    pairs_are = "1 pair of images is" if len(parted) == 1 else f"{len(parted)} pairs of images are"
    copies = "a near copy" if len(parted) == 1 else "near copies"
    how = "with --group, or a manifest's column group"
    if not isinstance(task, Task):  # of features from a file
        how = "when images are split and features extracted"
    return [
        f"{pairs_are} {copies} {where}, so figures will flatter (first: "
        f"{first}); keep frames of one film, shots of one object and copies together {how}"
    ]


def _say_why_unmeasured(training: Dataset, features: Features) -> str:
    units = join_units(training.units(), features.sha256)
    of_class: dict[int, set[str]] = {}
    counts: Counter[int] = Counter()
    for labels, unit in zip(training.classes_of_rows(), units, strict=True):
        counts.update(labels)
        for label in labels:
            of_class.setdefault(label, set()).add(unit)
    rarest = min(of_class, key=lambda label: (len(of_class[label]), label))
    images = counts[rarest]
    name = training.classes[rarest]
    if images > len(of_class[rarest]):
        return (
            f"nothing could be measured: all {images} training images of class '{name}' are one group, "
            "or copies of one image; add others, or a validation split"
        )
    return (
        f"too few images a class to measure anything ('{name}' has {images} to train on); add images, "
        "or a validation split"
    )

"""Labelled images as one type: ids, reader, targets, splits, groups. No image is opened here."""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart.arrays import BoolN, IntN, Targets
from headstart.choices import natural_key, nearest
from headstart.data.images import FolderReader, ImageRef, JoinedReader, Reader
from headstart.errors import InputError, UsageError
from headstart.problem import SINGLE_LABEL, Classes, Problem, infer_problem

__all__ = [
    "SPLIT_NAMES",
    "Dataset",
    "Row",
    "add_validation",
    "clean_name",
    "dataset_of_rows",
    "match_classes",
    "with_problem",
]

MAX_TARGETS = 2**31  # of images with several labels, a byte each

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class Row(NamedTuple):
    """What a loader knows of one image; a tuple, since a manifest may have millions.

    Attributes:
        id: its path below the root, with `/`.
        labels: names of its classes, () for an image that has none; None where they are unknown.
        split: "train", "val", "test" or "" (not assigned).
        group: its name, "" for an image that is its own group.
        error: why it cannot be read, "" if no reason is known.
    """

    id: str
    labels: tuple[str, ...] | None
    split: str = ""
    group: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, one row an image; rows are sorted by id and never dropped.

    Attributes:
        root: the folder, or the archive, that ids are relative to.
        classes: C class names.
        ids: N paths relative to `root`, with `/`; unique.
        targets: (N, …) as `problem` keeps them; for single labels int64 (N,), indices into `classes`, -1
            where there is no label.
        splits: N of "train", "val", "test" or "" (not assigned).
        groups: N group names, "" for an image that is its own group.
        errors: N reasons why a row cannot be read (such as a broken link), "" for none known.
        ignored: files that were skipped, as {kind: count}, e.g. {".txt": 2, "hidden": 1}.
        warnings: one line each, for people.
        reader: opens the images by id; None for files below `root`.
        problem: the kind of problem that the targets are of.
        source: the folder, manifest or archive that it was read from, or several; None where it was not.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    targets: Targets
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    errors: tuple[str, ...]
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reader: Reader | None = None
    problem: Problem = SINGLE_LABEL
    source: Path | tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = Counter(s for s in self.splits if s)
        parts = "".join(f", {n:,} {s}" for s, n in counts.items())
        return f"Dataset({self.name!r}, {len(self):,} images{parts}, {len(self.classes):,} classes)"

    @property
    def name(self) -> str:
        """What people know it by: the folder, manifest or archive that it was read from, else `root`."""
        if not isinstance(self.source, tuple):
            return str(self.source or self.root)
        first = ", ".join(map(str, self.source[:3]))
        return first + (f" and {len(self.source) - 3} more" if len(self.source) > 3 else "")

    def image(self, row: int) -> ImageRef:
        """Give the image of a row; made when asked for, since a data set may have millions."""
        error, image_id = self.errors[row], self.ids[row]
        return ImageRef(image_id, None if error else self.opener().open(image_id), error)

    def opener(self) -> Reader:
        """Give the reader, which opens the images by id."""
        return self.reader or FolderReader(self.root)

    @property
    def labels(self) -> IntN:
        """The targets, for code that needs single labels.

        Raises:
            UsageError: they are of another kind.
        """
        self.check_single_label()
        return self.targets

    def check_single_label(self) -> None:
        """Raise UsageError where an image may have several labels."""
        if self.problem.name != SINGLE_LABEL.name:
            raise UsageError(
                f"{self.name}: needs data of one label an image, and these are {self.problem.name}; fit, "
                "evaluate and predict take them"
            )

    def labelled(self) -> BoolN:
        """Say which images have a target, (N,)."""
        return self.problem.known(self.targets)

    def classes_of_rows(self) -> list[Classes]:
        """Give N tuples of indices into `classes`; () for an image without a class."""
        return self.problem.decode(self.targets)

    def label_sets(self) -> IntN:
        """Number the sets of labels that occur, (N,): the same for images with the same labels."""
        if self.problem.name == SINGLE_LABEL.name:
            return self.targets
        return np.unique(self.targets, axis=0, return_inverse=True)[1].reshape(-1)

    def label_names(self) -> tuple[str, ...]:
        """Give N names of classes, "" where there is none, joined by "|" where there are several."""
        named = (tuple(self.classes[k] for k in row) for row in self.classes_of_rows())
        return tuple("|".join(names) for names in named)

    def rows(self, split: str) -> IntN:
        """List the rows of a split."""
        return np.array([i for i, s in enumerate(self.splits) if s == split], dtype=np.int64)

    def units(self) -> tuple[str, ...]:
        """Name the unit of each image, which stays on one side of a split: the group, or the image itself."""
        return tuple(g or i for g, i in zip(self.groups, self.ids, strict=True))

    def select(self, rows: IntN) -> "Dataset":
        """Make the data set of these rows, with the same classes."""

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in rows)

        return dataclasses.replace(
            self,
            ids=pick(self.ids),
            targets=self.targets[rows],
            splits=pick(self.splits),
            groups=pick(self.groups),
            errors=pick(self.errors),
        )


def add_validation(dataset: Dataset, validation: Dataset) -> Dataset:
    """Add a second data set's images as the validation part, with classes matched by name.

    Ids of the second are prefixed with the path from the first's root to it, or where there is none, as
    between two drives, with its own path.

    Raises:
        UsageError: the data set already has validation images, or has all of these.
        InputError: the second has a class that the first lacks, or both have an image.
    """
    if "val" in dataset.splits:
        raise UsageError("the data already have a validation split; leave --val out")
    validation = dataclasses.replace(
        validation,
        classes=dataset.classes,
        targets=match_classes(validation, dataset.classes, dataset.problem),
        problem=dataset.problem,
    )
    roots = dataset.root.resolve(), validation.root.resolve()
    # Two manifests in one folder name files of that.
    is_shared = roots[0] == roots[1] and dataset.reader is validation.reader is None
    prefix = "" if is_shared else f"{_path_between(*roots)}/"
    rows = [i for i in range(len(validation)) if validation.splits[i] in ("", "val", "train")]
    if "val" in validation.splits:
        rows = [i for i in rows if validation.splits[i] == "val"]
    more = validation.select(np.array(rows, dtype=np.int64))
    ids = tuple(f"{prefix}{i}" for i in more.ids)
    # What was read from below one root goes by one id in both.
    is_same_root = roots[0] == roots[1] and None not in (dataset.source, validation.source)
    common = set(dataset.ids) & set(more.ids if is_same_root else ids)
    if common and len(common) == len(ids):
        raise UsageError(f"{validation.name}: the validation data are training data; name others")
    if common:
        raise InputError(
            f"{validation.name}: image '{min(common)}' is one of {dataset.name} too; take the validation "
            "images out of the training data"
        )
    both = dataclasses.replace(
        dataset,
        ids=dataset.ids + ids,
        targets=np.concatenate([dataset.targets, more.targets]),
        splits=dataset.splits + ("val",) * len(more),
        groups=dataset.groups + more.groups,
        errors=dataset.errors + more.errors,
        warnings=dataset.warnings + more.warnings,
        reader=JoinedReader(dataset.opener(), prefix, more.opener()) if prefix else dataset.reader,
    )
    return both.select(np.array(sorted(range(len(both)), key=both.ids.__getitem__)))


def _path_between(start: Path, end: Path) -> str:
    try:
        return Path(os.path.relpath(end, start)).as_posix()
    except ValueError:  # two drives of Windows
        return end.as_posix()


def match_classes(
    dataset: Dataset, classes: tuple[str, ...], problem: Problem | None = None
) -> Targets:
    """(N, …): its targets in terms of `classes`, matched by name.

    Args:
        problem: the kind that the targets are to be of; the data's own by default.

    Raises:
        InputError: names the classes that `classes` lacks, or the image that has not one label where the
            kind has.
    """
    dataset = with_problem(dataset, problem or dataset.problem)
    index = {name: i for i, name in enumerate(classes)}
    rows = dataset.classes_of_rows()
    used = sorted({k for row in rows for k in row})
    unknown = [dataset.classes[k] for k in used if dataset.classes[k] not in index]
    if unknown:
        raise InputError(
            f"{dataset.name}: class '{unknown[0]}' is not one that the model knows"
            f"{nearest(unknown[0], classes)}"
            + (f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f"; it knows {', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}. "
            "Rename or remove the class"
        )
    there = {k: index[dataset.classes[k]] for k in used}
    known = dataset.labelled().tolist()
    matched = [
        tuple(there[k] for k in row) if is_known else None
        for row, is_known in zip(rows, known, strict=True)
    ]
    return dataset.problem.encode(matched, len(classes))


def with_problem(dataset: Dataset, problem: Problem) -> Dataset:
    """Give the data set as one of this kind: every single label is a set of one.

    Raises:
        InputError: names an image that has no label or several, where the kind has one each.
    """
    if dataset.problem.name == problem.name:
        return dataset
    rows, known = dataset.classes_of_rows(), dataset.labelled().tolist()
    if problem.name == SINGLE_LABEL.name:
        for image_id, row, is_known in zip(dataset.ids, rows, known, strict=True):
            if is_known and len(row) != 1:
                raise InputError(
                    f"{dataset.name}: image '{image_id}' has {len(row) or 'no'} labels, and one is needed; "
                    "leave it out"
                )
    own = [row if is_known else None for row, is_known in zip(rows, known, strict=True)]
    targets = problem.encode(own, len(dataset.classes))
    return dataclasses.replace(dataset, targets=targets, problem=problem)


def clean_name(what: str, text: str) -> str:
    """Give the name of a class, split or group as it is kept: in Unicode form NFC, no spaces around it.

    Args:
        what: it is the name of, for messages.
        text: as it was found; a name may be empty.

    Raises:
        InputError: it has a NUL or half of a surrogate pair, which no file name or report can hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"{what} {text!a:.80} is not valid Unicode") from exc
    if "\0" in text:
        raise InputError(f"{what} {text!a:.80} has a NUL in it")
    return unicodedata.normalize("NFC", text).strip()


def dataset_of_rows(
    root: Path,
    rows: Iterable[Row],
    *,
    ignored: Mapping[str, int] | None = None,
    warnings: tuple[str, ...] = (),
    problem: Problem | None = None,
) -> Dataset:
    """The rows sorted by id; classes in natural order.

    Args:
        problem: the kind; by default the one that the labels are of.

    Raises:
        InputError: images with several labels, and too many of both.
    """
    rows = sorted(rows, key=attrgetter("id"))
    distinct = {row.labels for row in rows}
    problem = problem or infer_problem(list(distinct))
    names = {name for labels in distinct for name in labels or ()}
    classes = tuple(sorted(names, key=natural_key))
    if problem.name != SINGLE_LABEL.name and len(rows) * len(classes) > MAX_TARGETS:
        raise InputError(
            f"{root}: {len(classes):,} labels of {len(rows):,} images are more than fit into memory; name "
            "fewer labels"
        )
    index = {name: i for i, name in enumerate(classes)}
    encoded = {
        labels: None if labels is None else tuple(index[name] for name in labels)
        for labels in distinct
    }
    indices = [encoded[row.labels] for row in rows]
    return Dataset(
        root=root,
        classes=classes,
        ids=tuple(r.id for r in rows),
        targets=problem.encode(indices, len(classes)),
        splits=tuple(r.split for r in rows),
        groups=tuple(r.group for r in rows),
        errors=tuple(r.error for r in rows),
        ignored=ignored or {},
        warnings=warnings,
        problem=problem,
    )

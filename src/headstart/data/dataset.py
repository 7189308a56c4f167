"""Labelled images as one type: ids, who reads them, label, split, group. No image is opened here."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headstart.choices import natural_key, nearest
from headstart.data.images import FolderReader, ImageRef, JoinedReader, Reader
from headstart.errors import InputError, UsageError

__all__ = ["SPLIT_NAMES", "Dataset", "add_validation", "dataset_of_rows", "match_classes"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, one row an image; rows are sorted by id and never dropped.

    Attributes:
        root: the folder that ids are relative to.
        classes: C class names; a label is an index into it.
        ids: N paths relative to `root`, with `/`; unique.
        labels: int64 array (N,), -1 where there is no label.
        splits: N of "train", "val", "test" or "" (not assigned).
        groups: N group names, "" for an image that is its own group.
        errors: N reasons why a row cannot be read (a broken link, say), "" for none known.
        ignored: what was passed over, as {kind: count}, e.g. {".txt": 2, "hidden": 1}.
        warnings: one line each, for people.
        reader: gives the images of ids; None for files below `root`.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    errors: tuple[str, ...]
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reader: Reader | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = Counter(s for s in self.splits if s)
        parts = "".join(f", {n:,} {s}" for s, n in counts.items())
        return f"Dataset({str(self.root)!r}, {len(self):,} images{parts}, {len(self.classes):,} classes)"

    def image(self, row: int) -> ImageRef:
        """The image of a row; made when asked for, since a data set may have millions."""
        error, image_id = self.errors[row], self.ids[row]
        return ImageRef(image_id, None if error else self.opener().open(image_id), error)

    def opener(self) -> Reader:
        """What gives the images of ids."""
        return self.reader or FolderReader(self.root)

    def rows(self, split: str) -> np.ndarray:
        """int64 array of the rows of a split."""
        return np.array([i for i, s in enumerate(self.splits) if s == split], dtype=np.int64)

    def units(self) -> tuple[str, ...]:
        """N names of what must stay on one side of a split: the group, or the image itself."""
        return tuple(g or i for g, i in zip(self.groups, self.ids, strict=True))

    def select(self, rows: np.ndarray) -> "Dataset":
        """The data set of these rows, classes unchanged."""

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in rows)

        return dataclasses.replace(
            self,
            ids=pick(self.ids),
            labels=self.labels[rows],
            splits=pick(self.splits),
            groups=pick(self.groups),
            errors=pick(self.errors),
        )


def add_validation(dataset: Dataset, validation: Dataset) -> Dataset:
    """The data set with a second one's images as its validation part, classes matched by name.

    Ids of the second are prefixed with the way from the first's root to it.

    Raises:
        UsageError: the data set already has validation images.
        InputError: the second has a class that the first lacks.
    """
    if "val" in dataset.splits:
        raise UsageError("the data already have a validation split; leave --val out")
    if validation.root.resolve() == dataset.root.resolve():
        raise UsageError(f"{validation.root}: the validation data are the training data")
    mapping = match_classes(validation, dataset.classes)
    prefix = Path(os.path.relpath(validation.root.resolve(), dataset.root.resolve())).as_posix()
    rows = [i for i in range(len(validation)) if validation.splits[i] in ("", "val", "train")]
    if "val" in validation.splits:
        rows = [i for i in rows if validation.splits[i] == "val"]
    more = validation.select(np.array(rows, dtype=np.int64))
    ids = tuple(f"{prefix}/{i}" for i in more.ids)
    both = dataclasses.replace(
        dataset,
        ids=dataset.ids + ids,
        labels=np.concatenate([dataset.labels, mapping[more.labels]]),
        splits=dataset.splits + ("val",) * len(more),
        groups=dataset.groups + more.groups,
        errors=dataset.errors + more.errors,
        warnings=dataset.warnings + more.warnings,
        reader=JoinedReader(dataset.opener(), prefix, more.opener()),
    )
    return both.select(np.array(sorted(range(len(both)), key=both.ids.__getitem__)))


def match_classes(dataset: Dataset, classes: tuple[str, ...]) -> np.ndarray:
    """int64 array (C of the data set + 1,): its labels as indices into `classes`, by name; last -1.

    Raises:
        InputError: names the classes that `classes` lacks.
    """
    index = {name: i for i, name in enumerate(classes)}
    used = [c for k, c in enumerate(dataset.classes) if (dataset.labels == k).any()]
    unknown = [c for c in used if c not in index]
    if unknown:
        raise InputError(
            f"{dataset.root}: class '{unknown[0]}' is not one that the model knows"
            f"{nearest(unknown[0], classes)}"
            + (f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f"; it knows {', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}. "
            "Rename or remove the class"
        )
    return np.array([index.get(c, -1) for c in dataset.classes] + [-1], dtype=np.int64)


def dataset_of_rows(
    root: Path,
    rows: list[tuple[str, str, str, str, str]],
    ignored: Mapping[str, int],
    warnings: tuple[str, ...],
) -> Dataset:
    """Rows of (id, class or "", split, group, error), sorted by id; classes in natural order."""
    rows = sorted(rows)
    classes = tuple(sorted({c for _, c, _, _, _ in rows if c}, key=natural_key))
    index = {name: i for i, name in enumerate(classes)}
    return Dataset(
        root=root,
        classes=classes,
        ids=tuple(r[0] for r in rows),
        labels=np.array([index.get(r[1], -1) for r in rows], dtype=np.int64),
        splits=tuple(r[2] for r in rows),
        groups=tuple(r[3] for r in rows),
        errors=tuple(r[4] for r in rows),
        ignored=ignored,
        warnings=warnings,
    )

"""Takes images and labels as Python programs hold them, gives a `Dataset`.

NumPy arrays, PyTorch tensors, images of Pillow's, lists of these, scikit-learn's bunches, the tuples of
Keras' data sets, and data sets of PyTorch, of which each image is read when it is needed. None of these
libraries is imported here. `image_arrays` says how pixels are taken.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.array_names import CLASS_NAMES, check_names, find_pairs, name_labels
from headstart.data.dataset import SPLIT_NAMES, Dataset
from headstart.data.form import Form, LoadOptions
from headstart.data.image_arrays import (
    ListRows,
    MemoryRows,
    Part,
    Rows,
    check_kind,
    dataset_of_arrays,
)
from headstart.errors import BadImageError, InputError, UsageError, one_line

__all__ = ["MEMORY", "from_arrays"]

NAME = "data in memory"  # where a file would have its path


@runtime_checkable
class _Items(Protocol):
    """Labelled images in Python: arrays, lists of pairs, bunches, data sets of PyTorch."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def from_arrays(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] | str | None = None,
) -> Dataset:
    """Make a data set of images and labels in memory; nothing is copied.

    Args:
        images: an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1, 3 or 4, of uint8, of
            floats from 0 to 1 or 0 to 255, of other integers from 0 to 255, or of booleans; or a sequence
            of N such images, or of images of Pillow's.
        labels: N whole numbers from 0, N names, or a one-hot matrix (N, C); or, where an image may have
            several labels or none, N lists of numbers or names, or a matrix (N, C) of 0 and 1.
        classes: the names of the classes, by number; by default numbers name themselves.
        splits: "train", "val", "test" or "" (not assigned) of each image, or of all.

    Returns:
        A data set with ids such as "train/00012", of the split and the row among all of them.

    Raises:
        InputError: an array of a shape, type or range that no images have; labels that are none, or are
            more or fewer than the images.
        UsageError: a split that is none, or more or fewer than the images.
    """
    rows = _to_rows(NAME, images)
    names = None if classes is None else check_names("classes", list(classes))
    texts = name_labels("labels", _to_labels(labels), len(rows), names)
    given = [splits] * len(rows) if splits is None or isinstance(splits, str) else list(splits)
    if len(given) != len(rows):
        raise UsageError(f"splits has {len(given):,} entries, and there are {len(rows):,} images")
    unknown = [split for split in given if split and split not in SPLIT_NAMES]
    if unknown:
        raise UsageError(f"split {unknown[0]!r} is unknown; use train, val or test")
    kinds = [SPLIT_NAMES.get(split or "", "") for split in given]
    if len(set(kinds)) < 2:
        return dataset_of_arrays(Path(NAME), [Part(NAME, rows, texts, kinds[0] if kinds else "")])
    parts = []
    for kind in dict.fromkeys(kinds):
        chosen = [row for row, other in enumerate(kinds) if other == kind]
        parts.append(Part(NAME, _Chosen(rows, chosen), [texts[row] for row in chosen], kind))
    return dataset_of_arrays(Path(NAME), parts)


def _recognises(source: object) -> bool:
    # NumPy has one array of images and no labels in it.
    return isinstance(source, _Items) and not isinstance(source, str | bytes | np.ndarray)


def _load(data: Any, options: LoadOptions) -> Dataset:
    """The data set of what a Python program has, by looking at it.

    A tuple (images, labels), or Keras' tuple of two for train and test; a mapping of arrays by name, such as
    a bunch of scikit-learn's; a sequence of pairs (image, label), or anything with a length and such items,
    as a data set of PyTorch, whose images are to be uint8 or Pillow's.

    Raises:
        InputError: as `from_arrays` says.
        UsageError: an item is no pair, or images are of a type that no images are.
    """
    if isinstance(data, Mapping):
        return _read_mapping(data)
    if isinstance(data, tuple) and len(data) == 2 and not _is_pair(data[0]):
        return from_arrays(*data)
    if isinstance(data, tuple) and 2 <= len(data) <= 3 and all(map(_is_pair_of_arrays, data)):
        splits = ("train", "test") if len(data) == 2 else ("train", "val", "test")
        parts = [_make_part(split, *pair) for split, pair in zip(splits, data, strict=True)]
        return dataset_of_arrays(Path(NAME), parts)
    return _read_items(data)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _is_pair_of_arrays(value: Any) -> bool:
    """Whether it is (images, labels) and not (image, label)."""
    return _is_pair(value) and getattr(_to_plain(value[1]), "ndim", 0) > 0


def _make_part(split: str, images: Any, labels: Any) -> Part:
    where = f"{NAME}, {split}"
    rows = _to_rows(where, images)
    return Part(where, rows, name_labels(where, _to_labels(labels), len(rows)), split)


def _read_mapping(data: Mapping[Any, Any]) -> Dataset:
    arrays = {str(key): _to_plain(value) for key, value in data.items()}
    candidates = [n for n, value in arrays.items() if isinstance(value, np.ndarray | list | tuple)]
    pairs, _ = find_pairs(NAME, candidates)
    names = next((arrays[n] for n in CLASS_NAMES if arrays.get(n) is not None), None)
    classes = None if names is None else check_names(f"{NAME}, classes", names)
    parts = []
    for pair in pairs:
        rows = _to_rows(f"{NAME}, {pair.images}", arrays[pair.images])
        labels = _to_labels(arrays[pair.labels])
        texts = name_labels(f"{NAME}, {pair.labels}", labels, len(rows), classes)
        parts.append(Part(f"{NAME}, {pair.images}", rows, texts, pair.split))
    return dataset_of_arrays(Path(NAME), parts)


def _read_items(data: _Items) -> Dataset:
    """A sequence of pairs; labels are read at once, and where a data set lists them, without the images."""
    count = len(data)
    listed = _to_plain(getattr(data, "targets", None))
    if isinstance(listed, list | np.ndarray) and len(listed) == count:
        labels = listed
    else:
        labels = []
        for row in range(count):
            item = data[row]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise UsageError(
                    f"{NAME}: item {row} is of type {type(item).__name__}; expected a pair (image, label)"
                )
            labels.append(item[1])
    names = getattr(data, "classes", None)
    is_named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    classes = check_names(f"{NAME}, classes", names) if is_named else None
    texts = name_labels(f"{NAME}, labels", _to_labels(labels), count, classes)
    rows: Rows = _ItemRows(data, of_pairs=True)
    if isinstance(data, list | tuple):
        rows = _to_rows(NAME, [item[0] for item in data])
    return dataset_of_arrays(Path(NAME), [Part(NAME, rows, texts)])


def _to_plain(value: Any) -> Any:
    """Tensors as arrays, without a copy where they are on the CPU; anything else as it is."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return value.detach().cpu().numpy()
    if hasattr(value, "to_numpy"):  # of pandas
        return value.to_numpy()
    return value


def _to_labels(labels: Any) -> Any:
    """The same for labels, of which each may be a tensor of its own."""
    if not isinstance(labels, list | tuple):
        return _to_plain(labels)
    plain = map(_to_plain, labels)
    return [label.item() if getattr(label, "size", 0) == 1 else label for label in plain]


def _to_rows(where: str, images: Any) -> Rows:
    images = _to_plain(images)
    if isinstance(images, np.ndarray) and images.ndim and not images.dtype.hasobject:
        return MemoryRows(images)
    if not isinstance(images, list | tuple | np.ndarray):
        raise UsageError(
            f"{where}: images of type {type(images).__name__}; give an array, or a list of images"
        )
    plain = [_to_plain(image) for image in images]
    if any(isinstance(image, str | os.PathLike) for image in plain):
        raise UsageError(
            f"{where}: images that are paths; write them with their labels as a manifest"
        )
    if all(isinstance(image, np.ndarray) for image in plain):
        return ListRows(plain)
    return _ItemRows(plain, of_pairs=False)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _ItemRows:
    """Images that are read one by one.

    Attributes:
        items: images, or pairs.
        of_pairs: whether they are pairs, the image first.
    """

    items: Any
    of_pairs: bool

    def __len__(self) -> int:
        return len(self.items)

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        return set()  # they are looked at when they are read

    def read(self, row: int) -> NDArray[Any] | Image.Image:
        try:
            item = self.items[row]
            image = _to_plain(item[0] if self.of_pairs else item)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as exc:
            raise BadImageError(f"the data set does not give it: {one_line(exc)}") from exc
        if isinstance(image, Image.Image):
            return image
        if not isinstance(image, np.ndarray):
            raise BadImageError(
                f"is of type {type(image).__name__}; give an array or an image of Pillow's"
            )
        if image.dtype != np.uint8:
            raise BadImageError(
                f"an array of {image.dtype}; have the data set give uint8, or images of Pillow's, as it "
                "does without a transform"
            )
        try:
            check_kind("the image", image.shape, image.dtype)
        except InputError as exc:
            raise BadImageError(str(exc)) from exc
        return image

    def blocks(self) -> Iterator[NDArray[Any]]:
        return iter(())

    def files(self) -> tuple[Path, ...]:
        return ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Some of the images, in their order."""

    rows: Rows
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        return self.rows.kinds()

    def read(self, row: int) -> NDArray[Any] | Image.Image:
        return self.rows.read(self.chosen[row])

    def blocks(self) -> Iterator[NDArray[Any]]:
        for row in self.chosen:
            image = self.rows.read(row)
            if isinstance(image, np.ndarray):
                yield image[None]

    def files(self) -> tuple[Path, ...]:
        return ()


MEMORY = Form(
    name="memory",
    looks="a pair of images and labels, or a list of such pairs",
    uses=frozenset(),
    recognises=_recognises,
    load=_load,
    is_object=True,
)

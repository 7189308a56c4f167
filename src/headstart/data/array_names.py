"""Takes the names that arrays go by, and their labels, gives which belong together, and names of classes.

What people call images, labels and their parts: Keras (x_train, y_train), MedMNIST (train_images,
train_labels), scikit-learn (data or images, target, target_names), courses (features, labels).
"""

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import SPLIT_NAMES, clean_name
from headstart.errors import InputError

__all__ = [
    "CLASS_NAMES",
    "LABELS",
    "MAX_LABEL_BYTES",
    "Pair",
    "check_names",
    "find_pairs",
    "is_text",
    "name_labels",
    "names_images",
]

# The first that is there is taken: scikit-learn's digits are there as images, and as rows of numbers.
IMAGES = ("images", "image", "x", "features", "data", "imgs")
LABELS = ("labels", "label", "y", "targets", "target")
CLASS_NAMES = ("target_names", "class_names", "classes", "label_names")

MAX_LABEL_BYTES = 2**30
MAX_CLASSES = 100_000


@dataclasses.dataclass(frozen=True)
class Pair:
    """The names of images and of their labels.

    Attributes:
        split: "train", "val", "test" or "" (not assigned).
        images, labels: as they are called.
    """

    split: str
    images: str
    labels: str


def _part_name(name: str) -> tuple[str, str] | None:
    """(split, kind) of "x_train", "train_images", "images" or "XTest"; None for what is neither."""
    words = re.sub(r"(?<=[a-zXY])(?=[A-Z])", "_", name).lower().split("_")
    if words[-1] in SPLIT_NAMES and len(words) == 2:
        words = words[::-1]
    split = SPLIT_NAMES.get(words[0], "") if len(words) == 2 else ""
    if len(words) == 1 or split:
        return split, words[-1]
    return None


def names_images(name: str) -> bool:
    """Whether it is what people call images, as "x_train" is."""
    part = _part_name(name)
    return part is not None and part[1] in IMAGES


def find_pairs(where: str, names: Iterable[str]) -> tuple[list[Pair], tuple[str, ...]]:
    """Find images and their labels among arrays, by their names.

    Returns:
        the pairs, and a warning where others are left out.

    Raises:
        InputError: there is none; images without labels, two of one split, or splits beside none.
    """
    names = list(names)
    found: dict[str, dict[str, str]] = {}
    for name in names:
        split, kind = _part_name(name) or ("", "")
        if kind not in (*IMAGES, *LABELS):
            continue
        kinds = found.setdefault(split, {})
        if kind in kinds:
            raise InputError(
                f"{where}: {kinds[kind]} and {name} both mean the split '{split}'; keep one"
            )
        kinds[kind] = name
    pairs = []
    for split, kinds in found.items():
        images = next((kinds[kind] for kind in IMAGES if kind in kinds), None)
        labels = next((kinds[kind] for kind in LABELS if kind in kinds), None)
        if images is not None and labels is not None:
            pairs.append(Pair(split, images, labels))
        elif images is not None and split:
            raise InputError(f"{where}: {images} has no labels; add them, or leave it out")
    listed = _list(names) or "none"
    if not pairs:
        raise InputError(
            f"{where}: no images with labels among its arrays ({listed}); name them images and labels, "
            "or x_train, y_train, x_test and y_test"
        )
    if len(pairs) > 1 and any(not pair.split for pair in pairs):
        both = " and ".join(pair.images for pair in pairs[:2])
        raise InputError(f"{where}: {both} are both there; keep the whole, or its splits")
    used = {name for pair in pairs for name in (pair.images, pair.labels)}
    others = [name for name in names if name not in used and name not in CLASS_NAMES]
    warning = f"arrays left out: {_list(others)}"
    return pairs, (warning,) if others else ()


def _list(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:8])


def check_names(where: str, names: Any) -> tuple[str, ...]:
    """Give names of classes, by number, as text; a name may be a whole number.

    Raises:
        InputError: they are no list of texts, or two are the same.
    """
    if isinstance(names, np.ndarray):
        names = _to_list(where, names) if names.ndim == 1 and names.dtype.kind in "SUiu" else None
    if not isinstance(names, list | tuple) or not names or len(names) > MAX_CLASSES:
        raise InputError(f"{where}: no list of names of classes")
    texts = tuple(str(name) if type(name) is int else _text(where, name) for name in names)
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise InputError(f"{where}: the name '{min(twice)}' stands twice; rename one")
    return texts


def name_labels(
    where: str, labels: Any, count: int, classes: Sequence[str] | None = None
) -> list[str] | list[tuple[str, ...]]:
    """Give the name of the class of each image, or the names of the classes where there may be several.

    Args:
        where: what the labels are, for messages.
        labels: N whole numbers, names, or rows of a one-hot matrix. Or N lists of numbers or names, or the
            rows of another matrix of 0 and 1, or of -1 and 1: of several labels, or none, an image. Lists of
            one length above one that hold nothing but 0 and 1 are a matrix.
        count: N.
        classes: names by number; numbers name themselves without them.

    Raises:
        InputError: a label that is none of these, or has no name; another number than `count`.
    """
    found = len(labels) if isinstance(labels, list | tuple) or np.ndim(labels) else 0
    if found != count:
        raise InputError(f"{where}: {found:,} labels for {count:,} images; each image needs one")
    sets = _to_sets(where, labels)
    if sets is not None:
        return _name_sets(where, sets, classes)
    values = _to_values(where, labels)
    if values and not isinstance(values[0], int):
        names = {value: _text(where, value) for value in set(values)}
        return [names[value] for value in values]
    if values and min(values) < 0:
        low = min(values)
        raise InputError(f"{where}: label {low} of row {values.index(low)}; expected 0 and above")
    if classes is not None and values and max(values) >= len(classes):
        high = max(values)
        raise InputError(
            f"{where}: label {high} of row {values.index(high)}, and there are {len(classes)} names of "
            "classes, from 0"
        )
    names = {value: str(value) if classes is None else classes[value] for value in set(values)}
    return [names[value] for value in values]


def _to_sets(where: str, labels: Any) -> list[list[Any]] | None:
    """The numbers or names of the labels of each image; None where each has exactly one."""
    if isinstance(labels, list | tuple) and any(
        isinstance(own, list | tuple | set | frozenset | np.ndarray) for own in labels
    ):
        if not all(isinstance(own, list | tuple | set | frozenset | np.ndarray) for own in labels):
            raise InputError(
                f"{where}: labels of more than one kind; give a list of labels to each image, or one label"
            )
        plain = [
            own.tolist() if isinstance(own, np.ndarray) and own.ndim == 1 else list(own)
            for own in labels
        ]
        widths = {len(own) for own in plain}
        is_matrix = len(widths) == 1 and max(widths) > 1
        if not (is_matrix and all(value in (0, 1) for own in plain for value in own)):
            # A set has no order of its own.
            return [
                sorted(own, key=str) if isinstance(given, set | frozenset) else own
                for own, given in zip(plain, labels, strict=True)
            ]
        labels = plain
    if isinstance(labels, list | tuple) and not (labels and isinstance(labels[0], list)):
        return None
    array = np.asarray(labels)
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "buif":
        return None
    is_yes, is_no = array == 1, array == 0
    if not is_no.any():
        is_no = array == -1
    if not (is_yes | is_no).all() or (is_yes.sum(axis=1) == 1).all():
        return None
    found: list[list[Any]] = [[] for _ in array]
    for row, label in np.argwhere(is_yes).tolist():
        found[row].append(label)
    return found


def _name_sets(
    where: str, sets: list[list[Any]], classes: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """Name the labels of each image, by the rules for one label an image."""
    flat = [label for own in sets for label in own]
    names = iter(name_labels(where, flat, len(flat), classes))
    named = [tuple(str(next(names)) for _ in own) for own in sets]
    return [tuple(dict.fromkeys(own)) for own in named]


def _to_values(where: str, labels: Any) -> list[Any]:
    """N whole numbers, or N texts, or N bytes of texts."""
    if isinstance(labels, list | tuple):
        kinds = set(map(type, labels))
        if len(kinds) == 1 and kinds <= {str, bytes}:  # no array, as long as the longest for each
            return list(labels)
        if not all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
            raise InputError(
                f"{where}: labels of more than one kind, or none; give whole numbers or names"
            )
    array = np.asarray(labels)
    if array.dtype.kind not in "buifSU":
        raise InputError(
            f"{where}: labels that are {'Python objects' if array.dtype.hasobject else array.dtype}; "
            "give whole numbers or names"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "buif":
        if not ((array == 0) | (array == 1)).all() or (array.sum(axis=1) != 1).any():
            raise InputError(
                f"{where}: labels of shape {array.shape[0]} x {array.shape[1]}, which are not all 0 and 1, "
                "or -1 and 1; give 1 for each label that an image has, else 0"
            )
        array = array.argmax(axis=1)
    if array.ndim != 1:
        raise InputError(f"{where}: labels of {array.ndim} dimensions; give one for each image")
    is_whole = array.dtype.kind != "f" or (
        np.isfinite(array) & (array == np.rint(array)) & (np.abs(array) < 2**53)
    )
    if not np.all(is_whole):
        raise InputError(f"{where}: labels that are no whole numbers; give a class to each image")
    return _to_list(where, array if array.dtype.kind in "SU" else array.astype(np.int64))


def is_text(array: NDArray[Any]) -> bool:
    """Say whether an array of text holds characters alone; NumPy makes a str of any number."""
    if array.dtype.kind != "U" or not array.size or not array.dtype.itemsize:
        return True
    numbers = np.ascontiguousarray(array).view(
        np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    )
    return bool(numbers.max() <= sys.maxunicode)


def _to_list(where: str, array: NDArray[Any]) -> list[Any]:
    """The numbers or texts of an array."""
    if not is_text(array):
        raise InputError(f"{where}: text that is not valid Unicode; save it again, or give numbers")
    values: list[Any] = array.tolist()
    return values


def _text(where: str, name: Any) -> str:
    """A name in Unicode form NFC."""
    try:
        text = name.decode() if isinstance(name, bytes) else name
        if not isinstance(text, str):
            raise InputError(
                f"{where}: a name of a class is of type {type(name).__name__}; give text"
            )
    except UnicodeDecodeError as exc:
        raise InputError(f"{where}: the name {name!a} is not valid Unicode") from exc
    text = clean_name(f"{where}: the name", text)
    if not text:
        raise InputError(f"{where}: the name of a class is empty")
    return text

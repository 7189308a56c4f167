"""Takes pickles as courses hand them out, gives a `Dataset`; nothing in them is run.

One of a dict with images and their labels, as `features` and `labels` of the traffic signs; a folder of
these, train.p, valid.p and test.p; or one of a dict of classes, each an array of images, or a list of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.array_names import (
    CLASS_NAMES,
    check_names,
    find_pairs,
    name_labels,
    names_images,
)
from headstart.data.dataset import SPLIT_NAMES, Dataset
from headstart.data.form import Form, LoadOptions, list_folders
from headstart.data.image_arrays import ListRows, MemoryRows, Part, Rows, dataset_of_arrays
from headstart.data.images import peek
from headstart.data.unpickling import read_pickle
from headstart.errors import InputError

__all__ = ["PICKLE"]

SUFFIXES = frozenset({".p", ".pkl", ".pickle"})
# Protocol 2 and later; a dict, the mark before one, or the name of its kind, in protocols 0 and 1.
STARTS = (b"\x80", b"}", b"(", b"c")


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and peek(path, 1) in STARTS


def _list_splits(path: Path) -> dict[str, Path]:
    """{split: its pickle} of a folder.

    Raises:
        InputError: two of one split.
    """
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        split = SPLIT_NAMES.get(file.stem.lower())
        if split and _is_pickle(file):
            if split in found:
                raise InputError(
                    f"{path}: {found[split].name} and {file.name} both mean the split '{split}'; keep one"
                )
            found[split] = file
    return found


def _recognises(path: Path) -> bool:
    if not path.is_dir():
        return _is_pickle(path)
    named = (file for file in path.glob("*") if SPLIT_NAMES.get(file.stem.lower()) == "train")
    return any(map(_is_pickle, named)) and not list_folders(path)


def _load(path: Path, options: LoadOptions) -> Dataset:
    one = {SPLIT_NAMES.get(path.stem.lower(), ""): path}
    files = _list_splits(path) if path.is_dir() else one
    parts: list[Part] = []
    warnings: list[str] = []
    for split, file in files.items():
        more, told = _read_parts(file, split)
        parts += more
        warnings += [warning for warning in told if warning not in warnings]
    return dataset_of_arrays(path, parts, warnings=tuple(warnings))


def _read_parts(path: Path, split: str) -> tuple[list[Part], tuple[str, ...]]:
    """The images and labels of one pickle, and warnings."""
    try:
        with open(path, "rb") as file:
            value = read_pickle(file, path.stat().st_size, str(path))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{path}: a pickle of a {type(value).__name__}; expected a dict with features and labels, or "
            "with the images of each class"
        )
    arrays = {_to_name(key): inner for key, inner in value.items()}
    if all(map(_is_images, arrays.values())) and not all(map(names_images, arrays)):
        return _list_classes(path, split, arrays), ()
    pairs, warnings = find_pairs(str(path), arrays)
    named = next((name for name in CLASS_NAMES if name in arrays), None)
    classes = None if named is None else check_names(f"{path}, {named}", arrays[named])
    parts = []
    for pair in pairs:
        where = f"{path}, {pair.images}"
        rows = _to_rows(where, arrays[pair.images])
        named = arrays[pair.labels]
        labels = name_labels(f"{path}, {pair.labels}", named, len(rows), classes)
        parts.append(Part(where, rows, labels, pair.split or split))
    return parts, warnings


def _to_name(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def _is_images(value: Any) -> bool:
    """Whether it is an array of images, or a list of arrays, each an image."""
    if isinstance(value, np.ndarray):
        return value.ndim >= 3
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, np.ndarray) and v.ndim in (2, 3) for v in value)
    )


def _to_rows(where: str, value: Any) -> Rows:
    if isinstance(value, np.ndarray) and value.ndim:
        return MemoryRows(value)
    if isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value):
        return ListRows(value)
    raise InputError(f"{where}: no array of images, and no list of them")


def _list_classes(path: Path, split: str, classes: Mapping[str, Any]) -> list[Part]:
    """A part for each class, of which the ids begin with its name."""
    names = check_names(str(path), list(classes))
    start = f"{split}/" if split else ""
    return [
        Part(f"{path}, {name}", _to_rows(name, images), [name] * len(images), split, start + name)
        for name, images in zip(names, classes.values(), strict=True)
    ]


PICKLE = Form(
    name="pickle",
    looks="a pickle (.p, .pkl) of images and labels",
    uses=frozenset(),
    recognises=_recognises,
    load=_load,
)

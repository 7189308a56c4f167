"""Takes CIFAR-10 or CIFAR-100 as distributed, gives a `Dataset`: pickles or binary, a folder or the .tar.gz.

The layouts (cs.toronto.edu/~kriz/cifar.html): a pickle of each batch, a dict of `data`, uint8 (N, 3072), red
before green before blue, and `labels` or `fine_labels`; or records of 3072 such bytes behind that of the
label, and in CIFAR-100 behind two, of which the second is the finer. What lies in an archive is read in
memory.
"""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.array_names import check_names, name_labels
from headstart.data.dataset import Dataset
from headstart.data.form import Form, LoadOptions
from headstart.data.image_arrays import (
    FileRows,
    MemoryRows,
    Part,
    Rows,
    dataset_of_arrays,
)
from headstart.data.images import peek
from headstart.data.members import find_kind, first_names, list_archives, list_members
from headstart.data.unpickling import read_pickle
from headstart.errors import BadImageError, InputError

__all__ = ["CIFAR"]

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MAX_TAR_BYTES = 2**29  # the largest, unpacked, has 186 MB
MAX_NAMES_BYTES = 2**20
FIRST = 3  # members that an archive is known by


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The files of one of the four.

    Attributes:
        train, test: names of files with images.
        names: of the file with names of classes.
        labels: bytes of labels before each image, the last of them taken; 0 for pickles.
        key: of the labels in a pickle, or of the names.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: int = 0
    keys: tuple[str, str] = ("", "")

    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.names)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    _Layout(_BATCHES, ("test_batch",), "batches.meta", keys=("labels", "label_names")),
    _Layout(("train",), ("test",), "meta", keys=("fine_labels", "fine_label_names")),
    _Layout(tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), "batches.meta.txt", 1),
    _Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
)
# A file in a folder, or what an archive has in memory.
Found = Path | bytes


def _find_layout(files: Mapping[str, Found]) -> _Layout | None:
    """The layout of which images and names are there, or images alone that could be no other's."""
    for layout in LAYOUTS:
        images = [name for name in (*layout.train, *layout.test) if name in files]
        if not images or not (layout.names in files or images[0].startswith("data_batch_1")):
            continue
        if layout.labels or _begins_as_pickle(files[images[0]]):
            return layout
    return None


def _begins_as_pickle(found: Found) -> bool:
    return (found[:1] if isinstance(found, bytes) else peek(found, 1)) == b"\x80"


def _list_folder(path: Path) -> dict[str, Found]:
    known = {name for layout in LAYOUTS for name in layout.files()}
    return {
        name: path / name for name in os.listdir(path) if name in known and (path / name).is_file()
    }


# ---------------------------------------------------------------- archives


def _read_archive(path: Path) -> dict[str, Found]:
    """The files of an archive that may belong to CIFAR, in memory; folders in it do not matter."""
    known = {name for layout in LAYOUTS for name in layout.files()}
    found: dict[str, Found] = {}
    left = MAX_TAR_BYTES
    for place, member in list_members(path).members.items():
        name = place.rpartition("/")[2]
        if name not in known or member.is_folder:
            continue
        if name in found:
            raise InputError(f"{path}: has two files {name}; give the folder of one")
        if member.source is None:
            raise InputError(f"{path}, {name}: {member.error}")
        try:
            data = member.source.read(left + 1)
        except BadImageError as exc:
            raise InputError(f"{path}, {name}: {exc}; copy or download it again") from exc
        left -= len(data)
        if left < 0:
            raise InputError(f"{path}: {name} is larger than CIFAR; it is something else")
        found[name] = data
    return found


def _find_archive(folder: Path) -> Path | None:
    """The archive of a folder that holds nothing else, where it is one of CIFAR's."""
    archives = list_archives(folder)
    return archives[0] if len(archives) == 1 and _is_archive(archives[0]) else None


def _is_archive(path: Path) -> bool:
    """Whether the first file in it, or its folder, is one of CIFAR's."""
    if not find_kind(path).startswith("tar"):
        return False
    known = {name for layout in LAYOUTS for name in layout.files()} - {"train", "test", "meta"}
    try:
        names = first_names(path, FIRST)
    except InputError:
        return False
    return any(
        name.startswith(("cifar-10-batches-", "cifar-100-")) or name.rpartition("/")[2] in known
        for name in names
    )


# ---------------------------------------------------------------- reading


def _read_binary(where: str, found: Found, labels: int) -> tuple[Rows, Any]:
    size, record = len(found) if isinstance(found, bytes) else found.stat().st_size, labels + PIXELS
    if not size or size % record:
        raise InputError(
            f"{where}: {size:,} bytes are not whole images of {record:,}; copy or download it again"
        )
    count = size // record
    if isinstance(found, Path):
        numbers = FileRows.of(found, labels - 1, (count,), np.uint8, record)
        rows = FileRows.of(found, labels, (count, *IMAGE), np.uint8, record)
        return rows, np.concatenate(list(numbers.blocks()))
    table = np.frombuffer(found, np.uint8).reshape(count, record)
    return MemoryRows(table[:, labels:].reshape(count, *IMAGE)), table[:, labels - 1]


def _read_pickled(where: str, found: Found) -> dict[str, Any]:
    try:
        with open(found, "rb") if isinstance(found, Path) else io.BytesIO(found) as file:
            size = len(found) if isinstance(found, bytes) else found.stat().st_size
            value = read_pickle(file, size, where)
    except OSError as exc:
        raise InputError(f"{where}: cannot be read: {exc.strerror}") from exc
    if not isinstance(value, dict):
        raise InputError(f"{where}: no batch of CIFAR, which is a dict")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): v for key, v in value.items()
    }


def _read_batch(where: str, found: Found, layout: _Layout) -> tuple[Rows, Any]:
    """The images and the numbers of their classes in one file."""
    if layout.labels:
        return _read_binary(where, found, layout.labels)
    batch = _read_pickled(where, found)
    data, labels = batch.get("data"), batch.get(layout.keys[0])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise InputError(f"{where}: no batch of CIFAR; its data are not uint8 (images, {PIXELS})")
    if labels is None:
        raise InputError(f"{where}: no batch of CIFAR; it has no {layout.keys[0]}")
    return MemoryRows(data.reshape(len(data), *IMAGE)), labels


def _read_names(where: str, found: Found, layout: _Layout) -> tuple[str, ...]:
    if not layout.labels:
        return check_names(where, _read_pickled(where, found).get(layout.keys[1]))
    data = found if isinstance(found, bytes) else peek(found, MAX_NAMES_BYTES + 1)
    if len(data) > MAX_NAMES_BYTES:
        raise InputError(f"{where}: too long for names of classes")
    lines = data.decode("utf-8", "replace").splitlines()
    return check_names(where, [line.strip() for line in lines if line.strip()])


def _recognises(path: Path) -> bool:
    if not path.is_dir():
        return _is_archive(path)
    try:
        return _find_layout(_list_folder(path)) is not None or _find_archive(path) is not None
    except OSError:
        return False


def _load(path: Path, options: LoadOptions) -> Dataset:
    if path.is_dir():
        path = _find_archive(path) or path
    files = _list_folder(path) if path.is_dir() else _read_archive(path)
    layout = _find_layout(files)
    if layout is None:
        raise InputError(f"{path}: no files of CIFAR in it, such as data_batch_1 or train and meta")
    classes: Sequence[str] | None = None
    missing = [name for name in layout.files() if name not in files]
    if layout.names in files:
        classes = _read_names(f"{path}, {layout.names}", files[layout.names], layout)
    parts = []
    for split, names in (("train", layout.train), ("test", layout.test)):
        for name in filter(files.__contains__, names):
            rows, numbers = _read_batch(f"{path}, {name}", files.pop(name), layout)
            labels = name_labels(f"{path}, {name}", numbers, len(rows), classes)
            parts.append(Part(f"{path}, {name}", rows, labels, split))
    warnings = (f"missing, and done without: {', '.join(missing)}",) if missing else ()
    return dataset_of_arrays(path, parts, warnings=warnings)


CIFAR = Form(
    name="cifar",
    looks="a folder or .tar.gz of CIFAR-10 or CIFAR-100",
    uses=frozenset(),
    recognises=_recognises,
    load=_load,
)

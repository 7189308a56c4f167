"""Takes the files of MNIST, and of what took over their form, gives a `Dataset`.

The form (yann.lecun.com/exdb/mnist): two zero bytes, the type (8: unsigned bytes), the number of dimensions,
every dimension in four bytes, big end first, and the numbers. Files come packed with gzip or not.
"""

import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from headstart.data.array_names import name_labels
from headstart.data.dataset import Dataset
from headstart.data.form import Form, LoadOptions
from headstart.data.image_arrays import (
    FileRows,
    MemoryRows,
    Part,
    Rows,
    check_claim,
    dataset_of_arrays,
)
from headstart.data.images import open_regular, peek
from headstart.data.streams import Inflated
from headstart.errors import BadImageError, InputError

__all__ = ["IDX"]

GZIP_MAGIC = b"\x1f\x8b"
MAX_DIMENSIONS = 4
IMAGES = re.compile(r"images([-.])idx([34])", re.IGNORECASE)
# "test" before "train": EMNIST names its files emnist-letters-test-images-…; t10k are MNIST's to test on.
SPLITS = {"t10k": "test", "test": "test", "val": "val", "train": "train"}


def _read_start(file: BinaryIO | Inflated, where: str) -> tuple[tuple[int, ...], int]:
    """The shape, and bytes until the numbers.

    Raises:
        InputError: no such file, or not of bytes.
    """
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise InputError(f"{where}: no IDX file, or damaged")
    if magic[2] != 8:
        raise InputError(
            f"{where}: an IDX file of type {magic[2]:#04x}; only bytes (0x08) are read"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(f"{where}: ends in its header; copy or download it again")
    return struct.unpack(f">{magic[3]}I", sizes), 4 + len(sizes)


def _read_rows(path: Path) -> Rows:
    """The rows of a file: where they lie, or in memory where it is packed."""
    try:
        with open_regular(path) as (packed, info):
            if peek(path, 2) != GZIP_MAGIC:
                shape, start = _read_start(packed, str(path))
                size = info.st_size
                if size != start + math.prod(shape):
                    raise InputError(_tell_length(path, shape, start, size))
                return FileRows.of(path, start, shape, np.uint8)
            content = Inflated(packed, "gzip")
            shape, start = _read_start(content, str(path))
            needed = math.prod(shape)
            check_claim(str(path), needed, info.st_size, shape[0] if len(shape) > 1 else 0)
            data = content.read(needed + 1)
            if len(data) != needed:
                raise InputError(_tell_length(path, shape, start, start + len(data)))
            return MemoryRows(np.frombuffer(data, np.uint8).reshape(shape))
    except BadImageError as exc:
        raise InputError(f"{path}: {exc}; copy or download it again") from exc


def _tell_length(path: Path, shape: tuple[int, ...], start: int, size: int) -> str:
    told = " x ".join(map(str, shape))
    than = "more" if size > start + math.prod(shape) else f"{size:,}"
    return (
        f"{path}: says that it holds {told} bytes, which is a length of {start + math.prod(shape):,}, and "
        f"has {than}; copy or download it again"
    )


def _find_labels(images: Path) -> Path:
    """The file of the labels that belong to these images.

    Raises:
        InputError: there is none.
    """
    plain = IMAGES.sub(r"labels\1idx1", images.name).removesuffix(".gz")
    for name in (plain, f"{plain}.gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise InputError(f"{images}: its labels, {plain} or {plain}.gz, are not beside it")


def _list_images(path: Path) -> list[Path]:
    """The files of images in a folder, or this one; of one that is there packed as well, the other."""
    if not path.is_dir():
        return [path]
    found = {file.name: file for file in sorted(path.iterdir()) if IMAGES.search(file.name)}
    return [
        file
        for name, file in found.items()
        if not name.endswith(".gz") or name.removesuffix(".gz") not in found
    ]


def _recognises(path: Path) -> bool:
    try:
        files = _list_images(path)
    except OSError:
        return False
    if path.is_dir():
        return bool(files) and all(file.is_file() for file in files)
    start = peek(path, 4)
    is_plain = start[:3] == b"\0\0\x08" and start[3:] in (b"\3", b"\4")
    return IMAGES.search(path.name) is not None and (is_plain or start[:2] == GZIP_MAGIC)


def _load(path: Path, options: LoadOptions) -> Dataset:
    parts: list[Part] = []
    for images in _list_images(path):
        labels, rows = _find_labels(images), _read_rows(images)
        named = _read_rows(labels)
        if named.kinds() != {((), np.dtype(np.uint8))}:
            raise InputError(f"{labels}: not a label for each image")
        values = np.concatenate([np.zeros(0, np.uint8), *named.blocks()])
        name = images.name.lower()
        split = next((SPLITS[word] for word in SPLITS if word in name), "")
        if split in (part.split for part in parts):
            raise InputError(
                f"{path}: {images.name} and another both are the split '{split}'; name one file, or keep "
                "each data set in a folder of its own"
            )
        parts.append(Part(str(images), rows, name_labels(str(labels), values, len(rows)), split))
    return dataset_of_arrays(path, parts)


IDX = Form(
    name="idx",
    looks="a folder of MNIST's idx files",
    uses=frozenset(),
    recognises=_recognises,
    load=_load,
)

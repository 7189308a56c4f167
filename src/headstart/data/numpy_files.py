"""Takes a .npz with images and labels, or two .npy side by side, gives a `Dataset`; no pickle is ever read.

The form of both is that of numpy/lib/_format_impl.py: a magic number, a version, a header in the notation of
Python, and the numbers. A .npz is a ZIP of them.
"""

import ast
import contextlib
import dataclasses
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from headstart.data.array_names import (
    CLASS_NAMES,
    LABELS,
    MAX_LABEL_BYTES,
    check_names,
    find_pairs,
    name_labels,
    names_images,
)
from headstart.data.dataset import Dataset
from headstart.data.form import Form, LoadOptions, list_folders
from headstart.data.image_arrays import (
    FileRows,
    MemoryRows,
    Part,
    Rows,
    check_claim,
    dataset_of_arrays,
)
from headstart.data.images import open_regular, peek
from headstart.data.members import DAMAGES, ZIP_MAGICS, find_content, parse_zip
from headstart.errors import BadImageError, InputError, ResourceError, one_line

__all__ = ["NUMPY", "read_arrays"]

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # as NumPy reads without being told to trust the file
MAX_DIMENSIONS = 8
MAX_MEMBERS = 1000
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclasses.dataclass(frozen=True)
class _Header:
    """What stands before the numbers of an array.

    Attributes:
        shape, dtype: of it.
        fortran: whether the first index runs fastest.
        size: bytes until the numbers begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    size: int

    def data_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file: IO[bytes], where: str) -> _Header:
    """Read what stands before the numbers.

    Raises:
        InputError: it is no array, or one of Python objects or records.
    """
    start = file.read(12)
    if start[:6] != MAGIC or len(start) < 12 or start[6] not in (1, 2, 3):
        raise InputError(f"{where}: no array of NumPy's, or damaged")
    before = 10 if start[6] == 1 else 12
    length = struct.unpack_from("<H" if start[6] == 1 else "<I", start, 8)[0]
    if length > MAX_HEADER_BYTES:
        raise InputError(f"{where}: a header of {length:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
    text = start[before:] + file.read(max(0, length - len(start[before:])))
    try:
        header = ast.literal_eval(text.decode("latin1" if start[6] < 3 else "utf-8").strip())
        shape, fortran, described = header["shape"], header["fortran_order"], header["descr"]
        dtype = np.dtype(described) if isinstance(described, str) else None
    except (
        ValueError, SyntaxError, TypeError, LookupError, OverflowError, MemoryError, RecursionError,
    ) as exc:  # fmt: skip
        raise InputError(f"{where}: damaged: {one_line(exc)}") from exc
    if dtype is None or dtype.hasobject:
        raise InputError(
            f"{where}: an array of {'records' if dtype is None else 'Python objects'}, which is not read; "
            "save plain numbers, such as uint8"
        )
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in shape)
        or math.prod(shape) >= 2**48
        or type(fortran) is not bool
    ):
        raise InputError(f"{where}: damaged: no shape of an array")
    if not shape:
        raise InputError(f"{where}: a single number, and no array of images or labels")
    return _Header(shape, dtype, fortran, before + length)


def _read_numbers(file: IO[bytes], header: _Header, where: str) -> NDArray[Any]:
    """Read the numbers into memory; whether they fit in there was asked before."""
    try:
        data, done = np.empty(header.data_bytes(), np.uint8), 0
        while done < len(data):
            part = file.read(min(2**20, len(data) - done))
            if not part:
                raise InputError(f"{where}: ends before its numbers do; copy or download it again")
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        if header.dtype.itemsize == 0:
            raise InputError(f"{where}: an array of empty texts")
        array = data.view(header.dtype)
        return array.reshape(header.shape, order="F" if header.fortran else "C")
    except MemoryError as exc:
        raise ResourceError(f"{where}: out of memory while reading") from exc


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """The errors of damaged archives and files as one line."""
    try:
        yield
    except BadImageError as exc:
        raise InputError(f"{where}: {exc}") from exc
    except (InputError, ResourceError):
        raise
    except (OSError, ValueError, RuntimeError, zlib.error, *DAMAGES) as exc:
        raise InputError(
            f"{where}: cannot be read: {one_line(exc)}; copy or download it again"
        ) from exc


def _check_labels(header: _Header, where: str) -> None:
    if header.data_bytes() > MAX_LABEL_BYTES:
        raise InputError(f"{where}: labels of more than {MAX_LABEL_BYTES >> 30} GiB")


# ---------------------------------------------------------------- .npz


class _Archive:
    """The arrays of a .npz.

    Attributes:
        path: of it.
        members: {name without .npy: entry}.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        archive = parse_zip(file)
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise InputError(
                f"{path}: more than {MAX_MEMBERS:,} arrays; images and labels are one each"
            )
        self.path, self._file, self._archive = path, file, archive
        if any(entry.compress_type not in COMPRESSIONS for entry in entries):
            raise InputError(
                f"{path}: compressed in a way that NumPy does not write; save it again"
            )
        self.members = {entry.filename.removesuffix(".npy"): entry for entry in entries}

    def read_labels(self, name: str) -> NDArray[Any]:
        """Read labels, or names."""
        where, entry = f"{self.path}, {name}", self.members[name]
        with _reading(where), self._archive.open(entry) as file:
            _check_labels(_read_header(file, where), where)
        return self.read(name)

    def read(self, name: str) -> NDArray[Any]:
        """Read an array into memory."""
        where, entry = f"{self.path}, {name}", self.members[name]
        with _reading(where), self._archive.open(entry) as file:
            header = _read_header(file, where)
            check_claim(where, header.data_bytes(), entry.compress_size)
            return _read_numbers(file, header, where)

    def find_rows(self, name: str) -> Rows:
        """Find images: where they lie, if they are stored as they are, else in memory."""
        where, entry = f"{self.path}, {name}", self.members[name]
        with _reading(where), self._archive.open(entry) as file:
            header = _read_header(file, where)
            if entry.compress_type == zipfile.ZIP_STORED and not header.fortran:
                if header.size + header.data_bytes() <= entry.file_size:
                    start = find_content(self._file, entry.header_offset)
                    return FileRows.of(self.path, start + header.size, header.shape, header.dtype)
                raise InputError(f"{where}: ends before its numbers do; copy or download it again")
            check_claim(where, header.data_bytes(), entry.compress_size, header.shape[0])
            return MemoryRows(_read_numbers(file, header, where))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read those arrays of a .npz into memory that have one of these names.

    Raises:
        InputError: damaged, or of Python objects, or it claims more than it could hold.
        ResourceError: out of memory.
    """
    with _reading(str(path)), open_regular(path) as (file, _):
        archive = _Archive(path, file)
        return {name: archive.read(name) for name in names if name in archive.members}


def _load_npz(path: Path) -> Dataset:
    with _reading(str(path)), open_regular(path) as (file, _):
        archive = _Archive(path, file)
        pairs, warnings = find_pairs(str(path), archive.members)
        named = next((name for name in CLASS_NAMES if name in archive.members), None)
        classes = (
            None if named is None else check_names(f"{path}, {named}", archive.read_labels(named))
        )
        parts = []
        for pair in pairs:
            rows, numbers = archive.find_rows(pair.images), archive.read_labels(pair.labels)
            labels = name_labels(f"{path}, {pair.labels}", numbers, len(rows), classes)
            parts.append(Part(f"{path}, {pair.images}", rows, labels, pair.split))
        return dataset_of_arrays(path, parts, warnings=warnings)


# ---------------------------------------------------------------- .npy


def _list_npy(path: Path) -> list[tuple[Path, Path, str]]:
    """(images, labels, split) of a folder of .npy, or of one and what lies beside it."""
    folder = path if path.is_dir() else path.parent
    files = {file.stem: file for file in sorted(folder.glob("*.npy")) if file.is_file()}
    if path.is_dir():
        pairs, _ = find_pairs(str(path), files)
        return [(files[pair.images], files[pair.labels], pair.split) for pair in pairs]
    for name in files:
        try:
            pairs, _ = find_pairs(str(path), [path.stem, name])
        except InputError:
            continue
        return [(files[pair.images], files[pair.labels], pair.split) for pair in pairs]
    # A name of its own, as in flowers.npy beside labels.npy or flowers_labels.npy.
    for name in (f"{path.stem}_labels", *LABELS):
        if name in files and name != path.stem:
            return [(path, files[name], "")]
    raise InputError(
        f"{path}: no labels beside it; save them there as labels.npy, or name them as the images, as in "
        "x_train.npy and y_train.npy"
    )


def _load_npy(path: Path) -> Dataset:
    parts = []
    for images, labels, split in _list_npy(path):
        with _reading(str(images)), open(images, "rb") as file:
            header = _read_header(file, str(images))
            rows: Rows = FileRows.of(images, header.size, header.shape, header.dtype)
            if header.fortran:
                check_claim(str(images), header.data_bytes(), header.data_bytes())
                rows = MemoryRows(_read_numbers(file, header, str(images)))
        with _reading(str(labels)), open(labels, "rb") as file:
            header = _read_header(file, str(labels))
            _check_labels(header, str(labels))
            if header.data_bytes() > labels.stat().st_size:
                raise InputError(f"{labels}: ends before its numbers do; copy or download it again")
            names = name_labels(str(labels), _read_numbers(file, header, str(labels)), len(rows))
        parts.append(Part(str(images), rows, names, split))
    return dataset_of_arrays(path, parts)


# ---------------------------------------------------------------- the form


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return any(names_images(file.stem) for file in path.glob("*.npy")) and not list_folders(
            path
        )
    start = peek(path, len(MAGIC))
    return start == MAGIC or (start.startswith(ZIP_MAGICS) and _holds_arrays(path))


def _holds_arrays(path: Path) -> bool:
    if path.suffix.lower() == ".npz":
        return True
    try:
        with open_regular(path) as (file, _):
            return all(name.endswith(".npy") for name in parse_zip(file).namelist())
    except (InputError, ValueError, *DAMAGES):
        return False


def _load(path: Path, options: LoadOptions) -> Dataset:
    is_npz = path.is_file() and peek(path, len(MAGIC)) != MAGIC
    return _load_npz(path) if is_npz else _load_npy(path)


NUMPY = Form(
    name="numpy",
    looks="a .npz, or .npy files, of images and labels",
    uses=frozenset(),
    recognises=_recognises,
    load=_load,
)

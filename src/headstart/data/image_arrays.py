"""Takes arrays of images with labels, gives a `Dataset` whose images are their rows.

A row is read as the bytes of a PPM of its RGB pixels, which are the same on every machine and in every
version; so it gives the features that a file of these pixels gives. Arrays that lie in a file as they are,
are read from there row by row. Shape letters: N images, H W pixels, C channels.

What an array may be: (N, H, W), (N, H, W, C) or (N, C, H, W), with 1, 3 or 4 channels, of which the fourth
says how opaque a pixel is, over white; its shape must leave no doubt which it is. Its numbers: uint8; other
integers from 0 to 255; booleans, black and white; floating-point numbers, taken as 0 to 1 where none in the
data set is above 1, else as 0 to 255. An image with a number that is not finite is a bad image.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from headstart.data.dataset import Dataset, Row, dataset_of_rows
from headstart.data.decoding import PillowSource
from headstart.data.images import FileSource, Source, Stamp, read_bytes_at
from headstart.data.streams import FREE_BYTES, MAX_RATIO
from headstart.errors import BadImageError, InputError, ResourceError

__all__ = [
    "FileRows",
    "ListRows",
    "MemoryRows",
    "Part",
    "Rows",
    "check_claim",
    "check_kind",
    "dataset_of_arrays",
]

CHANNELS = (1, 3, 4)
NOT_FINITE = "pixels that are NaN or infinite"

# Of an array that is scanned; more than one image a time, and little memory.
BLOCK_BYTES = 16 * 2**20

MAX_UNPACKED_BYTES = 8 * 2**30

# What is known of each takes some 300 bytes.
MAX_IMAGES = 10_000_000


def check_claim(where: str, size: int, packed: int, images: int = 0) -> None:
    """Refuse to make room for what a compressed file claims to hold, where no images are like that.

    Args:
        size: bytes it claims to hold.
        packed: bytes it takes in its file.
        images: how many it claims to hold.

    Raises:
        InputError: too much for memory, or for its size.
    """
    if size > MAX_UNPACKED_BYTES:
        raise InputError(
            f"{where}: {size / 2**30:,.1f} GiB of memory once unpacked, and {MAX_UNPACKED_BYTES >> 30} "
            "are allowed; save it uncompressed, as .npy, of which only what is needed is read"
        )
    if size > max(FREE_BYTES, MAX_RATIO * packed) or images > 8 * packed:
        raise InputError(
            f"{where}: claims {size:,} bytes in {packed:,}, as a file does that is made to fill the "
            "memory; if it is yours, save it uncompressed, as .npy"
        )


class Rows(Protocol):
    """N images as they lie in arrays, each an array of its own or a row of a common one."""

    def __len__(self) -> int: ...

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        """List the shapes and types of images, without N; nothing for images that are no arrays."""
        ...

    def read(self, row: int) -> NDArray[Any] | Image.Image:
        """Read one image; it raises BadImageError or ResourceError."""
        ...

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Read all images in order, some at a time, (n, …)."""
        ...

    def files(self) -> tuple[Path, ...]:
        """Name the file that they are read from; none in memory."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MemoryRows:
    """An array in memory."""

    array: NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        return {(self.array.shape[1:], self.array.dtype)}

    def read(self, row: int) -> NDArray[Any]:
        found: NDArray[Any] = self.array[row]
        return found

    def blocks(self) -> Iterator[NDArray[Any]]:
        size = max(1, BLOCK_BYTES // max(1, self.array[:1].nbytes))
        for first in range(0, len(self.array), size):
            yield self.array[first : first + size]

    def files(self) -> tuple[Path, ...]:
        return ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ListRows:
    """Arrays in memory, one an image."""

    arrays: Sequence[NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays)

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        return {(array.shape, array.dtype) for array in self.arrays}

    def read(self, row: int) -> NDArray[Any]:
        return self.arrays[row]

    def blocks(self) -> Iterator[NDArray[Any]]:
        for array in self.arrays:
            yield array[None]

    def files(self) -> tuple[Path, ...]:
        return ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FileRows:
    """An array in a file, row after row; the file is opened for each, so that it may change or vanish.

    Attributes:
        path: of the file.
        offset: of the first image, in bytes.
        shape: (N, …).
        dtype: of its numbers.
        stride: from one image to the next, in bytes; None where they follow at once.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stride: int | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        stride: int | None = None,
    ) -> "FileRows":
        """The same, of a type by its name.

        Raises:
            InputError: the file is shorter than the array.
        """
        rows = cls(path, offset, shape, np.dtype(dtype), stride)
        needed = offset + (len(rows) - 1) * rows.step() + rows.row_bytes() if len(rows) else offset
        try:
            size = path.stat().st_size
        except OSError as exc:
            raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
        if size < needed:
            raise InputError(
                f"{path}: {size:,} bytes, and {shape[0]:,} images need {needed:,}; it is not whole, copy "
                "or download it again"
            )
        return rows

    def __len__(self) -> int:
        return self.shape[0]

    def row_bytes(self) -> int:
        """Bytes of an image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def step(self) -> int:
        """Bytes from one image to the next."""
        return self.row_bytes() if self.stride is None else self.stride

    def kinds(self) -> set[tuple[tuple[int, ...], np.dtype[Any]]]:
        return {(self.shape[1:], self.dtype)}

    def read(self, row: int) -> NDArray[Any]:
        found: NDArray[Any] = self._read(row, 1)[0]
        return found

    def blocks(self) -> Iterator[NDArray[Any]]:
        size = max(1, BLOCK_BYTES // max(1, self.step()))
        for first in range(0, len(self), size):
            try:
                yield self._read(first, min(size, len(self) - first))
            except BadImageError as exc:
                raise InputError(f"{self.path}: cannot be read: {exc}") from exc

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _read(self, first: int, count: int) -> NDArray[Any]:
        size = (count - 1) * self.step() + self.row_bytes()
        data = read_bytes_at(self.path, self.offset + first * self.step(), size)
        if len(data) < size:
            raise BadImageError(f"{self.path.name} ends before it")
        if self.stride is None:
            return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        padded = np.frombuffer(data + bytes(self.step() - self.row_bytes()), np.uint8)
        rows = padded.reshape(count, self.step())[:, : self.row_bytes()]
        return np.ascontiguousarray(rows).view(self.dtype).reshape(count, *self.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Images of a data set that lie together.

    Attributes:
        where: what they are, for messages: "mnist.npz, x_train".
        images: their pixels.
        labels: N names of classes, or N tuples of them.
        split: "train", "val", "test" or "" (not assigned).
        prefix: what their ids begin with; by default the split.
    """

    where: str
    images: Rows
    labels: Sequence[str | tuple[str, ...]]
    split: str = ""
    prefix: str | None = None

    def place(self) -> str:
        """Give what their ids begin with."""
        return self.split if self.prefix is None else self.prefix


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _RowSource:
    """One image of an array, as the bytes of a PPM."""

    rows: Rows
    row: int
    data: "_ArrayReader"

    def read(self, most: int | None = None) -> bytes:
        try:
            found = self.rows.read(self.row)
            if isinstance(found, Image.Image):
                return PillowSource(found).read(most)
            image = Image.fromarray(_to_pixels(found, self.data.scale))
        except MemoryError as exc:
            raise ResourceError("out of memory while reading an image of an array") from exc
        # Its memory is taken already, and the bound of pixels is kept when these bytes are decoded.
        return PillowSource(image, math.prod(image.size)).read(most)

    def stamp(self) -> Stamp | None:
        """Give the state of all files: what is read of one depends on the number and range of the others."""
        stamps = [FileSource(path).stamp() for path in self.data.files]
        known = [stamp for stamp in stamps if stamp is not None]
        if not known or len(known) < len(stamps):
            return None
        sizes, modified, changed = zip(*known, strict=True)
        return Stamp(sum(sizes), max(modified), max(changed))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _ArrayReader:
    """Opens the rows.

    Attributes:
        places: the parts of each place, with the number of their first image.
        scale: what floating-point numbers are multiplied by.
        files: that all of them are in; none where some are in memory.
    """

    places: Mapping[str, tuple[list[int], list[Rows]]]
    scale: float
    files: tuple[Path, ...]

    def open(self, image_id: str) -> Source:
        place, _, number = image_id.rpartition("/")
        firsts, parts = self.places[place]
        found = bisect.bisect_right(firsts, int(number)) - 1
        return _RowSource(parts[found], int(number) - firsts[found], self)


def dataset_of_arrays(
    root: Path, parts: Sequence[Part], *, warnings: tuple[str, ...] = ()
) -> Dataset:
    """Make the data set of arrays; ids are the split and the number of the row, as in "train/00012".

    Parts of one place are numbered through.

    Raises:
        InputError: an array of a shape, type or range that no images have; none, or too many.
    """
    for part in parts:
        for shape, dtype in part.images.kinds():
            check_kind(part.where, shape, dtype)
    count = sum(len(part.images) for part in parts)
    if not count:
        raise InputError(f"{root}: no images in it")
    if count > MAX_IMAGES:
        raise InputError(f"{root}: more than {MAX_IMAGES:,} images; give a part of them")
    bad, scale, more = _measure_values(parts)
    places: dict[str, tuple[list[int], list[Rows]]] = {}
    totals: dict[str, int] = {}
    for part in parts:
        firsts, of_place = places.setdefault(part.place(), ([], []))
        firsts.append(totals.get(part.place(), 0))
        of_place.append(part.images)
        totals[part.place()] = firsts[-1] + len(part.images)
    rows = []
    numbers = {place: itertools.count() for place in places}
    for index, part in enumerate(parts):
        place = part.place()
        width, start = len(str(totals[place] - 1)), f"{place}/" if place else ""
        for row, label in enumerate(part.labels):
            image_id = f"{start}{next(numbers[place]):0{width}}"
            error = NOT_FINITE if (index, row) in bad else ""
            labels = label if isinstance(label, tuple) else (label,)
            rows.append(Row(image_id, labels, part.split, error=error))
    dataset = dataset_of_rows(root, rows, warnings=(*warnings, *more))
    files = [part.images.files() for part in parts]
    distinct = tuple(dict.fromkeys(itertools.chain(*files))) if all(files) else ()
    return dataclasses.replace(dataset, reader=_ArrayReader(places, scale, distinct))


def check_kind(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse what is no image, or could be two."""
    told = " x ".join(map(str, shape))
    advice = (
        "; headstart fit --features FILE takes bottleneck features" if dtype.kind == "f" else ""
    )
    if dtype.kind not in "buif":
        raise InputError(
            f"{where}: an array of {'Python objects' if dtype.hasobject else dtype}; save the images as uint8"
        )
    if len(shape) == 1:
        raise InputError(
            f"{where}: rows of {told} numbers, of which height and width are not known; reshape them to "
            f"(images, height, width) or (images, height, width, channels){advice}"
        )
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            f"{where}: images of shape {told or 'none'}; expected (height, width) or (height, width, "
            "channels)"
        )
    if len(shape) == 3:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if first and last:
            raise InputError(
                f"{where}: images of shape {told}, where the channels may be first or last; give grey "
                "images as (height, width), and enlarge those of 4 pixels and less a side"
            )
        if not (first or last) or shape[:2] == (1, 1):
            raise InputError(
                f"{where}: images of shape {told}; expected 1, 3 or 4 channels, first or last{advice}"
            )


def _measure_values(
    parts: Sequence[Part],
) -> tuple[set[tuple[int, int]], float, tuple[str, ...]]:
    """Look at all numbers that are not uint8.

    Returns:
        (part, row) of images that are not finite, what floating-point numbers are to be multiplied by,
        and warnings.

    Raises:
        InputError: numbers that are no pixels.
    """
    bad: set[tuple[int, int]] = set()
    lowest, highest = math.inf, -math.inf
    for index, part in enumerate(parts):
        kinds = {dtype for _, dtype in part.images.kinds()}
        if all(kind in (np.dtype(np.uint8), np.dtype(np.bool_)) for kind in kinds):
            continue
        row = 0
        for block in part.images.blocks():
            low, high, finite = _measure_block(block)
            bad.update((index, row + int(i)) for i in np.flatnonzero(~finite))
            row += len(block)
            if low < 0 or high > 255:
                raise InputError(
                    f"{part.where}: numbers from {low:g} to {high:g}; expected 0 to 255 or, in floating "
                    "point, 0 to 1 as well"
                )
            if block.dtype.kind == "f":
                lowest, highest = min(lowest, low), max(highest, high)
    if highest < lowest:  # no floating-point numbers
        return bad, 1.0, ()
    scale = 255.0 if highest <= 1 else 1.0
    taken = "0 to 1" if scale > 1 else "0 to 255"
    told = f"floating-point pixels from {lowest:g} to {highest:g} are taken as {taken}"
    return bad, scale, (told,)


def _measure_block(block: NDArray[Any]) -> tuple[float, float, NDArray[np.bool_]]:
    """The lowest and highest finite number, and which images are finite."""
    flat = block.reshape(len(block), -1)
    finite = np.isfinite(flat).all(axis=1) if block.dtype.kind == "f" else np.ones(len(flat), bool)
    flat = flat if finite.all() else flat[finite]
    if not flat.size:
        return math.inf, -math.inf, finite
    return float(flat.min()), float(flat.max()), finite


def _to_pixels(image: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    """uint8 (H, W), (H, W, 3) or (H, W, 4) of an image as it lies in its array."""
    if image.ndim == 3 and image.shape[2] not in CHANNELS:
        image = image.transpose(1, 2, 0)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype.kind == "b":
        image = image * np.uint8(255)
    elif image.dtype != np.uint8:
        factor = scale if image.dtype.kind == "f" else 1.0
        if not np.isfinite(image).all() or image.min() < 0 or image.max() * factor > 255:
            raise BadImageError("its pixels have changed since they were looked at")
        image = np.rint(image * factor)
    return np.ascontiguousarray(image, dtype=np.uint8)

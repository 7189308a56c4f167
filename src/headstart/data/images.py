"""References to images by id, wherever their bytes are. No image is opened here.

A new place for images (an array, say) is one `Source` and one `Reader`, and no later file needs to
know of it.
"""

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from headstart.errors import BadImageError, HeadstartError, ResourceError

__all__ = [
    "FileSource",
    "FolderReader",
    "ImageRef",
    "JoinedReader",
    "MappedReader",
    "MemorySource",
    "Reader",
    "Source",
    "Stamp",
    "check_bytes",
    "open_regular",
    "peek",
    "read_bytes_at",
    "read_image_bytes",
]

MAX_FILE_BYTES = 512 * 2**20


class Stamp(NamedTuple):
    """The state by which a source is taken to be unchanged.

    Attributes:
        size: in bytes, of the image or of the file that holds it.
        modified_ns: when the content was last changed, nanoseconds since the epoch.
        changed_ns: when anything about the file was last changed, the same.
    """

    size: int
    modified_ns: int
    changed_ns: int


class Source(Protocol):
    """The bytes of one image, wherever they are."""

    def read(self, most: int | None = None) -> bytes:
        """Read all bytes, or the first `most`; it raises as `read_image_bytes` does."""
        ...

    def stamp(self) -> Stamp | None:
        """Give its state now; None where it has none, or does not exist."""
        ...


class Reader(Protocol):
    """The images of a data set, by id."""

    def open(self, image_id: str) -> Source:
        """Give the source of an image. It reads nothing and does not check that the image exists."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that can be read, or the reason why it cannot.

    Attributes:
        id: its name, for people, the store and random draws.
        source: of its bytes; None only with an `error`.
        error: why it must not be read, "" for a good one.
    """

    id: str
    source: Source | None = None
    error: str = ""

    def read(self, most: int | None = None) -> bytes:
        """Read the bytes of the image's file, or the first `most` of them.

        Raises:
            BadImageError: it must not be read, or cannot be.
            ResourceError: the process is out of file handles or memory.
        """
        if self.error or self.source is None:
            raise BadImageError(self.error or "nowhere to be found")
        return self.source.read(most)

    def stamp(self) -> Stamp | None:
        """Give the state of its source; None where that has none."""
        return None if self.source is None else self.source.stamp()


@dataclasses.dataclass(frozen=True, slots=True)
class FileSource:
    """A file on disk."""

    path: Path

    def read(self, most: int | None = None) -> bytes:
        """Read the file, as `read_image_bytes` does."""
        return read_image_bytes(self.path, most)

    def stamp(self) -> Stamp | None:
        """Give the size and times of the file; None where they cannot be read."""
        try:
            info = os.stat(self.path)
        except (OSError, ValueError):  # the latter of a NUL in the name
            return None
        return Stamp(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class MemorySource:
    """The bytes of a file in memory."""

    data: bytes

    def read(self, most: int | None = None) -> bytes:
        """Give these bytes, or the first `most`."""
        return self.data if most is None else self.data[:most]

    def stamp(self) -> None:
        """Give None: memory has no state to compare."""


@dataclasses.dataclass(frozen=True, slots=True)
class FolderReader:
    """Files below a folder; an id is the path from there, with `/`."""

    root: Path

    def open(self, image_id: str) -> FileSource:
        """Give the file of an id."""
        return FileSource(self.root / image_id)


@dataclasses.dataclass(frozen=True, slots=True)
class MappedReader:
    """Sources by name; an id is the name without the `base` that all begin with."""

    sources: Mapping[str, Source]
    base: str = ""

    def open(self, image_id: str) -> Source:
        """Give the source of an id."""
        return self.sources[self.base + image_id]


@dataclasses.dataclass(frozen=True, slots=True)
class JoinedReader:
    """A reader, and a second one for ids that begin with `prefix`."""

    first: Reader
    prefix: str
    second: Reader

    def open(self, image_id: str) -> Source:
        """Give the source of an id; the second reader gets it without the prefix."""
        own = image_id.removeprefix(self.prefix)
        return self.first.open(own) if own == image_id else self.second.open(own)


def read_image_bytes(path: Path, most: int | None = None) -> bytes:
    """Read the bytes of a regular file, or the first `most` of them.

    Raises:
        BadImageError: missing, not a regular file (a pipe is never waited on), too large, unreadable.
        ResourceError: the process is out of file handles or memory.
    """
    with open_regular(path) as (file, info):
        check_bytes(info.st_size)
        return file.read(info.st_size if most is None else min(most, info.st_size))


def read_bytes_at(path: Path, start: int, size: int) -> bytes:
    """Read `size` bytes of a regular file of any length, fewer where it ends before.

    Raises:
        BadImageError, ResourceError: as `read_image_bytes`.
    """
    with open_regular(path) as (file, info):
        file.seek(start)
        return file.read(min(size, max(0, info.st_size - start)))


def peek(path: Path, size: int) -> bytes:
    """Read the first bytes of a file, none where it is no regular one or cannot be read."""
    try:
        return read_bytes_at(path, 0, size)
    except BadImageError:
        return b""


def check_bytes(size: int) -> None:
    """Refuse an image's file of so many bytes, as BadImageError, before it is read."""
    if size > MAX_FILE_BYTES:
        raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file to read, with what the system says of it.

    Raises:
        BadImageError: missing, not a regular file (a pipe is never waited on), or unreadable, then or while
            it is open.
        ResourceError: the process is out of file handles or memory.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
        try:
            info = os.fstat(handle)
            if stat.S_ISDIR(info.st_mode):
                raise BadImageError("is a directory")
            if not stat.S_ISREG(info.st_mode):
                raise BadImageError("not a regular file")
            with open(handle, "rb", closefd=False) as file:
                yield file, info
        finally:
            os.close(handle)
    except MemoryError as exc:
        raise ResourceError(f"{path}: out of memory while reading") from exc
    except HeadstartError:
        raise
    except (OSError, ValueError) as exc:
        number = getattr(exc, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise ResourceError(f"{path}: {os.strerror(number)}; close other programs") from exc
        reason = os.strerror(number).lower() if number else str(exc)
        raise BadImageError(reason) from exc

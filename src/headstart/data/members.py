"""Takes a zip or tar archive, gives its members, each with a source of its bytes. Nothing is ever unpacked.

What is in an archive is told by zipfile and tarfile; where a member lies is kept, and it is read from there
when it is asked for, by as many threads as want to: in a zip or a plain tar at its place, in a tar that is
compressed by gzip from the nearest state that is known. Other compressions can only be read from the start,
so what they hold is kept in memory, and no more than `MAX_HELD_BYTES` of it.
"""

import bisect
import contextlib
import dataclasses
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from headstart.data.images import (
    MAX_FILE_BYTES,
    FileSource,
    Source,
    Stamp,
    check_bytes,
    open_regular,
)
from headstart.data.streams import (
    FREE_BYTES,
    MAX_RATIO,
    GzipParts,
    Inflated,
    find_compression,
)
from headstart.data.trees import COMPANION_SUFFIXES
from headstart.errors import BadImageError, InputError, one_line

__all__ = [
    "DAMAGES",
    "ZIP_MAGICS",
    "Contents",
    "Member",
    "common_folder",
    "find_content",
    "find_kind",
    "first_names",
    "list_archives",
    "list_members",
    "parse_zip",
    "stem_of",
]

MAX_MEMBERS = 1_000_000
MAX_NAME = 4096  # characters, as Linux has it
MAX_DEPTH = 100
# What a tar says of a member beside its block, and what stands at the end of a zip.
MAX_HEADER_BYTES = 2**20
MAX_DIRECTORY_BYTES = 2**28
MAX_HELD_BYTES = 2**30

# How to make a plain tar, which is as large where images are in it.
DECOMPRESS = {"bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}

BLOCK = tarfile.BLOCKSIZE
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
ZIP_HEADER = 30
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ENCRYPTED = 1

# What the parsers raise.
DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
)

ENDINGS = re.compile(r"(?i)(\.tar)?\.(zip|tar|tgz|tbz2?|txz|tzst|gz|bz2|xz|zst)$")


class Member(NamedTuple):
    """One member of an archive.

    Attributes:
        source: of its bytes; None for a folder, and where there is an error.
        is_folder: whether it is one.
        is_link: whether it is a link, symbolic or hard.
        error: why it cannot be read, "" if no reason is known.
    """

    source: Source | None
    is_folder: bool = False
    is_link: bool = False
    error: str = ""


@dataclasses.dataclass
class Contents:
    """What is in an archive.

    Attributes:
        members: {path in the archive, with `/`: member}, in its order. No path leads out of it.
        refused: how many names were passed over, since they lead out of the archive or are no paths.
        first_refused: the first of them.
        repeated: how many members another of the same name came after, which is taken.
        warnings: one line each.
    """

    members: dict[str, Member] = dataclasses.field(default_factory=dict)
    refused: int = 0
    first_refused: str = ""
    repeated: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, member: Member) -> None:
        """Take a member by the name that the archive gives it.

        Raises:
            InputError: there are too many.
        """
        if len(self.members) + self.refused + self.repeated >= MAX_MEMBERS:
            raise InputError(f"more than {MAX_MEMBERS:,} members; pack fewer into one archive")
        path = _clean(name)
        if path is None:
            self.first_refused = self.first_refused or name[:200]
            self.refused += 1
        elif path:
            is_again = path in self.members and not member.is_folder
            self.repeated += is_again
            if is_again or path not in self.members:
                self.members[path] = member

    def tell(self) -> list[str]:
        """Give the warnings, with those of what was passed over."""
        told = list(self.warnings)
        if self.refused:
            names = "names lead" if self.refused > 1 else "name leads"
            told.append(
                f"passed over {self.refused} member{'s' if self.refused > 1 else ''} whose {names} out of "
                f"the archive, or {'are no paths' if self.refused > 1 else 'is no path'} "
                f"(first: '{self.first_refused}')"
            )
        if self.repeated:
            told.append(
                f"{self.repeated} member{'s have' if self.repeated > 1 else ' has'} the name of a later "
                "one, which is taken"
            )
        return told


def stem_of(path: Path) -> str:
    """Give an archive's name without its ending: "cats" of cats.tar.gz."""
    return ENDINGS.sub("", path.name) or path.name


def list_archives(folder: Path) -> list[Path]:
    """List by name the archives of a folder that holds nothing else to read; [] for any other folder."""
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".")]
            names = sorted(e.name for e in found if ENDINGS.search(e.name) and e.is_file())
    except OSError:
        return []
    others = {e.name for e in found}.difference(names)
    is_alone = all(os.path.splitext(n)[1].lower() in COMPANION_SUFFIXES for n in others)
    return [folder / name for name in names] if is_alone else []


def common_folder(paths: tuple[Path, ...]) -> Path:
    """Give the folder that all of several files are below; that of the first where they are on two drives."""
    folders = [os.path.abspath(path.parent) for path in paths]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return Path(folders[0])


def find_kind(path: Path) -> str:
    """Tell by its content what archive a file is: "zip", "tar", "tar gzip" and the like; "" for none.

    Raises:
        UsageError: the package that reads its compression is missing.
    """
    try:
        with open_regular(path) as (file, _):
            start = file.read(BLOCK)
            if start.startswith(ZIP_MAGICS):
                return "zip"
            compression = find_compression(start)
            if compression:
                file.seek(0)
                start = Inflated(file, compression).read(BLOCK)
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
            return f"tar {compression}".strip()
    except (tarfile.HeaderError, BadImageError):
        return ""


def first_names(path: Path, count: int) -> list[str]:
    """Give the names of the first members of a tar, as `Contents` has them.

    Raises:
        InputError: it is damaged there.
    """
    with _reading(path) as (file, _), _open_tar(file) as (tar, _):
        infos = (info for _, info in zip(range(count), _walk_tar(tar), strict=False))
        return [name for info in infos if (name := _clean(info.name))]


def list_members(path: Path) -> Contents:
    """List the members of an archive.

    Raises:
        InputError: it is none, is damaged or cut short, or holds more than is read; names it.
    """
    with _reading(path) as (file, archive):
        start = file.read(BLOCK)
        if start.startswith(ZIP_MAGICS):
            return _list_zip(file, archive)
        return _list_tar(file, archive, find_compression(start))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, "_Archive"]]:
    """Open an archive, with whatever goes wrong told in one line that names it."""
    try:
        with open_regular(path) as (file, info):
            yield file, _Archive(path, info.st_size, info.st_mtime_ns)
    except InputError as exc:  # a BadImageError too
        raise InputError(f"{path}: {exc}") from exc
    except DAMAGES as exc:
        raise InputError(
            f"{path}: damaged or cut short ({one_line(exc)}); copy or download it again"
        ) from exc


def _clean(name: str) -> str | None:
    """A member's path below the archive's root, "" for that itself; None for what is no such path."""
    if len(name) > MAX_NAME or re.search(r"^/|^[A-Za-z]:|[\\\0]", name):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or len(parts) > MAX_DEPTH else "/".join(parts)


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True, slots=True)
class _Archive:
    """An archive's file, and its state when it was listed."""

    path: Path
    size: int
    modified_ns: int

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open it anew, unless it has changed; raises as `open_regular` does."""
        with open_regular(self.path) as (file, info):
            if (info.st_size, info.st_mtime_ns) != (self.size, self.modified_ns):
                raise BadImageError("its archive has changed since it was listed")
            yield file

    def stamp(self) -> Stamp | None:
        return FileSource(self.path).stamp()


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """A member of an archive, which has the archive's stamp."""

    archive: _Archive

    def stamp(self) -> Stamp | None:
        """Give the state of the archive."""
        return self.archive.stamp()


@dataclasses.dataclass(frozen=True, slots=True)
class _TarSource(_Source):
    """Bytes at a place in a plain tar."""

    offset: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        """Read them, as `Source` says."""
        with self.archive.opened() as file:
            file.seek(self.offset)
            return _whole(file.read, self.size if most is None else min(most, self.size))


@dataclasses.dataclass(frozen=True, slots=True)
class _GzipSource(_Source):
    """Bytes at a place in the content of a tar that is compressed by gzip."""

    parts: GzipParts
    offset: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        """Read them, as `Source` says."""
        with self.archive.opened() as file:
            wanted = self.size if most is None else min(most, self.size)
            return _whole(lambda size: self.parts.read(file, self.offset, size), wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class _HeldSource(_Source):
    """Bytes that are held in memory, since the archive can only be read from its start."""

    data: bytes

    def read(self, most: int | None = None) -> bytes:
        """Give them, as `Source` says."""
        return self.data if most is None else self.data[:most]


@dataclasses.dataclass(frozen=True, slots=True)
class _ZipSource(_Source):
    """A member of a zip, stored or deflated.

    Attributes:
        header: where its own header stands.
        packed: how many bytes it takes in the archive.
        method: `STORED` or `DEFLATED`.
        crc: CRC-32 of its content.
    """

    header: int
    packed: int
    method: int
    crc: int

    def read(self, most: int | None = None) -> bytes:
        """Read and inflate it, as `Source` says."""
        with self.archive.opened() as file:
            file.seek(find_content(file, self.header))
            # Deflating makes what cannot be made smaller at most a little larger.
            enough = self.packed if most is None else most + most // 512 + 1024
            data = _whole(file.read, min(self.packed, enough))
            if self.method == DEFLATED:
                data = _inflate(data, most)
            if most is not None:
                return data[:most]
            if zlib.crc32(data) != self.crc:
                raise BadImageError("damaged in the archive: its checksum differs")
            return data


def _whole(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) < size:
        raise BadImageError("the archive ends within it")
    return data


def _inflate(data: bytes, most: int | None) -> bytes:
    """The content, or its first bytes, of which none beyond the bounds is ever made."""
    bound = min(MAX_FILE_BYTES, max(FREE_BYTES, MAX_RATIO * len(data)))
    inflater = zlib.decompressobj(wbits=-15)
    try:
        found = inflater.decompress(data, bound + 1 if most is None else max(1, min(most, bound)))
    except zlib.error as exc:
        raise BadImageError(f"damaged in the archive: {one_line(exc)}") from exc
    if len(found) > bound:
        raise BadImageError(
            f"inflates from {len(data):,} bytes to more than {bound >> 20} MiB, as a bomb does"
        )
    if most is None and not inflater.eof:
        raise BadImageError("damaged in the archive: cut short")
    return found


class _Guarded:
    """A file as the parsers of the standard library read it, with a bound on each read.

    Attributes:
        last: what was read last.
    """

    def __init__(self, file: "BinaryIO | Inflated", most: int) -> None:
        self.last = b""
        self._file, self._most = file, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._most:
            if size >= 0 or isinstance(self._file, Inflated):
                raise InputError("a header of absurd size; the archive is damaged or hostile")
            # The end of a zip, whose length its parser does not say; room is made for all that is asked for.
            here, end = self._file.tell(), self._file.seek(0, os.SEEK_END)
            size = min(self._most, end - self._file.seek(here))
        self.last = self._file.read(size)
        if self.last.count(b"PK\x01\x02") > MAX_MEMBERS:
            raise InputError(f"more than {MAX_MEMBERS:,} members; pack fewer into one archive")
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        if isinstance(self._file, Inflated):
            return self._file.seek(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


# ---------------------------------------------------------------- zip


def parse_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Read what is in a zip, none of its members.

    Raises:
        InputError: it holds more than is read.
        One of `DAMAGES`: it is damaged.
    """
    guarded = _Guarded(file, MAX_DIRECTORY_BYTES)
    try:  # macOS and others write UTF-8 and do not say so
        return zipfile.ZipFile(guarded, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(guarded)


def find_content(file: BinaryIO, header: int) -> int:
    """Find where the bytes of a zip's member begin: after its own header, of which two fields vary in length.

    Raises:
        BadImageError: no header is there.
    """
    file.seek(header)
    fixed = file.read(ZIP_HEADER)
    if len(fixed) < ZIP_HEADER or not fixed.startswith(ZIP_MAGICS[0]):
        raise BadImageError("damaged archive: the member is not where it should be")
    name, extra = struct.unpack_from("<HH", fixed, 26)
    return header + ZIP_HEADER + int(name) + int(extra)


def _list_zip(file: BinaryIO, archive: _Archive) -> Contents:
    infos = parse_zip(file).infolist()
    listing = Contents()
    starts = sorted(info.header_offset for info in infos)
    for info in infos:
        first = bisect.bisect_left(starts, info.header_offset)
        after = starts[first + 1] if first + 1 < len(starts) else archive.size
        listing.add(info.orig_filename, _describe_zipped(info, archive, after))
    return listing


def _describe_zipped(info: zipfile.ZipInfo, archive: _Archive, after: int) -> Member:
    """A member, where the next one begins at `after`."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    start, packed = info.header_offset, info.compress_size
    if info.orig_filename.endswith("/") or kind == stat.S_IFDIR:
        return Member(None, is_folder=True)
    if kind == stat.S_IFLNK:
        return Member(None, is_link=True, error="a link, which is not followed in an archive")
    if kind not in (0, stat.S_IFREG):
        return Member(None, error="not a regular file")
    if info.flag_bits & ENCRYPTED:
        return Member(None, error="encrypted; pack it without a password")
    if info.compress_type not in (STORED, DEFLATED):
        return Member(
            None, error=f"compressed by method {info.compress_type}; pack it with deflate"
        )
    if error := _say_why_large(max(packed, info.file_size)):
        return Member(None, error=error)
    if start < 0 or start + ZIP_HEADER + packed > after:
        return Member(None, error="damaged archive: it lies in another member, or beyond the end")
    return Member(_ZipSource(archive, start, packed, info.compress_type, info.CRC))


def _say_why_large(size: int) -> str:
    try:
        check_bytes(size)
    except BadImageError as exc:
        return str(exc)
    return ""


# ---------------------------------------------------------------- tar


@contextlib.contextmanager
def _open_tar(file: "BinaryIO | Inflated") -> Iterator[tuple[tarfile.TarFile, _Guarded]]:
    if not isinstance(file, Inflated):
        file.seek(0)
        compression = find_compression(file.read(BLOCK))
        file.seek(0)
        file = Inflated(file, compression) if compression else file
    guarded = _Guarded(file, MAX_HEADER_BYTES)
    with tarfile.TarFile(fileobj=guarded, encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[arg-type]
        yield tar, guarded


def _walk_tar(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, none of which it keeps in memory."""
    last = -1
    while (info := tar.next()) is not None:
        if info.offset <= last or info.size < 0:
            raise InputError("damaged: a member of no length, or none at all")
        last = info.offset
        tar.members.clear()  # type: ignore[attr-defined]
        yield info


def _list_tar(file: BinaryIO, archive: _Archive, compression: str) -> Contents:
    listing = Contents()
    parts = GzipParts(archive.path)
    content: Inflated | None = None
    if compression:
        file.seek(0)
        content = Inflated(
            file, compression, notice=parts.notice if compression == "gzip" else None
        )
    held = 0
    with _open_tar(content or file) as (tar, guarded):
        for info in _walk_tar(tar):
            member = _describe_tarred(info)
            if not (member.is_folder or member.error):
                if content is None:
                    member = _place_in_tar(info, archive)
                elif compression == "gzip":
                    member = Member(_GzipSource(archive, parts, info.offset_data, info.size))
                else:
                    held += info.size
                    _check_held(max(held, archive.size), compression)
                    content.seek(info.offset_data)
                    member = Member(_HeldSource(archive, _whole(content.read, info.size)))
            listing.add(info.name, member)
        end = guarded.last
        if content is not None:
            content.drain()
    if not end:
        listing.warnings.append(
            f"{archive.path.name} has no end mark, so it may have been cut short"
        )
    elif end != bytes(BLOCK):
        raise InputError(
            f"damaged or cut short after {len(listing.members):,} members; copy or download it again"
        )
    return listing


def _check_held(size: int, compression: str) -> None:
    if size > MAX_HELD_BYTES:
        raise InputError(
            f"more than {MAX_HELD_BYTES >> 30} GiB compressed by {compression}, which can only be read "
            f"from the start; {DECOMPRESS[compression]} makes a plain tar of it, which is read at any size"
        )


def _describe_tarred(info: tarfile.TarInfo) -> Member:
    """A member without its source."""
    if info.isdir():
        return Member(None, is_folder=True)
    if info.issym() or info.islnk():
        return Member(None, is_link=True, error="a link, which is not followed in an archive")
    if not info.isreg():
        return Member(None, error="not a regular file")
    if info.issparse():
        return Member(None, error="a sparse file; pack it without --sparse")
    return Member(None, error=_say_why_large(info.size))


def _place_in_tar(info: tarfile.TarInfo, archive: _Archive) -> Member:
    if info.offset_data + info.size > archive.size:
        return Member(None, error="the archive ends within it")
    return Member(_TarSource(archive, info.offset_data, info.size))

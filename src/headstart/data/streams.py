"""Takes a compressed file, gives its content from start to end, and of gzip any part of it.

What comes out is counted while it is inflated, so a bomb ends after a little; no declared size is believed.
"""

import bisect
import bz2
import importlib
import lzma
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from headstart.data.images import open_regular
from headstart.errors import BadImageError, UsageError, one_line

__all__ = ["FREE_BYTES", "MAX_RATIO", "GzipParts", "Inflated", "find_compression"]

# No photograph shrinks to a two-hundredth; blank ones do, and so few bytes do no harm.
MAX_RATIO = 200
FREE_BYTES = 64 * 2**20

CHUNK_BYTES = 2**14  # of a compressed file at a time
PIECE_BYTES = 2**20  # of its content at a time
XZ_MEMORY_BYTES = 256 * 2**20  # xz -9 takes 65 MiB to inflate

# A state of zlib's takes 40 kB, so these take 160 MB at most, and suffice for 1 GiB of content at the least
# spacing. There all between two states is inflated at once and kept for a while: images are read in the order
# of their names, which is near that of the archive and seldom the same. Where states lie further apart, half
# a spacing is inflated to get at a part, on average.
LEAST_SPACING_BYTES = 2**18
MAX_STATES = 4096
MAX_KEPT_BYTES = 2**26  # of all archives


class Inflater(Protocol):
    """As the decompressors of bz2, lzma and zstd are."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib's decompressor in the form of the others."""

    def __init__(self, state: Any = None) -> None:
        self._state = zlib.decompressobj(wbits=31) if state is None else state
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return bool(self._state.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._state.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found: bytes = self._state.decompress(self._state.unconsumed_tail + data, max_length)
        self.needs_input = len(found) < max_length and not self._state.unconsumed_tail
        return found

    def copy(self) -> "_Gunzip":
        return _Gunzip(self._state.copy())


def _make_unzstd() -> Inflater:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        library = importlib.import_module(name)
    except ImportError as exc:
        raise UsageError(
            "an archive compressed by zstd needs a package: pip install 'headstart[zstd]'"
        ) from exc
    made: Inflater = library.ZstdDecompressor()
    return made


COMPRESSIONS: dict[str, tuple[bytes, Callable[[], Inflater]]] = {
    "gzip": (b"\x1f\x8b\x08", _Gunzip),
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
    "xz": (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES)),
    "zstd": (b"\x28\xb5\x2f\xfd", _make_unzstd),
}


def find_compression(start: bytes) -> str:
    """Name what a file that starts so is compressed by, a key of `COMPRESSIONS`; "" for nothing known."""
    return next((name for name, (magic, _) in COMPRESSIONS.items() if start.startswith(magic)), "")


class Inflated:
    """The content of a compressed file, forward only, but for one byte.

    Attributes:
        file: the compressed one; another handle of it may take its place between two calls.
        raw: how many of its bytes were taken.
        inflater: as it is after them.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: str,
        *,
        inflater: Inflater | None = None,
        raw: int = 0,
        start: int = 0,
        notice: "Callable[[Inflated], None] | None" = None,
    ) -> None:
        """Make it; reads nothing.

        Args:
            compression: a key of `COMPRESSIONS`.
            inflater: to go on from, instead of the file's start.
            raw: where in the file that goes on.
            start: where in the content that goes on.
            notice: called whenever the inflater wants more of the file.
        """
        self.file, self.raw = file, raw
        self._make = COMPRESSIONS[compression][1]
        self.inflater = self._make() if inflater is None else inflater
        self._notice = notice
        self._piece, self._start, self._place = b"", start, 0
        self._first = start - MAX_RATIO * raw

    def tell(self) -> int:
        """Give the place in the content."""
        return self._start + self._place

    def end(self) -> int:
        """Give how much of the content is inflated."""
        return self._start + len(self._piece)

    def seek(self, position: int) -> int:
        """Go on at a place that is ahead, or at the byte before.

        Raises:
            ValueError: it lies further back.
        """
        while position > self.end() and self._inflate():
            pass
        if position < self._start:
            raise ValueError("a compressed file cannot be read backwards")
        self._place = min(position, self.end()) - self._start
        return self.tell()

    def read(self, size: int) -> bytes:
        """Read so many bytes of the content, fewer where it ends.

        Raises:
            BadImageError: the file is cut short or damaged, or there is far more in it than there would be
                of images.
        """
        parts = []
        while size > 0:
            part = self._piece[self._place : self._place + size]
            self._place += len(part)
            size -= len(part)
            parts.append(part)
            if size and not self._inflate():
                break
        return b"".join(parts)

    def drain(self) -> None:
        """Inflate all that is left, which checks what the file says of the whole; raises as `read` does."""
        while self._inflate():
            pass

    def _inflate(self) -> bool:
        """Put the next piece in the place of the last, of which a byte stays: tarfile steps back so far."""
        inflater = self.inflater
        while True:
            data = b""
            if inflater.eof:
                data = inflater.unused_data or self._take()
                if not data.strip(b"\0"):
                    return False
                self.inflater = inflater = self._make()
            elif inflater.needs_input:
                data = self._take()
                if not data:
                    raise BadImageError("damaged archive: it is cut short")
            try:
                piece = inflater.decompress(data, PIECE_BYTES)
            except MemoryError:
                raise
            except Exception as exc:  # each library has its own
                raise BadImageError(f"damaged archive: {one_line(exc)}") from exc
            if piece:
                break
        kept = self._piece[-1:]
        self._start = self.end() - len(kept)
        self._piece, self._place = kept + piece, len(kept)
        if self.end() - self._first > FREE_BYTES + MAX_RATIO * self.raw:
            raise BadImageError(f"inflates to more than {MAX_RATIO} times its size, as a bomb does")
        if self._notice is not None and inflater.needs_input and not inflater.eof:
            self._notice(self)
        return True

    def _take(self) -> bytes:
        data = self.file.read(CHUNK_BYTES)
        self.raw += len(data)
        return data


class _Kept:
    """What was inflated last, by archive and number of the state before it."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[object, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[object, int]) -> bytes | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: tuple[object, int], data: bytes) -> None:
        with self._lock:
            if key not in self._found:
                self._found[key] = data
                self._bytes += len(data)
            while self._bytes > MAX_KEPT_BYTES:
                self._bytes -= len(self._found.popitem(last=False)[1])


_KEPT = _Kept()


class GzipParts:
    """Reads any part of a file that is compressed by gzip, from states that were kept on the way through it.

    In a large one each thread goes on from where it was, where the next part lies ahead and near. It is
    pickled as its path: what loads it goes through the file again.
    """

    def __init__(self, path: Path) -> None:
        """Make it; `notice` gives it its states."""
        self._path = path
        self._spacing = LEAST_SPACING_BYTES
        self._states: list[
            tuple[int, int, _Gunzip]
        ] = []  # (place in the content, in the file, state)
        self._own = threading.local()
        self._key = object()

    def notice(self, content: Inflated) -> None:
        """Keep the state, where the last that is kept lies far enough behind."""
        last = self._states[-1][0] if self._states else 0
        if content.end() - last < self._spacing:
            return
        assert isinstance(content.inflater, _Gunzip)
        self._states.append((content.end(), content.raw, content.inflater.copy()))
        if len(self._states) > MAX_STATES:
            del self._states[::2]
            self._spacing *= 2

    def read(self, file: BinaryIO, offset: int, size: int) -> bytes:
        """Read a part of the content through a handle of the file.

        Raises:
            BadImageError: it is cut short, or damaged.
        """
        number = bisect.bisect_right(self._states, offset, key=lambda state: state[0])
        if self._spacing == LEAST_SPACING_BYTES:
            return self._read_kept(file, number, offset, size)
        place, raw, state = self._state(number)
        content: Inflated | None = getattr(self._own, "content", None)
        if content is None or not place <= content.tell() <= offset:
            content = Inflated(file, "gzip", inflater=state.copy(), raw=raw, start=place)
        self._own.content = None  # for another try, where this one fails
        content.file = file
        file.seek(content.raw)
        content.seek(offset)
        data = content.read(size)
        self._own.content = content
        return data

    def _state(self, number: int) -> tuple[int, int, _Gunzip]:
        """The state before a part, by its number from 1; 0 is the start."""
        return self._states[number - 1] if number else (0, 0, _Gunzip())

    def _read_kept(self, file: BinaryIO, number: int, offset: int, size: int) -> bytes:
        """As `read`, from what lies between states; `number` is that of the state before."""
        parts = []
        while size > 0 and number <= len(self._states):
            start, raw, state = self._state(number)
            data = _KEPT.get((self._key, number))
            if data is None:
                is_last = number == len(self._states)
                end = sys.maxsize if is_last else self._states[number][0]
                file.seek(raw)
                content = Inflated(file, "gzip", inflater=state.copy(), raw=raw, start=start)
                data = content.read(end - start)
                _KEPT.put((self._key, number), data)
            parts.append(data[offset - start : offset - start + size])
            offset, size, number = offset + len(parts[-1]), size - len(parts[-1]), number + 1
        return b"".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _index_gzip, (self._path,)


def _index_gzip(path: Path) -> GzipParts:
    parts = GzipParts(path)
    with open_regular(path) as (file, _):
        Inflated(file, "gzip", notice=parts.notice).drain()
    return parts

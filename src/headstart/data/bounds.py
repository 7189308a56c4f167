"""Takes the bytes of an image file, gives them as they may be decoded, or refuses what would take too long.

What decoding costs is told from the file's structure, which is walked here at a small part of that cost:
the scans of a JPEG, the chunks of a PNG, the strips of a TIFF, all that comes before the pixels. So a
verdict depends on the bytes alone, never on the speed of the machine. Every limit is far above what
cameras and programs write, and was chosen so that the worst file within it takes about two seconds on
one core.
"""

import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Literal

from headstart.errors import BadImageError

__all__ = ["MAX_PIXELS", "MAX_SIDE", "bound_work", "check_tiles", "is_modest"]

MAX_PIXELS = 50_000_000  # a 50-megapixel camera; 150 MB as RGB
MAX_SIDE = 65_535  # what JPEG and GIF can say; every row costs time and memory of its own

# JPEG. A progressive one has about 10 scans, of 14 components in all; each costs as much as its pixels.
MAX_SCANS = 500
MAX_PASSES = 20  # components of all scans over the largest image that is allowed
MAX_HEADER_BYTES = 32 * 2**20  # depth maps and the like can take several megabytes
MAX_PADDING_BYTES = 2**16
MAX_PARTS = 10_000
MAX_EXIF_BYTES = 2**20

# PNG: 100,000 chunks of 4 kB hold 400 MB.
MAX_CHUNKS = 100_000
MAX_INFLATED_BYTES = 2**29  # by what is no pixel
MOST_INFLATED = 1032  # times its size does deflate grow, and Pillow stops at a MiB a chunk

# BMP with run lengths, and text as numbers, are decoded in Python.
MAX_RLE_PIXELS = 5_000_000
MAX_RLE_BYTES = 2 * 2**20
MAX_PLAIN_BYTES = 8 * 2**20

# TIFF: a strip a row, or tiles of 16 x 16.
MAX_TILES = 200_000
MAX_TAGS = 4096
MAX_NUMBERS = 2**20
MAX_RATIONALS = 4096
PLACES = (273, 279, 324, 325)  # tags with offsets and lengths: of strips, of tiles
JPEG_IN_TIFF = 7
UNIT_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
BYTE_KINDS, RATIONAL_KINDS = (1, 2, 7), (5, 10)
EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965


def bound_work(data: bytes, max_pixels: int) -> bytes:
    """The bytes to decode: the same, but for metadata that would cost more than the pixels.

    Args:
        data: an image file, or the start of one.

    Raises:
        BadImageError: the structure asks for more work than its pixels warrant.
    """
    for magic, bound in BOUNDS:
        if data.startswith(magic):
            return bound(data, max_pixels)
    return data


# Markers of segments, and the end; not those of restarts and not the bytes FF 00 of compressed data.
MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
START_OF_SCAN, END = 0xDA, 0xD9
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xDE}


def _bound_jpeg(data: bytes, max_pixels: int) -> bytes:
    at, padding, pixels, scans, passes = 2, 0, 0, 0, 0
    metadata: list[tuple[int, bytes]] = []
    for _ in range(MAX_PARTS):
        last = len(data) if scans else min(at + MAX_PADDING_BYTES + 2, len(data))
        found = MARKER.search(data, at, last)
        if not scans:
            padding += (found.start() if found else last) - at
            if padding > MAX_PADDING_BYTES:
                raise BadImageError(
                    f"a JPEG of more than {MAX_PADDING_BYTES:,} bytes between its parts"
                )
            if at > MAX_HEADER_BYTES:
                raise BadImageError(f"a JPEG of more than {MAX_HEADER_BYTES >> 20} MiB of metadata")
        if found is None:
            break
        marker, at = found[1][0], found.end()
        if marker == END:
            if scans:
                break
            continue
        part = data[at : at + max(int.from_bytes(data[at : at + 2], "big"), 2)]
        if marker == START_OF_SCAN:
            scans += 1
            passes += min(part[2], 4) if len(part) > 2 else 0
            if scans > MAX_SCANS or passes * pixels > MAX_PASSES * max(max_pixels, MAX_PIXELS):
                raise BadImageError(f"a JPEG of too many scans ({scans}) for its size")
        elif marker in FRAMES and len(part) >= 7:
            pixels = math.prod(struct.unpack_from(">HH", part, 3))
            if pixels > max_pixels:  # which is refused for that
                break
        elif not scans and part[2:6] in (b"Exif", b"MPF\0"):
            metadata.append((found.start(), part[2:]))
        at += len(part)
    else:
        raise BadImageError(f"a JPEG of more than {MAX_PARTS:,} parts")
    return _hide_metadata(data, metadata)


def _hide_metadata(data: bytes, metadata: list[tuple[int, bytes]]) -> bytes:
    """Give what would take long to read the marker of an application that nobody knows."""
    exif = b"".join(p if i == 0 else p[6:] for i, (_, p) in enumerate(_of(metadata, b"Exif")))
    hidden = [at for at, part in _of(metadata, b"MPF\0") if not is_modest(part[4:])]
    if len(exif) > MAX_EXIF_BYTES or not is_modest(exif):
        hidden += [at for at, _ in _of(metadata, b"Exif")]
    if not hidden:
        return data
    changed = bytearray(data)
    for at in hidden:
        changed[at + 1] = 0xEF
    return bytes(changed)


def _of(metadata: list[tuple[int, bytes]], name: bytes) -> list[tuple[int, bytes]]:
    return [(at, part) for at, part in metadata if part.startswith(name)]


def _count_passes(data: bytes) -> int:
    """Components of all scans of a JPEG within another file."""
    starts = (found.end() for found in re.finditer(rb"\xff\xda", data))
    return sum(min(data[at + 2], 4) for at in starts if at + 2 < len(data))


def _bound_png(data: bytes, max_pixels: int) -> bytes:
    at, inflated = 8, 0
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return data
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return data
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            inflated += min(MOST_INFLATED * length, 2**20)
            if inflated > MAX_INFLATED_BYTES:
                raise BadImageError("a PNG of too much compressed text")
        at += 12 + length
    raise BadImageError(f"a PNG of more than {MAX_CHUNKS:,} chunks")


def _bound_gif(data: bytes, max_pixels: int) -> bytes:
    """Blocks that come before the pixels of the first frame are read one by one."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 128 else 0)
    for _ in range(MAX_CHUNKS):
        kind = data[at : at + 1]
        if kind in (b",", b";", b""):
            return data
        at += 2 if kind == b"!" else 1
        if kind != b"!":
            continue
        for _ in range(MAX_CHUNKS):
            size = data[at] if at < len(data) else 0
            at += 1 + size
            if not size:
                break
        else:
            break
    raise BadImageError(f"a GIF of more than {MAX_CHUNKS:,} blocks before its pixels")


def _bound_bmp(data: bytes, max_pixels: int) -> bytes:
    if len(data) < 34 or data[14] < 40 or struct.unpack_from("<I", data, 30)[0] not in (1, 2):
        return data
    width, height = (abs(side) for side in struct.unpack_from("<ii", data, 18))
    if width * height > MAX_RLE_PIXELS or len(data) > MAX_RLE_BYTES:
        raise BadImageError(
            f"a BMP with run lengths of more than {MAX_RLE_PIXELS:,} pixels or "
            f"{MAX_RLE_BYTES >> 20} MiB; convert it to PNG"
        )
    return data


def _bound_ppm(data: bytes, max_pixels: int) -> bytes:
    kind = data[1:2]
    if kind not in b"0123456fFy":  # a ZIP archive, say
        return data
    if kind in b"123":
        if len(data) > MAX_PLAIN_BYTES:
            raise BadImageError(
                f"a PPM of more than {MAX_PLAIN_BYTES >> 20} MiB of text; convert it to PNG"
            )
        return re.sub(rb"#[^\r\n]*", b"", data)  # Pillow's time grows with the square of comments
    start = re.sub(rb"#[^\r\n]*", b"", data[:MAX_PADDING_BYTES])
    words = 3 if kind == b"4" else 4  # with what each image of this kind says before its pixels
    if len(start.split(None, words - 1)) < words and len(data) > MAX_PADDING_BYTES:
        raise BadImageError(f"a PPM of more than {MAX_PADDING_BYTES:,} bytes before its pixels")
    return data


def is_modest(block: bytes) -> bool:
    """Whether EXIF metadata, or another block in the form of a TIFF, is read in next to no time."""
    try:
        _check_directories(re.sub(rb"^(Exif\0\0){1,2}", b"", block), frozenset())
    except BadImageError:
        return False
    return True


def _bound_tiff(data: bytes, max_pixels: int) -> bytes:
    _check_directories(data, frozenset((EXIF_IFD, GPS_IFD, INTEROP_IFD)))
    return data


def _check_directories(data: bytes, below: frozenset[int]) -> None:
    """Check the first directory, and those that the tags of `below` lead to.

    Raises:
        BadImageError: more tags, numbers or strips than any program writes.
    """
    order: Literal["big", "little"] = "big" if data[:2] == b"MM" else "little"
    big, sign = data[2:3] == b"\x2b", ">" if order == "big" else "<"
    entry = struct.Struct(sign + ("HHQ8s" if big else "HHI4s"))
    size, start = (8, 8) if big else (2, 4)
    waiting = [int.from_bytes(data[start : 2 * start], order)]
    followed: set[int] = set()
    numbers = rationals = 0
    while waiting:
        at = waiting.pop()
        tags = min(int.from_bytes(data[at : at + size], order), MAX_TAGS + 1)
        table = data[at + size : at + size + tags * entry.size]
        if len(table) > MAX_TAGS * entry.size:
            raise BadImageError(f"a directory of more than {MAX_TAGS:,} tags")
        whole = table[: len(table) // entry.size * entry.size]
        for tag, kind, length, value in entry.iter_unpack(whole):
            unit = UNIT_BYTES.get(kind, 0)
            if not unit or unit * length > len(data):  # which Pillow leaves out
                continue
            if tag in PLACES and length > MAX_TILES:
                raise BadImageError(f"more than {MAX_TILES:,} strips or tiles")
            if kind in RATIONAL_KINDS:
                rationals += length
            elif kind not in BYTE_KINDS and tag not in PLACES:
                numbers += length
            if tag in below - followed:
                followed.add(tag)
                waiting.append(int.from_bytes(value[:unit], order))
        if numbers > MAX_NUMBERS or rationals > MAX_RATIONALS:
            raise BadImageError("tags of more numbers than any program writes")


def check_tiles(tags: Mapping[int, Any], data: bytes, max_pixels: int) -> None:
    """Check the strips or tiles of a TIFF whose tags have been read.

    Raises:
        BadImageError: they are larger or more than its pixels warrant.
    """
    tiled = 322 in tags or 323 in tags
    width, height = tags[256], tags[257]
    tile = (tags.get(322, 1), tags.get(323, 1)) if tiled else (width, tags.get(278, height))
    if not all(isinstance(side, int) and side > 0 for side in tile):
        raise BadImageError("damaged TIFF: strips or tiles of no size")
    area = math.prod(tile) if tiled else width * min(tile[1], height)
    if area > max_pixels:
        raise BadImageError(f"a tile of more than {max_pixels:,} pixels")
    count = math.ceil(width / tile[0]) * math.ceil(height / tile[1])
    if count * area > 2 * max(max_pixels, MAX_PIXELS):
        raise BadImageError(f"tiles of {tile[0]} x {tile[1]} for {width} x {height} pixels")
    if tags.get(259) == JPEG_IN_TIFF:
        starts, lengths = (
            _integers(tags.get(tag)) for tag in (PLACES[2:] if tiled else PLACES[:2])
        )
        if sum(lengths) > 2 * len(data):
            raise BadImageError("strips or tiles that lie in one another")
        places = zip(starts, lengths, strict=False)
        passes = sum(_count_passes(data[start : start + length]) for start, length in places)
        if passes * area > MAX_PASSES * max(max_pixels, MAX_PIXELS):
            raise BadImageError("a TIFF of JPEGs of too many scans for its size")


def _integers(values: Any) -> tuple[int, ...]:
    found = values if isinstance(values, tuple) else (values,)
    if not all(isinstance(value, int) and value >= 0 for value in found):
        raise BadImageError("damaged TIFF: strips or tiles without a place")
    return found


BOUNDS: tuple[tuple[bytes, Callable[[bytes, int], bytes]], ...] = (
    (b"\xff\xd8\xff", _bound_jpeg),
    (b"\x89PNG", _bound_png),
    (b"GIF8", _bound_gif),
    (b"BM", _bound_bmp),
    (b"P", _bound_ppm),
    (b"II", _bound_tiff),
    (b"MM", _bound_tiff),
)

"""Images that are broken, hostile or unusual, generated in memory, each with its expected outcome.

`CASES` maps a name to a `Case`; everything is seeded, so the bytes are the same in every run.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

SMALL = np.arange(6, dtype=np.uint8).reshape(2, 3, 1) * 40 + np.array([0, 15, 30], dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(48) * 4, np.arange(32) * 5), -1).astype(np.uint8)
SMOOTH = np.dstack([SMOOTH, np.full((32, 48), 90, dtype=np.uint8)])
NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


class Case(NamedTuple):
    """A file and what must come of it: pixels (uint8, H W 3), or a reason to refuse it."""

    file_name: str
    data: bytes
    pixels: np.ndarray | None = None
    reason: str = ""
    tolerance: int = 0


def encode(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    """The bytes of an image file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3)."""
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def png(width: int, height: int, *extra: bytes, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of these dimensions whose pixel data are those of a 1 x 1 image."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def inflating(mebibytes: int) -> bytes:
    """A zlib stream of zeros."""
    packer, zeros = zlib.compressobj(1), bytes(2**20)
    return b"".join(packer.compress(zeros) for _ in range(mebibytes)) + packer.flush()


def tiff(width: int, height: int, tile: int = 0) -> bytes:
    """A deflated greyscale TIFF of these dimensions with next to no data in it."""
    body = zlib.compress(bytes(256))
    return tiff_of(width, height, body, 8, tile=(tile, tile) if tile else None)


def tiff_of(
    width: int,
    height: int,
    body: bytes,
    compression: int = 1,
    *,
    count: int = 1,
    tile: tuple[int, int] | None = None,
    samples: int = 1,
    bits: int = 8,
    tags: tuple[tuple[int, int, int, int], ...] = (),
    after: int = 0,
    tail: bytes = b"",
) -> bytes:
    """A TIFF whose `count` strips or tiles are all `body`.

    `tags` are further (tag, kind, count, value); `tail` follows the body; `after` is the next directory.
    """
    start = 8 + len(body) + len(tail)
    lists = [struct.pack(f"<{count}I", *[n] * count) for n in (8, len(body))] if count > 1 else []
    offsets, lengths = (start, start + 4 * count) if lists else (8, len(body))
    places = ((324, 4, count, offsets), (325, 4, count, lengths))
    sides = ((322, 4, 1, tile[0]), (323, 4, 1, tile[1])) if tile else ()
    rows = -(-height // count)
    strips = ((273, 4, count, offsets), (278, 4, 1, rows), (279, 4, count, lengths))
    colour = 2 if samples == 3 else 1
    plain = (
        (256, width),
        (257, height),
        (258, bits),
        (259, compression),
        (262, colour),
        (277, samples),
    )
    entries = [(tag, 4, 1, value) for tag, value in plain] + [*tags, *sides]
    entries += places if tile else strips
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    at = start + sum(map(len, lists))
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", at) + body + tail + b"".join(lists) + directory


def bmp_rle(width: int, height: int, codes: bytes) -> bytes:
    """A BMP of 256 greys with run lengths."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + palette + codes


def jpeg_part(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


def many_tags(count: int, kind: int, values: int) -> bytes:
    """EXIF that begins with the orientation 6, in the form of a TIFF; `values` to each other tag."""
    entries = [(0x0112, 3, 1, 6)]
    entries += [(0x9000 + i, kind, values, 8) for i in range(count)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP with a canvas of these dimensions and a frame of 4 x 4."""
    frame = encode(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]
    three = [n.to_bytes(3, "little") for n in (width - 1, height - 1, 0, 0, 3, 3, 0)]
    frame = b"".join(three[2:]) + b"\0" + frame
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + three[0] + three[1]
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(orientation: int, *, text: str = "") -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    if text:
        block[0x010E] = text
    return block.tobytes()


def sideways(orientation: int, picture: np.ndarray) -> np.ndarray:
    """The pixels to store so that a viewer who honours the orientation shows the picture."""
    turned = picture.swapaxes(0, 1) if orientation >= 5 else picture
    rows, columns = ["++", "+-", "--", "-+", "++", "-+", "--", "+-"][orientation - 1]
    return np.ascontiguousarray(turned[:: int(rows + "1"), :: int(columns + "1")])


def ycck() -> bytes:
    """A JPEG of one colour whose Adobe marker says YCCK; shows (200, 60, 30)."""
    planes = 255 - np.asarray(Image.new("RGB", (16, 16), (55, 195, 225)).convert("YCbCr"))
    cmyk = np.dstack([planes, np.zeros((16, 16), dtype=np.uint8)])
    data = encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def _good() -> dict[str, Case]:
    cases = {}
    lossless = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
    rotten = b"\xff" * 40

    def add(name: str, data: bytes, pixels: np.ndarray, tolerance: int = 0, suffix=".x") -> None:
        cases[name] = Case("a" + suffix, data, pixels, tolerance=tolerance)

    for form, options in {**lossless, "BMP": {}, "PPM": {}}.items():
        for suffix in (f".{form.lower()}", ".jpg", ""):
            add(f"{form} named a{suffix}", encode(SMALL, form, **options), SMALL, suffix=suffix)
    for suffix in (".JPEG", ".png", ""):
        add(f"JPEG named a{suffix}", encode(SMOOTH, "JPEG"), SMOOTH, 12, suffix)
    add("PNG without its end", encode(SMALL, "PNG")[:-12], SMALL)
    painted = Image.fromarray(SMALL).quantize(6)
    add("GIF", encode(painted, "GIF"), SMALL)

    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    add("CMYK TIFF", encode(cmyk, "TIFF"), SMOOTH)
    add("CMYK JPEG", encode(cmyk, "JPEG", quality=95), SMOOTH, 12)
    add("YCCK JPEG", ycck(), np.full((16, 16, 3), (200, 60, 30)), 3)
    wide = GREY.astype(np.uint16) * 257
    for form in ("PNG", "TIFF", "PPM"):
        add(f"1-bit {form}", encode(Image.fromarray(GREY > 90), form), grey((GREY > 90) * 255))
        add(f"16-bit {form}", encode(wide, form), grey(GREY))
    add("16-bit PNG, EXIF 6", encode(sideways(6, wide), "PNG", exif=exif(6)), grey(GREY))
    add("16-bit colour PPM", b"P6 3 2 65535\n" + (SMALL.astype(">u2") * 257).tobytes(), SMALL)
    for scale in (1, 255):
        data = encode(np.float32(GREY / scale), "TIFF")
        add(f"float TIFF up to {255 // scale}", data, grey(GREY))

    alpha = np.array([[0, 255, 128], [255, 0, 64]], dtype=np.uint8)
    share = alpha[..., None] / 255
    over, rgba = SMALL * share + 255 * (1 - share), np.dstack([SMALL, alpha])
    for most in (1, 100, 1000, 40000):
        values = SMALL.astype(int) * most // 255
        data = values.astype("u1" if most < 256 else ">u2").tobytes()
        shown = np.rint(values / most * 255)
        add(f"PPM up to {most}", b"P6 3 2 %d\n" % most + data, shown)
        grey_data = values[..., 0].astype("u1" if most < 256 else ">u2").tobytes()
        add(f"PGM up to {most}", b"P5 3 2 %d\n" % most + grey_data, grey(shown[..., 0]), most > 255)
    add("PPM of text", b"P3 3 2 255 # no\n" + b" ".join(b"%d" % v for v in SMALL.ravel()), SMALL)
    codes = b"\0\3\x50\x78\xa0\0" + b"\0\0" + b"\1\0\1\x28\1\x50\0\1"
    grey_rows = np.array([[0, 40, 80], [80, 120, 160]])
    add("BMP with run lengths", bmp_rle(3, 2, codes), grey(grey_rows))

    for form, options in lossless.items():
        add(f"RGBA {form}", encode(rgba, form, **options), over, 1)
    la = Image.fromarray(np.dstack([GREY, alpha]), "LA")
    add("LA PNG", encode(la, "PNG"), grey(GREY) * share + 255 * (1 - share), 1)
    index = np.asarray(painted)
    clear = np.where((index == index[0, 1])[..., None], 255, SMALL)
    for form in ("PNG", "GIF"):
        data = encode(painted, form, transparency=int(index[0, 1]))
        add(f"palette with transparency {form}", data, clear)
    keyed = encode(SMALL, "PNG", transparency=tuple(SMALL[0, 1].tolist()))
    add("RGB with one clear colour", keyed, clear)

    frames = {"save_all": True, "append_images": [Image.new("RGB", (3, 2), (1, 2, 3))]}
    for form, options in lossless.items():
        add(f"several frames {form}", encode(SMALL, form, **frames, **options), SMALL)
    add("several frames GIF", encode(painted, "GIF", **frames), SMALL)
    add("several frames MPO", encode(SMOOTH, "MPO", **frames), SMOOTH, 12)

    for turn in range(1, 9):
        block = exif(turn)
        for form, options in lossless.items():
            data = encode(sideways(turn, SMALL), form, exif=block, **options)
            add(f"EXIF {turn} {form}", data, SMALL)
        add(f"EXIF {turn} JPEG", encode(sideways(turn, SMOOTH), "JPEG", exif=block), SMOOTH, 12)
    add("EXIF 99", encode(SMOOTH, "JPEG", exif=exif(99)), SMOOTH, 12)
    cut = exif(6, text="x" * 50)[:-45]
    add("EXIF cut short", encode(sideways(6, SMOOTH), "JPEG", exif=cut), SMOOTH, 12)
    add("corrupt EXIF JPEG", encode(SMOOTH, "JPEG", exif=b"Exif\0\0" + rotten), SMOOTH, 12)
    add("corrupt ICC JPEG", encode(SMOOTH, "JPEG", icc_profile=rotten), SMOOTH, 12)
    one = np.array([[[1, 2, 3]]])
    add("corrupt EXIF PNG", png(1, 1, chunk(b"eXIf", rotten)), one)
    add("corrupt ICC PNG", png(1, 1, chunk(b"iCCP", b"icc\0\0" + rotten)), one)

    add("1 x 1", png(1, 1), one)
    for shape in ((1, 10000, 3), (10000, 1, 3)):
        strip = np.resize(NOISE, shape)
        add(f"{shape[1]} x {shape[0]}", encode(strip, "PNG"), strip)
    return cases


FORMS = {form: {} for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF")}
FORMS |= {"progressive JPEG": {"progressive": True}, "LZW TIFF": {"compression": "tiff_lzw"}}

NOT_IMAGES = {
    "one byte of text": (b"a", "text"),
    "one byte": (b"\xff", "unknown content"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML or XML"),
    "text": (b"Not found\n", "text"),
    "UTF-8 text": ("žluťoučký kůň".encode(), "text"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript, which is not read"),
    "SVG": (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG, which is not read"),
    "PDF": (b"%PDF-1.7\n", "PDF, which is not read"),
    "zip": (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(12), "HEIC, which is not read; convert it to JPEG"),
    "HEIF": (b"\0\0\0\x18ftypmif1" + bytes(12), "HEIC, which is not read; convert it to JPEG"),
    "AVIF": (b"\0\0\0\x1cftypavif" + bytes(16), "AVIF, which is not read; convert it to JPEG"),
    "control characters": (b"\0\0\0\x18ftyp\x1b[2J" + bytes(12), ""),
    "Photoshop": (b"8BPS" + bytes(30), "a Photoshop file"),
    "JPEG 2000": (encode(SMOOTH, "JPEG2000"), "JPEG 2000, which is not read"),
    "icon": (encode(SMOOTH, "ICO"), "an icon, which is not read"),
    "SGI": (encode(SMOOTH, "SGI"), "unknown content"),
    "TGA": (encode(SMOOTH, "TGA"), "unknown content"),
    "PCX": (encode(SMOOTH, "PCX"), "unknown content"),
    "DDS": (encode(SMOOTH, "DDS"), "unknown content"),
    "EPS by Pillow": (encode(SMOOTH, "EPS"), "PostScript, which is not read"),
    "noise": (b"\0\1\2\3" * 20, "unknown content"),
}


def _bad() -> dict[str, Case]:
    cases = {"empty": Case("a.jpg", b"", reason="empty file")}
    for name, (data, kind) in NOT_IMAGES.items():
        cases[f"{name} named a.jpg"] = Case("a.jpg", data, reason=f"not an image: {kind}")
    for name, options in FORMS.items():
        data = encode(NOISE, name.split()[-1], **options)
        for share in (10, 50, 90, 99):
            cut = data[: len(data) * share // 100]
            cases[f"{name} cut at {share} %"] = Case("a.x", cut, reason="damaged")
    for name, values, reason in (
        ("float TIFF with NaN", np.float32([[0.5, np.nan]]), "pixels that are NaN or infinite"),
        ("float TIFF with inf", np.float32([[0.5, np.inf]]), "pixels that are NaN or infinite"),
        ("float TIFF", np.float32([[-1, 300]]), "pixels from -1 to 300; expected 0 to 255"),
        ("32-bit TIFF", np.int32([[0, 70000]]), "32-bit pixels outside of 0 to 65,535"),
        ("LAB TIFF", Image.new("LAB", (2, 2)), "colour mode LAB is not read; convert it to RGB"),
    ):
        cases[name] = Case("a.tif", encode(values, "TIFF"), reason=reason)
    cases["no pixels"] = Case("a.png", png(0, 5), reason="damaged PNG")
    return cases


def _bombs() -> dict[str, Case]:
    many = "more than 50,000,000 pixels"
    jpeg = encode(NOISE, "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    bmp = struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, 65500, 65500, 1, 24) + bytes(70)
    gif = struct.pack("<HHBBBB4HB", 65500, 65500, 0, 0, 0, 44, 0, 0, 1, 1, 0) + b"\2\2\x44\1\0;"
    scans = encode(SMOOTH, "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xc4") : -2]
    text = inflating(256)
    megabyte = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))
    bombs = {
        "PNG": (png(65500, 65500), many),
        "PNG of 64 megapixels": (png(8000, 8000), f"8000 x 8000 is {many}"),
        "JPEG": (jpeg[:at] + b"\xff\xdc" * 2 + jpeg[at + 4 :], many),
        "JPEG of many scans": (scans[:-2] + scan * 2000 + scans[-2:], "scans"),
        "BMP": (b"BM" + bmp, many),
        "GIF": (b"GIF89a" + gif, many),
        "PPM": (b"P6 65500 65500 255\n" + bytes(9), many),
        "TIFF": (tiff(65500, 65500), many),
        "TIFF with a tile of a gigabyte": (tiff(16, 16, tile=32752), "tile"),
        "WebP": (webp_canvas(16383, 16383), many),
        "zTXt": (png(1, 1, chunk(b"zTXt", b"k\0\0" + text)), "data too large"),
        "iTXt": (png(1, 1, chunk(b"iTXt", b"k\0\1\0\0\0" + text)), "data too large"),
        "iCCP": (png(1, 1, chunk(b"iCCP", b"k\0\0" + text)), "data too large"),
        "many zTXt": (png(1, 1, megabyte * 200), "Too much memory used in text chunks"),
    }
    return {f"bomb: {k}": Case("a.png", d, reason=reason) for k, (d, reason) in bombs.items()}


BOMBS = _bombs()
CASES = {**_good(), **_bad(), **BOMBS}


class Costly(NamedTuple):
    """A file that once took long, or much memory, or that is large and good.

    Attributes:
        make: gives the bytes.
        size: (width, height) that it is read with; None where it is refused.
        reason: why it is refused.
        most_kb: memory that it may take.
    """

    make: Callable[[], bytes]
    size: tuple[int, int] | None = None
    reason: str = ""
    most_kb: int = 600_000


def smooth(width: int, height: int) -> Image.Image:
    return Image.fromarray(NOISE).resize((width, height))


def progressive(width: int, height: int, more: int) -> bytes:
    """A progressive JPEG of one colour with its last scan repeated."""
    data = _progressive(width, height)
    return data[:-2] + data[data.rindex(b"\xff\xc4") : -2] * more + data[-2:]


@functools.cache
def _progressive(width: int, height: int) -> bytes:
    image = Image.new("RGB", (width, height), (9, 99, 199))
    return encode(image, "JPEG", progressive=True, subsampling=0)


def within_scan(data: bytes, extra: bytes) -> bytes:
    at = data.index(b"\xff\xda") + 1000
    return data[:at] + extra + data[at:]


def _costly_jpegs() -> dict[str, Costly]:
    small = encode(SMOOTH, "JPEG")
    start, end = small[:2], small[2:]
    rational = jpeg_part(0xE1, b"Exif\0\0" + many_tags(5000, 5, 1))
    fake = jpeg_part(0xFE, b"\xff\xda\0\x0c\3" * 5000)
    scans, side = "too many scans", (48, 32)

    def noise() -> bytes:
        return encode(smooth(1000, 800), "JPEG", quality=95)

    return {
        "padding": Costly(lambda: start + b"\xff" * 50_000_000 + end, reason="between its parts"),
        "zeros for padding": Costly(
            lambda: start + fake + bytes(50_000_000) + end, reason="between its"
        ),
        "a little padding": Costly(lambda: start + b"\xff" * 5000 + end, side),
        "padding in a scan": Costly(
            lambda: within_scan(noise(), b"\xff" * 2**25), reason="damaged"
        ),
        "7000 x 7000 and 110 scans": Costly(lambda: progressive(7000, 7000, 100), reason=scans),
        "2000 x 2000 and 110 scans": Costly(lambda: progressive(2000, 2000, 100), (2000, 2000)),
        "600 scans": Costly(lambda: progressive(48, 32, 600), reason=scans),
        "what looks like scans": Costly(lambda: start + fake * 200 + end, side),
        "comments": Costly(
            lambda: start + jpeg_part(0xFE, b"") * 10**6 + end, reason="10,000 parts"
        ),
        "metadata": Costly(
            lambda: start + jpeg_part(0xE5, bytes(65000)) * 600 + end, reason="MiB of metadata"
        ),
        "EXIF in parts": Costly(
            lambda: start + jpeg_part(0xE1, b"Exif\0\0" + bytes(60000)) * 200 + end, side
        ),
        "EXIF of many tags": Costly(lambda: start + rational + end, side),
        "24 megapixels": Costly(
            lambda: encode(smooth(6000, 4000), "JPEG", quality=95), (6000, 4000)
        ),
        "49 megapixels, progressive": Costly(lambda: progressive(7000, 7000, 0), (7000, 7000)),
    }


def _costly_pngs() -> dict[str, Costly]:
    rows = chunk(b"IDAT", zlib.compress(bytes(49_000_000 * 2), 1))
    text = b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(10_000))
    packed = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v"))
    nameless = chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(2**20)))
    exif = many_tags(1, 5, 1_000_000) + bytes(8_000_000)

    def deep() -> bytes:
        header = struct.pack(">IIBBBBB", 4000, 3000, 16, 0, 0, 0, 0)
        rows = zlib.compress((bytes(1) + bytes(range(250)) * 32) * 3000, 1)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)

    return {
        "1 x 49,000,000": Costly(
            lambda: png(1, 49_000_000, rows, colour=0),
            reason="has a side of more than 65,535 pixels",
        ),
        "10,000 texts": Costly(lambda: png(1, 1, text), (1, 1)),
        "10,000 packed texts": Costly(lambda: png(1, 1, packed * 10_000), (1, 1)),
        "packed texts": Costly(
            lambda: png(1, 1, nameless * 2000), reason="too much compressed text"
        ),
        "chunks": Costly(lambda: png(1, 1, chunk(b"IDAT", b"") * 10**6), reason="100,000 chunks"),
        "EXIF of a million numbers": Costly(lambda: png(1, 1, chunk(b"eXIf", exif)), (1, 1)),
        "12 megapixels": Costly(
            lambda: encode(smooth(4000, 3000), "PNG", compress_level=1), (4000, 3000)
        ),
        "12 megapixels of 16 bits": Costly(deep, (4000, 3000)),
    }


def _costly_tiffs() -> dict[str, Costly]:
    def loop(next_at: int) -> bytes:
        data = tiff_of(3, 2, bytes(6), after=1)
        return data[:-4] + struct.pack("<I", int.from_bytes(data[4:8], "little") + next_at)

    def two() -> bytes:
        data = tiff_of(3, 2, bytes(6))
        first = int.from_bytes(data[4:8], "little")
        last = struct.pack("<I", len(data)), struct.pack("<I", first)
        return data[:-4] + last[0] + data[first:-4] + last[1]

    def within(tag: int) -> bytes:
        data = tiff_of(3, 2, bytes(6), tags=((tag, 4, 1, 0xABCDEF),))
        return data.replace(struct.pack("<I", 0xABCDEF), data[4:8])

    def jpegs(more: int) -> bytes:
        return tiff_of(7000, 7000, progressive(7000, 7000, more), 7, samples=3)

    wide = bytes(4000 * 3000 * 6)
    return {
        "directories in a circle": Costly(lambda: loop(0), (3, 2)),
        "two directories in a circle": Costly(two, (3, 2)),
        **{
            f"a directory within itself, tag {tag}": Costly(lambda t=tag: within(t), (3, 2))
            for tag in (330, 34665, 34853, 40965)  # of pages, EXIF, places, interoperability
        },
        "2,000,000 strips": Costly(
            lambda: tiff_of(10, 2_000_000, bytes(10), count=2_000_000), reason="200,000 strips"
        ),
        "2,000,000 tiles": Costly(
            lambda: tiff_of(7000, 7000, bytes(16), count=2_000_000, tile=(4, 4)),
            reason="200,000 st",
        ),
        "10,000 strips": Costly(
            lambda: tiff_of(10, 10_000, zlib.compress(bytes(10)), 8, count=10_000), (10, 10_000)
        ),
        "tiles longer than the image": Costly(
            lambda: tiff_of(65000, 1, zlib.compress(b"a"), 8, count=4063, tile=(16, 3_000_000)),
            reason="tiles of 16 x 3000000 for 65000 x 1 pixels",
        ),
        "65,535 tags": Costly(
            lambda: b"II*\0\x08\0\0\0\xff\xff" + tiff_of(3, 2, bytes(6))[-118:-4] * 8000,
            reason="more than 4,096 tags",
        ),
        "a million rationals": Costly(
            lambda: tiff_of(3, 2, bytes(6), tags=((282, 5, 10**6, 8),), tail=bytes(8 * 10**6)),
            reason="more numbers than any program writes",
        ),
        "JPEGs of many scans": Costly(lambda: jpegs(80), reason="too many scans"),
        "a progressive JPEG": Costly(lambda: jpegs(0), (7000, 7000)),
        "12 megapixels of 16 bits": Costly(
            lambda: tiff_of(4000, 3000, wide, samples=3, bits=16), (4000, 3000)
        ),
    }


def _costly_others() -> dict[str, Costly]:
    frame = encode(Image.new("L", (9, 7), 5), "GIF")
    head, frame = frame[: frame.index(b",")], frame[frame.index(b",") : -1]
    words = b"!\xfe" + b"\1a" * 5_000_000 + b"\0"
    text = "more than 8 MiB of text; convert it to PNG"
    lengths = "a BMP with run lengths"
    return {
        "GIF of 10,000 frames": Costly(lambda: head + frame * 10_000 + b";", (9, 7)),
        "GIF of a long comment": Costly(
            lambda: head + words + frame + b";", reason="blocks before its pixels"
        ),
        "BMP of ends of lines": Costly(lambda: bmp_rle(9, 9, bytes(50_000_000)), reason=lengths),
        "BMP of padded lines": Costly(
            lambda: bmp_rle(7000, 7000, b"\1\7\0\0" * 7000), reason=lengths
        ),
        "PPM of a long comment": Costly(
            lambda: b"P6 #" + b"a" * 50_000_000 + b"\n3 2 255\n" + bytes(18),
            reason="before its pixels",
        ),
        "PPM of blanks": Costly(lambda: b"P6 200 200 255\n" + b" " * 120_000, (200, 200)),
        "PPM of text": Costly(lambda: b"P3 3000 3000 255\n" + b"255 " * 27_000_000, reason=text),
        "PPM of many comments": Costly(lambda: b"P3 10 10 255\n" + b"#\n1 " * 500_000, (10, 10)),
        "PPM of a long text": Costly(lambda: b"P3 3 2 255\n#" + bytes(50_000_000), reason=text),
        "PPM of 16 bits": Costly(
            lambda: b"P6 4000 3000 65535\n" + bytes(range(250)) * 288_000, (4000, 3000)
        ),
        "WebP of 16383 x 2000": Costly(
            lambda: encode(Image.new("RGB", (16383, 2000)), "WEBP", method=0), (16383, 2000)
        ),
        # The longest side of the format and nearly 50 megapixels; libwebp keeps two canvases.
        **{
            f"{mode} WebP of 16383 x 3051": Costly(
                lambda m=mode: encode(
                    Image.new(m, (16383, 3051)), "WEBP", lossless=m == "RGBA", method=0
                ),
                (16383, 3051),
                most_kb=850_000,
            )
            for mode in ("RGB", "RGBA")
        },
    }


COSTLY = {f"JPEG: {name}": costly for name, costly in _costly_jpegs().items()}
COSTLY |= {f"PNG: {name}": costly for name, costly in _costly_pngs().items()}
COSTLY |= {f"TIFF: {name}": costly for name, costly in _costly_tiffs().items()}
COSTLY |= _costly_others()


def seeds_for_mutation() -> dict[str, bytes]:
    """Small valid files of every format."""
    names = "GIF", "RGBA PNG", "RGBA WEBP", "1-bit TIFF", "several frames GIF", "EXIF 6 JPEG"
    names += tuple(f"{form} named a" for form in ("PNG", "WEBP", "BMP", "TIFF", "PPM"))
    names += tuple(f"several frames {form}" for form in ("WEBP", "PNG", "MPO"))
    names += "BMP with run lengths", "PPM of text", "16-bit colour PPM", "16-bit PNG"
    return {name: CASES[name].data for name in names} | {
        "LZW TIFF": encode(SMALL, "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": encode(SMOOTH, "TIFF", compression="jpeg"),
        "big TIFF": encode(SMALL, "TIFF", big_tiff=True),
        "progressive JPEG": encode(SMOOTH, "JPEG", progressive=True),
        "palette BMP": encode(Image.fromarray(SMALL).quantize(6), "BMP"),
    }


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four random changes: values, cuts, repeats, large numbers.

    One in twenty repeats a part until it has a megabyte.
    """
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, len(data) + 1))
        part = data[start : start + int(rng.integers(1, 16))]
        value = bytes([rng.choice([0, 1, 127, 128, 255])])
        number = struct.pack(rng.choice(["<I", ">I"]), 2**16 + start)
        new = [rng.bytes(len(part)), value * len(part), b"", part + part, number][rng.integers(5)]
        data = data[:start] + new + data[start + len(part) :]
    if rng.random() < 0.05 and data:
        start = int(rng.integers(0, len(data)))
        part = data[start : start + int(rng.choice([1, 2, 12, 40]))]
        data = data[:start] + part * (2**20 // len(part)) + data[start:]
    return data

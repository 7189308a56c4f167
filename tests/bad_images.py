"""Images that are broken, hostile or unusual, generated in memory, each with its expected outcome.

`CASES` maps a name to a `Case`; everything is seeded, so the bytes are the same in every run.
"""

import io
import struct
import zlib
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
    layout = {322: tile, 323: tile, 324: 0, 325: len(body)} if tile else {273: 0, 279: len(body)}
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, **layout}
    start = 14 + 12 * len(tags)
    tags[324 if tile else 273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


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


def seeds_for_mutation() -> dict[str, bytes]:
    """Small valid files of every format."""
    names = "GIF", "RGBA PNG", "RGBA WEBP", "1-bit TIFF", "several frames GIF", "EXIF 6 JPEG"
    names += tuple(f"{form} named a" for form in ("PNG", "WEBP", "BMP", "TIFF", "PPM"))
    return {name: CASES[name].data for name in (*names, "several frames WEBP")} | {
        "LZW TIFF": encode(SMALL, "TIFF", compression="tiff_lzw"),
        "palette BMP": encode(Image.fromarray(SMALL).quantize(6), "BMP"),
    }


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four random changes: values, cuts, repeats, large numbers."""
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, len(data) + 1))
        part = data[start : start + int(rng.integers(1, 16))]
        value = bytes([rng.choice([0, 1, 127, 128, 255])])
        number = struct.pack(rng.choice(["<I", ">I"]), 2**16 + start)
        new = [rng.bytes(len(part)), value * len(part), b"", part + part, number][rng.integers(5)]
        data = data[:start] + new + data[start + len(part) :]
    return data

"""Takes the bytes of an image file, gives RGB pixels as a backbone wants them, safely.

Place in the flow: after `datasets`; `features` and `classifier` read images through here alone.
Shape letters: H W pixels. Pixels are uint8 (H, W, 3) in sRGB order.

How each kind of image becomes RGB: the first frame of an animation or of several pages; EXIF
orientation is applied (an unreadable EXIF block counts as none); transparency is laid over white;
16-bit greys are divided by 257, and 32-bit ones too when any is above 255; floating-point greys are
taken as 0 to 1, or as 0 to 255 when any is above 1; CMYK and YCCK are converted without a colour
profile, and embedded profiles are ignored, as in the training of the backbones.
"""

import codecs
import dataclasses
import errno
import io
import math
import os
import re
import stat
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from headstart.datasets import Dataset, draw
from headstart.errors import BadImageError, ResourceError

__all__ = [
    "FORMATS",
    "Augmentation",
    "Preprocessing",
    "Scan",
    "augment_image",
    "decode_and_prepare",
    "decode_image",
    "prepare_image",
    "read_image_bytes",
    "scan_images",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # a 50-megapixel camera; 150 MB as RGB
MAX_SCANS = 500  # a progressive JPEG has about 10; each costs as much time as the whole image
MAX_FILE_BYTES = 512 * 2**20

# The header of nearly every image is in its first bytes.
HEADER_BYTES = 2**18

# A width or height beyond 8 times the other is cut to its middle before resizing, since the centre
# crop drops the rest anyway and resizing a 1 x 10,000 strip whole would take gigabytes.
MAX_ASPECT = 8

# A JPEG is decoded at no less than this many times the size that it is then resized to.
SCALED_MARGIN = 1.25

# Changes whenever the same bytes give other pixels than before.
DECODER = "1"

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# EXIF tag 0x0112: how the stored pixels must be turned to stand upright.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What a file that is no readable image most likely is, by its first bytes.
LOOKS_LIKE = (
    (b"\x89PNG", "a damaged PNG"),
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"GIF8", "a damaged GIF"),
    (b"II*\0", "a damaged TIFF"),
    (b"MM\0*", "a damaged TIFF"),
    (b"%!PS", "PostScript, which is not read"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, which is not read"),
    (b"%PDF", "PDF, which is not read"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with 'git lfs pull'"),
)

# A file within the limits of `decode_image` must not come through as a mere warning, and what Pillow
# remarks about metadata (a corrupt EXIF block, say) is no news to the user.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a backbone wants of an image, in timm's terms.

    Attributes:
        input_px: (height, width) of the network's input.
        crop_pct: the share of the resized image that the crop keeps, in (0, 1].
        crop_mode: "center" (keep the aspect ratio, crop the middle) or "squash" (ignore it).
        interpolation: a key of `INTERPOLATIONS`.
        mean: R, G, B to subtract, of pixels scaled to 0 to 1.
        std: R, G, B to divide by.
    """

    input_px: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_image_bytes(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file, or the first `most` of them.

    Raises:
        BadImageError: missing, not a regular file (a pipe is never waited on), too large, unreadable.
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
            if info.st_size > MAX_FILE_BYTES:
                raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            with open(handle, "rb", closefd=False) as file:
                return file.read(info.st_size if most is None else min(most, info.st_size))
        finally:
            os.close(handle)
    except MemoryError as exc:
        raise ResourceError(f"{path}: out of memory while reading") from exc
    except BadImageError:
        raise
    except (OSError, ValueError) as exc:
        number = getattr(exc, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise ResourceError(f"{path}: {os.strerror(number)}; close other programs") from exc
        reason = os.strerror(number).lower() if number else str(exc)
        raise BadImageError(reason) from exc


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM (told by content) -> an RGB image.

    Args:
        data: the whole file.
        max_pixels: width times height allowed, checked before pixels are read.

    Raises:
        BadImageError: damaged, of another type, too large, or of a kind that has no clear meaning
            as a picture (NaN pixels, say); the message is the reason.
        ResourceError: out of memory.
    """
    image = _open(data, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError as exc:
        raise ResourceError("out of memory while decoding an image") from exc
    except BadImageError:
        raise
    except Exception as exc:  # Pillow's plug-ins raise nearly everything on hostile bytes
        raise BadImageError(f"damaged {image.format}: {_one_line(exc)}") from exc


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImageError("empty file")
    try:
        if data[:2] in (b"P1", b"P2", b"P3"):  # Pillow's time grows with the square of comments
            data = re.sub(rb"#[^\r\n]*", b"", data)
        if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
            raise BadImageError(f"a JPEG of more than {MAX_SCANS} scans")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as exc:
        found = _describe(data)
        raise BadImageError(found if "damaged" in found else f"not an image: {found}") from exc
    except BadImageError:
        raise
    except Image.DecompressionBombError as exc:
        most = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise BadImageError(f"more than {most:,} pixels") from exc
    except MemoryError as exc:
        raise ResourceError("out of memory while opening an image") from exc
    except Exception as exc:
        raise BadImageError(f"damaged: {_one_line(exc)}") from exc
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} is more than {max_pixels:,} pixels")
    if isinstance(image, TiffImageFile):
        tile = [image.tag_v2.get(tag, 1) for tag in (322, 323)]
        if not all(isinstance(side, int) for side in tile) or math.prod(tile) > max_pixels:
            raise BadImageError(f"a tile of more than {max_pixels:,} pixels")
    if width < 1 or height < 1:
        raise BadImageError(f"{width} x {height} has no pixels")
    return image


def _describe(data: bytes) -> str:
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, name in LOOKS_LIKE:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1")
        still = "AVIF" if brand.startswith("avi") else "HEIC"
        kind = still if brand[:2] in ("av", "he", "mi") else "MP4 or the like"
        return f"{kind}, which is not read; convert it to JPEG or PNG"
    if data[:4] == b"RIFF":
        return "a damaged WebP" if data[8:12] == b"WEBP" else "a RIFF file"
    lower = data[:512].lower()
    if b"<svg" in lower:
        return "SVG, which is not read; convert it to PNG"
    if head[:1] == b"<":
        return "HTML or XML"
    start = codecs.getincrementaldecoder("utf-8")("replace").decode(data[:512])
    if "\ufffd" not in start and start and not any(ord(c) < 9 for c in start):
        return "text"
    return "unknown content"


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:160] or type(exc).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where the EXIF block is missing or corrupt."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # a corrupt EXIF block does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    method = ORIENTATIONS.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB; the module's docstring says how."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image if mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layered.size, (255, 255, 255))
        white.paste(layered, mask=layered)
        return white
    if mode in ("1", "L", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise BadImageError(f"colour mode {mode} is not read; convert it to RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadImageError("pixels that are NaN or infinite")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 255:
            raise BadImageError(
                f"floating-point pixels from {low:g} to {high:g}; expected 0 to 255"
            )
        scaled = values * 255.0 if high <= 1 else values
    else:
        wide = values.astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImageError("32-bit pixels outside of 0 to 65,535; save as 16-bit or 8-bit")
        scaled = wide / 257.0 if values.dtype.itemsize == 2 or wide.max() > 255 else wide
    return np.rint(scaled).astype(np.uint8)


def prepare_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """An RGB image -> uint8 (H, W, 3), resized and cropped as timm's evaluation transform does.

    Equal to it bit for bit, but for images more than 8 times as long as wide.
    """
    if preprocessing.crop_mode == "center":
        image = _bound_aspect(image)
    size, (left, top) = _geometry(image.size, preprocessing)
    if image.size != size:
        image = image.resize(size, INTERPOLATIONS[preprocessing.interpolation])
    target_h, target_w = preprocessing.input_px
    return np.asarray(image.crop((left, top, left + target_w, top + target_h)))


def _geometry(
    size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the source -> (width, height) to resize to, (left, top) of the crop."""
    target_h, target_w = preprocessing.input_px
    scale_h = math.floor(target_h / preprocessing.crop_pct)
    scale_w = math.floor(target_w / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        width, height = scale_w, scale_h
    elif scale_h == scale_w:  # torchvision rounds the longer side down
        short, long = sorted(size)
        other = int(scale_h * long / short)
        width, height = (scale_h, other) if size[0] <= size[1] else (other, scale_h)
    else:  # timm rounds it to the nearest
        ratio = min(size[1] / scale_h, size[0] / scale_w)
        width, height = round(size[0] / ratio), round(size[1] / ratio)
    return (width, height), (round((width - target_w) / 2.0), round((height - target_h) / 2.0))


def decode_and_prepare(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    exact: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Bytes of an image -> uint8 (H, W, 3) for the network.

    Args:
        exact: as `decode_image` and `prepare_image` do it. Otherwise a JPEG is decoded at a fraction
            of its size, never below 1.25 times what is needed, and only the crop is resized; pixels
            then differ by 0.35 of 255 on average over photographs, by 1.3 in the worst of them
            (`benchmarks/precision.py`).

    Raises:
        BadImageError, ResourceError: as `decode_image`.
    """
    if not exact and data[:2] == b"\xff\xd8":
        pixels = _prepare_scaled(data, preprocessing, max_pixels)
        if pixels is not None:
            return pixels
    return prepare_image(decode_image(data, max_pixels=max_pixels), preprocessing)


def _prepare_scaled(
    data: bytes, preprocessing: Preprocessing, max_pixels: int
) -> np.ndarray | None:
    """A JPEG decoded at n/8 of its size, resized and cropped; None leaves it to the exact way."""
    header = _open(data, max_pixels)
    short, long = sorted(header.size)
    if header.mode not in ("RGB", "L") or long > MAX_ASPECT * short:
        return None
    least = math.ceil(SCALED_MARGIN * max(preprocessing.input_px) / preprocessing.crop_pct)
    try:
        array = simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
    except ValueError:  # damaged, perhaps; the exact way says what is wrong
        return None
    image, orientation = Image.fromarray(array), _orientation(header)
    # The decoder rounds a fraction of a pixel up at the right and bottom; the true extent goes on.
    eighths = round(8 * image.width / header.width)
    extent = (
        min(header.width * eighths / 8, image.width),
        min(header.height * eighths / 8, image.height),
    )
    size = header.size
    if orientation in ORIENTATIONS:
        image = image.transpose(ORIENTATIONS[orientation])
        if orientation >= 5:
            extent, size = extent[::-1], size[::-1]
    (width, height), (left, top) = _geometry(size, preprocessing)
    x0 = image.width - extent[0] if orientation in (2, 3, 6, 7) else 0.0
    y0 = image.height - extent[1] if orientation in (3, 4, 7, 8) else 0.0
    step_x, step_y = extent[0] / width, extent[1] / height
    target_h, target_w = preprocessing.input_px
    box = (
        x0 + left * step_x,
        y0 + top * step_y,
        min(x0 + (left + target_w) * step_x, image.width),
        min(y0 + (top + target_h) * step_y, image.height),
    )
    resized = image.resize(
        (target_w, target_h), INTERPOLATIONS[preprocessing.interpolation], box=box
    )
    return np.asarray(resized)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a view differs from the plain image, each part on its own.

    Attributes:
        crop: a random part of 50 to 100 % of the area with an aspect ratio of 3/4 to 4/3, resized.
        flip: mirrored left to right in one view of two; wrong for signs and letters.
        colour: brightness, contrast and saturation each times 0.8 to 1.2.
    """

    crop: bool = True
    flip: bool = True
    colour: bool = True


def augment_image(
    image: Image.Image,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    seed: int,
    image_id: str,
    view: int,
) -> np.ndarray:
    """One view of an RGB image, uint8 (H, W, 3); a pure function of its arguments.

    View 0 is the plain image as `prepare_image` gives it. The random resized crop is that of Szegedy
    et al., Going Deeper with Convolutions (CVPR 2015), with a milder range.
    """
    if view == 0:
        return prepare_image(image, preprocessing)

    def uniform(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * draw(seed, f"view {purpose}", image_id, view)

    image = _bound_aspect(image)
    target_h, target_w = preprocessing.input_px
    method = INTERPOLATIONS[preprocessing.interpolation]
    if augmentation.crop:
        area = image.width * image.height * uniform("area", 0.5, 1.0)
        ratio = math.exp(uniform("ratio", math.log(3 / 4), math.log(4 / 3)))
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left = math.floor(uniform("left", 0, image.width - width + 1))
        top = math.floor(uniform("top", 0, image.height - height + 1))
        box = (left, top, left + width, top + height)
        image = image.resize((target_w, target_h), method, box=box)
    else:
        image = Image.fromarray(prepare_image(image, preprocessing))
    if augmentation.flip and uniform("flip", 0, 1) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.colour:
        for purpose, enhancer in (
            ("brightness", ImageEnhance.Brightness),
            ("contrast", ImageEnhance.Contrast),
            ("saturation", ImageEnhance.Color),
        ):
            image = enhancer(image).enhance(uniform(purpose, 0.8, 1.2))
    return np.asarray(image)


def _bound_aspect(image: Image.Image) -> Image.Image:
    short = min(image.size)
    width = min(image.width, MAX_ASPECT * short)
    height = min(image.height, MAX_ASPECT * short)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# ---------------------------------------------------------------- the report before any work


@dataclasses.dataclass(frozen=True)
class Scan:
    """What is in a data set, from its files' headers.

    Attributes:
        images: rows, readable or not.
        counts: {split or "all": {class: images}}.
        probed: how many headers were read.
        width_px, height_px: (minimum, median, maximum) over the probed images.
        formats: {format: images} over the probed images.
        unreadable: (image id, reason) of what is known to be unreadable before decoding.
    """

    images: int
    counts: dict[str, dict[str, int]]
    probed: int
    width_px: tuple[int, int, int]
    height_px: tuple[int, int, int]
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]


def scan_images(dataset: Dataset, *, probes: int = 2000, max_pixels: int = MAX_PIXELS) -> Scan:
    """Count images and read up to `probes` headers, chosen by a draw of the image id."""
    counts: dict[str, Counter[str]] = {}
    for label, split in zip(dataset.labels, dataset.splits, strict=True):
        if label >= 0:
            counts.setdefault(split or "all", Counter())[dataset.classes[label]] += 1
    unreadable = [(i, e) for i, e in zip(dataset.ids, dataset.errors, strict=True) if e]
    rows = [i for i, e in enumerate(dataset.errors) if not e]
    if len(rows) > probes:
        rows = sorted(rows, key=lambda i: draw(0, "scan", dataset.ids[i]))[:probes]

    def probe(row: int) -> tuple[str, str, int, int]:
        path = dataset.path(row)
        try:
            try:
                image = _open(read_image_bytes(path, HEADER_BYTES), max_pixels)
            except BadImageError:  # or the header is longer than that
                image = _open(read_image_bytes(path), max_pixels)
        except BadImageError as exc:
            return str(exc), "", 0, 0
        return "", image.format or "", image.width, image.height

    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(probe, rows))
    for row, result in zip(rows, results, strict=True):
        if result[0]:
            unreadable.append((dataset.ids[row], result[0]))
    good = [r for r in results if not r[0]]
    widths = sorted(r[2] for r in good) or [0]
    heights = sorted(r[3] for r in good) or [0]
    return Scan(
        images=len(dataset),
        counts={s: dict(c) for s, c in counts.items()},
        probed=len(good),
        width_px=(widths[0], widths[len(widths) // 2], widths[-1]),
        height_px=(heights[0], heights[len(heights) // 2], heights[-1]),
        formats=dict(Counter(r[1] for r in good).most_common()),
        unreadable=tuple(sorted(unreadable)),
    )

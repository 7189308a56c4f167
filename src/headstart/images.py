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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from headstart.datasets import Dataset, draw
from headstart.errors import BadImageError, ResourceError, UsageError

__all__ = [
    "AUGMENTATIONS",
    "FORMATS",
    "OPERATIONS",
    "Augmentation",
    "Picture",
    "Preprocessing",
    "Scan",
    "augment_image",
    "decode_and_prepare",
    "decode_image",
    "decode_picture",
    "needed_px",
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
    least = None if exact else needed_px(preprocessing)
    picture = decode_picture(data, least_px=least, max_pixels=max_pixels)
    return _prepare_picture(picture, preprocessing)


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An upright RGB image that may have been decoded at a fraction of its size.

    Attributes:
        image: RGB.
        size: (width, height) of the whole image.
        extent: (left, top, right, bottom) of the whole within `image`, in its pixels; None when it
            was decoded exactly, at full size.
    """

    image: Image.Image
    size: tuple[int, int]
    extent: tuple[float, float, float, float] | None = None


def decode_picture(
    data: bytes, *, least_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Bytes of an image -> what `augment_image` takes views of.

    Args:
        least_px: a JPEG may be decoded at a fraction of its size, with both sides at least this long;
            `needed_px` tells how long. None decodes as `decode_image`.

    Raises:
        BadImageError, ResourceError: as `decode_image`.
    """
    if least_px is not None and data[:2] == b"\xff\xd8":
        picture = _decode_scaled(data, least_px, max_pixels)
        if picture is not None:
            return picture
    image = decode_image(data, max_pixels=max_pixels)
    return Picture(image, image.size)


def needed_px(preprocessing: Preprocessing, augmentation: "Augmentation | None" = None) -> int:
    """How long the sides of a picture must be for its plain view to be near the exact one, and for
    the smallest crop of an augmentation to fill the input without being enlarged."""
    target = max(preprocessing.input_px)
    least = math.ceil(SCALED_MARGIN * target / preprocessing.crop_pct)
    if augmentation is not None and augmentation.crop is not None:
        least = max(least, math.ceil(target / math.sqrt(augmentation.crop[0])))
    return least


def _decode_scaled(data: bytes, least: int, max_pixels: int) -> Picture | None:
    """A JPEG decoded at n/8 of its size; None leaves it to the exact way."""
    header = _open(data, max_pixels)
    short, long = sorted(header.size)
    if header.mode not in ("RGB", "L") or long > MAX_ASPECT * short:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
    except ValueError:  # damaged, perhaps; the exact way says what is wrong
        return None
    image, orientation = Image.fromarray(pixels), _orientation(header)
    # The decoder rounds a fraction of a pixel up at the right and bottom; the true extent goes on.
    eighths = round(8 * image.width / header.width)
    true_w = min(header.width * eighths / 8, image.width)
    true_h = min(header.height * eighths / 8, image.height)
    size = header.size
    if orientation in ORIENTATIONS:
        image = image.transpose(ORIENTATIONS[orientation])
        if orientation >= 5:
            true_w, true_h, size = true_h, true_w, size[::-1]
    left = image.width - true_w if orientation in (2, 3, 6, 7) else 0.0
    top = image.height - true_h if orientation in (3, 4, 7, 8) else 0.0
    return Picture(image, size, (left, top, left + true_w, top + true_h))


def _prepare_picture(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    if picture.extent is None:
        return prepare_image(picture.image, preprocessing)
    size, (left, top) = _geometry(picture.size, preprocessing)
    target_h, target_w = preprocessing.input_px
    box = _scale_box(picture, (left, top, left + target_w, top + target_h), size)
    method = INTERPOLATIONS[preprocessing.interpolation]
    return np.asarray(picture.image.resize((target_w, target_h), method, box=box))


def _scale_box(
    picture: Picture, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box of the whole image, were it resized to `size`, in the pixels that were decoded."""
    width, height = picture.image.size
    left, top, right, bottom = picture.extent or (0.0, 0.0, float(width), float(height))
    step_x, step_y = (right - left) / size[0], (bottom - top) / size[1]
    return (
        left + box[0] * step_x,
        top + box[1] * step_y,
        min(left + box[2] * step_x, width),
        min(top + box[3] * step_y, height),
    )


# ---------------------------------------------------------------- augmented views


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a view differs from the plain image; the default is the preset "medium".

    Attributes:
        crop: (least, most) share of the area that a random part has which is then resized, in
            (0, 1]; None leaves the resizing and centre crop of the plain image.
        ratio: (least, most) width over height of that part, before it is cut to fit.
        flip: the probability of being mirrored left to right; 0 for signs, digits and letters.
        brightness, contrast, saturation: times 1 minus to 1 plus this, in [0, 1].
        hue: turned by up to this much of the colour circle either way, in [0, 0.5]; costs as much
            time as all the others together.
        rotate_degrees: turned by up to this much either way, in [0, 180].
        erase: the probability that a rectangle of 2 to 20 % of the area is blanked (Zhong et al.,
            Random Erasing Data Augmentation, AAAI 2020).
        random_ops: how many operations are drawn one after another from `OPERATIONS`, each with a
            strength drawn from its whole range (Müller and Hutter, TrivialAugment, ICCV 2021).

    Raises:
        UsageError: a value is out of its range.
    """

    crop: tuple[float, float] | None = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    rotate_degrees: float = 0.0
    erase: float = 0.0
    random_ops: int = 0

    def __post_init__(self) -> None:
        for name, most in (
            ("flip", 1), ("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5),
            ("rotate_degrees", 180), ("erase", 1), ("random_ops", 10),
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} must be from 0 to {most}, got {getattr(self, name)}")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UsageError(f"crop must be two shares of the area in (0, 1], got {self.crop}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise UsageError(f"ratio must be two positive numbers, got {self.ratio}")

    def without_flip(self) -> "Augmentation":
        """The same, never mirrored: for signs, digits and letters."""
        return dataclasses.replace(self, flip=0.0)

    @property
    def is_plain(self) -> bool:
        """Whether every view is the plain image."""
        return self.crop is None and not any(
            (self.flip, self.brightness, self.contrast, self.saturation, self.hue,
             self.rotate_degrees, self.erase, self.random_ops)
        )  # fmt: skip


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(crop=None, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0),
    "light": Augmentation(
        crop=(0.8, 1.0), ratio=(0.9, 1 / 0.9), brightness=0.1, contrast=0.1, saturation=0.1
    ),
    "medium": Augmentation(),
    "strong": Augmentation(
        crop=(0.25, 1.0), brightness=0.0, contrast=0.0, saturation=0.0, erase=0.25, random_ops=1
    ),
}


def import_operations() -> None:
    """Import what augmented views are drawn with.

    Where it is first needed is in threads, and beside them one may be importing timm, which imports it
    too; two that meet within torchvision would each be given half of it.
    """
    import torchvision.transforms.v2.functional  # noqa: F401


def augment_image(
    image: Image.Image | Picture,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    seed: int,
    image_id: str,
    view: int,
) -> np.ndarray:
    """One view of an RGB image, uint8 (H, W, 3); a pure function of its arguments.

    View 0 is the plain image as `prepare_image` gives it. The random resized crop is that of Szegedy
    et al., Going Deeper with Convolutions (CVPR 2015). Operations on colours and shapes are those of
    torchvision.transforms.v2, which for such images are Pillow's; cropping and resizing are one step
    with Pillow, which takes parts of a pixel, as a scaled decoding needs.
    """
    picture = image if isinstance(image, Picture) else Picture(image, image.size)
    if view == 0 or augmentation.is_plain:
        return _prepare_picture(picture, preprocessing)

    def uniform(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * draw(seed, f"view {purpose}", image_id, view)

    whole = picture.image
    if picture.extent is None:
        whole = _bound_aspect(whole)
        picture = Picture(whole, whole.size)
    target_h, target_w = preprocessing.input_px
    method = INTERPOLATIONS[preprocessing.interpolation]
    box = (0.0, 0.0, float(whole.width), float(whole.height))
    if augmentation.crop is not None:
        crop = _draw_crop(picture.size, augmentation.crop, augmentation.ratio, uniform)
        box = _scale_box(picture, crop, picture.size)
    # What is enlarged is changed before, with fewer pixels; what is made smaller, after.
    last = (box[2] - box[0]) * (box[3] - box[1]) < target_w * target_h
    if last:
        part = whole.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    elif augmentation.crop is not None:
        part = whole.resize((target_w, target_h), method, box=box)
    else:
        part = Image.fromarray(_prepare_picture(picture, preprocessing))
    fill = [round(255 * mean) for mean in preprocessing.mean]
    part = _change(part, augmentation, uniform, fill)
    if last and augmentation.crop is not None:
        part = part.resize((target_w, target_h), method)
    elif last:
        return prepare_image(part, preprocessing)
    return np.asarray(part)


Uniform = Callable[[str, float, float], float]


def _draw_crop(
    size: tuple[int, int],
    shares: tuple[float, float],
    ratios: tuple[float, float],
    uniform: Uniform,
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of an image of this (width, height)."""
    area = size[0] * size[1] * uniform("area", *shares)
    ratio = math.exp(uniform("ratio", math.log(ratios[0]), math.log(ratios[1])))
    width = min(size[0], max(1, round(math.sqrt(area * ratio))))
    height = min(size[1], max(1, round(math.sqrt(area / ratio))))
    left = math.floor(uniform("left", 0, size[0] - width + 1))
    top = math.floor(uniform("top", 0, size[1] - height + 1))
    return left, top, left + width, top + height


def _change(
    image: Image.Image, augmentation: Augmentation, uniform: Uniform, fill: list[int]
) -> Image.Image:
    """All that happens to a part of an image but for resizing."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    if uniform("flip", 0, 1) < augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.rotate_degrees:
        degrees = uniform("rotate", -augmentation.rotate_degrees, augmentation.rotate_degrees)
        image = functional.rotate(image, degrees, InterpolationMode.BILINEAR, fill=fill)
    for purpose, most, adjust in (
        ("brightness", augmentation.brightness, functional.adjust_brightness),
        ("contrast", augmentation.contrast, functional.adjust_contrast),
        ("saturation", augmentation.saturation, functional.adjust_saturation),
    ):
        if most:
            image = adjust(image, uniform(purpose, 1 - most, 1 + most))
    if augmentation.hue:
        hue = uniform("hue", -augmentation.hue, augmentation.hue)
        image = functional.adjust_hue(image, hue)
    for number in range(augmentation.random_ops):
        names = list(OPERATIONS)
        name = names[math.floor(uniform(f"operation {number}", 0, len(names)))]
        image = OPERATIONS[name](functional, image, uniform(f"strength {number}", -1, 1), fill)
    if uniform("erase", 0, 1) < augmentation.erase:
        image = image.copy()
        shares, ratios = (0.02, 0.2), (1 / 3, 3)
        box = _draw_crop(image.size, shares, ratios, lambda p, a, b: uniform(f"erase {p}", a, b))
        image.paste(tuple(fill), box)
    return image


def _warp(functional: Any, image: Image.Image, fill: list[int], **how: Any) -> Image.Image:
    from torchvision.transforms.v2 import InterpolationMode

    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    bilinear = InterpolationMode.BILINEAR
    warped: Image.Image = functional.affine(
        image, **{**still, **how}, interpolation=bilinear, fill=fill
    )
    return warped


def _shear_degrees(strength: float) -> float:
    return math.degrees(math.atan(0.99 * strength))


# {name: (torchvision's functional, image, strength in [-1, 1], colour of what is uncovered) -> image};
# the list and the ranges are those of torchvision's TrivialAugmentWide.
OPERATIONS: dict[str, Callable[[Any, Image.Image, float, list[int]], Image.Image]] = {
    "identity": lambda f, image, m, fill: image,
    "shear x": lambda f, image, m, fill: _warp(f, image, fill, shear=[_shear_degrees(m), 0.0]),
    "shear y": lambda f, image, m, fill: _warp(f, image, fill, shear=[0.0, _shear_degrees(m)]),
    "translate x": lambda f, image, m, fill: _warp(
        f, image, fill, translate=[round(m * image.width / 7), 0]
    ),
    "translate y": lambda f, image, m, fill: _warp(
        f, image, fill, translate=[0, round(m * image.height / 7)]
    ),
    "rotate": lambda f, image, m, fill: _warp(f, image, fill, angle=135 * m),
    "brightness": lambda f, image, m, fill: f.adjust_brightness(image, 1 + 0.99 * m),
    "saturation": lambda f, image, m, fill: f.adjust_saturation(image, 1 + 0.99 * m),
    "contrast": lambda f, image, m, fill: f.adjust_contrast(image, 1 + 0.99 * m),
    "sharpness": lambda f, image, m, fill: f.adjust_sharpness(image, 1 + 0.99 * m),
    "posterize": lambda f, image, m, fill: f.posterize(image, 8 - round(6 * abs(m))),
    "solarize": lambda f, image, m, fill: f.solarize(image, 255 * (1 - abs(m))),
    "autocontrast": lambda f, image, m, fill: f.autocontrast(image),
    "equalize": lambda f, image, m, fill: f.equalize(image),
}


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

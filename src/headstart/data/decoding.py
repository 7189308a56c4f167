"""Takes the bytes of an image file, gives RGB pixels in the form that a backbone needs, safely.

`features` and `classifier` read images through here alone. Shape letters: H W pixels. Pixels are uint8
(H, W, 3) in sRGB order.

How each kind of image becomes RGB: the first frame of an animation or of several pages; EXIF
orientation is applied (an unreadable EXIF block counts as none); transparency is laid over white;
16-bit greys are divided by 257, and 32-bit ones too when any is above 255; floating-point greys are
taken as 0 to 1, or as 0 to 255 when any is above 1; CMYK and YCCK are converted without a colour
profile, and embedded profiles are ignored, as in the training of the backbones.
"""

import codecs
import dataclasses
import io
import math
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from headstart.arrays import PixelsHW3
from headstart.data.bounds import MAX_PIXELS, MAX_SIDE, bound_work, check_tiles, is_modest
from headstart.errors import BadImageError, ResourceError, UsageError, one_line

__all__ = [
    "DECODER",
    "FORMATS",
    "INTERPOLATIONS",
    "MAX_PIXELS",
    "Picture",
    "PillowSource",
    "Preprocessing",
    "bound_aspect",
    "check_input_px",
    "convert_image",
    "decode_and_prepare",
    "decode_image",
    "decode_picture",
    "needed_px",
    "open_image",
    "prepare_image",
    "prepare_picture",
    "read_orientation",
    "read_shot",
    "scale_box",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What is changed through NumPy, or laid over white, is changed in strips of this size.
STRIP_PIXELS = 2**20

# A width or height beyond 8 times the other is cut to its middle before resizing, since the centre
# crop drops the rest anyway and resizing a 1 x 10,000 strip whole would take gigabytes.
MAX_ASPECT = 8

# A JPEG is decoded at no less than this many times the size that it is then resized to.
SCALED_MARGIN = 1.25

# Heights and widths of a network's input.
MIN_INPUT_PX, MAX_INPUT_PX = 16, 2048

# Changes whenever the same bytes give other pixels than before, or another verdict.
DECODER = "2"

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

# Of the name of a camera, which a file may claim to be of any length.
MAX_NAME = 100

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
    (b"\0\0\0\x0cjP  ", "JPEG 2000, which is not read; convert it to JPEG or PNG"),
    (b"\0\0\1\0", "an icon, which is not read; convert it to PNG"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with 'git lfs pull'"),
)

# A file within the limits of `decode_image` must not come through as a mere warning, and what Pillow
# remarks about metadata (a corrupt EXIF block, say) is no news to the user.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image is prepared for a backbone, in timm's terms.

    Attributes:
        input_px: (height, width) of the network's input.
        crop_pct: the fraction of the resized image that the crop keeps, in (0, 1].
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


def check_input_px(px: int) -> None:
    """Refuse a height or width of a network's input that is out of bounds.

    Raises:
        UsageError: says the bounds.
    """
    if not MIN_INPUT_PX <= px <= MAX_INPUT_PX:
        raise UsageError(f"input_px must be {MIN_INPUT_PX} to {MAX_INPUT_PX}, got {px}")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM (recognised by content) to an RGB image.

    Args:
        data: the whole file.
        max_pixels: width times height allowed, checked before pixels are read.

    Raises:
        BadImageError: damaged, of another type, too large, or of a kind that has no clear meaning
            as a picture (NaN pixels, say); the message is the reason.
        ResourceError: out of memory.
    """
    image = open_image(data, max_pixels)
    try:
        return _to_rgb(_upright(_load(image, data)))
    except MemoryError as exc:
        raise ResourceError("out of memory while decoding an image") from exc
    except BadImageError:
        raise
    except Exception as exc:  # Pillow's plug-ins raise nearly everything on hostile bytes
        raise BadImageError(f"damaged {image.format}: {one_line(exc)}") from exc


def convert_image(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn a Pillow image in memory, opened or made, into the RGB image that its file would give.

    Raises:
        BadImageError, ResourceError: as `decode_image`.
    """
    _check_size(image, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError as exc:
        raise ResourceError("out of memory while converting an image") from exc
    except BadImageError:
        raise
    except Exception as exc:  # opened from a file, which Pillow reads now
        raise BadImageError(f"damaged {image.format}: {one_line(exc)}") from exc


# Two threads must not load one Pillow image at once, and the same one may be given twice.
_LOADING = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PillowSource:
    """A Pillow image in memory as a source of `images`: its RGB pixels, as the bytes of a PPM.

    Attributes:
        image: opened or made.
        max_pixels: as `convert_image` takes it.
    """

    image: Image.Image
    max_pixels: int = MAX_PIXELS

    def read(self, most: int | None = None) -> bytes:
        """A PPM, which decodes to what `convert_image` gives; raises as that does."""
        with _LOADING:
            rgb = convert_image(self.image, max_pixels=self.max_pixels)
        data = b"P6 %d %d 255\n" % rgb.size + rgb.tobytes()
        return data if most is None else data[:most]

    def stamp(self) -> None:
        """Give None: memory has no state to compare."""


def open_image(data: bytes, max_pixels: int) -> ImageFile:
    if not data:
        raise BadImageError("empty file")
    try:
        data = bound_work(data, max_pixels)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image, max_pixels)
        if isinstance(image, TiffImageFile):
            check_tiles(image.tag_v2, data, max_pixels)
        return image
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
        raise BadImageError(f"damaged: {one_line(exc)}") from exc


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} is more than {max_pixels:,} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadImageError(f"{width} x {height} has a side of more than {MAX_SIDE:,} pixels")
    if width < 1 or height < 1:
        raise BadImageError(f"{width} x {height} has no pixels")


def _load(image: ImageFile, data: bytes) -> Image.Image:
    """Read the pixels."""
    codec = image.tile[0].codec_name if image.tile else ""
    if codec == "ppm":
        return _rescale_samples(image, data)
    if codec == "jpeg":  # what does not end within a block is parsed again from its start
        image.decodermaxblock = len(data)
    image.load()
    return image


def _rescale_samples(image: ImageFile, data: bytes) -> Image.Image:
    """The pixels of a PPM whose samples go to another number than 255, as Pillow rounds them."""
    start, (_, most) = image.tile[0].offset, cast(tuple[str, int], image.tile[0].args)
    channels, highest = len(image.getbands()), 65535 if image.mode == "I" else 255
    count = image.width * image.height * channels
    kind = np.dtype(np.uint8 if most < 256 else ">u2")
    if len(data) < start + count * kind.itemsize:
        raise BadImageError("damaged PPM: not enough image data")
    scaled = np.rint(np.arange(2 ** (8 * kind.itemsize)) / most * highest)
    table = np.minimum(scaled, highest).astype(np.int32 if highest > 255 else np.uint8)
    shape = (image.height, image.width, channels)[: 3 if channels > 1 else 2]
    return Image.fromarray(table[np.frombuffer(data, kind, count, start)].reshape(shape))


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


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where the EXIF block is missing, corrupt or hostile."""
    try:
        value = _read_exif(image).get(0x0112, 1)
    except Exception:  # a corrupt EXIF block does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_shot(image: Image.Image) -> tuple[str, float] | None:
    """The camera that took an image, and when in seconds by its clock.

    None where EXIF does not say when, or is corrupt or hostile. The camera is its make, model and serial
    number as far as given. The time is that of the original: a later one is of an editor.
    """
    try:
        exif = _read_exif(image)
        details = exif.get_ifd(0x8769)
        taken = datetime.strptime(details[0x9003].rstrip("\0 "), "%Y:%m:%d %H:%M:%S")
        names = (exif.get(0x010F), exif.get(0x0110), details.get(0xA431))
    except Exception:  # as above
        return None
    camera = "\0".join(str(name)[:MAX_NAME].strip("\0 ") for name in names if name is not None)
    return camera, (taken - datetime.min).total_seconds()


def _read_exif(image: Image.Image) -> Image.Exif:
    """The EXIF block; empty where it is hostile, any error where it is corrupt."""
    block = image.info.get("exif")
    if block is None and (profile := image.info.get("Raw profile type exif")):
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
    if block and not is_modest(block):
        return Image.Exif()
    return image.getexif()


def _upright(image: Image.Image) -> Image.Image:
    method = ORIENTATIONS.get(read_orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB; the module's docstring says how."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return _to_eight_bits(image).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGB", image.size, (255, 255, 255))
        for box in _strips(image):
            layered = image.crop(box).convert("RGBA")
            white.paste(layered, box, layered)
        return white
    if mode in ("1", "L", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise BadImageError(f"colour mode {mode} is not read; convert it to RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows from top to bottom, so that what is made of each takes little memory."""
    rows = math.ceil(STRIP_PIXELS / image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits, or in floating point; the module's docstring says how."""
    kind = np.asarray(image.crop((0, 0, 1, 1))).dtype
    low, high = math.inf, -math.inf
    for box in _strips(image):
        part = np.asarray(image.crop(box))
        if kind.kind == "f" and not np.isfinite(part).all():
            raise BadImageError("pixels that are NaN or infinite")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if kind.kind == "f" and (low < 0 or high > 255):
        raise BadImageError(f"floating-point pixels from {low:g} to {high:g}; expected 0 to 255")
    if kind.kind != "f" and (low < 0 or high > 65535):
        raise BadImageError("32-bit pixels outside of 0 to 65,535; save as 16-bit or 8-bit")
    grey = Image.new("L", image.size)
    for box in _strips(image):
        part = np.asarray(image.crop(box))
        if kind.kind == "f":
            part = part * 255.0 if high <= 1 else part
        elif kind.itemsize == 2 or high > 255:
            part = part / 257.0
        grey.paste(Image.fromarray(np.rint(part).astype(np.uint8)), box)
    return grey


def prepare_image(image: Image.Image, preprocessing: Preprocessing) -> PixelsHW3:
    """Resize and crop an RGB image to uint8 (H, W, 3), as timm's evaluation transform does.

    Equal to it bit for bit, but for images more than 8 times as long as wide.
    """
    if preprocessing.crop_mode == "center":
        image = bound_aspect(image)
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
) -> PixelsHW3:
    """Decode the bytes of an image to uint8 (H, W, 3) for the network.

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
    return prepare_picture(picture, preprocessing)


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
    """Decode the bytes of an image to a `Picture`, of which `augment_image` draws views.

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


def needed_px(preprocessing: Preprocessing, least_crop: float = 1.0) -> int:
    """How long the sides of a picture must be for its plain view to be near the exact one, and for a crop
    of this share of the area, in (0, 1], to fill the input without being enlarged."""
    target = max(preprocessing.input_px)
    plain = math.ceil(SCALED_MARGIN * target / preprocessing.crop_pct)
    return max(plain, math.ceil(target / math.sqrt(least_crop)))


def _decode_scaled(data: bytes, least: int, max_pixels: int) -> Picture | None:
    """A JPEG decoded at n/8 of its size; None leaves it to the exact way."""
    header = open_image(data, max_pixels)
    short, long = sorted(header.size)
    if header.mode not in ("RGB", "L") or long > MAX_ASPECT * short:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
    except ValueError:  # damaged, perhaps; the exact way says what is wrong
        return None
    image, orientation = Image.fromarray(pixels), read_orientation(header)
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


def prepare_picture(picture: Picture, preprocessing: Preprocessing) -> PixelsHW3:
    if picture.extent is None:
        return prepare_image(picture.image, preprocessing)
    size, (left, top) = _geometry(picture.size, preprocessing)
    target_h, target_w = preprocessing.input_px
    box = scale_box(picture, (left, top, left + target_w, top + target_h), size)
    method = INTERPOLATIONS[preprocessing.interpolation]
    return np.asarray(picture.image.resize((target_w, target_h), method, box=box))


def scale_box(
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


def bound_aspect(image: Image.Image) -> Image.Image:
    short = min(image.size)
    width = min(image.width, MAX_ASPECT * short)
    height = min(image.height, MAX_ASPECT * short)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

"""Takes a `Dataset`, gives the looks of its images: small grey pictures, and figures of size and sharpness.

An audit goes by them. They are kept in a `Store` under the hash of the image's bytes, as features are, so a
second audit decodes nothing. Shape letters: N images, S the side of a small picture.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from headstart.arrays import FloatN, FloatND
from headstart.data.dataset import Dataset
from headstart.data.decoding import DECODER, decode_picture, open_image, read_orientation
from headstart.errors import BadImageError, InputError
from headstart.features.runtime import Runtime
from headstart.features.shards import RowWriter
from headstart.features.store import Store
from headstart.parallel import Progress, map_ahead, no_progress

__all__ = ["FIGURES", "SIDE_PX", "Looks", "extract_looks", "look_at"]

SIDE_PX = 32  # S

# An image is looked at no larger than this: what is sharp there is sharp to a network.
LOOKED_PX = 256
# Of the steps from a pixel to the next, this fraction is above the one that tells the sharpness.
STEEPEST = 0.001
# Contrast is the range of all greys but this fraction at either end.
EXTREME = 0.01
# The border is this fraction of each side, and a pixel at least.
BORDER = 0.05

# The columns of the figures.
FIGURES = (
    "width_px",
    "height_px",
    "orientation",
    "sharpness",
    "contrast",
    "brightness",
    "border_red",
    "border_green",
    "border_blue",
)
# Changes whenever the same pixels give other looks than before.
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Looks:
    """What images look like, in the order of the data set; NaN where one could not be read.

    Attributes:
        grey: float32 (N, S, S), the whole upright image in grey, 0 to 255.
        figures: {name of `FIGURES`: float32 (N,)}. Width and height are those of the upright image; the
            orientation is EXIF's, 1 to 8, 1 for an image that is stored upright; the sharpness is the
            steepest step from a pixel to the next as a fraction of the contrast, which is a range of greys;
            brightness and the border's mean colour are 0 to 255.
    """

    grey: FloatND
    figures: Mapping[str, FloatN]


def extract_looks(
    dataset: Dataset,
    sha256: Sequence[str],
    errors: Sequence[str],
    runtime: Runtime = Runtime(),
    *,
    progress: Progress = no_progress,
) -> Looks:
    """Look at every image, or take its looks from the store.

    Args:
        sha256: N hex digests as in `Features`.
        errors: N reasons why an image is not to be read, "" for a good one.

    Raises:
        InputError: an image has changed since it was hashed, or can no longer be read; names it.
        ResourceError: out of disk, memory or permission; what is committed stays.
    """
    store = Store.open(runtime.cache, _make_key(runtime.max_pixels))
    good = [row for row, error in enumerate(errors) if not error]
    names = {row: bytes.fromhex(sha256[row]) for row in good}
    missing = list({names[row]: row for row in good if names[row] not in store}.values())

    def look(row: int) -> tuple[bytes, FloatND, FloatN]:
        try:
            data = dataset.image(row).read()
            if hashlib.sha256(data).digest() == names[row]:
                return (names[row], *look_at(data, max_pixels=runtime.max_pixels))
        except BadImageError as exc:
            raise InputError(f"'{dataset.ids[row]}' can no longer be read: {exc}") from exc
        raise InputError(f"'{dataset.ids[row]}' has changed since it was read; start again")

    writer = RowWriter(store)
    stream = map_ahead(look, missing, runtime.threads)
    try:
        for done, (name, grey, figures) in enumerate(stream, 1):
            writer.add_name(name, "")
            # Greys up to 255 keep three bits after the point.
            writer.add_values({"grey": grey[None].astype(np.float16), "figures": figures[None]})
            writer.commit_if_due()
            progress("looking at images", done, len(missing))
    finally:
        stream.close()
        writer.close()
    grey = np.full((len(dataset), SIDE_PX, SIDE_PX), np.nan, dtype=np.float32)
    table = np.full((len(dataset), len(FIGURES)), np.nan, dtype=np.float32)
    if good:
        wanted = [names[row] for row in good]
        grey[good], table[good] = store.read("grey", wanted), store.read("figures", wanted)
    return Looks(grey, dict(zip(FIGURES, table.T, strict=True)))


def _make_key(max_pixels: int) -> dict[str, object]:
    """Everything that changes the looks of the same bytes; the cache lists it as it does a network's."""
    decoders = {n: importlib.metadata.version(n) for n in ("pillow", "simplejpeg")}
    return {
        "backbone": "looks",
        "pooling": "mean",
        "version": VERSION,
        "decoder": {"version": DECODER, **decoders},
        "max_pixels": max_pixels,
    }


def look_at(data: bytes, *, max_pixels: int) -> tuple[FloatND, FloatN]:
    """Look at the bytes of an image: its small grey picture, float32 (S, S), and its `FIGURES`, float32.

    Raises:
        BadImageError, ResourceError: as `decode_image`.
    """
    orientation = read_orientation(open_image(data, max_pixels))
    picture = decode_picture(data, least_px=LOOKED_PX, max_pixels=max_pixels)
    image = picture.image
    scale = LOOKED_PX / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(scale * side)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    shown = image.convert("L")
    levels = np.asarray(shown, dtype=np.float32)
    # Not rounded to whole greys, of which dark images have few.
    small = Image.fromarray(levels).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    low, high = np.quantile(levels, (EXTREME, 1 - EXTREME))
    figures = (
        *picture.size,
        orientation,
        _steepest_step(levels) / (high - low + 1),  # a grey of noise is no edge
        high - low,
        levels.mean(),
        *_border_colour(np.asarray(image)),
    )
    return np.asarray(small), np.array(figures, dtype=np.float32)


def _steepest_step(levels: FloatND) -> float:
    steps = [np.abs(np.diff(levels, axis=axis)).ravel() for axis in (0, 1)]
    both = np.concatenate(steps)
    return float(np.quantile(both, 1 - STEEPEST)) if len(both) else 0.0


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    """The mean of R, G and B over a frame of the image."""
    height, width = pixels.shape[:2]
    inner = np.ones((height, width), dtype=bool)
    y, x = math.ceil(BORDER * height), math.ceil(BORDER * width)
    inner[y : height - y, x : width - x] = False
    return np.asarray(pixels[inner].mean(axis=0))

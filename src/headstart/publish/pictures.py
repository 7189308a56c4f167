"""Takes images, gives small pictures of them for a page: decoded as everywhere, encoded again, bounded.

No byte of a file gets into a page: what is shown was drawn from its pixels.
"""

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from PIL import Image

from headstart.arrays import FloatNC, FloatND, PixelsHW3
from headstart.data.decoding import prepare_image
from headstart.data.images import ImageRef
from headstart.parallel import Progress, count_cpus, map_ahead
from headstart.runs.classifier import Classifier
from headstart.runs.prediction import Pipeline
from headstart.runs.sources import read_known

__all__ = [
    "Album",
    "draw_evidence",
    "encode",
    "expect_evidence_s",
    "find_evidence",
    "look",
    "shrink",
]

SIDE_PX = 144
QUALITY = 70
MOST_BYTES = 3_300_000  # of all pictures of a page, as text
GRID = 7  # squares along a side that are covered in turn
HOT = np.array([255.0, 90.0, 0.0])


class Album:
    """The pictures of images by id, each made once; those that cannot be shown are counted.

    Attributes:
        pictures: {image id: data URI}.
        changed: images whose bytes are not those that were measured.
        unreadable: images that could not be read.
        left_out: images for which there was no room.
    """

    def __init__(
        self, open_image: Callable[[str], ImageRef | None], digests: Mapping[str, str] | None
    ) -> None:
        self.open_image, self.digests = open_image, digests
        self.pictures: dict[str, str] = {}
        self.changed = self.unreadable = self.left_out = 0
        self._bytes = 0

    def read(self, image_id: str) -> Image.Image | str:
        """Read an image, as `read_known` does."""
        return read_known(self.open_image(image_id), self.digests)

    def add(self, ids: Iterable[str], progress: Progress) -> None:
        """Make the pictures of these images, as far as there is room."""
        todo = [i for i in dict.fromkeys(ids) if i not in self.pictures]

        def make(image_id: str) -> tuple[str, str]:
            image = self.read(image_id)
            if isinstance(image, str):
                return image, ""
            image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC, reducing_gap=2.0)
            return "", encode(image)

        made = map_ahead(make, todo, count_cpus())
        for number, (image_id, (problem, text)) in enumerate(zip(todo, made, strict=True), 1):
            progress("making pictures", number, len(todo))
            if problem == "changed":
                self.changed += 1
            elif problem:
                self.unreadable += 1
            elif self._bytes + len(text) > MOST_BYTES:
                self.left_out += 1
            else:
                self._bytes += len(text)
                self.pictures[image_id] = text


def encode(image: Image.Image) -> str:
    """Encode a picture as the text of a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "WEBP", quality=QUALITY)  # no metadata
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def shrink(pixels: PixelsHW3) -> Image.Image:
    """Make a small picture of pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    return image


def look(image: Image.Image, classifier: Classifier) -> PixelsHW3:
    """Give an image as the network gets it: uint8 (H, W, 3)."""
    return prepare_image(image, classifier.backbone.preprocessing)


def find_evidence(pixels: PixelsHW3, label: int, pipeline: Pipeline) -> FloatND:
    """Find where a classifier looks: how far the probability of a class falls when a square is covered.

    Occlusion (Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014) needs
    neither gradients nor feature maps, so it holds for every network and every head.

    Args:
        pixels: uint8 (H, W, 3), as `look` gives them; `pipeline` takes them without another crop.
        label: the index of the class.

    Returns:
        float (GRID, GRID), at least 0; each square is covered with half of its neighbours.
    """
    height, width = pixels.shape[:2]
    grey = pixels.mean(axis=(0, 1)).astype(np.uint8)
    covered = [pixels]
    for row, column in np.ndindex(GRID, GRID):
        copy = pixels.copy()
        top, bottom = ((row - 0.5) * height / GRID, (row + 1.5) * height / GRID)
        left, right = ((column - 0.5) * width / GRID, (column + 1.5) * width / GRID)
        copy[max(0, int(top)) : int(bottom), max(0, int(left)) : int(right)] = grey
        covered.append(copy)
    probabilities: FloatNC = pipeline.predict_proba(covered)
    falls = probabilities[0, label] - probabilities[1:, label]
    return np.asarray(np.maximum(falls, 0).reshape(GRID, GRID))


def expect_evidence_s(pixels: PixelsHW3, pipeline: Pipeline) -> float:
    """Expect how many seconds `find_evidence` will take, by the first row of squares; seldom less."""
    began = time.monotonic()
    pipeline.predict_proba([pixels] * GRID)
    return (time.monotonic() - began) * (GRID + 1 / GRID)


def draw_evidence(pixels: PixelsHW3, evidence: FloatND) -> str:
    """Tint a picture where the evidence is; the strongest place most."""
    height, width = pixels.shape[:2]
    scaled = (255 * evidence / max(float(evidence.max()), 1e-9)).astype(np.uint8)
    heat = Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC)
    share = 0.7 * np.asarray(heat)[..., None] / 255
    dimmed = 0.75 * pixels + 0.25 * pixels.mean(axis=2, keepdims=True)
    return encode(shrink((dimmed * (1 - share) + HOT * share).astype(np.uint8)))

"""Takes the bytes of an image, gives views of it as pixels, and their names in a store.

Shape letters: n views, H W pixels.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.bounds import MAX_PIXELS
from headstart.data.decoding import Picture, Preprocessing, decode_picture, needed_px
from headstart.data.views import AUGMENTATIONS, Augmentation, augment_image
from headstart.errors import UsageError

__all__ = ["Drawing", "name_views", "pair_views"]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws views of an image from its bytes, each a pure function of (seed, image id, view).

    Attributes:
        preprocessing: of the network that sees them.
        augmentation: of all views but 0.
        seed: of all views but 0.
        exact: decode exactly; otherwise at the size that `needed_px` gives, which is faster for JPEGs
            much larger than the network's input.
        max_pixels: width times height of the largest image that is read.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation = AUGMENTATIONS["medium"]
    seed: int = 0
    exact: bool = True
    max_pixels: int = MAX_PIXELS

    def is_plain(self, view: int) -> bool:
        return view == 0 or self.augmentation.is_plain

    def decode(self, data: bytes, *, plain: bool) -> Picture:
        """Decode the picture that plain or augmented views are drawn from."""
        return decode_picture(data, least_px=self._least_px(plain), max_pixels=self.max_pixels)

    def draw(self, picture: Picture, image_id: str, view: int) -> NDArray[np.uint8]:
        """Draw one view, uint8 (H, W, 3)."""
        return augment_image(
            picture,
            self.preprocessing,
            self.augmentation,
            seed=self.seed,
            image_id=image_id,
            view=view,
        )

    def draw_all(self, data: bytes, image_id: str, views: Sequence[int]) -> NDArray[np.uint8]:
        """Draw several views, uint8 (n, H, W, 3); the image is decoded once where one size serves all."""
        pictures: dict[int | None, Picture] = {}
        pixels = []
        for view in views:
            plain = self.is_plain(view)
            least = self._least_px(plain)
            if least not in pictures:
                pictures[least] = self.decode(data, plain=plain)
            pixels.append(self.draw(pictures[least], image_id, view))
        return np.stack(pixels)

    def _least_px(self, plain: bool) -> int | None:
        if self.exact:
            return None
        return needed_px(self.preprocessing, 1.0 if plain else self.augmentation.least_crop)

    def recipe(self) -> bytes:
        """Describe what an augmented view depends on besides the image; empty when views are plain."""
        if self.augmentation.is_plain:
            return b""
        facts = {
            **dataclasses.asdict(self.augmentation),
            "seed": self.seed,
            "torchvision": importlib.metadata.version("torchvision"),
        }
        return json.dumps(facts, sort_keys=True).encode()


def name_views(digest: bytes, image_id: str, views: Iterable[int], recipe: bytes) -> list[bytes]:
    """Name the rows of views in a store, 32 bytes each.

    The name of a plain view is the hash of the image's bytes, on which alone it depends. An augmented view
    depends on the image's id and the recipe too.
    """
    if not recipe:
        return [digest for _ in views]
    text = unicodedata.normalize("NFC", image_id).encode("utf-8", "surrogateescape")
    # The lengths keep two different pairs of texts from being the same one.
    augmented = digest + f"{len(recipe)} {len(text)} ".encode() + recipe + text
    return [hashlib.sha256(augmented + b"%d" % view).digest() if view else digest for view in views]


def pair_views(rows: NDArray[np.int64], views: int | NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pair rows with views, as Python numbers, from one view number for all rows or one for each.

    Raises:
        UsageError: the number of views is not that of rows.
    """
    numbers = np.asarray(views)
    if numbers.shape not in ((), np.shape(rows)):
        raise UsageError(f"{len(rows)} rows need as many views, or one for all; got {views!r}")
    both = np.broadcast_to(numbers, np.shape(rows)).tolist()
    return list(zip(np.asarray(rows).tolist(), both, strict=True))

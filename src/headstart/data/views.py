"""Takes an RGB image, gives augmented views of it, each a pure function of seed, image and view number.

Operations on colours and shapes are those of torchvision.transforms.v2, which is imported when the first
is drawn. Shape letters: H W pixels. Pixels are uint8 (H, W, 3) in sRGB order.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from headstart.arrays import PixelsHW3
from headstart.data.decoding import (
    INTERPOLATIONS,
    Picture,
    Preprocessing,
    bound_aspect,
    prepare_image,
    prepare_picture,
    scale_box,
)
from headstart.draws import draw
from headstart.errors import UsageError

__all__ = [
    "AUGMENTATIONS",
    "OPERATIONS",
    "Augmentation",
    "Views",
    "augment_image",
    "import_operations",
]


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

    @property
    def least_crop(self) -> float:
        """The smallest share of the area that a view shows."""
        return 1.0 if self.crop is None else self.crop[0]

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


@dataclasses.dataclass(frozen=True)
class Views:
    """How many views there are of every image, and how they are drawn.

    Attributes:
        count: K, at least 1; view 0 is the plain image.
        augmentation: of the views but 0; the preset "medium" by default.
        seed: of the views but 0.

    Raises:
        UsageError: fewer than one.
    """

    count: int = 1
    augmentation: Augmentation = Augmentation()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"views must be at least 1, got {self.count}")


def import_operations() -> None:
    """Import the operations that augmented views are drawn with.

    Where it is first needed is in threads, and beside them one may be importing timm, which imports it
    too; two that meet within torchvision would each be given half of it.
    """
    importlib.import_module("torchvision.transforms.v2.functional")


def augment_image(
    image: Image.Image | Picture,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    seed: int,
    image_id: str,
    view: int,
) -> PixelsHW3:
    """Draw one view of an RGB image, uint8 (H, W, 3); a pure function of its arguments.

    View 0 is the plain image as `prepare_image` gives it. The random resized crop is that of Szegedy
    et al., Going Deeper with Convolutions (CVPR 2015). Operations on colours and shapes are those of
    torchvision.transforms.v2, which for such images are Pillow's; cropping and resizing are one step
    with Pillow, which takes parts of a pixel, as a scaled decoding needs.
    """
    picture = image if isinstance(image, Picture) else Picture(image, image.size)
    if view == 0 or augmentation.is_plain:
        return prepare_picture(picture, preprocessing)

    def uniform(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * draw(seed, f"view {purpose}", image_id, view)

    whole = picture.image
    if picture.extent is None:
        whole = bound_aspect(whole)
        picture = Picture(whole, whole.size)
    target_h, target_w = preprocessing.input_px
    method = INTERPOLATIONS[preprocessing.interpolation]
    box = (0.0, 0.0, float(whole.width), float(whole.height))
    if augmentation.crop is not None:
        crop = _draw_crop(picture.size, augmentation.crop, augmentation.ratio, uniform)
        box = scale_box(picture, crop, picture.size)
    # What is enlarged is changed before, with fewer pixels; what is made smaller, after.
    last = (box[2] - box[0]) * (box[3] - box[1]) < target_w * target_h
    if last:
        part = whole.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    elif augmentation.crop is not None:
        part = whole.resize((target_w, target_h), method, box=box)
    else:
        part = Image.fromarray(prepare_picture(picture, preprocessing))
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

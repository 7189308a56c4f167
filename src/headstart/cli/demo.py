"""Writes scikit-learn's digits as PNG files in class folders: real images that need no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998; the 1,797 images of its test part, 8 x 8 pixels with 17 shades, as scikit-learn ships
them.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from headstart.draws import draw

__all__ = ["write_digits"]

TEST_FRACTION = 0.2


def write_digits(folder: Path) -> int:
    """Write FOLDER/train/DIGIT/NNNN.png and FOLDER/test/DIGIT/NNNN.png.

    Which side an image is on depends on a draw of its number; about a fifth is for testing.

    Returns:
        How many images there are, 1,797.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if draw(0, "demo", str(number)) < TEST_FRACTION else "train"
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        # Ink is 16 and paper 0 in the source; 255 / 16 fills the range of a PNG.
        pixels = np.rint(image * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04}.png")
    return len(digits.images)

"""A JPEG decoded at a fraction of its size gives nearly the pixels of the exact way, or its reason."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from headstart.data.decoding import Preprocessing, decode_and_prepare
from headstart.errors import BadImageError

# The filter that the library sets on import, which pytest replaces with its own.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def want(target, crop_pct, mode="center", interpolation="bicubic"):
    return Preprocessing(target, crop_pct, mode, interpolation, (0, 0, 0), (1, 1, 1))


def paint(width, height, seed, grey=False):
    """Waves from coarse to fine, the finer the weaker as in photographs, a disc and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = 128 + rng.normal(0, 3, (height, width, 3))
    for octave in range(6):
        a, b = rng.normal(0, 0.02 * 2**octave, 2)
        wave = np.sin(a * x + b * y + rng.uniform(0, 6))[..., None]
        picture += wave * rng.uniform(-60, 60, 3) / 2**octave
    disc = (x - 0.4 * width) ** 2 + (y - 0.6 * height) ** 2 < (0.2 * min(width, height)) ** 2
    picture[disc] += rng.uniform(-80, 80, 3)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image.convert("L") if grey else image


def encode(image, orientation=1, **options):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


@functools.cache
def in_all_orientations(size):
    """Eight files, grey and in colour, progressive or not, of each subsampling."""
    files = []
    for orientation in range(1, 9):
        grey = orientation in (3, 6)
        options = {} if grey else {"subsampling": orientation % 3}
        image = paint(*size, orientation, grey)
        files.append(encode(image, orientation, progressive=orientation % 2 == 0, **options))
    return files


@pytest.mark.parametrize("size", [(640, 481), (333, 500), (1001, 777), (2047, 301)], ids=str)
@pytest.mark.parametrize("how", [want((224, 224), 0.875), want((160, 192), 1.0, "squash", "bilinear"),
                                 want((128, 128), 1.0)], ids=str)  # fmt: skip
def test_scaled_decoding_is_near_the_exact(size, how):
    distances = []
    for data in in_all_orientations(size):
        exact, scaled = (decode_and_prepare(data, how, exact=e) for e in (True, False))
        assert (scaled.dtype, scaled.shape) == (np.uint8, (*how.input_px, 3))
        distances.append(np.abs(exact.astype(float) - scaled).mean())
    assert np.mean(distances) < 0.8
    assert max(distances) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_does_not_move_the_picture(orientation):
    """A shift by half a pixel of a ramp would show as a mean difference of its sign."""
    ramp = np.mgrid[:963, :1285].sum(axis=0)[..., None] * np.ones(3) / 9
    data = encode(Image.fromarray(ramp.astype(np.uint8)), orientation, subsampling=0)
    how = want((96, 96), 1.0)
    exact, scaled = (decode_and_prepare(data, how, exact=e).astype(float) for e in (True, False))
    assert abs((exact - scaled).mean()) < 0.15


def outcome(data, exact):
    try:
        return decode_and_prepare(data, want((96, 96), 0.95), exact=exact)
    except BadImageError as exc:
        return str(exc)


def test_damaged_files_end_as_in_the_exact_way():
    data = encode(paint(400, 300, 0))
    rng = np.random.default_rng(0)
    cases = [data[: len(data) * i // 30] for i in range(30)]
    for _ in range(70):
        harmed = bytearray(data)
        for place in rng.integers(2, len(data), 3):
            harmed[place] ^= 1 << rng.integers(8)
        cases.append(bytes(harmed))
    for case in cases:
        exact, scaled = outcome(case, True), outcome(case, False)
        if isinstance(exact, str):
            assert isinstance(scaled, str)
            assert scaled == exact
        else:
            assert np.abs(exact.astype(float) - scaled).mean() < 4


def test_the_pixel_limit_holds_for_both_ways():
    data = encode(paint(60, 50, 0))
    for exact in (True, False):
        with pytest.raises(BadImageError, match="60 x 50 is more than 2,999 pixels"):
            decode_and_prepare(data, want((32, 32), 1.0), exact=exact, max_pixels=2999)

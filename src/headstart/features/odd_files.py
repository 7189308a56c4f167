"""Takes the looks of images, says which files are odd: blurred, uniform, tiny, long, or stored turned."""

from collections.abc import Iterator

import numpy as np

from headstart.features.looks import Looks

__all__ = ["find_odd_files"]

# The steepest step of a sharp image is a larger fraction of its contrast: it was in all of 300 photographs
# of ants, bees and hands, and in one of twenty when they were blurred by 2 % of their shorter side.
SHARP = 0.2
# Where a whole data set is soft, a blurred image has at most this fraction of the median sharpness.
LESS_SHARP = 0.5
# A range of greys below this shows nothing; what it then is, by its brightness.
UNIFORM = 8.0
BLACK, WHITE = 16.0, 239.0
# Shorter than this is tiny; and, up to a limit, than this fraction of the median shorter side.
TINY_PX, SMALL_PX, SMALLER = 16, 64, 0.25
# Longer than so many times its width, and twice the median of the data set.
LONG = 4.0


def find_odd_files(looks: Looks) -> Iterator[tuple[int, str, str]]:
    """Find odd files: (row, problem, its evidence), by row.

    The problem is "uniform", "black", "white", "blurred", "tiny", "long" or "turned"; the last is one that
    needs its EXIF orientation to stand upright, which other programs may not heed.
    """
    figures = looks.figures
    width, height, sharpness = (figures[n] for n in ("width_px", "height_px", "sharpness"))
    good = np.isfinite(width)
    if not good.any():
        return
    short, long = np.minimum(width, height), np.maximum(width, height)
    plain = figures["contrast"] < UNIFORM
    shown = sharpness[good & ~plain]
    soft = min(SHARP, LESS_SHARP * float(np.median(shown))) if len(shown) else 0.0
    small = max(TINY_PX, min(SMALL_PX, SMALLER * float(np.median(short[good]))))
    aspect = max(LONG, 2 * float(np.median((long / short)[good])))
    for row in np.flatnonzero(good).tolist():
        if plain[row]:
            brightness = figures["brightness"][row]
            name = "black" if brightness < BLACK else "white" if brightness > WHITE else "uniform"
            yield row, name, f"its greys span {figures['contrast'][row]:.0f} of 255"
        elif sharpness[row] < soft:
            yield row, "blurred", f"sharpness {sharpness[row]:.2f}, below {soft:.2f}"
        size = f"{width[row]:.0f} x {height[row]:.0f}"
        if short[row] < small:
            yield row, "tiny", f"{size}, below {small:.0f}"
        if long[row] > aspect * short[row]:
            yield row, "long", f"{size}, {long[row] / short[row]:.1f} times as long as wide"
        if figures["orientation"][row] != 1:
            yield row, "turned", f"EXIF orientation {figures['orientation'][row]:.0f}"

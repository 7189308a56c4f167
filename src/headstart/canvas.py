"""Gives matplotlib figures in one look, and draws those of a classifier from plain arrays.

No screen, no pyplot and no global state: whoever has a figure shows it, and a notebook does so by itself.

Shape letters: C classes, H W pixels.
"""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.arrays import IntCC, PixelsHW3
from headstart.errors import printable
from headstart.files import default_cache_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CHOSEN",
    "PLAIN",
    "SIZE_INCHES",
    "draw_confusion",
    "draw_curves",
    "draw_gallery",
    "new_figure",
    "styled",
]

# Two colours that people who cannot tell red from green can tell.
CHOSEN, PLAIN = "#d55e00", "#0072b2"
SIZE_INCHES = (7.2, 4.0)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headstart",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}
NAMED, COUNTED = 50, 20  # classes, whose names or whose counts can be read in a confusion matrix
LETTERS = 24
COLUMNS, TILE_INCHES = 4, 1.9


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Load matplotlib, and draw and write as `STYLE` says."""
    # Where it keeps its list of fonts, which is nothing for the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(default_cache_dir() / "matplotlib"))
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The text stays text, so what shows it has the letters that are missing here.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure of this size in inches, which a notebook shows; inside `styled`."""
    return _figure_class()((width, height), layout="constrained")


@functools.cache
def _figure_class() -> "type[Figure]":
    """A Figure that a notebook shows, which it otherwise does only once pyplot was imported."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            with styled():
                self.savefig(buffer, format="png")
            return buffer.getvalue()

    return NotebookFigure


def draw_confusion(confusion: IntCC, classes: Sequence[str]) -> "Figure":
    """Draw a confusion matrix (C, C), row true class, column predicted one, shaded by the row's share."""
    count = len(confusion)
    with styled():
        side = min(12.0, max(3.2, 0.5 * min(count, COUNTED) + 1.6))
        figure = new_figure(side + 0.6, side)
        axes = figure.subplots()
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title("What was taken for what", loc="left", weight="bold")
        if count <= NAMED:
            size = 9 if count <= COUNTED else 6
            names = [_shorten(name) for name in classes]
            look: dict[str, Any] = {"fontsize": size, "parse_math": False}
            axes.set_xticks(range(count), names, rotation=90, **look)
            axes.set_yticks(range(count), names, **look)
        if count <= COUNTED:
            for (i, j), images in np.ndenumerate(confusion):
                colour = "white" if shares[i, j] > 0.55 else "#1f2328"
                if images:
                    place: dict[str, Any] = {
                        "ha": "center",
                        "va": "center",
                        "color": colour,
                        "fontsize": 9,
                    }
                    axes.text(j, i, f"{images:,}", **place)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def draw_curves(history: Sequence[Mapping[str, Any]], best: int | None = None) -> "Figure":
    """Draw losses and accuracies by epoch; `history` as a run has it, `best` the epoch that was kept."""
    with styled():
        figure = new_figure(SIZE_INCHES[0] * 1.3, SIZE_INCHES[1] * 0.85)
        both = figure.subplots(1, 2)
        for axes, what in zip(both, ("loss", "accuracy"), strict=True):
            for part, colour, words in (
                ("train", PLAIN, "trained on"),
                ("val", CHOSEN, "validation"),
            ):
                points = [(h["epoch"], h.get(f"{part}_{what}")) for h in history]
                points = [(x, y) for x, y in points if y is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=3, label=words)
            _mark_best(axes, best)
            axes.set_xlabel("epoch")
            axes.locator_params(axis="x", integer=True)
            axes.set_title(what.capitalize(), loc="left", weight="bold")
        both[1].legend(frameon=False, loc="best")
    return figure


def _mark_best(axes: "Axes", best: int | None) -> None:
    if best is not None:
        axes.axvline(best, color="#767676", ls=":", label=f"kept: epoch {best}")


def draw_gallery(pictures: Sequence[tuple[PixelsHW3, str]], title: str) -> "Figure":
    """Draw pictures, uint8 (H, W, 3), in rows, with words below each."""
    with styled():
        columns = min(COLUMNS, len(pictures))
        rows = -(-len(pictures) // columns)
        figure = new_figure(TILE_INCHES * max(2, columns), (TILE_INCHES + 0.5) * rows + 0.3)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in places:
            axes.set_axis_off()
        for axes, (pixels, words) in zip(places, pictures, strict=False):
            axes.imshow(pixels)
            below: dict[str, Any] = {"ha": "center", "va": "top", "transform": axes.transAxes}
            axes.text(0.5, -0.04, words, fontsize=8, parse_math=False, **below)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", parse_math=False)
    return figure


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 2 - 1]}…{name[-LETTERS // 2 :]}"

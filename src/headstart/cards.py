"""Takes figures, gives a small piece of HTML that a notebook shows in the place of an object's repr.

It brings its own look and needs nothing else. Its colours are shades of the notebook's own, so it reads on
light and on dark. Every word in it is text: escaped, and what could reorder or hide words is spelled out.
"""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from headstart.arrays import IntCC
from headstart.errors import printable
from headstart.metrics import Estimate

__all__ = [
    "list_figures",
    "make_card",
    "make_table",
    "paint_bar",
    "paint_confusion",
    "say_interval",
]

LETTERS, ROWS = 240, 24  # of a text, and of a table
MOST_CLASSES, LARGEST_PX, SIDE_PX = 24, 28, 288  # of the confusion picture
BAR_PX = (120, 14)
CELL = "padding:.1em .8em .1em 0;border:0;background:none;color:inherit;text-align:"
# Figures that are no share of anything, or better when lower.
LOSSES = ("log_loss", "calibration_error", "brier")


def make_card(title: str, lines: Iterable[str | Markup], parts: Iterable[Markup] = ()) -> str:
    """Make a piece of HTML of a title, sentences and parts."""
    said = Markup("").join(
        Markup('<div style="opacity:.8">{}</div>').format(_text(line)) for line in lines
    )
    form = (
        '<div style="font-size:.95em;line-height:1.45;max-width:60em">'
        "<div><strong>{}</strong></div>{}{}</div>"
    )
    return str(Markup(form).format(_text(title), said, Markup("").join(parts)))


def make_table(heads: Sequence[str], rows: Sequence[Sequence[str | Markup]]) -> Markup:
    """Make a table; its first column is words, the others figures. What is too much is counted."""
    shown = [_make_row("td", row) for row in rows[:ROWS]]
    if len(rows) > ROWS:
        shown.append(_make_row("td", [f"… {len(rows) - ROWS:,} more"]))
    look = "border-collapse:collapse;border:0;margin:.4em 0;color:inherit;font-size:1em"
    form = f'<table style="{look}">{{}}{{}}</table>'
    return Markup(form).format(_make_row("th", heads), Markup("").join(shown))


def list_figures(metrics: Iterable[tuple[str, Estimate]]) -> list[list[str | Markup]]:
    """Give a row of a table for each figure: its name, its value, its interval, and both as a bar."""
    return [
        [
            name.replace("_", " "),
            say_value(e.value),
            say_interval(e),
            "" if name in LOSSES else paint_bar(e),
        ]
        for name, e in metrics
    ]


def say_value(value: float) -> str:
    """Write a figure; "" where it is not defined."""
    return f"{value:.3f}" if math.isfinite(value) else ""


def say_interval(e: Estimate) -> str:
    """Write an interval; "" where it is not defined."""
    return f"{e.low:.3f} to {e.high:.3f}" if math.isfinite(e.low + e.high) else ""


def paint_bar(e: Estimate) -> Markup:
    """Draw a figure between 0 and 1 as a bar with its interval; nothing of other figures."""
    if not (math.isfinite(e.low + e.high + e.value) and e.low >= 0 and e.high <= 1):
        return Markup("")
    width, height = BAR_PX
    at, low, high = (round(width * v, 1) for v in (e.value, e.low, e.high))
    form = (
        '<svg width="{0}" height="{1}" style="vertical-align:middle" aria-hidden="true">'
        '<rect width="{0}" height="8" y="3" fill="currentColor" opacity=".1"/>'
        '<rect width="{2}" height="8" y="3" fill="currentColor" opacity=".45"/>'
        '<path d="M{3} 7H{4}M{3} 4v6M{4} 4v6" stroke="currentColor" fill="none"/></svg>'
    )
    return Markup(form).format(width, height, at, low, high)


def paint_confusion(confusion: IntCC, classes: Sequence[str]) -> Markup:
    """Draw a confusion matrix, row true class, shaded by the share of the row; nothing of many classes."""
    count = len(confusion)
    if not 1 < count <= MOST_CLASSES:
        return Markup("")
    size = min(LARGEST_PX, SIDE_PX // count)
    cells = []
    for i, row in enumerate(confusion.tolist()):
        for j, images in enumerate(row):
            shade = round(0.06 + 0.9 * images / max(1, sum(row)), 2)
            form = (
                '<rect x="{}" y="{}" width="{}" height="{}" fill="currentColor" opacity="{}">'
                "<title>{}: {:,} of {:,} said to be {}</title></rect>"
            )
            place = (j * size, i * size, size - 1, size - 1, shade)
            names = (_text(classes[i]), images, sum(row), _text(classes[j]))
            cells.append(Markup(form).format(*place, *names))
    side = count * size
    form = (
        '<svg width="{0}" height="{0}" role="img" style="margin:.4em 0">'
        "<title>confusion matrix: a row a true class, a column a predicted one</title>{1}</svg>"
    )
    return Markup(form).format(side, Markup("").join(cells))


def _make_row(tag: str, cells: Sequence[str | Markup]) -> Markup:
    form = '<{0} style="{1}{2}">{3}</{0}>'
    parts = (
        Markup(form).format(tag, CELL, "right;white-space:nowrap" if n else "left", _text(cell))
        for n, cell in enumerate(cells)
    )
    return Markup('<tr style="background:none">{}</tr>').format(Markup("").join(parts))


def _text(value: str | Markup) -> str | Markup:
    """Words that nothing hides in, of bounded length; the caller escapes them."""
    if isinstance(value, Markup):
        return value
    words = printable(value)
    return words if len(words) <= LETTERS else f"{words[:LETTERS]}…"

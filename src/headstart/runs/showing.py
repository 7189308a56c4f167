"""Takes what a run or an evaluation measured, gives what a notebook shows: a card, figures, a table.

Shape letters: N measured images, C classes.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from headstart.arrays import IntCC, PixelsHW3
from headstart.canvas import draw_confusion, draw_gallery
from headstart.cards import (
    list_figures,
    make_card,
    make_table,
    paint_bar,
    paint_confusion,
    say_interval,
)
from headstart.data.dataset import Dataset
from headstart.errors import InputError, UsageError, printable
from headstart.frames import make_frame
from headstart.metrics import IN_FULL, ClassFigures, Estimate
from headstart.mistakes import SHOWN, list_confusions, list_weak
from headstart.problem import MULTI_LABEL, PROBLEMS
from headstart.runs.documents import Measured
from headstart.runs.sources import read_known

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "check_one_label",
    "confuse",
    "frame_measured",
    "plot_measured",
    "plot_wrong",
    "show_measured",
]

SIDE_PX = 192
MOST_MISTAKES = 48
LETTERS = 22  # of a name below a picture


def show_measured(
    title: str,
    lines: list[str],
    metrics: Mapping[str, Estimate],
    per_class: Mapping[str, ClassFigures],
    problem: str,
    confusion: IntCC | None,
) -> str:
    """Make the card of a run or an evaluation: figures, the weakest classes, the confusions, as HTML.

    Args:
        title, lines: what it is.
        confusion: (C, C); None where it is not known, or an image may have several labels.
    """
    parts = []
    if metrics:
        shown = [(n, e) for n, e in metrics.items() if n not in IN_FULL]
        parts.append(make_table(("", "value", "95 % interval", ""), list_figures(shown)))
    weak = list_weak(metrics, per_class, problem)
    if weak:
        figure = "average precision" if problem == MULTI_LABEL.name else "recall"
        head = (
            "worst classes" if weak[0].is_clear else "lowest classes, none clearly below the whole"
        )
        rows = [
            [w.name, f"{w.images:,}" if w.images else "", f"{w.figure.value:.3f}",
             say_interval(w.figure), paint_bar(w.figure)]
            for w in weak
        ]  # fmt: skip
        parts.append(make_table((head, "images", figure, "95 % interval", ""), rows))
    if confusion is not None:
        names = tuple(per_class)
        pairs = [
            [f"{names[c.true]} taken for {names[c.predicted]}", f"{c.images:,}"]
            for c in list_confusions(confusion)[:SHOWN]
        ]
        if pairs:
            parts.append(make_table(("most often confused", "images"), pairs))
        parts.append(paint_confusion(confusion, names))
    return make_card(title, lines, [Markup("").join(parts)])


def check_one_label(problem: str, what: str) -> None:
    """Refuse what has a meaning only where an image is of one class.

    Raises:
        UsageError: an image may have several labels.
    """
    if problem == MULTI_LABEL.name:
        raise UsageError(f"{what} is of one label an image, and here an image may have several")


def confuse(measured: Measured | None, problem: str) -> IntCC | None:
    """Count the confusions, (C, C); None where nothing was measured, or an image may have several labels."""
    if measured is None or len(measured) == 0 or problem == MULTI_LABEL.name:
        return None
    return PROBLEMS[problem].confuse(measured.labels, measured.probabilities)


def plot_measured(measured: Measured, problem: str) -> "Figure":
    """Draw the confusion matrix.

    Raises:
        UsageError: an image may have several labels.
    """
    check_one_label(problem, "plot_confusion")
    confusion = PROBLEMS[problem].confuse(measured.labels, measured.probabilities)
    return draw_confusion(confusion, measured.classes)


def frame_measured(
    measured: Measured | None, per_class: Mapping[str, ClassFigures], problem: str
) -> "DataFrame":
    """Make a table with a row for each measured image: image, group, true, predicted, probability, of_true.

    Where an image may have several labels, true and predicted are tuples of them, and of each label a column
    has its probability.

    Raises:
        UsageError: pandas is not installed.
    """
    columns: dict[str, Any] = {"image": [], "true": [], "predicted": []}
    if measured is None:
        return make_frame(columns)
    columns["image"] = list(measured.ids)
    if measured.groups:
        columns["group"] = list(measured.groups)
    names, probabilities = np.array(measured.classes, dtype=object), measured.probabilities
    if problem == MULTI_LABEL.name:
        from_which = np.array([per_class[name].threshold for name in names])
        given = probabilities >= np.where(np.isfinite(from_which), from_which, 0.5)
        columns["true"] = [tuple(names[row == 1]) for row in measured.labels]
        columns["predicted"] = [tuple(names[row]) for row in given]
        columns |= {f"probability of {n}": probabilities[:, k] for k, n in enumerate(names)}
        return make_frame(columns)
    rows, predicted = np.arange(len(measured)), probabilities.argmax(axis=1)
    columns["true"], columns["predicted"] = names[measured.labels], names[predicted]
    columns["probability"] = probabilities[rows, predicted]
    columns["of_true"] = probabilities[rows, measured.labels]
    columns["right"] = predicted == measured.labels
    return make_frame(columns)


def plot_wrong(
    measured: Measured, dataset: Dataset | None, digests: Mapping[str, str] | None, most: int
) -> "Figure":
    """Draw the images that were predicted wrongly, the least probable true class first.

    Args:
        dataset: of the measured images, in their order; None where they are gone.
        digests: as in `read_known`.
        most: so many are drawn, at most 48.

    Raises:
        InputError: the images are gone or have changed, or none was predicted wrongly.
        UsageError: `most` is less than 1.
    """
    if most < 1:
        raise UsageError(f"most must be at least 1, got {most}")
    rows = list_wrong(measured)
    if not rows:
        raise InputError(f"none of the {len(measured):,} measured images was predicted wrongly")
    if dataset is None:
        raise InputError(
            "the images are not where the run found them; evaluate it on labelled images, and plot the "
            "mistakes of that"
        )
    pictures = list[tuple[PixelsHW3, str]]()
    for row in rows:
        picture = read_known(dataset.image(row), digests)
        if not isinstance(picture, str):
            pictures.append((_shrink(picture), "\n".join(_tell_mistake(measured, row))))
        if len(pictures) == min(most, MOST_MISTAKES):
            break
    if not pictures:
        raise InputError(
            "the images that were predicted wrongly have changed or cannot be read; evaluate the run on "
            "labelled images, and plot the mistakes of that"
        )
    return draw_gallery(pictures, f"{len(pictures):,} of {len(rows):,} mistakes, the gravest first")


def list_wrong(measured: Measured) -> list[int]:
    """List the rows that were predicted wrongly, the least probable true class first."""
    probabilities = measured.probabilities
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != measured.labels)
    true = probabilities[wrong, measured.labels[wrong]]
    return [int(r) for r in wrong[np.lexsort((-probabilities[wrong].max(axis=1), true))]]


def _tell_mistake(measured: Measured, row: int) -> Iterator[str]:
    probabilities, true = measured.probabilities[row], int(measured.labels[row])
    predicted = int(probabilities.argmax())
    for words, k in (("true", true), ("said", predicted)):
        yield f"{words}: {_shorten(measured.classes[k])} {probabilities[k]:.2f}"


def _shrink(image: Image.Image) -> PixelsHW3:
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image)


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"

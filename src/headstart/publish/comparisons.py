"""Takes a `Comparison`, gives pictures of accuracy against cost and of learning, JSON and CSV."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.canvas import CHOSEN, PLAIN, SIZE_INCHES, new_figure, styled
from headstart.errors import csv_cell, printable
from headstart.files import to_json_bytes
from headstart.publish.charts import scale_log, write_charts
from headstart.runs.comparison import Comparison, Contender

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_costs", "draw_curves", "write_comparison"]

# Okabe and Ito's colours, which people who cannot tell red from green can tell.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = "o^sDv*P"
LONGEST = 44  # letters of a name in a picture


def draw_costs(comparison: Comparison) -> "Figure":
    """Draw accuracy against minutes, as a matplotlib figure; what nothing dominates is marked."""
    with styled():
        figure = new_figure(*SIZE_INCHES)
        axes = figure.subplots()
        for number, contender in enumerate(comparison.contenders, 1):
            _draw_contender(axes, number, contender, len(comparison.contenders))
        axes.plot([], [], "o", color=CHOSEN, ms=9, label="nothing dominates it")
        if not all(c.undominated for c in comparison.contenders):
            axes.plot([], [], "o", color=PLAIN, ms=5, label="something is as good in all respects")
        scale_log(axes, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000))
        axes.set_xlabel("minutes of training on this machine")
        axes.set_ylabel(f"accuracy on {comparison.images:,} images, 95 % interval")
        axes.set_title("What each way brings and costs", loc="left", weight="bold")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 0.3), fontsize=9)
    return figure


def _draw_contender(axes: "Axes", number: int, contender: Contender, total: int) -> None:
    e, minutes = contender.accuracy, max(contender.minutes, 1 / 600)
    colour = CHOSEN if contender.undominated else PLAIN
    axes.errorbar(
        [minutes], [e.value], [[e.value - e.low], [e.high - e.value]],
        fmt="o", color=colour, ms=9 if contender.undominated else 5, capsize=2, lw=1,
    )  # fmt: skip
    axes.annotate(
        str(number), (minutes, e.value), (6, 4),
        textcoords="offset points", color=colour, fontsize=9,
    )  # fmt: skip
    axes.text(
        1.02, 0.97 - min(0.085, 0.62 / total) * (number - 1),
        f"{number}  {e.value:.3f}  {_shorten(contender.name)}",
        color=colour, fontsize=9, va="top", transform=axes.transAxes, parse_math=False,
    )  # fmt: skip


def draw_curves(comparison: Comparison) -> "Figure":
    """Draw the learning curves of all runs, as a matplotlib figure.

    Accuracy on the images that each run held out, as a line an epoch, and on those that it was trained on,
    dashed; of a head that is fitted at once the first alone, dotted.
    """
    with styled():
        figure = new_figure(SIZE_INCHES[0] * 1.25, SIZE_INCHES[1])
        axes = figure.subplots()
        last = max((len(r.history) for c in comparison.contenders for r in c.runs), default=0)
        for number, contender in enumerate(comparison.contenders):
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "lw": 1.2, "ms": 4}
            mark = MARKS[number // len(COLOURS) % len(MARKS)]
            axes.plot([], [], f"{mark}-", label=_shorten(contender.name), **look)
            for run in contender.runs:
                for name, line in (("val_accuracy", f"{mark}-"), ("train_accuracy", "--")):
                    points = [(h["epoch"], h[name]) for h in run.history if h.get(name) is not None]
                    if points:
                        axes.plot(*zip(*points, strict=True), line, **look)
                if not run.history and "accuracy" in run.metrics:
                    axes.axhline(run.metrics["accuracy"].value, ls=":", color=look["color"], lw=1.2)
        axes.set_xlim(0, max(1, last - 1))
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(
            "accuracy on images held out (line; dotted\nwithout epochs) and trained on (dashed)"
        )
        axes.set_title("How each run learnt", loc="left", weight="bold")
        legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.json, contenders.csv, pairs.csv, costs.svg and curves.svg; give the files.

    Raises:
        ResourceError: out of disk or permission.
    """
    files = {
        "comparison.json": to_json_bytes(comparison.to_json()),
        "contenders.csv": _write_contenders(comparison),
        "pairs.csv": _write_pairs(comparison),
    }
    figures = {"costs": draw_costs(comparison), "curves": draw_curves(comparison)}
    return write_charts(folder, files, figures)


def _write_contenders(comparison: Comparison) -> bytes:
    head = (
        "rank contender strategy backbone seeds accuracy low high log_loss minutes megabytes "
        "images_per_s undominated"
    )
    rows: list[list[Any]] = [head.split()]
    for c in comparison.contenders:
        seeds, e, run = " ".join(map(str, c.seeds)), c.accuracy, c.runs[0]
        rows.append([c.rank, c.name, run.strategy, run.backbone, seeds, e.value, e.low, e.high])
        rows[-1] += [c.log_loss, c.minutes, c.megabytes, c.images_per_s, c.undominated]
    return _write_rows(rows)


def _write_pairs(comparison: Comparison) -> bytes:
    head = "first second difference low high p p_holm only_first only_second more_images verdict"
    rows: list[list[Any]] = [head.split()]
    for pair in comparison.pairs:
        c = pair.contrast
        d = c.difference
        rows.append([pair.first, pair.second, d.value, d.low, d.high, c.p, pair.adjusted])
        rows[-1] += [c.only_first, c.only_second, pair.more_images, pair.verdict]
    return _write_rows(rows)


def _write_rows(rows: list[list[Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return buffer.getvalue().encode()


def _shorten(name: str) -> str:
    """Leave out the middle: strategies differ at the beginning, folders at the end."""
    name = printable(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"

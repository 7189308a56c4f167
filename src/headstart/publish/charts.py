"""Takes an `Advice`, gives its evidence as pictures: accuracy by depth, by images, and by minutes.

matplotlib draws them, without a screen; the text in them stays text.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.canvas import CHOSEN, PLAIN, SIZE_INCHES, new_figure, styled
from headstart.files import (
    to_json_bytes,
    translate_errors,
    write_atomically,
)
from headstart.training.advice import Advice, Candidate
from headstart.training.facts import fit_power_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CHARTS",
    "draw_chart",
    "scale_log",
    "write_advice",
    "write_charts",
]

FAINT = "#767676"


def _draw_depth(axes: "Axes", advice: Advice) -> None:
    singles = advice.facts.singles
    best = max(singles, key=lambda d: d.accuracy)
    places = range(len(singles))
    margins = [1.96 * d.error for d in singles]
    axes.errorbar(
        places, [d.accuracy for d in singles], margins, fmt="o-", color=PLAIN, capsize=3, lw=1.5
    )
    place = singles.index(best)
    axes.plot([place], [best.accuracy], "o", color=CHOSEN, ms=9, zorder=5)
    axes.annotate(
        f"best: {best.accuracy:.3f}", (place, best.accuracy + margins[place]), (0, 6),
        textcoords="offset points", ha="center", color=CHOSEN,
    )  # fmt: skip
    axes.set_xticks(list(places), [d.cut for d in singles], rotation=30, ha="right")
    axes.set_xlabel("cut point, from the pixels to the classifier")
    axes.set_ylabel("accuracy in cross-validation")
    axes.set_title("How deep to read the network", loc="left", weight="bold")
    axes.set_ylim(0, 1.08)


def _draw_curve(axes: "Axes", advice: Advice) -> None:
    facts, law = advice.facts, fit_power_law(advice.facts.curve)
    points = facts.curve
    axes.errorbar(
        [p.images for p in points], [p.accuracy for p in points], [1.96 * p.error for p in points],
        fmt="o", color=PLAIN, capsize=3, label="measured, with 95 % interval",
    )  # fmt: skip
    if law is not None:
        first, last = points[0].images, 4 * facts.images
        xs = [first * (last / first) ** (i / 60) for i in range(61)]
        bands = [law.interval(x) for x in xs]
        axes.plot(xs, [law.accuracy(x) for x in xs], color=CHOSEN, label="power law")
        axes.fill_between(
            xs, [b[0] for b in bands], [b[1] for b in bands], color=CHOSEN, alpha=0.15, lw=0
        )
    axes.axvline(facts.images, color=FAINT, ls=":", label=f"these {facts.images:,} images")
    scale_log(axes, sorted({p.images for p in points} | {2 * facts.images, 4 * facts.images}))
    axes.set_xlabel("training images")
    axes.set_ylabel("accuracy of a linear probe")
    axes.set_title("What more images would bring", loc="left", weight="bold")
    axes.legend(frameon=False, loc="lower right")


def _draw_cost(axes: "Axes", advice: Advice) -> None:
    shown = sorted((advice.chosen, *advice.others), key=lambda c: c.bill.seconds)
    for number, candidate in enumerate(shown):
        fits = candidate.bill.seconds <= advice.budget_s
        colour = CHOSEN if candidate is advice.chosen else PLAIN if fits else FAINT
        low, high = candidate.accuracy - candidate.low, candidate.high - candidate.accuracy
        minutes = max(candidate.bill.seconds, 1) / 60
        axes.errorbar(
            [minutes], [candidate.accuracy], [[low], [high]],
            fmt="o", color=colour, ms=9 if candidate is advice.chosen else 5, capsize=2, lw=1,
        )  # fmt: skip
        axes.annotate(
            str(number + 1), (minutes, candidate.accuracy), (5, 3),
            textcoords="offset points", color=colour, fontsize=9,
        )  # fmt: skip
        line = 0.97 - min(0.085, 0.95 / len(shown)) * number
        axes.text(
            1.02, line, f"{number + 1}  {_shorten(candidate)}", color=colour, fontsize=9,
            va="top", transform=axes.transAxes,
        )  # fmt: skip
    axes.axvline(advice.budget_s / 60, color=FAINT, ls=":")
    axes.text(
        advice.budget_s / 60, 0.02, " time that is left", color=FAINT, fontsize=8,
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    scale_log(axes, (0.02, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000))
    axes.set_xlabel("minutes on this machine")
    axes.set_ylabel("expected accuracy, 95 % interval")
    axes.set_title("What each way would bring and cost", loc="left", weight="bold")


def _shorten(candidate: Candidate) -> str:
    cuts = candidate.cuts
    place = f"{len(cuts)} cut points" if len(cuts) > 1 else "".join(cuts)
    strategy = candidate.strategy.replace("partial-fine-tune", "partial")
    return f"{strategy} {place}".strip()


def scale_log(axes: "Axes", ticks: Sequence[float]) -> None:
    """Scale the horizontal axis by its logarithm, with these numbers on it as far as they are in sight."""
    axes.set_xscale("log")
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in ticks if low <= t <= high])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.minorticks_off()
    axes.set_xlim(low, high)


CHARTS: dict[str, Callable[["Axes", Advice], None]] = {
    "depth": _draw_depth,
    "images": _draw_curve,
    "cost": _draw_cost,
}


def draw_chart(name: str, advice: Advice) -> "Figure":
    """Draw a chart of `CHARTS`, as a matplotlib figure."""
    with styled():
        figure = new_figure(*SIZE_INCHES)
        CHARTS[name](figure.subplots(), advice)
    return figure


def write_advice(advice: Advice, folder: Path) -> list[Path]:
    """Write advice.json, and every chart as SVG where something was measured; give the files.

    Raises:
        ResourceError: out of disk or permission.
    """
    files = {"advice.json": to_json_bytes(advice.to_json())}
    shown = CHARTS if advice.facts.depths else ()
    return write_charts(folder, files, {name: draw_chart(name, advice) for name in shown})


def write_charts(
    folder: Path, files: Mapping[str, bytes], figures: "Mapping[str, Figure]"
) -> list[Path]:
    """Write files, and figures as SVG; give their paths.

    Raises:
        ResourceError: out of disk or permission.
    """
    written = dict(files)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        with styled():
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        written[f"{name}.svg"] = buffer.getvalue()
    with translate_errors(folder, advice="choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in written.items():
            write_atomically(folder / name, data)
    return [folder / name for name in written]

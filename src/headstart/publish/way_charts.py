"""Takes ways of training, gives charts of what each brings and costs and how it learnt, each with its table.

A way is known by its number, which the page's table has too; colours repeat it.
"""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

from headstart.metrics import Estimate
from headstart.publish.drawings import Chart, Frame, Labels, draw_frame, floor_accuracy, list_ticks
from headstart.runs.record import Run

__all__ = ["Way", "draw_costs", "draw_courses"]

COLOURS = 7  # kinds k0 to k6 of the style
MINUTES = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000)
LEAST_MINUTES = 1 / 600
MOST_LINES = 40  # of learning curves
DASHED = 4  # so many ways at most are drawn with their training images too
EPOCHS = 500


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training, as a chart shows it.

    Attributes:
        name: as people know it.
        minutes: that it takes on this machine.
        accuracy: with its 95 % interval.
        marked: whether it is to stand out.
        runs: of it; () where there are none yet.
    """

    name: str
    minutes: float
    accuracy: Estimate
    marked: bool
    runs: tuple[Run, ...] = ()


def draw_costs(
    ways: Sequence[Way], *, words: str, upwards: str, bound: float | None = None
) -> Chart:
    """Draw accuracy against minutes.

    Args:
        ways: in the order of their numbers, from 1 on.
        words: what the chart shows.
        upwards: the name of that axis.
        bound: minutes that there are.
    """
    places = [max(way.minutes, LEAST_MINUTES) for way in ways]
    ends = [*places, *([max(bound, LEAST_MINUTES)] if bound is not None else [])]
    low, high = min(ends) / 1.6, max(ends) * 1.6
    bottom = floor_accuracy(min(way.accuracy.low for way in ways))
    frame = Frame(low, high, bottom, 1, is_log=True, width=720, height=360)
    content, labels = [], Labels()
    if bound is not None:
        end = max(bound, LEAST_MINUTES)
        content.append(frame.line([(end, bottom), (end, 1)], "c dash"))
    for number, (way, x) in enumerate(zip(ways, places, strict=True), 1):
        kind = "b" if way.marked else "a"
        e = way.accuracy
        content.append(frame.whisker(x, e.low, e.high, kind))
        told = f"{number} {way.name}: {e.value:.3f}, {way.minutes:.2g} min"
        radius = 5.5 if way.marked else 4
        content.append(frame.dot(x, e.value, f"dot {kind}", radius=radius, title=told))
        place = labels.place(frame.x(x) + 8, frame.y(e.value) - 6)
        content.append(frame.word(*place, str(number), f"key {kind}"))
    ticks = [(m, f"{m:g}") for m in MINUTES if low <= m <= high]
    axes = ("minutes on this machine (logarithmic)", upwards)
    title = "Accuracy against minutes"
    svg = draw_frame(frame, content, title=title, words=words, axes=axes, ticks=ticks)
    rows = tuple(
        (
            str(number), way.name, f"{way.minutes:.2f}", f"{way.accuracy.value:.3f}",
            f"{way.accuracy.low:.3f} to {way.accuracy.high:.3f}",
        )
        for number, way in enumerate(ways, 1)
    )  # fmt: skip
    columns = ("number", "way", "minutes", "accuracy", "95 % interval")
    return Chart("costs", title, words, svg, columns, rows, is_wide=True)


@dataclasses.dataclass(frozen=True)
class _Course:
    """A figure by epoch, of one run.

    Attributes:
        number: of its way.
        way: by name.
        part: "val" or "train", the images that it was measured on.
        points: (epoch, figure); a single one, at epoch 0, where there were no epochs.
    """

    number: int
    way: str
    part: str
    points: tuple[tuple[float, float], ...]

    @property
    def colour(self) -> str:
        return f"k{(self.number - 1) % COLOURS}"


def draw_courses(ways: Sequence[Way], name: str) -> Chart | None:
    """Draw how the runs of all ways learnt, by epoch; None where none had epochs.

    Args:
        name: "accuracy" or "loss".
    """
    courses = _list_courses(ways, name)
    last = max((c.points[-1][0] for c in courses), default=0)
    if last < 1:
        return None
    values = [v for c in courses for _, v in c.points]
    is_accuracy = name == "accuracy"
    bottom, top = (floor_accuracy(min(values)), 1.0) if is_accuracy else (0.0, 1.05 * max(values))
    frame = Frame(0, last, bottom, top or 1.0, width=720, height=360)
    labels, content = Labels(), list[Markup]()
    for c in courses:
        if len(c.points) == 1:
            [(_, value)] = c.points
            content.append(frame.line([(0, value), (last, value)], f"{c.colour} dots"))
            place = labels.place(frame.x(0) + 4, frame.y(value) - 5)
            content.append(frame.word(*place, str(c.number), f"key {c.colour}"))
            continue
        content.append(frame.line(c.points, c.colour + (" dash" if c.part == "train" else "")))
        if c.part == "val":
            x, y = c.points[-1]
            place = labels.place(frame.x(x) - 4, frame.y(y) - 6)
            content.append(frame.word(*place, str(c.number), f"key {c.colour}", "end"))
    words = f"The {name} on the images that each run held out, after each epoch, by its number."
    if any(c.part == "train" for c in courses):
        words += " Dashed: on the images that it was trained on."
    if any(len(c.points) == 1 for c in courses):
        words += " Dotted: runs without epochs."
    told = {"val": "held out", "train": "trained on"}
    rows = tuple(
        (str(c.number), c.way, told[c.part], f"{x:,}", f"{y:.4f}")
        for c in courses
        for x, y in c.points
    )
    title = f"How each learnt: {name} by epoch"
    svg = draw_frame(
        frame, content, title=title, words=words, axes=("epoch", name), ticks=list_ticks(0, last)
    )
    columns = ("number", "way", "images", "epoch", name)
    return Chart(f"courses-{name}", title, words, svg, columns, rows, is_wide=True)


def _list_courses(ways: Sequence[Way], name: str) -> list[_Course]:
    """List the courses of all runs, those of the training images where that is not too much."""
    key = {"accuracy": "accuracy", "loss": "log_loss"}[name]
    parts = ("val", "train") if len(ways) <= DASHED else ("val",)
    courses = []
    for number, way in enumerate(ways, 1):
        for run in way.runs:
            if len(run.history) < 2:
                value = run.metrics[key].value if key in run.metrics else math.nan
                if math.isfinite(value):
                    courses.append(_Course(number, way.name, "val", ((0, value),)))
                continue
            kept = run.history[:: 1 + len(run.history) // EPOCHS]
            for part in parts:
                figures = ((e["epoch"], e.get(f"{part}_{name}")) for e in kept)
                points = tuple((x, y) for x, y in figures if y is not None)
                if points:
                    courses.append(_Course(number, way.name, part, points))
    return courses[:MOST_LINES]

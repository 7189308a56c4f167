"""Takes the figures of a run, gives the charts of its report, each with its table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from headstart.arrays import BoolN, FloatND
from headstart.metrics import Estimate
from headstart.publish.drawings import Chart, Frame, draw_frame, floor_accuracy, list_ticks
from headstart.publish.findings import Bin
from headstart.training.facts import Facts, fit_power_law

__all__ = ["draw_curves", "draw_depths", "draw_images", "draw_map", "draw_reliability"]

# (key in the history, what it is called, its colour) of the two lines of a chart.
CURVES = {
    "loss": (("train_loss", "training", "a"), ("val_loss", "validation", "b")),
    "accuracy": (("train_accuracy", "training", "a"), ("val_accuracy", "validation", "b")),
}


def draw_curves(history: Sequence[Mapping[str, Any]], best: int | None) -> list[Chart]:
    """Draw loss and accuracy by epoch; [] where there were no epochs."""
    charts = []
    for name, lines in CURVES.items():
        known = [
            (key, word, kind, [(e["epoch"], e[key]) for e in history if e.get(key) is not None])
            for key, word, kind in lines
        ]
        values = [v for *_, points in known for _, v in points]
        last = max((e["epoch"] for e in history), default=0)
        if not values or last < 1:
            continue
        top = 1.0 if name == "accuracy" else max(values) * 1.05
        bottom = floor_accuracy(min(values)) if name == "accuracy" else 0.0
        frame = Frame(0, last, bottom, top or 1)
        content = [
            frame.line([(best, bottom), (best, frame.top)], "c dash") if best else Markup("")
        ]
        for number, (_, word, kind, points) in enumerate(known):
            content.append(frame.line(points, kind + (" dash" if number else "")))
            content += [frame.dot(x, y, f"dot {kind}", radius=2.5) for x, y in points]
            content.append(
                frame.word(frame.width - 112 * (1 - number) - 14, 16, word, f"key {kind}", "end")
            )
        words = f"The {name} on the training images and on the validation images after each epoch."
        if best:
            words += f" Epoch {best} was kept."
        elif best == 0:
            words += " None was better than the start, which was kept."
        columns = ("epoch", *(word for _, word, _, points in known if points))
        by_epoch = [dict(points) for *_, points in known if points]
        rows = tuple(
            (
                str(e["epoch"]),
                *(f"{p[e['epoch']]:.4f}" if e["epoch"] in p else "" for p in by_epoch),
            )
            for e in history
        )
        svg = draw_frame(
            frame, content, title=f"{name} by epoch", words=words,
            axes=("epoch", name), ticks=list_ticks(0, last),
        )  # fmt: skip
        charts.append(Chart(name, f"{name.capitalize()} by epoch", words, svg, columns, rows))
    return charts


def draw_reliability(bins: Sequence[Bin], error: Estimate, *, several: bool = False) -> Chart:
    """Draw how often the classifier is right, by the probability that it gives.

    Args:
        error: the calibration error, as `metrics.calibration_error` gives it.
        several: whether an image may have several labels, each of which has a probability.
    """
    frame = Frame(0, 1, 0, 1)
    content = [frame.line([(0, 0), (1, 1)], "c dash")]
    for b in bins:
        content.append(frame.bar(b.low + 0.015, 0.07, b.accuracy.value, "a"))
        content.append(frame.whisker(b.confidence, b.accuracy.low, b.accuracy.high, "b"))
        counted = f"{b.images:,} {'labels' if several else 'images'}"
        told = f"{counted}: said {b.confidence:.2f}, right {b.accuracy.value:.2f}"
        content.append(frame.dot(b.confidence, b.accuracy.value, "dot b", title=told))
    what = (
        "How often an image has a label, by the probability that was given. On "
        if several
        else "How often the prediction is right, for images by the probability that it was given with. On "
    )
    words = (
        f"{what}the dashed line both are equal; they are {100 * error.value:.1f} points apart on average "
        f"({100 * error.low:.1f} to {100 * error.high:.1f}: the expected calibration error, of bins of "
        "as many images each). The thin lines are 95 % intervals."
    )
    ticks = [(v / 10, f"{v / 10:g}") for v in range(0, 11, 2)]
    stated = "probability of a label" if several else "probability of the predicted class"
    axes = (stated, "fraction that is right")
    svg = draw_frame(frame, content, title="Reliability", words=words, axes=axes, ticks=ticks)
    rows = tuple(
        (
            f"{b.low:.1f} to {b.low + 0.1:.1f}", f"{b.images:,}", f"{b.confidence:.3f}",
            f"{b.accuracy.value:.3f}", f"{b.accuracy.low:.3f} to {b.accuracy.high:.3f}",
        )
        for b in bins
    )  # fmt: skip
    columns = (
        "probability", "labels" if several else "images", "mean probability", "right", "95 % interval",
    )  # fmt: skip
    return Chart("reliability", "Can the probabilities be believed?", words, svg, columns, rows)


def draw_depths(facts: Facts) -> Chart | None:
    """Draw the accuracy of a probe by how deep the network is read; None where it was not measured."""
    depths = facts.singles
    if len(depths) < 2:
        return None
    frame = Frame(
        -0.4, len(depths) - 0.6, floor_accuracy(min(d.accuracy - 1.96 * d.error for d in depths)), 1
    )
    best = max(range(len(depths)), key=lambda k: depths[k].accuracy)
    content = [frame.line([(k, d.accuracy) for k, d in enumerate(depths)], "a")]
    for k, d in enumerate(depths):
        kind = "b" if k == best else "a"
        margin = 1.96 * d.error
        content.append(
            frame.whisker(
                k, max(frame.bottom, d.accuracy - margin), min(1, d.accuracy + margin), kind
            )
        )
        content.append(frame.dot(k, d.accuracy, f"dot {kind}", title=f"{d.cut}: {d.accuracy:.3f}"))
    words = (
        "The accuracy of a linear probe on the features at each cut point, from the pixels to the "
        f"classifier, in cross-validation; highest at {depths[best].cut}."
    )
    step = math.ceil(len(depths) / 7)
    ticks = [(float(k), _shorten(d.cut)) for k, d in enumerate(depths) if k % step == 0]
    svg = draw_frame(
        frame, content, title="Accuracy by depth", words=words, axes=("cut point", "accuracy"),
        ticks=ticks,
    )  # fmt: skip
    rows = tuple(
        (d.cut, f"{d.accuracy:.3f}", f"{d.error:.3f}", f"{d.log_loss:.3f}") for d in depths
    )
    columns = ("cut point", "accuracy", "standard error", "log loss")
    return Chart("depth", "How deep to read the network", words, svg, columns, rows)


def _shorten(text: str) -> str:
    return text if len(text) <= 11 else "…" + text[-10:]


def draw_images(facts: Facts) -> Chart | None:
    """Draw the accuracy of a probe by the number of images; None where it was not measured."""
    points = [p for p in facts.curve if p.images > 0]
    law = fit_power_law(points)
    if law is None:
        return None
    first, last = points[0].images, 4 * facts.images
    xs = [first * (last / first) ** (k / 40) for k in range(41)]
    lowest = min(*(law.interval(x)[0] for x in xs), *(p.accuracy - 1.96 * p.error for p in points))
    frame = Frame(first / 1.15, last * 1.15, floor_accuracy(lowest), 1, is_log=True)
    content = [
        frame.band([(x, *law.interval(x)) for x in xs], "b"),
        frame.line([(x, law.accuracy(x)) for x in xs], "b dash"),
    ]
    for p in points:
        margin = 1.96 * p.error
        content.append(
            frame.whisker(
                p.images, max(frame.bottom, p.accuracy - margin), min(1, p.accuracy + margin), "a"
            )
        )
        told = f"{p.images:,} images: {p.accuracy:.3f}"
        content.append(frame.dot(p.images, p.accuracy, "dot a", title=told))
    content.append(frame.line([(facts.images, frame.bottom), (facts.images, 1)], "c dash"))
    low, high = law.interval(last)
    words = (
        "The accuracy of a linear probe on the last features with part of the images, and what its "
        f"course lets expect (dashed, with its 95 % band): {law.accuracy(last):.3f} "
        f"({low:.3f} to {high:.3f}) with four times as many images. The vertical line is at "
        f"these {facts.images:,}."
    )
    ticks = [(float(n), f"{n:,}") for n in sorted({points[0].images, facts.images, last})]
    svg = draw_frame(
        frame, content, title="Accuracy by number of images", words=words,
        axes=("training images (logarithmic)", "accuracy"), ticks=ticks,
    )  # fmt: skip
    rows = tuple((f"{p.images:,}", f"{p.accuracy:.3f}", f"{p.error:.3f}") for p in points)
    columns = ("images", "accuracy", "standard error")
    return Chart("images", "What more images would bring", words, svg, columns, rows)


def draw_map(places: FloatND, right: BoolN, far: BoolN, names: Sequence[str]) -> Chart:
    """Draw the images in feature space.

    Args:
        places: (N, 2) of `findings.project`.
        right: (N,), whether each was predicted rightly.
        far: (N,), whether each is unlike all others.
        names: N of the images with their classes.
    """
    low, high = places.min(axis=0), places.max(axis=0)
    pad = 0.04 * np.maximum(high - low, 1e-9)
    (left, bottom), (end, top) = (low - pad).tolist(), (high + pad).tolist()
    frame = Frame(left, end, bottom, top, width=720, height=440)
    content = []
    for group, kind, radius in ((right, "dot a", 2.2), (~right, "dot b", 4.0)):
        for k in map(int, np.flatnonzero(group)):
            x, y = (float(v) for v in places[k])
            content.append(frame.dot(x, y, kind, radius=radius, title=names[k]))
    for x, y in places[far].tolist():
        content.append(frame.dot(x, y, "ring c", radius=8))
    words = (
        "Each point is an image, placed by the two directions in which the network's features vary "
        f"most (PCA). Large: the {int((~right).sum()):,} that were predicted wrongly. Ringed: "
        f"{int(far.sum()):,} unlike all others."
    )
    svg = draw_frame(
        frame, content, title="Images in feature space", words=words,
        axes=("first principal component across, second upwards", ""),
    )  # fmt: skip
    return Chart("map", "A map of the images", words, svg, (), (), is_wide=True)

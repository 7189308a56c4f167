"""Takes a run, gives its report: one HTML page that needs nothing else, and its figures as CSV and JSON.

The page holds what the run measured, and pictures of the images behind it, read again from the run's own
data or from those that are named. Every word in it that came from outside is text: Jinja2 escapes it, what
could reorder or hide words is spelled out (`errors.printable`), and the page's content policy lets nothing
run or load but its own two blocks, by their hashes.
"""

import base64
import csv
import dataclasses
import datetime
import hashlib
import importlib.resources
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from headstart.arrays import BoolN, IntCC
from headstart.data.dataset import Dataset
from headstart.data.images import FolderReader
from headstart.draws import draw
from headstart.errors import HeadstartError, InputError, UsageError, csv_cell, printable
from headstart.features.extraction import Features
from headstart.features.neighbours import (
    FAR,
    NEIGHBOURS,
    find_nearest,
    measure_remoteness,
    to_directions,
)
from headstart.files import to_json_bytes, translate_errors, write_atomically
from headstart.metrics import Estimate, confusion_matrix, wilson_interval
from headstart.mistakes import Confusion, list_confusions
from headstart.parallel import Progress, no_progress
from headstart.publish.drawings import Chart, to_file
from headstart.publish.findings import (
    Bin,
    ClassFigures,
    calibration_error,
    choose_classes,
    list_doubtful,
    list_right,
    list_worst,
    measure_bins,
    measure_classes,
    project,
)
from headstart.publish.pictures import Album, draw_evidence, encode, find_evidence, look, shrink
from headstart.publish.report_charts import (
    draw_curves,
    draw_depths,
    draw_images,
    draw_map,
    draw_reliability,
)
from headstart.publish.report_words import (
    find_best_epoch,
    read_advice,
    read_facts,
    say_part,
    say_percent,
    tell_evidence,
    write_command,
)
from headstart.runs.classifier import Card, read_card
from headstart.runs.evaluation import EVALUATE_SETTINGS, evaluate
from headstart.runs.fitting import extract_with
from headstart.runs.prediction import Pipeline
from headstart.runs.record import Measured, Run
from headstart.runs.sources import (
    Data,
    find_images,
    read_data,
    restore_settings,
    select_images,
)
from headstart.training.settings import READING, Settings, make_settings

__all__ = ["Report", "report"]

# Bounds of a page: what a person looks at, and what a browser opens in a second.
CLASSES, PAIRS = 24, 60  # of the confusion matrix and the list beside it
WORST, DOUBTFUL, RIGHT, OUTLIERS = 24, 12, 12, 12
CELL_WRONG, CELL_RIGHT, IN_CELLS = 8, 4, 360
LOOKS = 3  # of mistakes, and as many of images that are right
MAPPED = 1500
EPOCHS = 500  # of a curve


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a run, as written.

    Attributes:
        page: the HTML file.
        files: all files, the page first.
        pictures: how many images it shows.
        warnings: one line each, for people: what is missing in it, and why.
    """

    page: Path
    files: tuple[Path, ...]
    pictures: int
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """What a report is of: a run, and the images that it was measured on."""

    run: Run
    card: Card
    settings: Settings
    measured: Measured
    confusion: IntCC
    metrics: Mapping[str, Estimate]
    names: tuple[str, ...]
    warnings: tuple[str, ...]
    album: Album
    dataset: Dataset | None  # of the measured images; None where they are gone

    def shown(self, row: int) -> dict[str, Any]:
        """What is said of an image."""
        probabilities, label = self.measured.probabilities[row], int(self.measured.labels[row])
        predicted = int(probabilities.argmax())
        image_id = self.measured.ids[row]
        return {
            "row": row,
            "image": image_id,
            "picture": self.album.pictures.get(image_id),
            "true": self.names[label],
            "predicted": self.names[predicted],
            "right": label == predicted,
            "probability": float(probabilities[predicted]),
            "of_true": float(probabilities[label]),
        }


def report(
    run: Run | str | os.PathLike[str],
    data: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    figures: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> Report:
    """Write the report of a run: a page that opens anywhere, and its figures as CSV and JSON beside it.

    Args:
        run: a `Run`, or its folder.
        data: labelled images to evaluate it on and to report that; by default what the run measured.
        output: the page, which ends in .html; report.html in the run's folder by default. It, and the
            files beside it whose names begin like its own, replace those of an earlier report.
        split: of `data`, as in `evaluate`.
        figures: also write each chart as an SVG file.
        progress: called with how far the work is.
        **options: those fields of `Settings` that concern reading and extraction.

    Raises:
        UsageError: an option is wrong, or has no effect.
        InputError: the run is damaged or has measured nothing, or the data cannot be used.
        ResourceError: out of disk, memory or permission.
    """
    unused = [name for name in options if name not in EVALUATE_SETTINGS]
    if unused:
        raise UsageError(f"setting '{unused[0]}' has no effect on report")
    if data is None and split is not None:
        raise UsageError("split has no effect without data to evaluate; name them")
    progress("loading the run", 0, 0)
    read = run if isinstance(run, Run) else Run.load(run, cache_dir=options.get("cache_dir"))
    page = read.folder / "report.html" if output is None else Path(output)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page}: a report is an HTML file; name it so, as in -o report.html")
    if page.is_dir():
        raise UsageError(f"{page}: is a folder; name a file, as in -o report.html")
    subject = (
        _take_run(read, options)
        if data is None
        else _evaluate(read, data, split, options, progress)
    )
    content, charts, tables = _compose(subject, progress)
    progress("writing", 0, 0)
    files = {page.name: _render(content)}
    files |= {f"{page.stem}{end}": text for end, text in tables.items()}
    if figures:
        files |= {f"{page.stem}-{chart.name}.svg": to_file(chart) for chart in charts}
    with translate_errors(page.parent, advice="choose another file with -o"):
        page.parent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(page.parent / name, text)
    paths = tuple(page.parent / name for name in files)
    return Report(page, paths, len(subject.album.pictures), tuple(content["missing"]))


# ---------------------------------------------------------------- what is reported


def _take_run(run: Run, options: Mapping[str, Any]) -> _Subject:
    """Take what the run measured, and its own data where they are still there."""
    measured = run.measured
    if measured is None or len(measured) == 0:
        raise InputError(
            f"{run.folder}: the run measured nothing; name labelled images to evaluate it on"
        )
    _check_labels(measured)
    settings = restore_settings(run.settings, **options)
    dataset = find_images(measured, run.data, run.root, settings)
    digests = dict(zip(run.members.ids, run.members.sha256, strict=True))
    album = Album(_opener(dataset), digests)
    confusion = confusion_matrix(
        measured.labels, measured.probabilities.argmax(axis=1), len(measured.classes)
    )
    return _Subject(
        run, read_card(run.folder), settings, measured, confusion, run.metrics,
        _name_classes(run, measured.classes), run.warnings, album, dataset,
    )  # fmt: skip


def _evaluate(
    run: Run, data: Data, split: str | None, options: Mapping[str, Any], progress: Progress
) -> _Subject:
    """Evaluate the run on other data."""
    found = evaluate(run, data, split=split, progress=progress, **options)
    measured = found.measured
    _check_labels(measured)
    settings = make_settings(dict(options))
    dataset = select_images(read_data(data, settings), measured)
    album = Album(_opener(dataset), None)
    return _Subject(
        run, read_card(run.folder), settings, measured, found.confusion, found.metrics,
        _name_classes(run, measured.classes), found.warnings, album, dataset,
    )  # fmt: skip


def _check_labels(measured: Measured) -> None:
    if measured.labels.ndim != 1:
        raise UsageError("report needs a run of one label an image, and this one has several")


def _name_classes(run: Run, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes as people know them; those that a model does not know have no other name."""
    named = (f"{name} ({c})" for name, c in zip(run.names, run.classes, strict=False))
    return (*named, *classes[len(run.names) :])


def _opener(dataset: Dataset | None) -> Callable[[str], Any]:
    if dataset is None:
        return lambda image_id: None
    rows = {image_id: row for row, image_id in enumerate(dataset.ids)}
    return lambda image_id: dataset.image(rows[image_id])


# ---------------------------------------------------------------- what is on the page


def _compose(
    subject: _Subject, progress: Progress
) -> tuple[dict[str, Any], list[Chart], dict[str, bytes]]:
    """Give what the template shows, the charts, and the files beside the page by the ends of their names."""
    measured, run = subject.measured, subject.run
    pairs = list_confusions(subject.confusion)
    kept = choose_classes(subject.confusion, CLASSES)
    bins, classes = measure_bins(measured), measure_classes(subject.confusion, subject.names)
    space = _map_images(subject, progress)
    rows = {
        "worst": list_worst(measured, WORST),
        "doubtful": list_doubtful(measured, DOUBTFUL),
        "right": list_right(measured, RIGHT),
        "outliers": space.outliers if space else [],
    }
    cells = _choose_cells(measured, kept.tolist(), pairs[:PAIRS])
    ids = [measured.ids[row] for part in rows.values() for row in part]
    within = [
        row for part in sorted(cells.items(), key=lambda c: c[0][0] == c[0][1]) for row in part[1]
    ]
    ids += [measured.ids[row] for row in within[:IN_CELLS]]
    subject.album.add(ids, progress)
    looks = _look_at(subject, [*rows["worst"][:LOOKS], *rows["right"][:LOOKS]], progress)
    facts = read_facts(run)
    curves = draw_curves(run.history[:: 1 + len(run.history) // EPOCHS], find_best_epoch(run))
    reliability = draw_reliability(bins)
    evidence = [c for c in (draw_depths(facts), draw_images(facts)) if c] if facts else []
    charts = [*curves, reliability, *evidence, *([space.chart] if space else [])]
    content = {
        "title": f"{_name_data(subject)}: {run.strategy} on {run.backbone}",
        "words": _tell(subject, pairs, classes, bins),
        "metrics": subject.metrics,
        "run": run,
        "card": subject.card,
        "what": say_part(measured.part),
        "images": len(measured),
        "names": subject.names,
        "kept": kept.tolist(),
        "confusion": subject.confusion,
        "levels": _level(subject.confusion),
        "pairs": pairs[:PAIRS],
        "all_pairs": len(pairs),
        "classes": classes,
        "galleries": {name: [subject.shown(row) for row in part] for name, part in rows.items()},
        "looks": looks,
        "curves": curves,
        "reliability": reliability,
        "evidence": evidence,
        "map": space.chart if space else None,
        "decisions": [
            (d.name, d.value, d.origin, tell_evidence(d.evidence))
            for d in run.decisions.settled.values()
        ],
        "advice": read_advice(run),
        "warnings": subject.warnings,
        "missing": _tell_missing(subject),
        "data": _name_data(subject),
        "command": write_command(run),
        "cells": _cells_to_json(subject, cells, rows),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }  # fmt: skip
    return content, charts, _make_tables(subject, classes, pairs, bins)


def _choose_cells(
    measured: Measured, kept: Sequence[int], pairs: Iterable[Confusion]
) -> dict[tuple[int, int], list[int]]:
    """Choose the rows whose pictures a cell of the matrix, or a pair of the list, opens."""
    shown = {(i, j) for i in kept for j in kept} | {(p.true, p.predicted) for p in pairs}
    predicted = measured.probabilities.argmax(axis=1)
    order = np.argsort(-measured.probabilities.max(axis=1), kind="stable")
    cells: dict[tuple[int, int], list[int]] = {}
    for row in order.tolist():
        cell = (int(measured.labels[row]), int(predicted[row]))
        most = CELL_RIGHT if cell[0] == cell[1] else CELL_WRONG
        if cell in shown and len(cells.setdefault(cell, [])) < most:
            cells[cell].append(row)
    return cells


def _level(confusion: IntCC) -> IntCC:
    """How dark each cell is, 0 to 9, by its share of the images of its class."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.ceil(np.sqrt(share) * 9), dtype=np.int64)


def _cells_to_json(
    subject: _Subject,
    cells: Mapping[tuple[int, int], list[int]],
    rows: Mapping[str, list[int]],
) -> Markup:
    """What the cells open, for the page's script: no character of it ends the block that it stands in."""
    static = {row for part in rows.values() for row in part}
    used = sorted({row for part in cells.values() for row in part})
    images = {}
    for row in used:
        shown = subject.shown(row)
        images[row] = {
            "name": printable(shown["image"]),
            "probability": f"{shown['probability']:.2f}",
            **({} if row in static or not shown["picture"] else {"picture": shown["picture"]}),
        }
    value = {
        "names": [printable(name) for name in subject.names],
        "cells": {f"{i}-{j}": part for (i, j), part in cells.items()},
        "counts": {f"{i}-{j}": int(subject.confusion[i, j]) for i, j in cells},
        "images": images,
    }
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _look_at(subject: _Subject, rows: list[int], progress: Progress) -> list[dict[str, Any]]:
    """Draw where the classifier looks in these images, for the class that it predicts."""
    if not subject.album.pictures:
        return []
    classifier = subject.run.classifier
    backbone = classifier.backbone
    # What is shown to it is cropped already.
    whole = dataclasses.replace(backbone.preprocessing, crop_pct=1.0)
    model = dataclasses.replace(
        classifier, backbone=dataclasses.replace(backbone, preprocessing=whole)
    )
    found = []
    with Pipeline(model, subject.settings.runtime) as pipeline:
        for number, row in enumerate(rows):
            progress("finding where it looks", number, len(rows))
            image = subject.album.read(subject.measured.ids[row])
            if isinstance(image, str):
                continue
            pixels = look(image, classifier)
            label = int(subject.measured.probabilities[row].argmax())
            if label >= len(classifier.classes):
                continue
            evidence = find_evidence(pixels, label, pipeline)
            plain = encode(shrink(pixels))
            heat = draw_evidence(pixels, evidence)
            found.append(
                {**subject.shown(row), "plain": plain, "heat": heat, "fall": float(evidence.max())}
            )
    return found


@dataclasses.dataclass(frozen=True)
class _Space:
    """The map of the images, and the rows of those that are unlike all others, the farthest first."""

    chart: Chart
    outliers: list[int]


def _map_images(subject: _Subject, progress: Progress) -> _Space | None:
    """Map some of the measured images by their features."""
    if subject.dataset is None:
        return None
    drawn = sorted(
        range(len(subject.measured)), key=lambda r: draw(0, "map", subject.measured.ids[r])
    )
    rows = np.array(sorted(drawn[:MAPPED]), dtype=np.int64)
    classifier = subject.run.classifier
    features = extract_with(
        subject.settings, subject.dataset.select(rows), classifier.backbone, progress
    )
    good = np.flatnonzero(features.good() & _unchanged(features, subject.album.digests))
    if len(good) < NEIGHBOURS:
        return None
    rows = rows[good]
    values = np.concatenate([features.select(good).values[cut] for cut in classifier.cuts], axis=1)
    cosines, _ = find_nearest(to_directions(values), NEIGHBOURS)
    remoteness = measure_remoteness(cosines)
    far = remoteness > FAR
    farthest = [k for k in np.argsort(-remoteness, kind="stable")[:OUTLIERS].tolist() if far[k]]
    shown = [subject.shown(int(row)) for row in rows]
    names = [f"{s['image']}: {s['true']}, predicted {s['predicted']}" for s in shown]
    right = np.array([s["right"] for s in shown], dtype=bool)
    return _Space(draw_map(project(values), right, far, names), [int(rows[k]) for k in farthest])


def _unchanged(features: Features, digests: Mapping[str, str] | None) -> BoolN:
    pairs = zip(features.ids, features.sha256, strict=True)
    return np.array([digests is None or digests.get(i) == d for i, d in pairs], dtype=bool)


# ---------------------------------------------------------------- in words


def _name_data(subject: _Subject) -> str:
    run, part = subject.run, subject.measured.part
    if part in ("val", "cross-validation") and subject.album.digests is not None:
        data = run.data[0] if isinstance(run.data, tuple) else run.data
        return str(data.name if data is not None else run.folder.name)
    return str(subject.dataset.name if subject.dataset is not None else run.folder.name)


def _tell(
    subject: _Subject,
    pairs: Sequence[Confusion],
    classes: Sequence[ClassFigures],
    bins: list[Bin],
) -> list[str]:
    """Say what was found, for people who read no tables."""
    names, total = subject.names, len(subject.measured)
    hits = int(subject.confusion.diagonal().sum())
    accuracy = wilson_interval(hits, total)
    what = say_part(subject.measured.part)
    words = [
        f"The classifier is right on {hits:,} of {total:,} {what}: {say_percent(accuracy.value)}. On new "
        f"images of the same kind expect {say_percent(accuracy.low)} to {say_percent(accuracy.high)}."
    ]
    run = subject.run
    is_own = subject.measured.part == "val" and subject.album.digests is not None
    if is_own and run.history and run.settings.get("monitor", {}).get("value") != "last":
        words.append("The best epoch was chosen by these images too, which flatters it a little.")
    if is_own and run.is_refitted():
        words.append("After that they were trained on too.")
    most = max(classes, key=lambda c: c.images)
    words.append(
        f"Always saying “{most.name}” would be right on {say_percent(most.images / total)}."
    )
    if pairs:
        first = pairs[0]
        words.append(
            f"The most frequent mistake: “{names[first.true]}” taken for “{names[first.predicted]}”, "
            f"{first.images:,} of {classes[first.true].images:,} images."
        )
    known = [c for c in classes if c.images]
    hardest = min(known, key=lambda c: c.recall.value)
    if len(known) > 2 and hardest.recall.value < 1:
        words.append(
            f"Hardest is “{hardest.name}”, of which it finds {say_percent(hardest.recall.value)}."
        )
    error = calibration_error(bins)
    mean = sum(b.images * b.confidence for b in bins) / total
    side = "more" if mean > accuracy.value else "less"
    trust = "can be taken at their word" if error < 0.05 else f"promise {side} than they keep"
    words.append(f"Its probabilities {trust}: they are {100 * error:.1f} points off on average.")
    return words


def _tell_missing(subject: _Subject) -> list[str]:
    """Say what the page cannot show, and why."""
    album, words = subject.album, []
    if subject.dataset is None:
        return [
            "the images are not where the run found them, so there are no pictures and no map; name them: "
            "headstart report RUN DATA"
        ]
    if album.changed:
        words.append(f"{album.changed:,} images have changed since the run and are not shown")
    if album.unreadable:
        words.append(f"{album.unreadable:,} images cannot be read and are not shown")
    if album.left_out:
        words.append(f"there was no room for {album.left_out:,} more pictures")
    return words


# ---------------------------------------------------------------- files


def _render(content: Mapping[str, Any]) -> bytes:
    """Make the page."""
    folder = importlib.resources.files("headstart.publish") / "templates"
    blocks = {n: (folder / f"report.{n}").read_text(encoding="utf-8") for n in ("css", "js")}
    environment = Environment(
        loader=PackageLoader("headstart.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_to_text,
    )
    page = environment.get_template("report.html").render(
        content,
        css=Markup(blocks["css"]),
        js=Markup(blocks["js"]),
        hashes={name: _hash(text) for name, text in blocks.items()},
        percent=say_percent,
    )
    return page.encode()


def _to_text(value: Any) -> Any:
    """Whatever the template shows, as words that nothing hides in."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _make_tables(
    subject: _Subject,
    classes: Sequence[ClassFigures],
    pairs: Sequence[Confusion],
    bins: Sequence[Bin],
) -> dict[str, bytes]:
    """The figures of the page, all of them, as JSON and CSV: by the end of the file's name."""
    run, names, measured = subject.run, subject.names, subject.measured
    figures = {
        "run": str(run.folder),
        "strategy": run.strategy,
        "backbone": run.backbone,
        "data": _name_data(subject),
        "part": measured.part,
        "images": len(measured),
        "metrics": {n: dataclasses.asdict(e) for n, e in subject.metrics.items()},
        "classes": [dataclasses.asdict(c) for c in classes],
        "confusions": [
            {"true": names[p.true], "predicted": names[p.predicted], "images": p.images}
            for p in pairs
        ],
        "reliability": [{**b._asdict(), "accuracy": dataclasses.asdict(b.accuracy)} for b in bins],
        "warnings": list(subject.warnings),
        "settings": run.settings,
        "versions": subject.card.versions,
        "command": write_command(run),
    }
    predicted = measured.probabilities.argmax(axis=1).tolist()
    images = (
        (i, names[t], names[p], f"{row[p]:.6f}", f"{row[t]:.6f}")
        for i, t, p, row in zip(
            measured.ids, measured.labels.tolist(), predicted, measured.probabilities, strict=True
        )
    )
    by_class = (
        (
            c.name, str(c.images), str(c.predicted), f"{c.precision:.6f}", f"{c.recall.value:.6f}",
            f"{c.recall.low:.6f}", f"{c.recall.high:.6f}", f"{c.f1:.6f}",
        )
        for c in classes
    )  # fmt: skip
    counts = ((names[p.true], names[p.predicted], str(p.images)) for p in pairs)
    heads = "class images predicted precision recall recall_low recall_high f1".split()
    return {
        ".json": to_json_bytes(_to_finite(figures)),
        "-images.csv": _to_csv(["image", "true", "predicted", "probability", "of_true"], images),
        "-classes.csv": _to_csv(heads, by_class),
        "-confusions.csv": _to_csv(["true", "predicted", "images"], counts),
    }


def _to_finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(k): _to_finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_csv(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()

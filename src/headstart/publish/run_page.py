"""Takes a run, gives its page: what it measured, and pictures of the images behind it.

Those are read again from the run's own data, or from data that are named. All figures stand beside the page,
as CSV and JSON.
"""

import dataclasses
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from headstart.arrays import BoolN, IntCC
from headstart.data.dataset import Dataset
from headstart.data.images import FolderReader
from headstart.draws import draw
from headstart.errors import HeadstartError, InputError, UsageError, printable
from headstart.features.extraction import Features
from headstart.features.neighbours import (
    FAR,
    NEIGHBOURS,
    find_nearest,
    measure_remoteness,
    to_directions,
)
from headstart.metrics import (
    ClassFigures,
    Estimate,
    calibration_error,
    confusion_matrix,
    measure_each,
    number_units,
)
from headstart.parallel import Progress, no_progress
from headstart.publish.drawings import Chart
from headstart.publish.findings import (
    Bin,
    Confusion,
    choose_classes,
    list_confusions,
    list_doubtful,
    list_right,
    list_worst,
    measure_bins,
    project,
)
from headstart.publish.pages import Report, to_csv, to_json_file, write_page
from headstart.publish.pictures import (
    Album,
    draw_evidence,
    encode,
    expect_evidence_s,
    find_evidence,
    look,
    shrink,
)
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
from headstart.runs.sources import Data, load_data, read_data
from headstart.training.settings import READING, Settings, make_settings

__all__ = ["write_run_page"]

# Bounds of a page: what a person looks at, and what a browser opens in a second.
CLASSES, PAIRS = 24, 60  # of the confusion matrix and the list beside it
WORST, DOUBTFUL, RIGHT, OUTLIERS = 24, 12, 12, 12
CELL_WRONG, CELL_RIGHT, IN_CELLS = 8, 4, 360
LOOKS = 3  # of mistakes, and as many of images that are right
MAPPED = 1500
EPOCHS = 500  # of a curve
FIGURES = ("precision", "recall", "f1", "roc_auc", "average_precision")  # of a class


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """What a report is of: a run, and the images that it was measured on."""

    run: Run
    card: Card
    settings: Settings
    measured: Measured
    confusion: IntCC
    metrics: Mapping[str, Estimate]
    per_class: tuple[ClassFigures, ...]
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


def write_run_page(
    run: Run,
    data: Data | None,
    page: Path,
    *,
    split: str | None = None,
    figures: bool = False,
    looking_s: float = math.inf,
    progress: Progress = no_progress,
    **options: Any,
) -> Report:
    """Write the page of a run.

    Args:
        data: labelled images to evaluate it on and to report that; None for what it measured.
        page: as `check_page` gives it.
        looking_s: about so many seconds may go into where it looks.
        split, figures, progress, options: as in `report`.

    Raises:
        As `report` says.
    """
    unused = [name for name in options if name not in EVALUATE_SETTINGS]
    if unused:
        raise UsageError(f"setting '{unused[0]}' has no effect on report")
    if data is None and split is not None:
        raise UsageError("split has no effect without data to evaluate; name them")
    subject = (
        _take_run(run, options) if data is None else _evaluate(run, data, split, options, progress)
    )
    content, charts, tables = _compose(subject, looking_s, progress)
    progress("writing", 0, 0)
    return write_page(
        page,
        "report.html",
        content,
        tables=tables,
        charts=charts if figures else (),
        pictures=len(subject.album.pictures),
        missing=content["missing"],
    )


# ---------------------------------------------------------------- what is reported


def _take_run(run: Run, options: Mapping[str, Any]) -> _Subject:
    """Take what the run measured, and its own data where they are still there."""
    measured = run.measured
    if measured is None or len(measured) == 0:
        raise InputError(
            f"{run.folder}: the run measured nothing; name labelled images to evaluate it on"
        )
    _check_labels(measured)
    values = {n: run.settings.get(n, {}) for n in ("val", "group", "engine", "precision", *READING)}
    given = {n: v["value"] for n, v in values.items() if v.get("origin") == "user"}
    settings = make_settings({**given, **options})
    dataset = _find_images(run, measured, settings)
    digests = dict(zip(run.members.ids, run.members.sha256, strict=True))
    album = Album(_opener(dataset), digests)
    confusion = confusion_matrix(
        measured.labels, measured.probabilities.argmax(axis=1), len(measured.classes)
    )
    per_class = run.per_class
    if not any(figures.images for figures in per_class.values()):  # as earlier versions kept them
        predicted = (measured.labels, measured.probabilities, measured.classes)
        per_class = measure_each(*predicted, groups=measured.groups)
    return _Subject(
        run, read_card(run.folder), settings, measured, confusion, run.metrics,
        tuple(per_class.values()), _name_classes(run, measured.classes), run.warnings, album, dataset,
    )  # fmt: skip


def _evaluate(
    run: Run, data: Data, split: str | None, options: Mapping[str, Any], progress: Progress
) -> _Subject:
    """Evaluate the run on other data."""
    found = evaluate(run, data, split=split, progress=progress, **options)
    measured = found.measured
    _check_labels(measured)
    settings = make_settings(dict(options))
    dataset = _select(read_data(data, settings), measured)
    album = Album(_opener(dataset), None)
    return _Subject(
        run, read_card(run.folder), settings, measured, found.confusion, found.metrics,
        tuple(found.per_class.values()), _name_classes(run, measured.classes), found.warnings, album, dataset,
    )  # fmt: skip


def _check_labels(measured: Measured) -> None:
    if measured.labels.ndim != 1:
        raise UsageError("report needs a run of one label an image, and this one has several")


def _name_classes(run: Run, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes as people know them; those that a model does not know have no other name."""
    named = (f"{name} ({c})" for name, c in zip(run.names, run.classes, strict=False))
    return (*named, *classes[len(run.names) :])


def _find_images(run: Run, measured: Measured, settings: Settings) -> Dataset | None:
    """Find the measured images: files below the run's root, else whatever its data hold."""
    if (run.root / measured.ids[0]).is_file():
        return Dataset(
            root=run.root,
            classes=measured.classes,
            ids=measured.ids,
            targets=measured.labels,
            splits=("",) * len(measured),
            groups=("",) * len(measured),
            errors=("",) * len(measured),
            reader=FolderReader(run.root),
        )
    if run.data is None:
        return None
    try:
        return _select(load_data(run.data, settings), measured)
    except HeadstartError:
        return None


def _select(dataset: Dataset, measured: Measured) -> Dataset | None:
    rows = {image_id: row for row, image_id in enumerate(dataset.ids)}
    if not all(i in rows for i in measured.ids):
        return None
    return dataset.select(np.array([rows[i] for i in measured.ids], dtype=np.int64))


def _opener(dataset: Dataset | None) -> Callable[[str], Any]:
    if dataset is None:
        return lambda image_id: None
    rows = {image_id: row for row, image_id in enumerate(dataset.ids)}
    return lambda image_id: dataset.image(rows[image_id])


# ---------------------------------------------------------------- what is on the page


def _compose(
    subject: _Subject, looking_s: float, progress: Progress
) -> tuple[dict[str, Any], list[Chart], dict[str, bytes]]:
    """Give what the template shows, the charts, and the files beside the page by the ends of their names."""
    measured, run = subject.measured, subject.run
    pairs = list_confusions(subject.confusion)
    kept = choose_classes(subject.confusion, CLASSES)
    bins, error = measure_bins(measured), _find_calibration(subject)
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
    turns = itertools.zip_longest(rows["worst"][:LOOKS], rows["right"][:LOOKS])
    looked = [row for pair in turns for row in pair if row is not None]
    looks = _look_at(subject, looked, looking_s, progress)
    facts = read_facts(run)
    curves = draw_curves(run.history[:: 1 + len(run.history) // EPOCHS], find_best_epoch(run))
    reliability = draw_reliability(bins, error)
    evidence = [c for c in (draw_depths(facts), draw_images(facts)) if c] if facts else []
    charts = [*curves, reliability, *evidence, *([space.chart] if space else [])]
    content = {
        "title": f"{_name_data(subject)}: {run.strategy} on {run.backbone}",
        "words": _tell(subject, pairs, error),
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
        "classes": _list_classes(subject),
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
        "kind": "report",
    }  # fmt: skip
    return content, charts, _make_tables(subject, pairs, bins)


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


def _look_at(
    subject: _Subject, rows: list[int], bound_s: float, progress: Progress
) -> list[dict[str, Any]]:
    """Draw where the classifier looks in these images, for the class that it predicts, mistakes first.

    As many as are expected to be done within the bound.
    """
    if not subject.album.pictures:
        return []
    classifier = subject.run.classifier
    backbone = classifier.backbone
    # What is shown to it is cropped already.
    whole = dataclasses.replace(backbone.preprocessing, crop_pct=1.0)
    model = dataclasses.replace(
        classifier, backbone=dataclasses.replace(backbone, preprocessing=whole)
    )
    found: list[dict[str, Any]] = []
    began, one_s = time.monotonic(), 0.0
    with Pipeline(model, subject.settings.runtime) as pipeline:
        for number, row in enumerate(rows):
            progress("finding where it looks", number, len(rows))
            image = subject.album.read(subject.measured.ids[row])
            label = int(subject.measured.probabilities[row].argmax())
            if isinstance(image, str) or label >= len(classifier.classes):
                continue
            pixels = look(image, classifier)
            if bound_s < math.inf:
                one_s = one_s or expect_evidence_s(pixels, pipeline)
                if time.monotonic() - began + one_s > bound_s:
                    break
            evidence = find_evidence(pixels, label, pipeline)
            plain = encode(shrink(pixels))
            heat = draw_evidence(pixels, evidence)
            found.append(
                {**subject.shown(row), "plain": plain, "heat": heat, "fall": float(evidence.max())}
            )
    return sorted(found, key=lambda shown: bool(shown["right"]))


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


def _find_calibration(subject: _Subject) -> Estimate:
    """The calibration error, measured here where the run is of a version that did not."""
    known = subject.metrics.get("calibration_error")
    if known is not None:
        return known
    measured = subject.measured
    right = measured.probabilities.argmax(axis=1) == measured.labels
    units = number_units(measured.groups)
    return calibration_error(measured.probabilities.max(axis=1), right, units)


def _list_classes(subject: _Subject) -> list[dict[str, Any]]:
    """The figures of each class, with its training images and how many images were said to be of it."""
    members = subject.run.members
    trained = Counter(
        label
        for label, split, error in zip(members.labels, members.splits, members.errors, strict=True)
        if not error and split == "train"
    )
    predicted = subject.confusion.sum(axis=0).tolist()
    return [
        {"name": name, "trained": trained[c], "predicted": said, "figures": figures}
        for name, c, said, figures in zip(
            subject.names, subject.measured.classes, predicted, subject.per_class, strict=True
        )
    ]


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
    error: Estimate,
) -> list[str]:
    """Say what was found, for people who read no tables."""
    names, total = subject.names, len(subject.measured)
    hits = int(subject.confusion.diagonal().sum())
    accuracy = subject.metrics["accuracy"]
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
    counts = subject.confusion.sum(axis=1)
    most = int(counts.argmax())
    words.append(
        f"Always saying “{names[most]}” would be right on {say_percent(counts[most] / total)}."
    )
    if pairs:
        first = pairs[0]
        words.append(
            f"The most frequent mistake: “{names[first.true]}” taken for “{names[first.predicted]}”, "
            f"{first.images:,} of {counts[first.true]:,} images."
        )
    known = [k for k, count in enumerate(counts) if count]
    hardest = min(known, key=lambda k: subject.per_class[k].recall.value)
    found = subject.per_class[hardest].recall.value
    if len(known) > 2 and found < 1:
        words.append(f"Hardest is “{names[hardest]}”, of which it finds {say_percent(found)}.")
    mean = float(subject.measured.probabilities.max(axis=1).mean(dtype=np.float64))
    side = "more" if mean > accuracy.value else "less"
    trust = "can be taken at their word" if error.value < 0.05 else f"promise {side} than they keep"
    words.append(
        f"Its probabilities {trust}: they are {100 * error.value:.1f} points off on average."
    )
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


def _make_tables(
    subject: _Subject,
    pairs: Sequence[Confusion],
    bins: Sequence[Bin],
) -> dict[str, bytes]:
    """The figures of the page, all of them, as JSON and CSV: by the end of the file's name."""
    run, names, measured = subject.run, subject.names, subject.measured
    classes = _list_classes(subject)
    figures = {
        "run": str(run.folder),
        "strategy": run.strategy,
        "backbone": run.backbone,
        "data": _name_data(subject),
        "part": measured.part,
        "images": len(measured),
        "metrics": {n: dataclasses.asdict(e) for n, e in subject.metrics.items()},
        "classes": [
            {"name": c["name"], "trained": c["trained"], "predicted": c["predicted"]}
            | dataclasses.asdict(c["figures"])
            for c in classes
        ],
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
        [c["name"], *(str(c[n]) for n in ("trained", "predicted")), str(c["figures"].images)]
        + [f"{v:.6f}" for n in FIGURES for v in dataclasses.astuple(getattr(c["figures"], n))]
        for c in classes
    )
    counts = ((names[p.true], names[p.predicted], str(p.images)) for p in pairs)
    heads = ["class", "trained", "predicted", "images"]
    heads += [f"{n}{end}" for n in FIGURES for end in ("", "_low", "_high")]
    return {
        ".json": to_json_file(figures),
        "-images.csv": to_csv(["image", "true", "predicted", "probability", "of_true"], images),
        "-classes.csv": to_csv(heads, by_class),
        "-confusions.csv": to_csv(["true", "predicted", "images"], counts),
    }

"""Takes a run, gives its page: what it measured, and pictures of the images behind it.

Those are read again from the run's own data, or from data that are named. All figures stand beside the page,
as CSV and JSON.
"""

import dataclasses
import itertools
import json
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from headstart.arrays import BoolN, IntCC, IntN
from headstart.data.dataset import Dataset
from headstart.draws import draw
from headstart.errors import InputError, UsageError, printable
from headstart.features.extraction import Features
from headstart.features.neighbours import (
    FAR,
    NEIGHBOURS,
    find_nearest,
    measure_remoteness,
    to_directions,
)
from headstart.label_metrics import THRESHOLD
from headstart.metrics import (
    ClassFigures,
    Estimate,
    bound_share,
    calibration_error,
    number_units,
)
from headstart.mistakes import Confusion, list_confusions
from headstart.parallel import Progress, no_progress
from headstart.problem import SINGLE_LABEL, multi_label
from headstart.publish.drawings import Chart
from headstart.publish.findings import (
    Bin,
    Verdicts,
    choose_classes,
    judge,
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
    name_data,
    name_places,
    read_advice,
    read_facts,
    say_part,
    say_percent,
    tell_evidence,
    tell_value,
    write_command,
)
from headstart.runs.classifier import Card, read_card
from headstart.runs.documents import Measured, Members
from headstart.runs.evaluation import EVALUATE_SETTINGS, evaluate
from headstart.runs.fitting import extract_with
from headstart.runs.prediction import Pipeline
from headstart.runs.record import Run
from headstart.runs.remarks import tell_choices
from headstart.runs.sources import (
    Data,
    find_images,
    read_data,
    restore_settings,
    select_images,
)
from headstart.training.settings import Settings, make_settings

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
    verdicts: Verdicts
    confusion: IntCC
    metrics: Mapping[str, Estimate]
    per_class: tuple[ClassFigures, ...]
    names: tuple[str, ...]
    warnings: tuple[str, ...]
    album: Album
    dataset: Dataset | None  # of the measured images; None where they are gone

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.measured.labels.ndim > 1

    def shown(self, row: int) -> dict[str, Any]:
        """What is said of an image."""
        probabilities, verdicts = self.measured.probabilities[row], self.verdicts
        true, given = np.flatnonzero(verdicts.true[row]), np.flatnonzero(verdicts.given[row])
        image_id, highest = self.measured.ids[row], float(probabilities.max())
        of_true = float(probabilities[true].min()) if len(true) else math.nan
        is_right = bool(verdicts.right[row])
        return {
            "row": row,
            "image": image_id,
            "picture": self.album.pictures.get(image_id),
            "true": self._join(true),
            "predicted": self._join(given),
            "right": is_right,
            "probability": highest,
            "of_true": of_true,
            "told": "right" if is_right else self._tell_wrong(row, of_true),
        }

    def _join(self, classes: IntN) -> str:
        return ", ".join(self.names[c] for c in classes) or "no label"

    def _tell_wrong(self, row: int, of_true: float) -> str:
        verdicts, probabilities = self.verdicts, self.measured.probabilities[row]
        true, given = verdicts.true[row], verdicts.given[row]
        if not self.several:
            return f"is {self._join(np.flatnonzero(true))}, {of_true:.2f}"
        parts = (("missed", true & ~given), ("wrong", given & ~true))
        return "; ".join(
            f"{word} {', '.join(f'{self.names[c]} {probabilities[c]:.2f}' for c in np.flatnonzero(part))}"
            for word, part in parts
            if part.any()
        )


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
    settings = restore_settings(run.settings, **options)
    dataset = find_images(measured, run.data, run.root, settings)
    digests = dict(zip(run.members.ids, run.members.sha256, strict=True))
    album = Album(_opener(dataset), digests)
    verdicts, thresholds = _judge(run, measured)
    problem = multi_label(np.array(thresholds)) if thresholds else SINGLE_LABEL
    confusion = problem.confuse(measured.labels, measured.probabilities)
    per_class = run.per_class
    if not any(figures.images for figures in per_class.values()):  # as earlier versions kept them
        predicted = (measured.labels, measured.probabilities, measured.classes)
        per_class = problem.measure_each(*predicted, groups=measured.groups)
    return _Subject(
        run, read_card(run.folder), settings, measured, verdicts, confusion, run.metrics,
        tuple(per_class.values()), _name_classes(run, measured.classes), run.warnings, album, dataset,
    )  # fmt: skip


def _evaluate(
    run: Run, data: Data, split: str | None, options: Mapping[str, Any], progress: Progress
) -> _Subject:
    """Evaluate the run on other data."""
    found = evaluate(run, data, split=split, progress=progress, **options)
    measured = found.measured
    settings = make_settings(dict(options))
    dataset = select_images(read_data(data, settings), measured)
    album = Album(_opener(dataset), None)
    return _Subject(
        run, read_card(run.folder), settings, measured, _judge(run, measured)[0],
        found.confusion, found.metrics,
        tuple(found.per_class.values()), _name_classes(run, measured.classes), found.warnings, album, dataset,
    )  # fmt: skip


def _judge(run: Run, measured: Measured) -> tuple[Verdicts, tuple[float, ...]]:
    """What was said of each image, and the thresholds by which; () where images have one label."""
    if measured.labels.ndim == 1:
        return judge(measured), ()
    thresholds = run.classifier.thresholds
    # Classes that the model does not know come last.
    thresholds += (THRESHOLD,) * (len(measured.classes) - len(thresholds))
    return judge(measured, thresholds), thresholds


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
    subject: _Subject, looking_s: float, progress: Progress
) -> tuple[dict[str, Any], list[Chart], dict[str, bytes]]:
    """Give what the template shows, the charts, and the files beside the page by the ends of their names."""
    measured, run, verdicts = subject.measured, subject.run, subject.verdicts
    pairs = list_confusions(subject.confusion)
    kept = choose_classes(subject.confusion, CLASSES)
    bins, error = measure_bins(verdicts), _find_calibration(subject)
    space = _map_images(subject, progress)
    rows = {
        "worst": list_worst(verdicts, WORST),
        "doubtful": list_doubtful(verdicts, DOUBTFUL),
        "right": list_right(verdicts, RIGHT),
        "outliers": space.outliers if space else [],
    }
    cells = _choose_cells(subject, kept.tolist(), pairs[:PAIRS])
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
    reliability = draw_reliability(bins, error, several=subject.several)
    evidence = [c for c in (draw_depths(facts), draw_images(facts)) if c] if facts else []
    charts = [*curves, reliability, *evidence, *([space.chart] if space else [])]
    classes = _list_classes(subject)
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
        "classes": classes,
        "places": ", ".join(name_places(run)) or "data in memory",
        "trained": _tell_trained([c["trained"] for c in classes]),
        "groups": _tell_groups(run.members),
        "galleries": {name: [subject.shown(row) for row in part] for name, part in rows.items()},
        "looks": looks,
        "several": subject.several,
        "all_right": bool(verdicts.right.all()),
        "unlooked": len(looked) - len(looks) if looking_s < math.inf else 0,
        "curves": curves,
        "reliability": reliability,
        "evidence": evidence,
        "map": space.chart if space else None,
        "decisions": [
            (d.name, tell_value(d.value), d.origin, tell_evidence(d.evidence))
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
    subject: _Subject, kept: Sequence[int], pairs: Iterable[Confusion]
) -> dict[tuple[int, int], list[int]]:
    """Choose the rows whose pictures a cell of the matrix, or a pair of the list, opens."""
    shown = {(i, j) for i in kept for j in kept} | {(p.true, p.predicted) for p in pairs}
    order = np.argsort(-subject.measured.probabilities.max(axis=1), kind="stable")
    cells: dict[tuple[int, int], list[int]] = {}
    for row in order.tolist():
        true, given = subject.verdicts.true[row], subject.verdicts.given[row]
        found = [(c, c) for c in np.flatnonzero(true & given).tolist()]
        added = np.flatnonzero(given & ~true).tolist()
        found += [(i, j) for i in np.flatnonzero(true & ~given).tolist() for j in added]
        for cell in found:
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
            **({"given": printable(shown["predicted"])} if subject.several else {}),
            **({} if row in static or not shown["picture"] else {"picture": shown["picture"]}),
        }
    value = {
        "several": subject.several,
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
                # One is worth a little more.
                if time.monotonic() - began + one_s > (bound_s if found else 3 * bound_s):
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
    verdicts, groups = subject.verdicts, subject.measured.groups
    units = number_units(groups)
    each = len(verdicts.stated) // len(verdicts.ids)  # 1, or the labels
    if each > 1:
        units = np.repeat(np.arange(len(verdicts.ids)) if units is None else units, each)
    return calibration_error(verdicts.stated, verdicts.came, units)


def _list_classes(subject: _Subject) -> list[dict[str, Any]]:
    """The figures of each class, with its training images and how many images were said to be of it."""
    members = subject.run.members
    trained = Counter(
        label
        for names, split, error in zip(members.labels, members.splits, members.errors, strict=True)
        if not error and split == "train"
        for label in (names.split("|") if subject.several else [names])
    )
    predicted = subject.verdicts.given.sum(axis=0).tolist()
    return [
        {"name": name, "trained": trained[c], "predicted": said, "figures": figures}
        for name, c, said, figures in zip(
            subject.names, subject.measured.classes, predicted, subject.per_class, strict=True
        )
    ]


# ---------------------------------------------------------------- in words


def _tell_trained(counts: Sequence[int]) -> str:
    """Say how many training images the classes have; "" where the run does not list its images."""
    if not any(counts):
        return ""
    low, middle, high = min(counts), sorted(counts)[len(counts) // 2], max(counts)
    return f"{len(counts):,}, of {low:,} to {high:,} training images, the middle one of {middle:,}"


def _tell_groups(members: Members) -> str:
    """Say how many groups of images were kept together; "" for none."""
    groups = Counter(filter(None, members.groups))
    if not groups:
        return ""
    return f"{len(groups):,} with {groups.total():,} images, each kept on one side of every split"


def _name_data(subject: _Subject) -> str:
    run, part = subject.run, subject.measured.part
    if part in ("val", "cross-validation") and subject.album.digests is not None:
        return name_data(run) or run.folder.name
    return str(subject.dataset.name if subject.dataset is not None else run.folder.name)


def _tell(
    subject: _Subject,
    pairs: Sequence[Confusion],
    error: Estimate,
) -> list[str]:
    """Say what was found, for people who read no tables."""
    names, total = subject.names, len(subject.measured)
    hits = int(subject.verdicts.right.sum())
    what = say_part(subject.measured.part)
    of_images = "all labels of" if subject.several else ""
    rate = bound_share(subject.verdicts.right, units=number_units(subject.measured.groups))
    words = [
        f"The classifier is right on {of_images} {hits:,} of {total:,} {what}: {say_percent(rate.value)}. "
        f"On new images of the same kind expect {say_percent(rate.low)} to {say_percent(rate.high)}.".replace(
            "  ", " "
        )
    ]
    run = subject.run
    is_own = subject.measured.part == run.measured_on and subject.album.digests is not None
    if is_own and (told := tell_choices(run)):
        words.append(f"{told[0].upper()}{told[1:]}.")
    if is_own and run.measured_on == "val" and run.is_refitted():
        words.append("After that they were trained on too.")
    counts = subject.verdicts.true.sum(axis=0)
    most = int(counts.argmax())
    if not subject.several:
        share = say_percent(counts[most] / total)
        words.append(f"Always saying “{names[most]}” would be right on {share}.")
    if pairs:
        first = pairs[0]
        of = f"{first.images:,} of {counts[first.true]:,} images"
        words.append(
            f"The most frequent mistake: “{names[first.true]}” "
            + ("missed and “" if subject.several else "taken for “")
            + f"{names[first.predicted]}”{' given' if subject.several else ''}, {of}."
        )
    known = [k for k, count in enumerate(counts) if count]
    hardest = min(known, key=lambda k: subject.per_class[k].recall.value)
    found = subject.per_class[hardest].recall.value
    if len(known) > 2 and found < 1:
        words.append(f"Hardest is “{names[hardest]}”, of which it finds {say_percent(found)}.")
    mean = float(subject.verdicts.stated.mean(dtype=np.float64))
    side = "more" if mean > float(subject.verdicts.came.mean()) else "less"
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
            + shlex.join(["headstart", "report", str(subject.run.folder), "DATA"])
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
    verdicts = subject.verdicts
    images = (
        (
            i, *("|".join(names[c] for c in np.flatnonzero(row)) for row in (true, given)),
            f"{own.max():.6f}", f"{own[true].min():.6f}" if true.any() else "",
        )
        for i, true, given, own in zip(
            measured.ids, verdicts.true, verdicts.given, measured.probabilities, strict=True
        )
    )  # fmt: skip
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

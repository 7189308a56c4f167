"""Takes labelled images, gives an `Audit`: what is wrong with them, before anyone trusts a figure."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headstart.arrays import IntN
from headstart.cards import make_card, make_table
from headstart.data.dataset import Dataset
from headstart.data.scan import Scan, scan_images
from headstart.data.splits import join_units
from headstart.errors import UsageError
from headstart.features.duplicates import Copies, find_copies, group_copies
from headstart.features.extraction import Features, extract
from headstart.features.looks import Looks, extract_looks
from headstart.features.neighbours import (
    FAR,
    NEIGHBOURS,
    find_nearest,
    measure_remoteness,
    to_directions,
)
from headstart.features.odd_files import find_odd_files
from headstart.features.reading import check_bad_images
from headstart.features.runtime import Runtime
from headstart.files import check_cache
from headstart.metrics import Estimate, wilson_interval
from headstart.parallel import Progress, no_progress
from headstart.runs.grouping import find_groups
from headstart.runs.sources import Data, load_network, read_data
from headstart.training.grouping import GroupingScore
from headstart.training.heads import assign_folds, choose_cuts, cross_validate, fit_linear
from headstart.training.label_errors import count_likely, find_label_errors
from headstart.training.logistic import CV_GAP
from headstart.training.settings import READING, Settings, make_settings
from headstart.training.shortcuts import find_shortcuts

__all__ = [
    "Audit",
    "Conflict",
    "Held",
    "LabelError",
    "Leak",
    "OddClass",
    "OddFile",
    "Outlier",
    "Probe",
    "audit",
]

# The settings that `audit` uses; the others concern training.
AUDIT_SETTINGS = (
    *"backbone weights input_px seed group".split(),
    *READING,
    *Runtime.model_fields,
)

# The depth and the penalty are chosen on about so many units.
SAMPLE = 1000
# A class of fewer images is too small to learn, or to measure.
SMALL = 10
# The figures that may give a class away, by what they are called.
GIVEAWAYS = {
    "border colour": ("border_red", "border_green", "border_blue"),
    "image size": ("width_px", "height_px"),
}


@dataclasses.dataclass(frozen=True)
class LabelError:
    """A label that may be wrong.

    Attributes:
        score: how improbable it is, in [0, 1].
        likely: whether it is of those first ones of which at least half are wrong.
    """

    image: str
    label: str
    suggested: str
    score: float
    likely: bool


@dataclasses.dataclass(frozen=True)
class Leak:
    """An image of which an earlier split (train, val, test) has a copy.

    Attributes:
        images: it and its copy.
        splits: of the two.
        similarity: 1 for identical files; 0 where they are copies of a third image alone.
        mirrored: whether the copy is its mirror image.
    """

    images: tuple[str, str]
    splits: tuple[str, str]
    similarity: float
    mirrored: bool


@dataclasses.dataclass(frozen=True)
class Conflict:
    """The same picture under several classes: each image with its label."""

    images: tuple[str, ...]
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Outlier:
    """An image unlike all others; `score` is a robust z-score of the distance to its nearest."""

    image: str
    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class OddFile:
    """A file that is unreadable, or odd as `find_odd_files` tells."""

    image: str
    label: str
    problem: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class OddClass:
    """A class that is "small", or that its "border colour" or "image size" alone gives away."""

    name: str
    images: int
    problem: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """The probe that the labels are judged by: its depth, penalty, and accuracy out of fold."""

    cuts: tuple[str, ...]
    penalty: float
    accuracy: Estimate


@dataclasses.dataclass(frozen=True)
class Held:
    """The accuracy of a probe trained on the training images, on those of another split.

    Attributes:
        split: "val" or "test".
        images: of that split.
        leaked: how many of them have copies in an earlier split.
        accuracy: on all of them.
        without: on those that are not.
    """

    split: str
    images: int
    leaked: int
    accuracy: Estimate
    without: Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """What is wrong with a data set, the worst of each kind first.

    Attributes:
        dataset: what was audited.
        label_errors: labels that may be wrong, as many as confident learning expects; the likely ones first.
        conflicts: the same picture under several classes.
        duplicates: ids of images that show the same picture, a tuple for each picture.
        leaks: images of which an earlier split has a copy.
        held: what a probe's accuracy is without the leaks, for each split that has some.
        groups: ways of naming images that belong together, as figures on single images would flatter.
        outliers: images unlike all others.
        files: unreadable and odd files.
        classes: classes that are small, or told by what is not in the picture.
        probe: what the labels were judged by; None where there are too few images.
        warnings: one line each, for people.
    """

    dataset: Dataset
    label_errors: tuple[LabelError, ...]
    conflicts: tuple[Conflict, ...]
    duplicates: tuple[tuple[str, ...], ...]
    leaks: tuple[Leak, ...]
    held: tuple[Held, ...]
    groups: tuple[GroupingScore, ...]
    outliers: tuple[Outlier, ...]
    files: tuple[OddFile, ...]
    classes: tuple[OddClass, ...]
    probe: Probe | None
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        found = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in self.counts().items())
        return f"Audit({self.dataset.name!r}, {len(self.dataset):,} images: {found})"

    def _repr_html_(self) -> str:
        """Show in a notebook how many findings of each kind there are."""
        rows = [[kind.replace("_", " "), f"{n:,}"] for kind, n in self.counts().items() if n]
        lines = [f"warning: {warning}" for warning in self.warnings]
        title = f"audit of {self.dataset.name}: {len(self.dataset):,} images"
        table = make_table(("finding", "number"), rows or [["nothing found", ""]])
        return make_card(title, lines, [table])

    def counts(self) -> dict[str, int]:
        """Count the findings of each kind."""
        kinds = "label_errors conflicts duplicates leaks groups outliers files classes".split()
        return {kind: len(getattr(self, kind)) for kind in kinds}

    def to_json(self) -> dict[str, Any]:
        """Give everything but the data set as an object for JSON."""
        found: dict[str, Any] = {"data": self.dataset.name, "images": len(self.dataset)}
        for field in dataclasses.fields(self)[1:]:
            found[field.name] = _to_plain(getattr(self, field.name))
        return found


def _to_plain(value: Any) -> Any:
    """Findings as dicts, in tuples or alone."""
    if isinstance(value, tuple):
        return [_to_plain(v) for v in value]
    known = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if known else value


def audit(
    data: Data,
    *,
    progress: Progress = no_progress,
    report: Callable[[Dataset, Scan], None] | None = None,
    **options: Any,
) -> Audit:
    """Say what is wrong with labelled images: labels, copies, leaks between splits, odd files and classes.

    Nothing is trained but linear probes, and nothing is written but the feature store.

    Args:
        data: as `load_dataset` takes it, or a `Dataset`.
        progress: called with how far the work is.
        report: called with the data set and its scan, before any work.
        **options: those fields of `Settings` that concern the network, reading and extraction.

    Raises:
        UsageError: an option is unknown or has no effect.
        InputError: the data cannot be used.
        TooManyBadImagesError: all images are unreadable.
        ResourceError: out of disk, memory or permission.
    """
    unused = [name for name in options if name not in AUDIT_SETTINGS]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on audit; those that have: {', '.join(AUDIT_SETTINGS)}"
        )
    settings = make_settings(options)
    check_cache(settings.runtime.cache_dir)
    progress("listing images", 0, 0)
    dataset = read_data(data, settings)
    dataset.check_single_label()
    if report is not None:
        report(dataset, scan_images(dataset, max_pixels=settings.runtime.max_pixels))
    dataset, groupings = find_groups(dataset, settings, progress)
    progress("loading the network", 0, 0)
    backbone = load_network(settings)
    features = extract(dataset, backbone, settings.runtime, progress=progress)
    check_bad_images(features.unreadable(), len(dataset), 1.0)
    looks = extract_looks(
        dataset, features.sha256, features.errors, settings.runtime, progress=progress
    )
    found = _Work(dataset, features, looks, settings, progress).audit()
    return dataclasses.replace(found, groups=tuple(s for s in groupings if s.matters))


class _Work:
    """One audit: its images, what is known of them, and the steps in their order."""

    def __init__(
        self,
        dataset: Dataset,
        features: Features,
        looks: Looks,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.dataset, self.features, self.looks = dataset, features, looks
        self.settings, self.progress = settings, progress
        self.names = dataset.label_names()
        self.warnings = [*dataset.warnings, *features.warnings]
        self.good = np.flatnonzero(features.good())
        self.units: tuple[str, ...] = ()

    def audit(self) -> Audit:
        """Find everything."""
        self.progress("comparing images", 0, 0)
        copies, outliers = self.compare()
        groups = group_copies(copies.pairs, len(self.dataset))
        leaked = self.find_leaked(groups)
        self.progress("judging labels", 0, 0)
        rows, labels, classes = self.choose_judged(groups)
        probe, errors, held = None, tuple[LabelError, ...](), tuple[Held, ...]()
        if len(classes) >= 2:
            probe, errors = self.judge_labels(rows, labels, classes)
            held = self.measure_held(rows, labels, probe, list(leaked))
        else:
            self.warnings.append(
                "labels are not judged: that takes two classes of two images, or groups, each"
            )
        return Audit(
            dataset=self.dataset,
            label_errors=errors,
            conflicts=tuple(self.list_conflicts(copies)),
            duplicates=tuple(tuple(self.dataset.ids[row] for row in g) for g in groups),
            leaks=tuple(self.list_leaks(leaked, copies)),
            held=held,
            groups=(),
            outliers=outliers,
            files=self.list_files(),
            classes=(*self.list_small(), *self.list_shortcuts(rows, labels, classes)),
            probe=probe,
            warnings=tuple(self.warnings),
        )

    def compare(self) -> tuple[Copies, tuple[Outlier, ...]]:
        """Find the pairs of copies, in rows of the data set, and the images unlike all others."""
        good = self.good
        cut = list(self.features.values)[-1]
        directions = to_directions(self.features.values[cut][good])
        cosines, nearest = find_nearest(directions, NEIGHBOURS)
        found = find_copies(
            [self.features.sha256[row] for row in good],
            self.looks.grey[good],
            self.looks.figures["contrast"][good],
            nearest,
        )
        scores = measure_remoteness(cosines)
        outliers = tuple(
            Outlier(self.dataset.ids[good[i]], self.names[good[i]], float(scores[i]))
            for i in np.argsort(-scores, kind="stable")
            if scores[i] > FAR
        )
        return dataclasses.replace(found, pairs=good[found.pairs]), outliers

    def choose_judged(self, groups: list[list[int]]) -> tuple[IntN, IntN, tuple[str, ...]]:
        """Choose the rows of classes with two units at least: rows, labels, and names of these classes."""
        # Copies stay in one fold: a wrong label must not be confirmed by its own picture. Where that would
        # leave a class a single unit, only identical files do.
        contents = [""] * len(self.dataset)
        for number, group in enumerate(groups):
            for row in group:
                contents[row] = str(number)
        choices = [
            join_units(self.dataset.units(), names) for names in (contents, self.features.sha256)
        ]
        kept = [self.list_judged(units) for units in choices]
        best = max((0, 1), key=lambda i: len(kept[i]))  # the first where they are alike
        self.units = choices[best]
        labels = self.dataset.labels
        rows = self.good[np.isin(labels[self.good], kept[best])]
        classes = tuple(self.dataset.classes[label] for label in kept[best])
        return rows, np.searchsorted(kept[best], labels[rows]), classes

    def list_judged(self, units: tuple[str, ...]) -> list[int]:
        """List the classes with two of these units at least."""
        pairs = {(units[row], int(self.dataset.labels[row])) for row in self.good}
        counts = Counter(label for _, label in pairs)
        return [label for label in range(len(self.dataset.classes)) if counts[label] >= 2]

    def units_of(self, rows: IntN) -> tuple[str, ...]:
        return tuple(self.units[row] for row in rows)

    def judge_labels(
        self, rows: IntN, labels: IntN, classes: tuple[str, ...]
    ) -> tuple[Probe, tuple[LabelError, ...]]:
        """Choose the best depth on a sample, and judge every label by a probe that has not seen it."""
        seed, units = self.settings.seed, self.units_of(rows)
        parts = max(1, min(len(set(units)) // SAMPLE, min(np.bincount(labels)) // SMALL))
        some = np.flatnonzero(assign_folds(labels, units, parts, seed) == 0)
        names = tuple(self.features.values)
        choice = choose_cuts(
            self.features.select(rows[some]).values,
            labels[some],
            tuple(units[i] for i in some),
            len(classes),
            candidates=tuple(dict.fromkeys(names[-n:] for n in (1, 4))),
            seed=seed,
            progress=self.progress,
        )
        cuts, penalty = choice.heads[0], choice.penalties[0]  # the best alone
        probabilities = penalty.probabilities
        if parts > 1 or probabilities is None:
            matrix = self.matrix(cuts, rows)
            probabilities = cross_validate(
                matrix, labels, units, len(classes), penalty=penalty.value, seed=seed
            )
        right = int((probabilities.argmax(axis=1) == labels).sum())
        found, suggested, scores = find_label_errors(labels, probabilities)
        likely = count_likely(probabilities, scores)
        errors = [
            LabelError(self.dataset.ids[rows[i]], classes[labels[i]], classes[k], score, n < likely)
            for n, (i, k, score) in enumerate(zip(found, suggested, scores.tolist(), strict=True))
        ]
        return Probe(cuts, penalty.value, wilson_interval(right, len(rows))), tuple(errors)

    def matrix(self, cuts: Sequence[str], rows: IntN) -> np.ndarray:
        return np.concatenate([self.features.values[cut][rows] for cut in cuts], axis=1)

    def measure_held(
        self, rows: IntN, labels: IntN, probe: Probe, leaked: list[int]
    ) -> tuple[Held, ...]:
        """State the probe's accuracy on other splits with and without images that it was trained on."""
        splits = np.array(self.dataset.splits)
        of_train = splits[rows] == "train"
        if not leaked or len(np.unique(labels[of_train])) <= labels.max():
            return ()
        train = self.matrix(probe.cuts, rows[of_train])
        head = fit_linear(
            train, labels[of_train], int(labels.max()) + 1, penalty=probe.penalty, gap=CV_GAP
        )
        found = []
        for split in ("val", "test"):
            own = np.flatnonzero(splits[rows] == split)
            is_leaked = np.isin(rows[own], leaked)
            if not is_leaked.any():
                continue
            predicted = head.predict_proba(self.matrix(probe.cuts, rows[own])).argmax(axis=1)
            right = predicted == labels[own]
            kept = right[~is_leaked]
            found.append(
                Held(
                    split,
                    len(own),
                    int(is_leaked.sum()),
                    wilson_interval(int(right.sum()), len(own)),
                    wilson_interval(int(kept.sum()), len(kept)),
                )
            )
        return tuple(found)

    def find_leaked(self, groups: list[list[int]]) -> dict[int, list[int]]:
        """Find {row: its copies in splits that come before its own: train, val, test}."""
        order = {split: place for place, split in enumerate(("train", "val", "test"))}
        leaked = {}
        for rows in groups:
            places = [order.get(self.dataset.splits[row], -1) for row in rows]
            for row, place in zip(rows, places, strict=True):
                others = [r for r, p in zip(rows, places, strict=True) if 0 <= p < place]
                if others:
                    leaked[row] = others
        return leaked

    def list_leaks(self, leaked: dict[int, list[int]], copies: Copies) -> list[Leak]:
        """List the leaked images, each with its most similar copy, identical files first."""
        facts = zip(copies.cosines.tolist(), copies.mirrored.tolist(), strict=True)
        known = dict(zip(map(tuple, copies.pairs.tolist()), facts, strict=True))
        ids, splits, leaks = self.dataset.ids, self.dataset.splits, []
        for row, others in leaked.items():
            pairs = [known.get((min(row, r), max(row, r)), (0.0, False)) for r in others]
            best = max(range(len(others)), key=lambda i: pairs[i][0])
            (similarity, mirrored), other = pairs[best], others[best]
            leaks.append(
                Leak((ids[row], ids[other]), (splits[row], splits[other]), similarity, mirrored)
            )
        return sorted(leaks, key=lambda leak: -leak.similarity)

    def list_conflicts(self, copies: Copies) -> list[Conflict]:
        """List the pictures with more than one label; a mirror image may have another, as of an arrow."""
        found = []
        for rows in group_copies(copies.pairs[~copies.mirrored], len(self.dataset)):
            labels = tuple(self.names[row] for row in rows)
            if len(set(labels)) > 1:
                found.append(Conflict(tuple(self.dataset.ids[row] for row in rows), labels))
        return found

    def list_files(self) -> tuple[OddFile, ...]:
        """List the unreadable files, then the odd ones."""
        rows = {image: row for row, image in enumerate(self.dataset.ids)}
        bad = [
            OddFile(image, self.names[rows[image]], "unreadable", reason)
            for image, reason in self.features.unreadable()
        ]
        odd = [
            OddFile(self.dataset.ids[row], self.names[row], problem, evidence)
            for row, problem, evidence in find_odd_files(self.looks)
        ]
        return (*bad, *odd)

    def list_small(self) -> list[OddClass]:
        """List the classes with few readable images, the smallest first."""
        labels = self.dataset.labels[self.good]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.dataset.classes))
        return [
            OddClass(self.dataset.classes[k], int(counts[k]), "small", f"fewer than {SMALL} images")
            for k in np.argsort(counts, kind="stable")
            if counts[k] < SMALL
        ]

    def list_shortcuts(self, rows: IntN, labels: IntN, classes: tuple[str, ...]) -> list[OddClass]:
        """List the classes that the border's colour, or the size, gives away."""
        if len(classes) < 2:
            return []
        found, counts = [], np.bincount(labels)
        for problem, names in GIVEAWAYS.items():
            figures = np.stack([self.looks.figures[name][rows] for name in names], axis=1)
            if problem == "image size":
                figures = np.log(figures)  # ratios count
            shortcuts = find_shortcuts(
                figures.astype(np.float64),
                labels,
                self.units_of(rows),
                len(classes),
                seed=self.settings.seed,
            )
            for shortcut in shortcuts:
                evidence = (
                    f"a probe on the {problem} alone finds {shortcut.recall.value:.2f} of them and takes "
                    f"{shortcut.false_alarms:.2f} of the others for them; its accuracy is "
                    f"{shortcut.accuracy.value:.2f}, that of the largest class {shortcut.majority:.2f}"
                )
                images = int(counts[shortcut.label])
                found.append(OddClass(classes[shortcut.label], images, problem, evidence))
        return found

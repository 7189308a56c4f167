"""Takes a run and labelled images, gives an `Evaluation`."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.arrays import BoolN, FloatNC, IntCC, IntN, Targets
from headstart.choices import choose, nearest
from headstart.data.dataset import Dataset, match_classes, with_problem
from headstart.data.loading import list_paths
from headstart.data.tables import TABLE_SUFFIXES
from headstart.errors import BadImageError, InputError, UsageError
from headstart.features.engine import EngineChoice
from headstart.features.extraction import Features
from headstart.features.reading import check_bad_images
from headstart.files import check_cache
from headstart.metrics import ClassFigures, Estimate
from headstart.parallel import Progress, no_progress
from headstart.problem import MULTI_LABEL, SINGLE_LABEL, Problem
from headstart.runs.classifier import Classifier
from headstart.runs.documents import Measured, Members
from headstart.runs.fitting import extract_with
from headstart.runs.grouping import name_alike
from headstart.runs.knowledge import SetFigures, measure_novel, measure_sets
from headstart.runs.predictor import ModelLike, read_classifier
from headstart.runs.readings import NOT_COUNTED, Readings, note_reading
from headstart.runs.record import Run, has_record
from headstart.runs.showing import (
    check_one_label,
    frame_measured,
    plot_measured,
    plot_wrong,
    show_measured,
)
from headstart.runs.sources import Data, read_data
from headstart.training.settings import READING, Settings, make_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["EVALUATE_SETTINGS", "Evaluation", "evaluate"]

# The settings that `evaluate` uses; the others concern training.
EVALUATE_SETTINGS = (
    "group",
    *READING,
    *"max_bad max_pixels engine precision device workers cache_dir rehash".split(),
)

FEW = 5  # images that are compared to know a run's own data

UNKNOWN_CLASSES = ("refuse", "wrong", "skip")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A classifier measured on labelled images.

    Attributes:
        metrics: {name: Estimate}, named as in `metrics.measure` or `label_metrics.measure_labels`.
        per_class: {class: its figures}.
        classes: the model's C classes; then the unknown ones, where those count as wrong.
        confusion: int64 (C, C), row true class, column predicted class; where an image may have several, on
            the diagonal those that were found, beside it one that was missed and one wrongly given.
        split: the split that was measured, or "all".
        images: {"evaluated": n, "unreadable": n}.
        measured: the probabilities of every image that was evaluated, over `classes`.
        computed: how many images' features were computed; the others' came from the store.
        engine: the engine that ran the frozen network, and why.
        unreadable: (image id, reason) of each unreadable image.
        warnings: one line each, for people.
        unknown: images of classes that the model does not know.
        sets: of the prediction sets whose coverage was asked for; None where none was.
        novel: the share of images that are called none of these; None where the classifier cannot tell.
        problem: the name of the kind of problem, a key of `PROBLEMS`.
        dataset: of the images that were evaluated, to look at them again.
        readings: how often these images were measured with this run, where they are not its own.
    """

    metrics: dict[str, Estimate]
    per_class: dict[str, ClassFigures]
    classes: tuple[str, ...]
    confusion: IntCC
    split: str
    images: dict[str, int]
    measured: Measured
    computed: int
    engine: EngineChoice
    unreadable: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    unknown: int = 0
    problem: str = SINGLE_LABEL.name
    dataset: Dataset | None = dataclasses.field(default=None, repr=False)
    readings: Readings = NOT_COUNTED
    sets: SetFigures | None = None
    novel: Estimate | None = None

    @property
    def recall(self) -> dict[str, Estimate]:
        """{class: the fraction of its images that were said to be of it}."""
        return {name: figures.recall for name, figures in self.per_class.items()}

    def __repr__(self) -> str:
        name, figure = next(iter(self.metrics.items()))
        return (
            f"Evaluation({self.images['evaluated']:,} images of {self.split}, {name} "
            f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}))"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        where = "all images" if self.split == "all" else f"the split {self.split}"
        title = f"{self.images['evaluated']:,} images, {where}, 95 % intervals"
        warnings = [f"warning: {warning}" for warning in self.warnings]
        confusion = None if self.problem == MULTI_LABEL.name else self.confusion
        figures = (self.metrics, self.per_class, self.problem, confusion)
        return show_measured(title, warnings, *figures)

    def plot_confusion(self) -> "Figure":
        """Draw the confusion matrix, as a matplotlib figure.

        Raises:
            UsageError: an image may have several labels.
        """
        return plot_measured(self.measured, self.problem)

    def plot_mistakes(self, most: int = 16) -> "Figure":
        """Draw the images that it was most wrong on, as a matplotlib figure; they are read again.

        Raises:
            InputError: nothing was wrong, or the images are gone.
            UsageError: an image may have several labels, or `most` is less than 1.
        """
        check_one_label(self.problem, "plot_mistakes")
        return plot_wrong(self.measured, self.dataset, None, most)

    def to_frame(self) -> "DataFrame":
        """Give a table with a row for each evaluated image, as `frame_measured` makes it.

        Raises:
            UsageError: pandas is not installed.
        """
        return frame_measured(self.measured, self.per_class, self.problem)


def evaluate(
    run: ModelLike,
    data: Data,
    *,
    split: str | None = None,
    unknown_classes: str = "refuse",
    coverage: float | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Measure a classifier on labelled images, matched to its classes by name.

    Args:
        run: the folder of a run, "pretrained:NAME", a run as `fit` gives it, or a classifier.
        split: train, val, test or all; by default test, else val, else all. On the data that the run
            was trained on, "train" and "val" are the run's own parts.
        unknown_classes: what is done with images of a class that the model does not know: "refuse" the
            data, count them as "wrong", or "skip" them. Counted as wrong, their classes are added to
            the model's with a recall of 0 and, in the log loss, a probability of 1e-12.
        coverage: in (0, 1): also measure prediction sets of this coverage.
        progress: called with how far the work is.
        **options: those fields of `Settings` that concern reading and extraction.

    Raises:
        UsageError: the data have no such split, an option is wrong, or there are no sets of that coverage.
        InputError: the data cannot be used, or have a class that the model does not know.
        TooManyBadImagesError: more unreadable images than `max_bad`.
    """
    _check_options(unknown_classes, options)
    progress("loading the run", 0, 0)
    record, classifier = _read_model(run, options.get("cache_dir"), coverage)
    _check_problem(unknown_classes, classifier)
    problem = classifier.problem
    several = problem.name == MULTI_LABEL.name
    settings = _make_settings(options, data, record, several)
    check_cache(settings.runtime.cache_dir)
    progress("listing images", 0, 0)
    dataset = read_data(data, settings)
    own = _find_own(record, dataset)
    dataset, chosen = _choose_split(dataset, split, own)
    known, advice = len(classifier.classes), _advise_names(record, settings)
    dataset = _group_alike(with_problem(dataset, problem), record, settings)
    targets, classes = _match_targets(dataset, classifier.classes, unknown_classes, advice)
    features = extract_with(settings, dataset, classifier.backbone, progress)
    check_bad_images(features.unreadable(), len(dataset), settings.data.max_bad)
    progress("measuring", 0, 0)
    rows, is_unknown = _find_rows(features.good(), targets, problem, known)
    warnings = [*dataset.warnings, *features.warnings]
    warnings += _tell_unknown(is_unknown, classes[known:], unknown_classes)
    if unknown_classes == "skip":
        rows, classes = rows[~is_unknown], classifier.classes
    if len(rows) == 0:
        raise InputError(f"{dataset.name}: no readable labelled images to evaluate")
    used, targets = features.select(rows), targets[rows]
    probabilities = classifier.predict_proba(used.values)
    probabilities = np.pad(probabilities, ((0, 0), (0, len(classes) - known)))
    figures = (targets[:, : len(classes)] if several else targets, probabilities, classes)
    measured = _gather(dataset.select(rows), *figures, chosen, own)
    warnings += _tell_flaws(measured, used, record, classifier, coverage)
    metrics = problem.measure(*figures, groups=measured.groups)
    readings = _count(record, chosen, used.sha256, metrics)
    return Evaluation(
        metrics=metrics,
        per_class=problem.measure_each(*figures, groups=measured.groups),
        classes=classes,
        confusion=problem.confuse(*figures[:2]),
        split=chosen,
        images={"evaluated": len(rows), "unreadable": len(features.unreadable())},
        measured=measured,
        computed=features.computed,
        engine=features.engine,
        unreadable=tuple(features.unreadable()),
        warnings=(*warnings, *filter(None, [readings.problem])),
        unknown=int(is_unknown.sum()),
        problem=problem.name,
        dataset=dataset.select(rows),
        sets=measure_sets(classifier.knowledge, *figures[:2], coverage, measured.groups),
        novel=measure_novel(classifier.knowledge, used.values, measured.groups),
        readings=readings,
    )


def _check_options(unknown_classes: str, options: dict[str, Any]) -> None:
    choose("unknown_classes", unknown_classes, dict.fromkeys(UNKNOWN_CLASSES))
    unused = [name for name in options if name not in EVALUATE_SETTINGS]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on evaluate; "
            f"those that have: {', '.join(EVALUATE_SETTINGS)}"
        )


def _check_problem(unknown_classes: str, classifier: Classifier) -> None:
    if unknown_classes == "wrong" and classifier.problem.name == MULTI_LABEL.name:
        raise UsageError(
            "unknown_classes 'wrong' has no meaning with several labels; refuse or skip"
        )


def _make_settings(
    options: dict[str, Any], data: Data, record: Run | None, several: bool
) -> Settings:
    """Have the data read as of the classifier's kind of problem, and as the run's own were.

    Raises:
        UsageError: the user says that they are of another kind.
    """
    settings = make_settings({**_list_choices(record), **options})
    if settings.data.multi_label not in (None, several):
        kind = "any number of labels" if several else "one label"
        raise UsageError(f"multi_label has no effect: the classifier gives an image {kind}")
    if isinstance(data, Dataset):
        return settings
    update: dict[str, Any] = {"multi_label": several}
    own = None if record is None else record.settings.get("label_separator", {}).get("value")
    if several and settings.data.label_separator is None and _is_table(data):
        update["label_separator"] = own
    return settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _is_table(data: Data) -> bool:
    return any(path.suffix.lower() in TABLE_SUFFIXES for path in list_paths(data))


def _read_model(
    model: ModelLike, cache_dir: str | os.PathLike[str] | None, coverage: float | None
) -> tuple[Run | None, Classifier]:
    """Read the run, where there is one, and the classifier, which has sets of the coverage asked for."""
    if isinstance(model, str | os.PathLike) and has_record(Path(model)):
        model = Run.load(model, cache_dir=cache_dir)
    classifier = read_classifier("run", model, cache_dir)
    if coverage is not None:
        classifier.knowledge.check_coverage(coverage)
    return (model if isinstance(model, Run) else None), classifier


def _match_targets(
    dataset: Dataset, known: tuple[str, ...], unknown_classes: str, advice: str
) -> tuple[Targets, tuple[str, ...]]:
    """Give (targets by class index, the model's classes and then those that it does not know)."""
    unknown = tuple[str, ...]()
    if unknown_classes != "refuse":
        used = sorted({k for row in dataset.classes_of_rows() for k in row})
        unknown = tuple(dataset.classes[k] for k in used if dataset.classes[k] not in known)
    try:
        return match_classes(dataset, known + unknown), known + unknown
    except InputError as exc:
        raise InputError(f"{exc}, {advice}or pass --unknown-classes wrong or skip") from exc


def _advise_names(run: Run | None, settings: Settings) -> str:
    """Name the file that a run's classes have their names from, where it is not given again."""
    named = None if run is None else run.settings.get("class_names", {}).get("value")
    if named is None or settings.data.class_names is not None:
        return ""
    return f"give --class-names {named} as for the run, "


def _find_own(record: Run | None, dataset: Dataset) -> Members:
    """Give the run's images, where these are its own data; else none."""
    members = Members() if record is None else record.members
    return members if _was_trained_on(dataset, members) else Members()


def _find_rows(good: BoolN, targets: Targets, problem: Problem, known: int) -> tuple[IntN, BoolN]:
    """Give (the rows of readable labelled images, which of them are of a class unknown to the model)."""
    rows = np.flatnonzero(good & problem.known(targets))
    of_rows = problem.decode(targets[rows])
    return rows, np.array([max(row, default=-1) >= known for row in of_rows], dtype=bool)


def _tell_unknown(
    is_unknown: BoolN, classes: tuple[str, ...], unknown_classes: str
) -> Iterator[str]:
    if not is_unknown.any():
        return
    images = f"{is_unknown.sum()} image{'s' if is_unknown.sum() > 1 else ''}"
    names = ", ".join(f"'{c}'" for c in classes[:3]) + (", …" if len(classes) > 3 else "")
    if unknown_classes == "skip":
        yield f"{images} of classes that the model does not know ({names}) left out"
    else:
        yield f"{images} of classes that the model does not know ({names}) counted as wrong"


def _tell_flaws(
    measured: Measured,
    features: Features,
    run: Run | None,
    classifier: Classifier,
    coverage: float | None,
) -> Iterator[str]:
    trained_on = set[str]() if run is None else _list_trained(run)
    seen = sum(digest in trained_on for digest in features.sha256)
    if seen:
        yield (
            f"{seen} of these {len(measured)} images were trained on, so the figures flatter the model"
        )
    yield from _tell_choices(run, classifier, coverage, features.sha256)
    present = {k for row in classifier.problem.decode(measured.labels) for k in row}
    absent = [c for i, c in enumerate(measured.classes) if i not in present]
    if absent:
        more = f" and of {len(absent) - 1} more" if len(absent) > 1 else ""
        yield f"no image of class '{absent[0]}'{more} here"


def _tell_choices(
    run: Run | None, classifier: Classifier, coverage: float | None, contents: tuple[str, ...]
) -> Iterator[str]:
    """Say what was chosen by images that are measured, where they were held out from the training."""
    if run is None or run.is_refitted() or run.measured_on != "val":
        return
    used = zip(run.members.sha256, run.members.splits, strict=True)
    held = {digest for digest, part in used if part == "val" and digest}
    seen = sum(digest in held for digest in contents)
    ways = {
        "the temperature": classifier.temperature != 1,
        "the thresholds": bool(classifier.thresholds),
        "the sets": coverage is not None,
    }
    chosen = [*run.chosen_by, *(way for way, is_chosen in ways.items() if is_chosen)]
    if seen and chosen:
        yield (
            f"{seen} of these {len(contents)} images have chosen parts of the model ({', '.join(chosen)}), "
            "so the figures flatter it a little"
        )


def _list_trained(run: Run) -> set[str]:
    """List the hashes of the images that a classifier was trained on, in the end also those held out."""
    parts = ("train", "val") if run.is_refitted() else ("train",)
    used = zip(run.members.sha256, run.members.splits, strict=True)
    return {digest for digest, part in used if part in parts and digest}


def _list_choices(run: Run | None) -> dict[str, str]:
    """Give the engine and precision that the user chose for a run, whose features its head was trained on."""
    chosen = {} if run is None else {n: run.settings.get(n, {}) for n in ("engine", "precision")}
    return {n: str(c["value"]) for n, c in chosen.items() if c.get("origin") == "user"}


def _was_trained_on(dataset: Dataset, members: Members) -> bool:
    """Whether these are the run's own data; names recur elsewhere, so the bytes of a few images tell."""
    rows = {image_id: row for row, image_id in enumerate(dataset.ids)}
    pairs = zip(members.ids, members.sha256, strict=True)
    common = ((rows[i], digest) for i, digest in pairs if digest and i in rows)
    for row, digest in itertools.islice(common, FEW):
        with contextlib.suppress(BadImageError):
            if hashlib.sha256(dataset.image(row).read()).hexdigest() == digest:
                return True
    return False


def _group_alike(dataset: Dataset, run: Run | None, settings: Settings) -> Dataset:
    """Group images that nobody has grouped by the rule that the run's own were grouped by."""
    if run is None or any(dataset.groups) or settings.data.group is not None:
        return dataset
    names = name_alike(run.decisions.facts, dataset.ids)
    return dataclasses.replace(dataset, groups=names) if names else dataset


def _gather(
    dataset: Dataset,
    targets: Targets,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    split: str,
    members: Members,
) -> Measured:
    """Gather what was predicted; images of the run have the groups that they had in it."""
    own = dict(zip(members.ids, members.groups, strict=True))
    pairs = zip(dataset.ids, dataset.groups, strict=True)
    groups = tuple(own.get(i) or group for i, group in pairs)
    return Measured(probabilities, targets, dataset.ids, split, classes, groups)


def _count(
    run: Run | None, split: str, contents: tuple[str, ...], metrics: dict[str, Estimate]
) -> Readings:
    """Note in the folder of a run that it was measured, on other images than its own."""
    if run is None or not has_record(run.folder) or set(contents) <= set(run.members.sha256):
        return NOT_COUNTED
    figure, estimate = next(iter(metrics.items()))
    return note_reading(run.folder, split, contents, figure, estimate.value)


def _choose_split(dataset: Dataset, split: str | None, members: Members) -> tuple[Dataset, str]:
    """Choose the rows to evaluate; give them and the name of their split.

    Args:
        members: the images of the run, where these data are its own.
    """
    own = dict(zip(members.ids, members.splits, strict=True))
    splits = [own.get(i, part) for part, i in zip(dataset.splits, dataset.ids, strict=True)]
    present = {s for s in splits if s}
    chosen = split or next((s for s in ("test", "val") if s in present), "all")
    if chosen == "all":
        return dataset, chosen
    known = [s for s in ("train", "val", "test") if s in present]
    if chosen not in known:
        cross_validated = chosen == "val" and own and "val" not in own.values()
        raise UsageError(
            f"split '{chosen}' is not in the data{nearest(chosen, known)}; "
            f"there {'is' if len(known) == 1 else 'are'} {', '.join([*known, 'all'])}"
            + ("; the run held no images out, which fit --val 0.2 does" if cross_validated else "")
        )
    return dataset.select(np.flatnonzero([s == chosen for s in splits])), chosen

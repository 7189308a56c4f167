"""Takes the folder of a run, gives the `Run`: its figures, decisions and predictions.

The files, beside the classifier's own three: settings.json (each value with its origin), metrics.json
(figures and decisions), run.json (provenance: data, engine, time), split.jsonl (the part that each image
was used in), predictions.safetensors (the probabilities of every image that was measured on) and
history.jsonl (an object an epoch). A folder may come from anywhere: whatever is not as `save_run` writes
it is refused on one line that names the file and the field.

Shape letters: N measured images, C classes.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.arrays import FloatNC, Targets
from headstart.canvas import draw_curves
from headstart.errors import InputError
from headstart.features.engine import EngineChoice
from headstart.files import read_bounded, read_json, to_json_bytes
from headstart.metrics import UNDEFINED, ClassFigures, Estimate
from headstart.problem import MULTI_LABEL, PROBLEMS, SINGLE_LABEL, Problem
from headstart.runs.classifier import Classifier, read_card
from headstart.runs.folder import (
    MEMBERS,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    SETTINGS,
    replace_run,
)
from headstart.runs.showing import (
    check_one_label,
    confuse,
    frame_measured,
    plot_measured,
    plot_wrong,
    show_measured,
)
from headstart.runs.sources import find_images, restore_settings
from headstart.training.decisions import Decisions, Origin
from headstart.training.outputs import HISTORY
from headstart.training.settings import FIELDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "Measured",
    "Members",
    "Parts",
    "Run",
    "Start",
    "has_record",
    "name_data",
    "read_start",
    "save_run",
    "to_json",
]

MAX_LINES_BYTES = 2**30  # of split.jsonl and history.jsonl: millions of images
MAX_LINE_BYTES = 2**20
MAX_HEADER_BYTES = 2**16  # of safetensors, before the arrays
# Rows of float32 sum to one up to rounding, which grows with the number of classes.
SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A classifier's probabilities on labelled images.

    Attributes:
        probabilities: float32 (N, C), rows sum to one where an image is of one class.
        labels: (N, …), the targets as the data's `Problem` keeps them: int64 (N,), the true classes; int8
            (N, C) where an image may have several.
        ids: N image ids.
        part: what the images are: "val"; "cross-validation", for training images each of which was
            predicted by a head that had not seen it; else the split that was evaluated, or "all".
        classes: C class names.
        groups: of the N images, "" for one that is its own group; () where none have any.
        folds: N numbers from 1, where it was measured by `folds`; () where not.
    """

    probabilities: FloatNC
    labels: Targets
    ids: tuple[str, ...]
    part: str
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Measured({len(self):,} images of {self.part}, {len(self.classes):,} classes)"


@dataclasses.dataclass(frozen=True)
class Members:
    """The images that a run used, column by column, sorted by id.

    Attributes:
        ids: unique.
        splits: "train" or "val".
        labels: names of classes, "" for none, with "|" between several.
        groups: "" for an image that is its own group.
        sha256: hex digests of their bytes, "" where those could not be read.
        errors: why an image could not be read, "" for a good one.
        folds: from 1, where it was measured by `folds`: an image by a training without those of its fold; 0
            for an image that is in none. () where not.
    """

    ids: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Members({len(self):,} images)"


@dataclasses.dataclass(frozen=True)
class Parts:
    """The large parts of a run, each read when first asked for."""

    classifier: Callable[[], Classifier]
    members: Callable[[], Members]
    measured: Callable[[], Measured | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training, as `fit` gives it and `Run.load` reads it back.

    Attributes:
        folder: of its files.
        strategy, backbone: by name.
        classes: C class names.
        names: readable names of the classes, in their order; () where the classes are readable.
        metrics: {name: Estimate}, named as in `metrics.measure`, or `measure_labels` where an image may have
            several labels; empty when nothing could be measured.
        per_class: {class: its figures}; empty likewise.
        measured_on: "val" or "cross-validation", or "" when nothing could be measured.
        images: {"train": n, "val": n, "unreadable": n}.
        settings: {name: {"value": …, "origin": "default" | "user" | "advised" | "measured"}}.
        decisions: the values of the settings that the user did not give, and their evidence.
        warnings: one line each, for people.
        history: an object an epoch, 0 the starting point; () where there are no epochs.
        data: absolute path of the folder, manifest or archive it was trained on, or of several archives;
            None for a `Dataset` in memory.
        root: absolute path of the folder that the image ids are relative to. A run that comes from
            anywhere may name any folder: ask the user before opening images there.
        computed: how many images' features were computed; the others' came from the store.
        engine: the engine that ran the frozen network, and why.
        seconds: wall-clock time.
        interrupted: whether Ctrl-C ended it early, with the best classifier so far.
        problem: the name of the kind of problem, a key of `PROBLEMS`.
    """

    folder: Path
    strategy: str
    backbone: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    metrics: dict[str, Estimate]
    per_class: dict[str, ClassFigures]
    measured_on: str
    images: dict[str, int]
    settings: dict[str, dict[str, Any]]
    decisions: Decisions
    warnings: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    data: Path | tuple[Path, ...] | None
    root: Path
    computed: int
    engine: EngineChoice
    seconds: float
    interrupted: bool
    parts: Parts = dataclasses.field(repr=False)
    problem: str = SINGLE_LABEL.name

    @property
    def recall(self) -> dict[str, Estimate]:
        """{class: the fraction of its images that were said to be of it}."""
        return {name: figures.recall for name, figures in self.per_class.items()}

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """What was chosen by the images that were measured on, so that the figures flatter a little."""
        facts, settled = self.decisions.facts, self.decisions.settled
        training = facts.get("training")
        if not self.metrics or "folds" in facts:  # each fold chose without its own images
            chosen = {}
        elif self.measured_on == "val":
            epochs = training if isinstance(training, dict) else {}
            monitor = self.settings.get("monitor", {}).get("value")
            chosen = {
                "the best epoch": bool(epochs) and monitor != "last",
                "the share of the trained weights": epochs.get("wise_ft") is not None,
                "the training in the place of a probe": self.is_refitted(),
            }
        else:
            origins = {name: decision.origin for name, decision in settled.items()}
            chosen = {
                "the cut points": origins.get("cut") == "measured",
                "the penalty": origins.get("penalty") == "measured",
            }
        return tuple(name for name, is_chosen in chosen.items() if is_chosen)

    def is_refitted(self) -> bool:
        """Whether it was trained on the validation images too, after they were measured on."""
        return "refit" in self.decisions.facts

    def __repr__(self) -> str:
        name, first = next(iter(self.metrics.items()), ("", None))
        figure = (
            "nothing measured" if first is None else f"{name.replace('_', ' ')} {first.value:.3f}"
        )
        return (
            f"Run({str(self.folder)!r}, {self.strategy} on {self.backbone}, "
            f"{len(self.classes):,} classes, {figure})"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        name = f"{self.strategy} on {self.backbone}" if self.backbone else self.strategy
        counts = ", ".join(f"{n:,} {part}" for part, n in self.images.items() if n)
        lines = [f"{len(self.classes):,} classes, {counts} images, {self.seconds:.1f} s"]
        measured, confusion = None, None
        with contextlib.suppress(InputError):  # the figures can be shown all the same
            measured = self.measured
            confusion = confuse(measured, self.problem)
        if self.measured_on:
            how = {"val": "on", "cross-validation": "by cross-validation on"}[self.measured_on]
            part = {"val": "validation", "cross-validation": "training"}[self.measured_on]
            count = "" if measured is None else f"{len(measured):,} "
            lines.append(f"measured {how} {count}{part} images, 95 % intervals")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(f"saved to {self.folder}")
        return show_measured(name, lines, self.metrics, self.per_class, self.problem, confusion)

    def plot_confusion(self) -> "Figure":
        """Draw the confusion matrix, as a matplotlib figure.

        Raises:
            InputError: nothing was measured, or what was is damaged.
            UsageError: an image may have several labels.
        """
        return plot_measured(self._need_measured("plot_confusion"), self.problem)

    def plot_curves(self) -> "Figure":
        """Draw losses and accuracies by epoch, as a matplotlib figure.

        Raises:
            InputError: there were no epochs: a head that is fitted at once has none.
        """
        if not self.history:
            raise InputError(
                f"{self.folder}: has no epochs to plot; {self.strategy} is fitted at once"
            )
        training = self.decisions.facts.get("training")
        best = training.get("best_epoch") if isinstance(training, dict) else None
        return draw_curves(self.history, best if isinstance(best, int) else None)

    def plot_mistakes(self, most: int = 16) -> "Figure":
        """Draw the images that it was most wrong on, as a matplotlib figure.

        They are read again where the run found them, and drawn only if their bytes are those that were
        measured. A run that comes from anywhere may name any folder.

        Raises:
            InputError: nothing was measured, nothing was wrong, or the images are gone.
            UsageError: an image may have several labels, or `most` is less than 1.
        """
        measured = self._need_measured("plot_mistakes")
        check_one_label(self.problem, "plot_mistakes")
        images = find_images(measured, self.data, self.root, restore_settings(self.settings))
        digests = dict(zip(self.members.ids, self.members.sha256, strict=True))
        return plot_wrong(measured, images, digests, most)

    def to_frame(self) -> "DataFrame":
        """Give a table with a row for each measured image, as `frame_measured` makes it.

        Raises:
            UsageError: pandas is not installed.
            InputError: what was measured is damaged.
        """
        return frame_measured(self.measured, self.per_class, self.problem)

    def _need_measured(self, what: str) -> Measured:
        measured = self.measured
        if measured is None or len(measured) == 0:
            raise InputError(
                f"{self.folder}: nothing was measured; evaluate it on labelled images, and {what} of that"
            )
        return measured

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The trained classifier.

        Raises:
            InputError: as `Classifier.load` says.
        """
        return self.parts.classifier()

    @functools.cached_property
    def members(self) -> Members:
        """The images that were used; empty where the folder does not list them.

        Raises:
            InputError: split.jsonl is damaged.
        """
        return self.parts.members()

    @functools.cached_property
    def measured(self) -> Measured | None:
        """The probabilities of every image that was measured on; None when nothing could be measured.

        Raises:
            InputError: predictions.safetensors or split.jsonl is missing or damaged.
        """
        return self.parts.measured()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> "Run":
        """Read a run back; its classifier, images and probabilities only when asked for.

        Args:
            folder: of a run.
            cache_dir: as in `Classifier.load`, for its classifier.

        Raises:
            InputError: missing, incomplete, damaged, or written by a newer headstart.
        """
        path = Path(folder)
        card = read_card(path, reads=None)
        classes = tuple(card.classes)
        members = functools.cache(functools.partial(_read_members, path))
        metrics = _read_document(path / METRICS, _Metrics)
        settings = _read_settings(path / SETTINGS)
        # Ids of images in other folders begin with "..", and only then.
        values = {name: settings.get(name, {}).get("value") for name in ("allow_outside", "val")}
        outside = values["allow_outside"] is True or isinstance(values["val"], str)

        def measured() -> Measured | None:
            if not metrics.measured_on:
                return None
            problem = PROBLEMS[card.problem]
            return _read_measured(path, classes, metrics.measured_on, members(), outside, problem)

        return _make_run(
            path,
            (card.strategy, card.backbone, card.problem, classes, tuple(card.names)),
            metrics,
            settings,
            _read_document(path / PROVENANCE, _Provenance),
            _read_history(path / HISTORY),
            Parts(lambda: Classifier.load(path, cache_dir=cache_dir), members, measured),
        )


def has_record(folder: Path) -> bool:
    """Whether a folder holds more of a run than its classifier."""
    return any((folder / name).exists() for name in (METRICS, SETTINGS, PROVENANCE, MEMBERS))


def save_run(run: Run, *, keep: Collection[str], model: Mapping[str, bytes]) -> Run:
    """Write a run to its folder; it replaces a run that is there.

    Args:
        keep: names of the files of its training that belong to the run.
        model: {name: content} of what was trained, and its card.

    Returns:
        The run, its figures and decisions as they will be read back.

    Raises:
        OSError: out of disk or permission; the run that was there is untouched.
    """
    members, measured = run.members, run.measured
    metrics = {
        "measured_on": run.measured_on,
        "metrics": run.metrics,
        "per_class": run.per_class,
        "images": run.images,
        "decisions": run.decisions.to_json(),
        "warnings": run.warnings,
    }
    provenance = {
        "data": name_data(run.data),
        "root": str(run.root),
        "engine": dataclasses.asdict(run.engine),
        "computed": run.computed,
        "seconds": run.seconds,
        "interrupted": run.interrupted,
    }
    documents = {SETTINGS: run.settings, METRICS: metrics, PROVENANCE: provenance}
    files = {name: to_json_bytes(to_json(value)) for name, value in documents.items()}
    files[MEMBERS] = "".join(json.dumps(row) + "\n" for row in _rows(members)).encode()
    if measured is not None:
        place = {image_id: row for row, image_id in enumerate(members.ids)}
        arrays = {
            "probabilities": np.ascontiguousarray(measured.probabilities, dtype=np.float32),
            "labels": np.ascontiguousarray(measured.labels),
            "rows": np.array([place[i] for i in measured.ids], dtype=np.int64),
        }
        files[PREDICTIONS] = save_arrays(arrays)
    replace_run(run.folder, {**files, **model}, keep=keep)
    return _make_run(
        run.folder,
        (run.strategy, run.backbone, run.problem, run.classes, run.names),
        _Metrics.model_validate(json.loads(files[METRICS])),
        json.loads(files[SETTINGS]),
        _Provenance.model_validate(json.loads(files[PROVENANCE])),
        _read_history(run.folder / HISTORY),
        Parts(lambda: run.classifier, lambda: members, lambda: measured),
    )


# ---------------------------------------------------------------- what is in the files


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class _Estimate(_Document):
    value: float | None
    low: float | None
    high: float | None

    def read(self) -> Estimate:
        values = (self.value, self.low, self.high)
        return Estimate(*(math.nan if v is None else v for v in values))


_Count = Annotated[int, Field(ge=0)]


class _Class(_Document):
    images: _Count
    precision: _Estimate
    recall: _Estimate
    f1: _Estimate
    roc_auc: _Estimate | None = None  # missing in runs of before it was measured
    average_precision: _Estimate
    threshold: float | None

    def read(self) -> ClassFigures:
        return ClassFigures(
            images=self.images,
            precision=self.precision.read(),
            recall=self.recall.read(),
            f1=self.f1.read(),
            roc_auc=UNDEFINED if self.roc_auc is None else self.roc_auc.read(),
            average_precision=self.average_precision.read(),
            threshold=math.nan if self.threshold is None else self.threshold,
        )


class _Metrics(_Document):
    measured_on: Literal["", "val", "cross-validation"]
    metrics: dict[str, _Estimate]
    per_class: dict[str, _Class] = {}
    images: dict[Literal["train", "val", "unreadable"], _Count]
    decisions: dict[str, Any]
    warnings: list[str]
    # What the folders of earlier versions have in the place of `per_class`: of every run, and of those whose
    # images may have several labels.
    recall: dict[str, _Estimate] = {}
    labels: dict[str, _Class] = {}

    def read_classes(self) -> tuple[str, dict[str, ClassFigures]]:
        """(the name of the field, the figures of each class); of figures of recall alone the others are NaN,
        and the images not counted."""
        if self.labels:
            return "labels", {name: figures.read() for name, figures in self.labels.items()}
        if self.per_class or not self.recall:
            return "per_class", {name: figures.read() for name, figures in self.per_class.items()}
        recalls = {name: figure.read() for name, figure in self.recall.items()}
        none = UNDEFINED
        return "recall", {
            name: ClassFigures(0, none, recall, none, none, none)
            for name, recall in recalls.items()
        }


class _Engine(_Document):
    library: str
    device: str
    precision: str
    version: str
    micro_batch: Annotated[int, Field(ge=1)]
    graph: str
    reason: str


def _check_paths(value: Any) -> Any:
    """Not a union of types, whose members pydantic adds to the name of the field."""
    several = value if isinstance(value, list) else [value or ""]
    if not several or not all(isinstance(path, str) for path in several):
        raise ValueError("should be a path, several, or null")
    return value


_Paths = Annotated[Any, AfterValidator(_check_paths)]


class _Provenance(_Document):
    data: _Paths
    root: str
    engine: _Engine
    computed: _Count
    seconds: Annotated[float, Field(ge=0)]
    interrupted: bool


class _Setting(_Document):
    value: str | float | bool | None
    origin: Origin


class _Member(_Document):
    id: str
    split: Literal["train", "val"]
    label: str | None
    group: str | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    error: str | None
    fold: Annotated[int, Field(ge=1, le=20)] | None = None


class _Epoch(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    epoch: _Count


class Start(_Document):
    """start.json: the data and settings that a training was started with.

    Attributes:
        data: absolute path of its folder, manifest or archive, or of several archives; None for a
            `Dataset` in memory.
        options: fields of `Settings` that were given, or advised.
        advised: the "settings" among them that follow the "advice"; {} without.
        parts: how many parts of the images a budget allowed; 0 for all.
    """

    data: _Paths
    options: dict[str, Any]
    advised: dict[str, dict[str, Any]] = {}
    parts: Annotated[int, Field(ge=0)] = 0


Document = TypeVar("Document", bound=BaseModel)


def _check_document(path: Path, model: type[Document], value: Any) -> Document:
    try:
        document = model.model_validate(value)
        json.dumps(value, allow_nan=False)  # a schema does not look into an untyped field
    except ValidationError as exc:
        problem = exc.errors()[0]
        # pydantic appends the members of a union, which are not in the file.
        field = ".".join(str(part) for part in problem["loc"][:3])
        message = problem["msg"].lower()
        raise InputError(f"{path}: damaged: field '{field}': {message}; fit again") from exc
    except ValueError as exc:
        raise InputError(f"{path}: damaged: it has numbers that are not finite; fit again") from exc
    return document


def _read_document(path: Path, model: type[Document]) -> Document:
    return _check_document(path, model, read_json(path))


def _make_run(
    folder: Path,
    card: tuple[str, str, str, tuple[str, ...], tuple[str, ...]],
    metrics: _Metrics,
    settings: dict[str, dict[str, Any]],
    provenance: _Provenance,
    history: tuple[dict[str, Any], ...],
    parts: Parts,
) -> Run:
    strategy, backbone, problem, classes, names = card
    where = folder / METRICS
    if set(metrics.images) != {"train", "val", "unreadable"}:
        raise InputError(f"{where}: damaged: field 'images' lacks a part; fit again")
    if bool(metrics.metrics) != bool(metrics.measured_on):
        raise InputError(
            f"{where}: damaged: field 'metrics' is not what 'measured_on' says; fit again"
        )
    field, per_class = metrics.read_classes()
    if tuple(per_class) != (classes if metrics.metrics else ()):
        raise InputError(
            f"{where}: damaged: field '{field}' is not of the run's classes; fit again"
        )
    try:
        decisions = Decisions.from_json(metrics.decisions)
    except ValueError as exc:
        raise InputError(f"{where}: damaged: field 'decisions': {exc}; fit again") from exc
    return Run(
        folder=folder,
        strategy=strategy,
        backbone=backbone,
        classes=classes,
        names=names,
        metrics={name: figure.read() for name, figure in metrics.metrics.items()},
        per_class=per_class,
        measured_on=metrics.measured_on,
        images={str(name): count for name, count in metrics.images.items()},
        settings=settings,
        decisions=decisions,
        warnings=tuple(metrics.warnings),
        history=history,
        data=_locate(provenance.data),
        root=Path(provenance.root),
        computed=provenance.computed,
        engine=EngineChoice(**provenance.engine.model_dump()),
        seconds=provenance.seconds,
        interrupted=provenance.interrupted,
        parts=parts,
        problem=problem,
    )


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    settings = read_json(path)
    for name, entry in settings.items():
        if name not in FIELDS:
            raise InputError(f"{path}: damaged: '{name}' is no setting; fit again")
        _check_document(path, _Setting, entry)
    return settings


def name_data(data: Path | tuple[Path, ...] | None) -> str | list[str] | None:
    """Give the paths of data as JSON has them."""
    if isinstance(data, tuple):
        return [str(path) for path in data]
    return None if data is None else str(data)


def _locate(data: str | list[str] | None) -> Path | tuple[Path, ...] | None:
    if isinstance(data, list):
        return tuple(Path(path) for path in data)
    return None if data is None else Path(data)


def read_start(path: Path) -> Start:
    """Read the data and settings that a training was started with.

    Raises:
        InputError: start.json is damaged.
    """
    try:
        return _read_document(path, Start)
    except InputError as exc:
        raise InputError(f"{path}: damaged; fit again with --overwrite") from exc


def _read_lines(path: Path, model: type[Document]) -> Iterator[Document]:
    """Read a file of one object a line."""
    try:
        if path.stat().st_size > MAX_LINES_BYTES:
            raise InputError(f"{path}: larger than {MAX_LINES_BYTES >> 20} MiB")
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                where = f"{path}: damaged: line {number}"
                try:
                    yield model.model_validate(json.loads(line.decode()))
                except ValidationError as exc:
                    problem = exc.errors()[0]
                    field = ".".join(str(part) for part in problem["loc"][:1])
                    raise InputError(
                        f"{where}, field '{field}': {problem['msg'].lower()}; fit again"
                    ) from exc
                except (ValueError, RecursionError) as exc:
                    raise InputError(f"{where} is not JSON; fit again") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc


def _read_history(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    history = tuple(epoch.model_dump() for epoch in _read_lines(path, _Epoch))
    if [entry["epoch"] for entry in history] != list(range(len(history))):
        raise InputError(f"{path}: damaged: field 'epoch' does not count from 0; fit again")
    return history


def _rows(members: Members) -> Iterator[dict[str, str | int | None]]:
    names = ("label", "group", "sha256", "error")
    texts = (members.labels, members.groups, members.sha256, members.errors)
    folds = members.folds or (0,) * len(members)
    for image_id, split, fold, *others in zip(
        members.ids, members.splits, folds, *texts, strict=True
    ):
        row = {n: text or None for n, text in zip(names, others, strict=True)}
        yield {"id": image_id, "split": split, **row, **({"fold": fold} if fold else {})}


def _read_members(folder: Path) -> Members:
    path = folder / MEMBERS
    if not path.is_file():
        return Members()
    rows = [
        (m.id, m.split, m.label or "", m.group or "", m.sha256 or "", m.error or "", m.fold or 0)
        for m in _read_lines(path, _Member)
    ]
    members = Members(*zip(*rows, strict=True)) if rows else Members()
    if not any(members.folds):
        members = dataclasses.replace(members, folds=())
    if "" in members.ids:
        raise InputError(f"{path}: damaged: field 'id' is empty; fit again")
    if len(set(members.ids)) < len(rows):
        raise InputError(f"{path}: damaged: field 'id' names an image twice; fit again")
    return members


def _read_measured(
    folder: Path,
    classes: tuple[str, ...],
    part: str,
    members: Members,
    outside: bool,
    problem: Problem,
) -> Measured:
    """Read the probabilities of a run, checked against the images and classes of its other files.

    Raises:
        InputError: a file is missing or damaged.
    """
    path, count = folder / PREDICTIONS, len(classes)
    if not len(members):
        raise InputError(f"{folder / MEMBERS}: missing, which names the images of {path.name}")
    several = problem.name == MULTI_LABEL.name
    allowed = len(members) * ((5 if several else 4) * count + 16) + MAX_HEADER_BYTES
    data = read_bounded(path, allowed, f"damaged: larger than that of {len(members):,} images")
    try:
        arrays = load_arrays(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{path}: damaged: not safetensors; fit again") from exc
    by_folds = part == "cross-validation" and any(members.folds)
    try:
        check = _check_several if several else _check_arrays
        probabilities, labels, rows = check(arrays, count, len(members))
        for row, own in zip(rows.tolist(), problem.decode(labels), strict=True):
            if members.labels[row] != "|".join(classes[label] for label in own):
                raise ValueError(f"tensor 'labels' is not what {MEMBERS} says of line {row + 1}")
            # By folds, the validation images of the training that is kept are measured on too.
            fits = (
                members.folds[row]
                if by_folds
                else (members.splits[row] == "val") == (part == "val")
            )
            if not fits:
                raise ValueError(f"tensor 'rows' names line {row + 1}, which is not of {part}")
    except ValueError as exc:
        raise InputError(f"{path}: damaged: {exc}; fit again") from exc
    ids = tuple(members.ids[row] for row in rows)
    if not outside:
        _check_inside(folder / MEMBERS, ids)
    folds = tuple(members.folds[row] for row in rows) if by_folds else ()
    groups = tuple(members.groups[row] for row in rows)
    return Measured(probabilities, labels, ids, part, classes, groups, folds)


def _check_arrays(
    arrays: Mapping[str, np.ndarray], classes: int, members: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give (probabilities, labels, rows); a ValueError where shapes, types or values do not fit together."""
    probabilities, labels, rows = _check_shapes(arrays, classes, members, several=False)
    if (abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE).any():
        raise ValueError("tensor 'probabilities' has a row that does not sum to one")
    if not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"tensor 'labels' has values out of 0 to {classes - 1}")
    return probabilities, labels, rows


def _check_several(
    arrays: Mapping[str, np.ndarray], classes: int, members: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same where an image may have several labels."""
    probabilities, labels, rows = _check_shapes(arrays, classes, members, several=True)
    if (probabilities > 1).any():
        raise ValueError("tensor 'probabilities' has values that are no probabilities")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("tensor 'labels' has values other than 0 and 1")
    return probabilities, labels, rows


def _check_shapes(
    arrays: Mapping[str, np.ndarray], classes: int, members: int, *, several: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wanted: dict[str, type[np.generic]] = {
        "probabilities": np.float32,
        "labels": np.int8 if several else np.int64,
        "rows": np.int64,
    }
    tables = ("probabilities", "labels") if several else ("probabilities",)
    if set(arrays) != set(wanted):
        raise ValueError(f"it has the tensors {', '.join(sorted(arrays)) or 'none'}")
    images = len(arrays["rows"]) if arrays["rows"].ndim else 0
    for name, kind in wanted.items():
        shape = (images, classes) if name in tables else (images,)
        if arrays[name].dtype != kind or arrays[name].shape != shape or not images:
            given = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"tensor '{name}' is {given}, not {np.dtype(kind)} {shape}")
    probabilities, labels, rows = (arrays[name] for name in wanted)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise ValueError("tensor 'probabilities' has values that are no probabilities")
    if rows[0] < 0 or rows[-1] >= members or (np.diff(rows) <= 0).any():
        raise ValueError(f"tensor 'rows' does not rise within 0 to {members - 1}")
    return probabilities, labels, rows


def _check_inside(path: Path, ids: tuple[str, ...]) -> None:
    for image_id in ids:
        if os.path.isabs(image_id) or ".." in re.split(r"[/\\]", image_id):
            raise InputError(f"{path}: damaged: field 'id': {image_id!a} leads out of the data")


def to_json(value: Any) -> Any:
    """Turn estimates into objects and NaN into null, for JSON that any program reads."""
    if isinstance(value, Estimate | ClassFigures):
        return {k: to_json(v) for k, v in dataclasses.asdict(value).items()}
    if isinstance(value, Mapping):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

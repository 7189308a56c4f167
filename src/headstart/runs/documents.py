"""Takes the files of a run's folder, gives what they hold, checked.

A folder may come from anywhere: whatever is not as `save_run` writes it is refused on one line that names
the file and the field. `record` makes a `Run` of it. Shape letters: N measured images, C classes.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from headstart.arrays import FloatNC, Targets
from headstart.errors import InputError
from headstart.files import read_bounded, read_json
from headstart.metrics import UNDEFINED, ClassFigures, Estimate
from headstart.problem import MULTI_LABEL, Problem
from headstart.runs.folder import MEMBERS, PREDICTIONS
from headstart.training.decisions import Origin
from headstart.training.settings import FIELDS

__all__ = [
    "Measured",
    "Members",
    "MetricsDocument",
    "ProvenanceDocument",
    "Start",
    "list_rows",
    "locate_data",
    "name_data",
    "read_document",
    "read_history",
    "read_measured",
    "read_members",
    "read_settings",
    "read_start",
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


class MetricsDocument(_Document):
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


class ProvenanceDocument(_Document):
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


def read_document(path: Path, model: type[Document]) -> Document:
    return _check_document(path, model, read_json(path))


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
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


def locate_data(data: str | list[str] | None) -> Path | tuple[Path, ...] | None:
    if isinstance(data, list):
        return tuple(Path(path) for path in data)
    return None if data is None else Path(data)


def read_start(path: Path) -> Start:
    """Read the data and settings that a training was started with.

    Raises:
        InputError: start.json is damaged.
    """
    try:
        return read_document(path, Start)
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


def read_history(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    history = tuple(epoch.model_dump() for epoch in _read_lines(path, _Epoch))
    if [entry["epoch"] for entry in history] != list(range(len(history))):
        raise InputError(f"{path}: damaged: field 'epoch' does not count from 0; fit again")
    return history


def list_rows(members: Members) -> Iterator[dict[str, str | int | None]]:
    names = ("label", "group", "sha256", "error")
    texts = (members.labels, members.groups, members.sha256, members.errors)
    folds = members.folds or (0,) * len(members)
    for image_id, split, fold, *others in zip(
        members.ids, members.splits, folds, *texts, strict=True
    ):
        row = {n: text or None for n, text in zip(names, others, strict=True)}
        yield {"id": image_id, "split": split, **row, **({"fold": fold} if fold else {})}


def read_members(folder: Path) -> Members:
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


def read_measured(
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

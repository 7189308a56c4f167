"""Takes images, writes the files of bottleneck features; takes such files, gives the `Run` of a head on them.

The head of a run on features has no network: it is in head.safetensors, and the card says that it reads
features. All else is as in every run.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.arrays import FloatNC
from headstart.choices import natural_key, nearest
from headstart.data.class_names import name_classes
from headstart.data.dataset import Dataset, Row, dataset_of_rows
from headstart.data.scan import Scan
from headstart.data.splits import split_dataset
from headstart.errors import InputError, UsageError, one_line
from headstart.features.bottleneck import (
    Bottleneck,
    name_bottleneck,
    read_bottleneck,
    write_bottleneck,
)
from headstart.features.engine import EngineChoice
from headstart.features.engines import choose_device
from headstart.features.extraction import Features
from headstart.features.reading import check_bad_images, tell_bad_images
from headstart.features.runtime import Runtime
from headstart.files import (
    check_cache,
    check_writable,
    read_bounded,
    to_json_bytes,
    translate_errors,
    write_atomically,
)
from headstart.metrics import ClassFigures, Estimate
from headstart.parallel import Progress, no_progress
from headstart.runs.calibrating import Calibrated, calibrate, find_measured
from headstart.runs.classifier import Card, find_versions, read_card
from headstart.runs.documents import Measured
from headstart.runs.fitting import (
    check_place,
    extract_with,
    list_members,
)
from headstart.runs.folder import CARD, FORMAT, HEAD_FILE, mark_incomplete
from headstart.runs.grouping import find_groups
from headstart.runs.record import Parts, Run, save_run
from headstart.runs.remarks import find_warnings
from headstart.runs.sampling import draw_per_class
from headstart.runs.sources import (
    Data,
    check_trainable,
    load_data,
    load_network,
    name_files,
    report_scan,
)
from headstart.training.decisions import Decisions
from headstart.training.heads import Head, head_of_arrays
from headstart.training.outputs import ADVICE, HISTORY
from headstart.training.probes import fit_head, weigh_classes
from headstart.training.recipes import HEAD, Recipe
from headstart.training.settings import DataSettings, Settings, make_settings
from headstart.training.strategies.table import choose_strategy
from headstart.training.task import HELD_OUT, HeadTask

__all__ = ["BottleneckFiles", "extract_bottleneck", "fit_features", "load_head"]

# The settings that extracting uses.
EXTRACTING = (
    *"backbone weights input_px cut seed".split(),
    *DataSettings.model_fields,
    *Runtime.model_fields,
)
# The settings that training a head on files of features uses, and those of an MLP besides.
HEADS = ("strategy", "head", "penalty", "class_weights", "class_names", "seed")
MLPS = ("device", *(name for name in Recipe.model_fields if name != "checkpoint_s"))

PROBE = "linear-probe"
COLUMN = "features"
MAX_HEAD_BYTES = 2**31


# ---------------------------------------------------------------- images to files


@dataclasses.dataclass(frozen=True)
class BottleneckFiles:
    """The files of bottleneck features of a data set.

    Attributes:
        backbone, cut: the network, and where its features were taken.
        width: D.
        train, validation: files that `fit_features` reads.
        class_names: file with the names of the classes by number.
        images: {"train": n, "val": n, "unreadable": n}.
        computed: how many images were run through the network now; the others came from the store.
        engine: that computed them.
        warnings: one line each, for people.
    """

    backbone: str
    cut: str
    width: int
    train: Path
    validation: Path
    class_names: Path
    images: dict[str, int]
    computed: int
    engine: EngineChoice
    warnings: tuple[str, ...]


def extract_bottleneck(
    data: Data,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    report: Callable[[Dataset, Scan], None] | None = None,
    **options: Any,
) -> BottleneckFiles:
    """Write the features of a data set's training and validation images as courses hand them out.

    Two pickles of {"features": float32 N x 1 x 1 x D, "labels": int64 N}, and the names of the classes, by
    number, as JSON. Where the data have no validation part, a fifth of the training images is held out first:
    stratified, groups whole, and the same whatever the network. `per_class` limits the training images alone.

    Args:
        data: as `load_dataset` takes it, or a `Dataset`.
        folder: for the files; made if missing. Files of the same names are replaced.
        progress: called with how far the work is.
        report: called with the data set and its scan, before any work.
        **options: `backbone`, `weights`, `input_px`, `cut` (one cut point; the last by default), `val`,
            `per_class`, `seed`, and the fields of `Settings` that concern reading and extraction.

    Raises:
        UsageError: an option is wrong or has no effect, or there is no such cut point.
        InputError: the data cannot be used.
        TooManyBadImagesError: more unreadable images than `max_bad`.
        ResourceError: out of disk, memory or permission.
    """
    settings, place = make_settings(options), Path(folder)
    _refuse_unused(settings, EXTRACTING, "extracting bottleneck features")
    if settings.data.val == 0:
        raise UsageError("val 0 leaves no image for the file of validation features; leave it out")
    check_cache(settings.runtime.cache_dir)
    progress("listing images", 0, 0)
    dataset = load_data(data, settings)
    progress("loading the network", 0, 0)
    backbone = load_network(settings)
    cut = backbone.cut(settings.cut) if settings.cut not in (None, "last") else backbone.cuts[-1]
    check_writable(place, advice=ADVICE)
    dataset = _split(dataset, settings, progress)
    used = dataset.select(np.flatnonzero([s in ("train", "val") for s in dataset.splits]))
    check_trainable(used)
    if report is not None:
        progress("reading the images' headers", 0, 0)
        report_scan(used, settings, report)
    features = extract_with(settings, used, backbone, progress)
    bad = features.unreadable()
    check_bad_images(bad, len(used), settings.data.max_bad)
    name = name_files(data)
    names = name_bottleneck(backbone.name, name, settings.data.per_class)
    images = {"unreadable": len(bad)}
    matrix = features.values[cut.name]
    for split, file in zip(("train", "val"), names, strict=True):
        rows = np.flatnonzero(features.good() & used.labelled() & (np.array(used.splits) == split))
        if not len(rows):
            raise InputError(f"{dataset.name}: no readable labelled images of {split}; add some")
        write_bottleneck(place / file, matrix[rows], used.labels[rows])
        images[split] = len(rows)
    with translate_errors(place, advice=ADVICE):
        listed = json.dumps(list(used.classes), indent=1) + "\n"
        write_atomically(place / f"{name}_class_names.json", listed.encode())
    told = [f"{len(bad)} unreadable left out: {tell_bad_images(bad)}"] if bad else []
    return BottleneckFiles(
        backbone=backbone.name,
        cut=cut.name,
        width=cut.channels,
        train=place / names[0],
        validation=place / names[1],
        class_names=place / f"{name}_class_names.json",
        images=images,
        computed=features.computed,
        engine=features.engine,
        warnings=(*used.warnings, *features.warnings, *told),
    )


def _split(dataset: Dataset, settings: Settings, progress: Progress) -> Dataset:
    """Give every image a split, then draw the training images."""
    if "val" not in dataset.splits:
        # Groups are found by the built-in network, so that all networks have the same validation images.
        own = {n: v for n, v in settings.given().items() if n in ("group", *Runtime.model_fields)}
        dataset, _ = find_groups(dataset, make_settings(own), progress)
        progress("splitting the images", 0, 0)
    val = settings.data.val if isinstance(settings.data.val, float) else HELD_OUT
    dataset = split_dataset(dataset, val=val, seed=settings.seed)
    return draw_per_class(dataset, settings.data.per_class, settings.seed)


# ---------------------------------------------------------------- files to a head


def fit_features(
    train: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    **options: Any,
) -> Run:
    """Train a head on a file of bottleneck features, and write it with its figures to a folder.

    The run has no network, so its `classifier` cannot be asked for: `load_head` gives the head.

    Args:
        train: a pickle, which is never executed, or a .npz of `features`, N x H x W x D (of which the mean
            over H x W is taken) or N x D, and `labels`, N or N x 1, numbers or names.
        out: the folder of the run; made if missing.
        validation: the same of other images, to measure on; by it the best epoch of an MLP is chosen. A
            linear head is measured by cross-validation without.
        overwrite: replace a complete run in that folder.
        progress: called with how far the work is.
        on_epoch: called with the figures of every epoch, where there are epochs.
        **options: `head`, `penalty`, `class_weights`, `class_names`, `seed`; for an MLP, fields of `Recipe`
            and `device`.

    Raises:
        UsageError: an option is wrong or has no effect; `out` is taken.
        InputError: the features cannot be used.
        TrainingError: a loss is not finite.
        ResourceError: out of disk, memory or permission.
    """
    began, folder, file = time.monotonic(), Path(out), Path(train)
    settings = _check_options(options, measured=validation is not None)
    replaces = check_place(folder, file, overwrite, resume=False)
    progress("reading the features", 0, 0)
    other = None if validation is None else Path(validation)
    if other is not None and other.resolve() == file.resolve():
        raise UsageError(f"{other}: the validation features are the training features; name others")
    task = _make_task(file, other, settings, progress)
    task = dataclasses.replace(task, on_epoch=on_epoch)
    check_trainable(task.dataset.select(task.rows))
    with translate_errors(folder, advice=ADVICE):
        if not replaces:
            mark_incomplete(folder)
    progress("training the head", 0, 0)
    trained = _train(task)
    sources = tuple(Path(os.path.abspath(path)) for path in (file, other) if path is not None)
    calibrated = calibrate(task, trained.head, find_measured(task, trained.probabilities))
    run = _measure(folder, sources, task, trained.interrupted, calibrated.measured)
    run.settings["strategy"]["origin"] = "user" if "strategy" in options else "default"
    progress("writing the run", 0, 0)
    run = dataclasses.replace(run, seconds=time.monotonic() - began)
    with translate_errors(folder, advice=ADVICE):
        return save_run(run, keep=(), model=_list_files(task, calibrated, trained.history))


@dataclasses.dataclass(frozen=True, eq=False)
class _Trained:
    """A head; `probabilities` and `interrupted` as `Trained` has them, and an object an epoch."""

    head: Head
    probabilities: FloatNC | None
    interrupted: bool = False
    history: tuple[dict[str, Any], ...] = ()


def _measure(
    folder: Path,
    sources: tuple[Path, ...],
    task: HeadTask,
    interrupted: bool,
    measured: Measured | None,
) -> Run:
    """Measure the head; give the run, complete except for its history and time."""
    used, settings = task.dataset, task.settings
    metrics, per_class = dict[str, Estimate](), dict[str, ClassFigures]()
    if measured is not None:
        predicted = (measured.labels, measured.probabilities, used.classes)
        metrics = used.problem.measure(*predicted, groups=measured.groups)
        per_class = used.problem.measure_each(*predicted, groups=measured.groups)
    members = list_members(used, task.features)
    described = settings.describe(task.decisions)
    return Run(
        folder=folder,
        strategy=PROBE,
        backbone="",
        classes=used.classes,
        names=(),
        metrics=metrics,
        per_class=per_class,
        measured_on="" if measured is None else measured.part,
        images={"train": len(task.rows), "val": len(task.val_rows), "unreadable": 0},
        settings={n: described[n] for n in _list_used(settings)},
        decisions=task.decisions,
        warnings=find_warnings(task, measured),
        history=(),
        data=sources if len(sources) > 1 else sources[0],
        root=sources[0].parent,
        computed=0,
        engine=task.features.engine,
        seconds=0.0,
        interrupted=interrupted,
        parts=Parts(lambda: _refuse_classifier(folder), lambda: members, lambda: measured),
    )


def _list_used(settings: Settings) -> tuple[str, ...]:
    return (*HEADS, *MLPS) if settings.head != "linear" else HEADS


def _refuse_unused(settings: Settings, used: tuple[str, ...], what: str) -> None:
    unused = [name for name in settings.given() if name not in used]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on {what}; those that have: {', '.join(used)}"
        )


def _check_options(options: dict[str, Any], *, measured: bool) -> Settings:
    given = make_settings(options)
    if given.strategy not in (PROBE, "auto"):
        raise UsageError(
            f"strategy {given.strategy} needs images, and features from a file serve a linear-probe; "
            "leave --strategy out"
        )
    settings = make_settings({**options, "strategy": PROBE})
    what = "a linear head" if settings.head == "linear" else "an MLP head"
    _refuse_unused(settings, _list_used(settings), f"{what} on features from a file")
    choose_strategy(settings)
    choose_device(settings.runtime.device)
    if settings.head != "linear" and not measured:
        raise UsageError(
            "an MLP head needs features to validate on; add --validation FILE, or take the linear head, "
            "which is measured by cross-validation"
        )
    return settings


def _make_task(
    train: Path, validation: Path | None, settings: Settings, progress: Progress
) -> HeadTask:
    parts = {"train": (train, read_bottleneck(train))}
    if validation is not None:
        parts["val"] = (validation, read_bottleneck(validation))
    dataset = _make_dataset(parts)
    if settings.data.class_names is not None:
        dataset = name_classes(dataset, Path(settings.data.class_names))
    matrix = np.concatenate([part.features for _, part in parts.values()])
    device = choose_device(settings.runtime.device)
    features = Features(
        ids=dataset.ids,
        targets=dataset.targets,
        splits=dataset.splits,
        classes=dataset.classes,
        values={COLUMN: matrix},
        errors=("",) * len(matrix),
        sha256=tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in matrix),
        engine=EngineChoice("none", device, "fp32", "", 1, "", "features from a file"),
    )
    splits = np.array(dataset.splits)
    return HeadTask(
        dataset=dataset,
        features=features,
        rows=np.flatnonzero(splits == "train"),
        val_rows=np.flatnonzero(splits == "val"),
        settings=settings,
        folder=None,
        progress=progress,
        on_epoch=lambda entry: None,
        decisions=Decisions(),
    )


def _make_dataset(parts: dict[str, tuple[Path, Bottleneck]]) -> Dataset:
    """Make the data set whose images are the rows of the files, in their order."""
    train, first = parts["train"]
    known = sorted(set(first.labels), key=natural_key)
    rows: list[Row] = []
    warnings = []
    for split, (path, part) in parts.items():
        if part.features.shape[1] != first.features.shape[1]:
            raise InputError(
                f"{path}: {part.features.shape[1]:,} features an image, and {train} has "
                f"{first.features.shape[1]:,}; both must come from one network"
            )
        unknown = sorted(set(part.labels) - set(known), key=natural_key)
        if unknown:
            raise InputError(
                f"{path}: class '{unknown[0]}' is not one of {train}{nearest(unknown[0], known)}; both must "
                "be of the same classes"
            )
        if len(part.shape) == 3 and part.shape[:2] != (1, 1):
            height, width, depth = part.shape
            warnings.append(
                f"features of {path.name} are {height} x {width} x {depth}, of which the mean over "
                f"{height} x {width} is taken"
            )
        digits = len(str(len(part.labels) - 1))
        rows += [
            Row(f"{split}/{n:0{digits}}", (name,), split) for n, name in enumerate(part.labels)
        ]
    dataset = dataset_of_rows(train.parent, rows, warnings=tuple(warnings))
    return dataclasses.replace(dataset, source=train)


def _train(task: HeadTask) -> _Trained:
    weights, settings = weigh_classes(task), task.settings
    if settings.head == "linear":
        linear, penalty = fit_head(task, (COLUMN,), weights)
        probabilities = penalty.probabilities
        if len(task.val_rows):
            probabilities = linear.predict_proba(task.matrix((COLUMN,), task.val_rows))
        return _Trained(linear, probabilities)
    task.progress("loading PyTorch", 0, 0)
    from headstart.training.epochs import settle_recipe, tell_unlearned, train_mlp

    recipe = settings.recipe.over(HEAD)
    mlp, outcome = train_mlp(task, (COLUMN,), weights, recipe, kept=True)
    settle_recipe(task, recipe)
    tell_unlearned(task, outcome, "head")
    return _Trained(mlp, outcome.probabilities, outcome.interrupted, tuple(outcome.history))


def _list_files(
    task: HeadTask, calibrated: Calibrated, history: tuple[dict[str, Any], ...]
) -> dict[str, bytes]:
    """Make the files of the head, {name: content}."""
    arrays = calibrated.head.arrays()
    head = save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    card = Card(
        format=FORMAT,
        status="complete",
        reads="features",
        classes=list(task.dataset.classes),
        strategy=PROBE,
        loads_in_timm=False,
        model_sha256=hashlib.sha256(head).hexdigest(),
        versions=find_versions(),
        seed=task.settings.seed,
        temperature=calibrated.temperature,
    )
    files = {HEAD_FILE: head, CARD: to_json_bytes(card.model_dump())}
    if history:
        lines = "".join(json.dumps(entry) + "\n" for entry in history)
        files[HISTORY] = lines.encode()
    return files


def _refuse_classifier(folder: Path) -> NoReturn:
    read_card(folder)
    raise AssertionError("a card of a head was read as one of a classifier")


def load_head(folder: str | os.PathLike[str]) -> tuple[Head, tuple[str, ...]]:
    """Read the head of a run on features; nothing in the folder can run code.

    Returns:
        (the head, whose `predict_proba` takes float (N, D); C class names, in the order of its outputs).

    Raises:
        InputError: missing, incomplete, damaged, or a run on images.
    """
    path = Path(folder)
    card = read_card(path, reads="features")
    data = read_bounded(path / HEAD_FILE, MAX_HEAD_BYTES, "damaged: too large for a head")
    if hashlib.sha256(data).hexdigest() != card.model_sha256:
        raise InputError(f"{path / HEAD_FILE}: damaged; fit again or restore the file")
    try:
        head = head_of_arrays(load_arrays(data))
    except (SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise InputError(f"{path / HEAD_FILE}: damaged: {one_line(exc)}; fit again") from exc
    if head.classes != len(card.classes):
        raise InputError(
            f"{path / HEAD_FILE}: damaged: {head.classes} outputs for {len(card.classes)} classes; fit again"
        )
    return head, tuple(card.classes)

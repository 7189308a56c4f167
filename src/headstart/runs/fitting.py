"""Takes data and `Settings`, gives a `Run`: read, extract, train, measure, write the run folder.

The only file that knows all the others. A run's folder holds the classifier (config.json,
model.safetensors, headstart.json), settings.json (each value with where it came from), metrics.json and
split.jsonl (which image was used for what). headstart.json is written last: a folder without a complete
one says that it is incomplete.
"""

import dataclasses
import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset, add_validation
from headstart.data.loading import load_dataset
from headstart.data.scan import Scan, scan_images
from headstart.data.splits import join_units, split_dataset
from headstart.errors import InputError, ResourceError, UsageError
from headstart.features.engine import EngineChoice
from headstart.features.engines import choose_device, choose_engine
from headstart.features.extraction import Features, extract
from headstart.features.near_copies import find_near_copies
from headstart.features.pixels import check_images
from headstart.features.reading import check_bad_images
from headstart.files import check_cache, read_json, to_json_bytes, write_atomically
from headstart.metrics import Estimate, measure, measure_recall
from headstart.networks.backbones import Backbone, load_backbone
from headstart.parallel import Progress, no_progress
from headstart.runs.classifier import Classifier
from headstart.runs.record import (
    MEMBERS,
    METRICS,
    NEXT,
    SETTINGS,
    check_folder,
    clear_training,
    find_training,
    mark_incomplete,
    recover,
    replace_run,
    to_json,
)
from headstart.training.cuts import check_cut
from headstart.training.heads import assign_folds
from headstart.training.outputs import CHECKPOINT, HISTORY, PLAN, START, TENSORBOARD
from headstart.training.settings import Settings, holds_out, make_settings, trains_by_gradient
from headstart.training.strategies import Task, Trained, train

__all__ = ["Run", "Source", "check_source", "extract_with", "fit", "load_data"]

Source = str | os.PathLike[str] | Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Attributes:
        folder: where it was written.
        classifier: the trained classifier.
        metrics: {name: Estimate} as `metrics.measure` names them; empty when nothing could be measured.
        recall: {class: Estimate}, the share of its images that were taken for it; empty likewise.
        measured_on: "val" or "cross-validation", or "" when nothing could be measured.
        images: {"train": n, "val": n, "unreadable": n}.
        computed: images whose features were computed; the others' came from the store.
        engine: what ran the frozen network, and why.
        settings: {name: {"value": …, "origin": "default" | "user" | "measured"}}.
        warnings: one line each, for people.
        seconds: wall-clock time.
        evidence: what the strategy's decisions rest on, as in metrics.json.
        interrupted: ended early by Ctrl-C, with the best classifier so far.
    """

    folder: Path
    classifier: Classifier
    metrics: dict[str, Estimate]
    recall: dict[str, Estimate]
    measured_on: str
    images: dict[str, int]
    computed: int
    engine: EngineChoice
    settings: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]
    seconds: float
    evidence: dict[str, Any]
    interrupted: bool = False

    def __repr__(self) -> str:
        accuracy = self.metrics.get("accuracy")
        found = "nothing measured" if accuracy is None else f"accuracy {accuracy.value:.3f}"
        return f"Run({str(self.folder)!r}, {self.classifier!r}, {found})"


def load_data(source: Source, settings: Settings) -> Dataset:
    """The data set that `fit` works on, with the splits that the data bring.

    Raises:
        InputError, UsageError: as `load_dataset` and `add_validation` say.
    """
    if isinstance(source, Dataset):
        idle = {"root", "group"} & settings.model_fields_set
        if idle:
            raise UsageError(f"{min(idle)} has no effect on a Dataset; give it to load_dataset")
        dataset = source
    else:
        dataset = load_dataset(
            source,
            root=settings.root,
            group=settings.group,
            allow_outside=settings.allow_outside,
        )
    val = settings.val
    if isinstance(val, str):
        more = load_dataset(val, allow_outside=settings.allow_outside)
        dataset = add_validation(dataset, more)
    elif val and "val" in dataset.splits:
        raise UsageError(
            f"val {val} would have no effect: the data have a validation split; leave --val out"
        )
    return dataset


def fit(
    data: Source | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
    report: Callable[[Dataset, Scan], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    **options: Any,
) -> Run:
    """Train a classifier from labelled images and write it to a folder.

    Args:
        data: a folder of class folders, a manifest, or a `Dataset`; None where `resume` knows it.
        out: the folder of the run; made if missing.
        overwrite: replace a complete run in that folder.
        resume: go on with the interrupted training in that folder, with the data and settings that
            it was started with; `workers`, `device` and `cache_dir` may be given anew.
        progress: told how far the work is.
        report: called with what was found, before any work.
        on_epoch: told the figures of every epoch, where there are epochs.
        **options: fields of `Settings`.

    Raises:
        UsageError: a setting is wrong, `out` is taken or holds an interrupted training, or there is
            nothing to resume.
        InputError: the data cannot be used, or are not those that the training was started with.
        TooManyBadImagesError: more unreadable images than `max_bad`.
        TrainingError: a loss is not finite.
        ResourceError: out of disk, memory or permission.
        KeyboardInterrupt: interrupted before there was a model to keep; `resume` goes on.
    """
    started = time.perf_counter()
    folder = Path(out)
    if resume and overwrite:
        raise UsageError("overwrite has no effect with resume; choose one")
    if resume:
        data, options = _read_start(folder, data, options)
    elif data is None:
        raise UsageError("data is missing; name a folder or manifest of labelled images")
    check_source(data)
    settings = make_settings(options)
    choose_device(settings.device)  # an absent one ends it before any work
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard events need a package: pip install 'headstart[tensorboard]'")
    scratch = settings.strategy == "scratch"
    if not scratch:
        check_cache(settings.cache_dir)
    progress("listing images", 0, 0)
    dataset = load_data(data, settings)
    _check_trainable(dataset)
    tree = None if isinstance(data, Dataset) or not Path(data).is_dir() else Path(data).resolve()
    if tree is not None and folder.resolve().is_relative_to(tree):
        raise UsageError(f"{folder}: lies in the data, as a class would; choose one outside")
    replaces = check_folder(folder, overwrite=overwrite or resume)
    place = find_training(folder)
    kept = all((place / name).exists() for name in (START, CHECKPOINT))
    if kept and not (overwrite or resume):
        raise UsageError(
            f"{folder}: holds an interrupted training; headstart fit --resume goes on with it, and "
            "--overwrite starts anew"
        )
    progress("loading the network", 0, 0)
    backbone = load_backbone(
        settings.backbone,
        weights=settings.weights,
        input_px=settings.input_px,
        random_weights=scratch,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
    )
    check_cut(settings, backbone)
    # Only now, since it reads images to find identical ones.
    progress("splitting the images", 0, 0)
    dataset = split_dataset(dataset, val=holds_out(settings), seed=settings.seed)
    _refuse_unmeasured(settings, dataset)
    if report is not None:
        progress("reading the images' headers", 0, 0)
        report(dataset, scan_images(dataset, max_pixels=settings.max_pixels))
    try:
        if not replaces:  # a complete run stays until there is something to replace it with
            mark_incomplete(folder)
        if not resume:
            place = folder / NEXT if replaces else folder
            clear_training(place)
            if trains_by_gradient(settings):
                _write_start(place, data, settings)
        # The test split is looked at by `evaluate` alone.
        used = dataset.select(np.flatnonzero([s in ("train", "val") for s in dataset.splits]))
        look = _check_with if scratch else extract_with
        features = look(settings, used, backbone, progress)
        check_bad_images(features.bad(), len(used), settings.max_bad)
        good = features.good() & (used.labels >= 0)
        rows = np.flatnonzero(good & (np.array(used.splits) == "train"))
        held = np.flatnonzero(good & (np.array(used.splits) == "val"))
        _check_trainable(used.select(rows))
        progress("training the head", 0, 0)
        trained = train(
            Task(
                dataset=used,
                backbone=backbone,
                features=features,
                rows=rows,
                held=held,
                settings=settings,
                folder=place,
                progress=progress,
                on_epoch=_with_tensorboard(settings, place, on_epoch),
            )
        )
        progress("measuring", 0, 0)
        figures, measured_on = _measure(used, trained, rows, held, settings.seed)
        warnings = (
            *used.warnings,
            *features.warnings,
            *_duplicate_warnings(used, features),
            *_near_copy_warnings(used, features, trained, rows, held, settings.seed),
            *trained.warnings,
        )
        if not measured_on and settings.val == 0:
            warnings += (
                "nothing was held out to measure on; headstart evaluate tells how good this is "
                "on images of a test split",
            )
        elif not measured_on:
            warnings += (_say_why_unmeasured(used.select(rows), features.select(rows)),)
        classifier = Classifier(
            trained.backbone,
            trained.head,
            trained.cuts,
            used.classes,
            settings.strategy,
            settings.seed,
        )
        images = {"train": len(rows), "val": len(held), "unreadable": len(features.bad())}
        chosen = {f: getattr(features.engine, f) for f in ("device", "precision")}
        chosen["engine"] = features.engine.library
        origins = _with_origins(settings, {**trained.measured, **chosen}, trained.chosen)
        run = Run(
            folder=folder,
            classifier=classifier,
            metrics=figures[0],
            recall=figures[1],
            measured_on=measured_on,
            images=images,
            computed=features.computed,
            engine=features.engine,
            settings=origins,
            warnings=warnings,
            seconds=time.perf_counter() - started,
            evidence=trained.evidence,
            interrupted=trained.interrupted,
        )
        progress("writing the run", 0, 0)
        _write(run, used, features)
    except ResourceError:
        raise
    except OSError as exc:
        raise ResourceError(
            f"{folder}: {exc.strerror or exc}; free space or choose another"
        ) from exc
    return run


def extract_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """`extract` with the settings that concern it."""
    return extract(dataset, backbone, settings.runtime, progress=progress)


def check_source(data: object) -> None:
    if not isinstance(data, str | os.PathLike | Dataset):
        raise UsageError(
            f"the data are of type {type(data).__name__}; give a folder, a manifest or a Dataset"
        )


def _check_trainable(dataset: Dataset) -> None:
    own = zip(dataset.labels.tolist(), dataset.splits, strict=True)
    counts = Counter(label for label, split in own if label >= 0 and split in ("train", ""))
    if len(dataset.classes) < 2:
        names = ", ".join(f"'{c}'" for c in dataset.classes) or "none"
        raise InputError(
            f"{dataset.root}: at least two classes are needed, found {names}; "
            "each class is a folder, or a label in the manifest"
        )
    missing = [c for i, c in enumerate(dataset.classes) if counts[i] == 0]
    if missing:
        raise InputError(
            f"{dataset.root}: class '{missing[0]}' has no readable training images"
            f"{f' (nor have {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "add some, or remove the class"
        )


def _refuse_unmeasured(settings: Settings, dataset: Dataset) -> None:
    """What goes by the validation images needs some."""
    idle = {"wise_ft", "monitor", "min_delta", "patience"} & settings.model_fields_set
    if idle and "val" not in dataset.splits:
        raise UsageError(
            f"setting '{min(idle)}' has no effect without validation images; leave it out, or hold "
            "some out with --val 0.2"
        )


def _measure(
    dataset: Dataset, trained: Trained, rows: np.ndarray, held: np.ndarray, seed: int
) -> tuple[tuple[dict[str, Estimate], dict[str, Estimate]], str]:
    """(metrics, recall) on the validation images, else from cross-validation, else none."""
    if trained.probabilities is None:
        return ({}, {}), ""
    measured_on, which = ("val", held) if len(held) else ("cross-validation", rows)
    found = (dataset.labels[which], trained.probabilities, dataset.classes)
    return (measure(*found, seed=seed), measure_recall(*found)), measured_on


def _check_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """Which images can be read, for a training that needs no features."""
    errors, digests = check_images(dataset, settings.runtime, progress=progress)
    how = {"engine": "torch", "precision": "fp32"}
    engine = choose_engine(backbone, settings.runtime.model_copy(update=how))
    return Features(
        dataset.ids, dataset.labels, dataset.splits, dataset.classes, {}, errors, digests, engine
    )


def _with_tensorboard(
    settings: Settings, folder: Path, on_epoch: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """Also write every epoch's figures as TensorBoard events."""
    if not settings.tensorboard:
        return on_epoch
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / TENSORBOARD))

    def write(entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, entry["epoch"])
        writer.flush()
        on_epoch(entry)

    return write


_MAY_CHANGE = ("workers", "device", "cache_dir", "allow_outside", "max_pixels")
# Guards that a file, which may come from anywhere, must not lower: who started with them gives them again.
_GUARDS = ("allow_outside", "max_pixels")


def _write_start(place: Path, data: Source | None, settings: Settings) -> None:
    """Keep what `resume` needs."""
    source = None if isinstance(data, Dataset) else os.path.abspath(str(data))
    given = {n: getattr(settings, n) for n in sorted(settings.model_fields_set)}
    for name in ("root", "weights", "cache_dir"):
        if given.get(name) is not None:
            given[name] = os.path.abspath(given[name])
    if isinstance(settings.val, str):
        given["val"] = os.path.abspath(settings.val)
    place.mkdir(exist_ok=True)
    write_atomically(place / START, to_json_bytes({"data": source, "options": given}))


def _read_start(
    folder: Path, data: Source | None, options: dict[str, Any]
) -> tuple[Source, dict[str, Any]]:
    changed = [name for name in options if name not in _MAY_CHANGE]
    if changed:
        raise UsageError(
            f"setting '{changed[0]}' cannot change on resume; those that can: {', '.join(_MAY_CHANGE)}"
        )
    recover(folder)
    path = find_training(folder) / START
    if not os.path.lexists(path):
        raise UsageError(
            f"{folder}: no interrupted training to resume here; headstart fit DATA -o {folder} "
            "starts one"
        )
    try:
        start = read_json(path)
        source, given = start["data"], dict(start["options"])
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{path}: damaged; fit again with --overwrite") from exc
    found = source if data is None else data
    if not isinstance(found, str | os.PathLike | Dataset):
        raise UsageError(f"{folder}: was started from a Dataset; give it again")
    for name in _GUARDS:
        default = Settings.model_fields[name].default
        if options.get(name, default) != given.get(name, default):
            raise UsageError(
                f"{folder}: was started with {name} {given.get(name, default)!r}, which is not taken "
                "from a file; give it again"
            )
    return found, {**given, **options}


def _duplicate_warnings(dataset: Dataset, features: Features) -> list[str]:
    """Byte-identical images with different labels, or on both sides of the split."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(features.sha256):
        if digest and not features.errors[row]:
            rows.setdefault(digest, []).append(row)
    same = [r for r in rows.values() if len(r) > 1]
    conflicts = [r for r in same if len({int(dataset.labels[i]) for i in r}) > 1]
    leaks = [r for r in same if len({dataset.splits[i] for i in r}) > 1]
    result = []
    for found, what in (
        (conflicts, "with different labels"),
        (leaks, "in the training and in the validation part, so figures will flatter"),
    ):
        if found:
            first = " and ".join(f"'{dataset.ids[i]}'" for i in found[0][:2])
            sets = f"{len(found)} set{'s' if len(found) > 1 else ''}"
            result.append(f"{sets} of identical images {what} (first: {first})")
    return result


def _near_copy_warnings(
    dataset: Dataset,
    features: Features,
    trained: Trained,
    rows: np.ndarray,
    held: np.ndarray,
    seed: int,
) -> list[str]:
    """Near copies on both sides of what the figures were measured on."""
    if trained.probabilities is None or not features.values:
        return []
    units = join_units(dataset.units(), features.sha256)
    side = np.zeros(len(dataset), dtype=np.int64)
    if len(held):
        side[held], where = 1, "on both sides of the split"
    else:
        folds, where = (
            trained.evidence["penalty"]["folds"],
            "in different folds of cross-validation",
        )
        own = tuple(units[i] for i in rows)
        side[rows] = assign_folds(dataset.labels[rows], own, folds, seed)
    both = np.sort(np.concatenate([rows, held]))
    last = list(features.values)[-1]  # the others stay on disk
    pairs = both[
        find_near_copies(
            features.values[last][both],
            dataset.labels[both],
            [units[i] for i in both],
            [dataset.ids[i] for i in both],
            seed=seed,
        )
    ]
    parted = pairs[side[pairs[:, 0]] != side[pairs[:, 1]]]
    if not len(parted):
        return []
    first = " and ".join(f"'{dataset.ids[i]}'" for i in parted[0])
    pairs_are = "1 pair of images is" if len(parted) == 1 else f"{len(parted)} pairs of images are"
    copies = "a near copy" if len(parted) == 1 else "near copies"
    return [
        f"{pairs_are} {copies} {where}, so figures will flatter (first: "
        f"{first}); keep frames of one film, shots of one object and copies together with --group, or "
        "a manifest's column group"
    ]


def _say_why_unmeasured(training: Dataset, features: Features) -> str:
    units = join_units(training.units(), features.sha256)
    of_class: dict[int, set[str]] = {}
    for label, unit in zip(training.labels.tolist(), units, strict=True):
        of_class.setdefault(label, set()).add(unit)
    rarest = min(of_class, key=lambda label: (len(of_class[label]), label))
    images = int((training.labels == rarest).sum())
    name = training.classes[rarest]
    if images > len(of_class[rarest]):
        return (
            f"nothing could be measured: all {images} training images of class '{name}' are one group, "
            "or copies of one image; add others, or a validation split"
        )
    return (
        f"too few images a class to measure anything ('{name}' has {images} to train on); add images, "
        "or a validation split"
    )


def _with_origins(
    settings: Settings, measured: dict[str, Any], chosen: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every setting with where its value comes from; `chosen` are the strategy's own values."""
    origins = settings.origins()
    result = {}
    for name, value in settings.model_dump().items():
        is_open = value is None or value == "auto"
        if name in measured and is_open:
            result[name] = {"value": measured[name], "origin": "measured"}
        elif name in chosen and is_open:
            # Of a layer that the user named there follows a cut point.
            named = name == "cut" and settings.freeze_until is not None
            result[name] = {"value": chosen[name], "origin": "user" if named else "default"}
        else:
            result[name] = {"value": value, "origin": origins[name]}
    return result


def _write(run: Run, dataset: Dataset, features: Features) -> None:
    rows = [
        {
            "id": image_id,
            "split": dataset.splits[i],
            "label": dataset.classes[dataset.labels[i]] if dataset.labels[i] >= 0 else None,
            "group": dataset.groups[i] or None,
            "sha256": features.sha256[i] or None,
            "error": features.errors[i] or None,
        }
        for i, image_id in enumerate(dataset.ids)
    ]
    metrics = {
        "measured_on": run.measured_on,
        "metrics": run.metrics,
        "recall": run.recall,
        "images": run.images,
        "evidence": run.evidence,
        "warnings": run.warnings,
    }
    files = {
        SETTINGS: to_json_bytes(run.settings),
        METRICS: to_json_bytes(to_json(metrics)),
        MEMBERS: ("\n".join(map(json.dumps, rows)) + "\n").encode(),
        **run.classifier.files(),
    }
    keep = [HISTORY] if "training" in run.evidence else []
    if run.settings["tensorboard"]["value"]:
        keep.append(TENSORBOARD)
    if run.interrupted:  # what --resume goes on from
        keep += [START, PLAN, CHECKPOINT]
    replace_run(run.folder, files, keep=keep)

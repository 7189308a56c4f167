"""Takes data and `Settings`, gives a `Run`: read, extract, train, measure, write the run folder.

Place in the flow: after `classifier`; the only file that knows all the others. A run's folder holds
the classifier (config.json, model.safetensors, headstart.json), settings.json (each value with where
it came from), metrics.json and split.jsonl (which image was used for what). headstart.json is written
last: a folder without a complete one says that it is incomplete.
"""

import dataclasses
import importlib.util
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headstart.activations import check_images
from headstart.backbones import Backbone, load_backbone
from headstart.classifier import (
    START,
    Classifier,
    Prediction,
    check_folder,
    find_images,
    mark_incomplete,
)
from headstart.datasets import (
    Dataset,
    add_validation,
    load_dataset,
    match_classes,
    nearest,
    split_dataset,
)
from headstart.engines import EngineChoice, choose_device, choose_engine
from headstart.errors import InputError, ResourceError, UsageError
from headstart.features import (
    Features,
    Progress,
    check_bad_images,
    extract,
    no_progress,
)
from headstart.images import Scan, scan_images
from headstart.metrics import Estimate, confusion_matrix, measure
from headstart.settings import Settings, holds_out, make_settings, trains_by_gradient
from headstart.store import write_atomically
from headstart.strategies import CHECKPOINT, HISTORY, PLAN, Task, Trained, train

__all__ = ["Evaluation", "Run", "evaluate", "fit", "load_data", "predict"]

# The settings that `evaluate` heeds; the others concern training.
EVALUATE_SETTINGS = (
    "root allow_outside max_bad max_pixels engine precision device workers cache_dir rehash".split()
)

Source = str | os.PathLike[str] | Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Attributes:
        folder: where it was written.
        classifier: the trained classifier.
        metrics: {name: Estimate} as `metrics.measure` names them; empty when nothing could be measured.
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
    measured_on: str
    images: dict[str, int]
    computed: int
    engine: EngineChoice
    settings: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]
    seconds: float
    evidence: dict[str, Any]
    interrupted: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A classifier measured on labelled images.

    Attributes:
        metrics: {name: Estimate}.
        classes: the model's C classes.
        confusion: int64 (C, C), row true class, column predicted class.
        split: the split that was measured, or "all".
        images: {"evaluated": n, "unreadable": n}.
        computed: images whose features were computed; the others' came from the store.
        engine: what ran the frozen network, and why.
        bad: (image id, reason) of the unreadable ones.
        warnings: one line each, for people.
    """

    metrics: dict[str, Estimate]
    classes: tuple[str, ...]
    confusion: np.ndarray
    split: str
    images: dict[str, int]
    computed: int
    engine: EngineChoice
    bad: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def load_data(source: Source, settings: Settings) -> Dataset:
    """The data set that `fit` works on, every image with its split.

    Raises:
        InputError, UsageError: as `load_dataset`, `add_validation` and `split_dataset` say.
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
    return split_dataset(dataset, val=holds_out(settings), seed=settings.seed)


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
    settings = make_settings(options)
    choose_device(settings.device)  # an absent one ends it before any work
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard events need a package: pip install 'headstart[tensorboard]'")
    dataset = load_data(data, settings)
    _check_trainable(dataset)
    tree = None if isinstance(data, Dataset) or not Path(data).is_dir() else Path(data).resolve()
    if tree is not None and folder.resolve().is_relative_to(tree):
        raise UsageError(f"{folder}: lies in the data, as a class would; choose one outside")
    _refuse_unmeasured(settings, dataset)
    replaces = check_folder(folder, overwrite=overwrite or resume)
    kept = all((folder / name).exists() for name in (START, CHECKPOINT))
    if kept and not (overwrite or resume):
        raise UsageError(
            f"{folder}: holds an interrupted training; headstart fit --resume goes on with it, and "
            "--overwrite starts anew"
        )
    if report is not None:
        report(dataset, scan_images(dataset, max_pixels=settings.max_pixels))
    scratch = settings.strategy == "scratch"
    backbone = load_backbone(
        settings.backbone,
        weights=settings.weights,
        input_px=settings.input_px,
        random_weights=scratch,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
    )
    try:
        if not replaces:  # a complete run stays until there is something to replace it with
            mark_incomplete(folder)
        if trains_by_gradient(settings) and not resume:
            _write_start(folder, data, settings)
        # The test split is looked at by `evaluate` alone.
        used = dataset.select(np.flatnonzero([s in ("train", "val") for s in dataset.splits]))
        look = _check_with if scratch else extract_with
        features = look(settings, used, backbone, progress)
        check_bad_images(features.bad(), len(used), settings.max_bad)
        good = features.good() & (used.labels >= 0)
        rows = np.flatnonzero(good & (np.array(used.splits) == "train"))
        held = np.flatnonzero(good & (np.array(used.splits) == "val"))
        _check_trainable(used.select(rows))
        trained = train(
            Task(
                dataset=used,
                backbone=backbone,
                features=features,
                rows=rows,
                held=held,
                settings=settings,
                folder=folder,
                progress=progress,
                on_epoch=_with_tensorboard(settings, folder, on_epoch),
            )
        )
        metrics, measured_on = _measure(used, trained, rows, held, settings.seed)
        warnings = (
            *used.warnings,
            *features.warnings,
            *_duplicate_warnings(used, features),
            *trained.warnings,
        )
        if not metrics and settings.val == 0:
            warnings += (
                "nothing was held out to measure on; headstart evaluate tells how good this is "
                "on images of a test split",
            )
        elif not metrics:
            warnings += (
                "too few images a class to measure anything; add images, or a validation split",
            )
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
        origins = _with_origins(settings, {**trained.measured, **chosen}, trained.recipe)
        run = Run(
            folder=folder,
            classifier=classifier,
            metrics=metrics,
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
        mark_incomplete(folder)
        _write(run, used, features, trained)
        if not run.interrupted:  # else they are what --resume goes on from
            _remove_start(folder)
    except ResourceError:
        raise
    except OSError as exc:
        raise ResourceError(
            f"{folder}: {exc.strerror or exc}; free space or choose another"
        ) from exc
    return run


def evaluate(
    run: str | os.PathLike[str] | Classifier,
    data: Source,
    *,
    split: str | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Measure a classifier on labelled images, matched to its classes by name.

    Args:
        run: the folder of a run, or a classifier.
        split: train, val, test or all; by default test, else val, else all. On the data that the run
            was trained on, "train" and "val" are the run's own parts.
        progress: told how far the work is.
        **options: those fields of `Settings` that concern reading and extraction.

    Raises:
        UsageError: the data have no such split, or an option is wrong.
        InputError: the data cannot be used, or have a class that the model does not know.
        TooManyBadImagesError: more unreadable images than `max_bad`.
    """
    classifier = run if isinstance(run, Classifier) else Classifier.load(run)
    unused = [name for name in options if name not in EVALUATE_SETTINGS]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on evaluate; "
            f"those that have: {', '.join(EVALUATE_SETTINGS)}"
        )
    if not isinstance(run, Classifier):
        options = {**_read_choices(Path(run)), **options}
    settings = make_settings(options)
    dataset = (
        data
        if isinstance(data, Dataset)
        else load_dataset(data, root=settings.root, allow_outside=settings.allow_outside)
    )
    members = {} if isinstance(run, Classifier) else _read_members(Path(run))
    dataset, chosen = _choose_split(dataset, split, members)
    labels = match_classes(dataset, classifier.classes)[dataset.labels]
    features = extract_with(settings, dataset, classifier.backbone, progress)
    check_bad_images(features.bad(), len(dataset), settings.max_bad)
    rows = np.flatnonzero(features.good() & (labels >= 0))
    if len(rows) == 0:
        raise InputError(f"{dataset.root}: no readable labelled images to evaluate")
    probabilities = classifier.predict_proba(features.select(rows).values)
    classes = classifier.classes
    warnings = [*dataset.warnings, *features.warnings]
    trained_on = {digest for digest, part in members.values() if part == "train" and digest}
    seen = sum(features.sha256[i] in trained_on for i in rows)
    if seen:
        warnings.append(
            f"{seen} of these {len(rows)} images were trained on, so the figures flatter the model"
        )
    absent = [c for i, c in enumerate(classes) if not (labels[rows] == i).any()]
    if absent:
        warnings.append(f"no image of {len(absent)} classes here, {absent[0]} among them")
    return Evaluation(
        metrics=measure(labels[rows], probabilities, classes),
        classes=classes,
        confusion=confusion_matrix(labels[rows], probabilities.argmax(axis=1), len(classes)),
        split=chosen,
        images={"evaluated": len(rows), "unreadable": len(features.bad())},
        computed=features.computed,
        engine=features.engine,
        bad=tuple(features.bad()),
        warnings=tuple(warnings),
    )


def predict(
    model: str | os.PathLike[str] | Classifier,
    images: Iterable[str | os.PathLike[str]],
    *,
    allow_outside: bool = False,
    **options: Any,
) -> Iterator[Prediction]:
    """Classify image files and the image files in folders; options as `Classifier.predict`.

    Args:
        allow_outside: follow links in a folder that lead out of it.

    Raises:
        InputError: the model cannot be loaded, or a folder holds no image.
    """
    classifier = model if isinstance(model, Classifier) else Classifier.load(model)
    found = find_images(images, allow_outside=allow_outside)
    refused = {name: reason for name, reason in found if reason}
    return classifier.predict([name for name, _ in found], errors=refused, **options)


def extract_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """`extract` with the settings that concern it."""
    names = "engine precision device workers cache_dir rehash max_pixels".split()
    options = {name: getattr(settings, name) for name in names}
    return extract(dataset, backbone, progress=progress, **options)


# ---------------------------------------------------------------- parts of fit


def _check_trainable(dataset: Dataset) -> None:
    train_rows = dataset.rows("train")
    counts = Counter(int(y) for y in dataset.labels[train_rows] if y >= 0)
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
) -> tuple[dict[str, Estimate], str]:
    """Figures on the validation images, else from cross-validation, else none."""
    if trained.probabilities is None:
        return {}, ""
    measured_on, which = ("val", held) if len(held) else ("cross-validation", rows)
    labels = dataset.labels[which]
    return measure(labels, trained.probabilities, dataset.classes, seed=seed), measured_on


def _check_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """Which images can be read, for a training that needs no features."""
    errors, digests = check_images(
        dataset,
        workers=settings.workers,
        max_pixels=settings.max_pixels,
        progress=progress,
    )
    device = choose_device(settings.device)
    engine = choose_engine(backbone, engine="torch", precision="fp32", device=device)
    return Features(dataset.ids, {}, errors, digests, engine)


def _with_tensorboard(
    settings: Settings, folder: Path, on_epoch: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """Also write every epoch's figures as TensorBoard events."""
    if not settings.tensorboard:
        return on_epoch
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, entry["epoch"])
        writer.flush()
        on_epoch(entry)

    return write


# What a training that was interrupted goes on from; removed when it has ended.
_MAY_CHANGE = ("workers", "device", "cache_dir", "allow_outside", "max_pixels")
# Guards that a file, which may come from anywhere, must not lower: who started with them gives them again.
_GUARDS = ("allow_outside", "max_pixels")


def _write_start(folder: Path, data: Source | None, settings: Settings) -> None:
    """Keep what `resume` needs, and drop what an earlier training left."""
    _remove_start(folder)
    source = None if isinstance(data, Dataset) else os.path.abspath(str(data))
    given = {n: getattr(settings, n) for n in sorted(settings.model_fields_set)}
    for name in ("root", "weights", "cache_dir"):
        if given.get(name) is not None:
            given[name] = os.path.abspath(given[name])
    if isinstance(settings.val, str):
        given["val"] = os.path.abspath(settings.val)
    text = json.dumps({"data": source, "options": given}, indent=2)
    write_atomically(folder / START, text.encode())


def _read_start(
    folder: Path, data: Source | None, options: dict[str, Any]
) -> tuple[Source, dict[str, Any]]:
    changed = [name for name in options if name not in _MAY_CHANGE]
    if changed:
        raise UsageError(
            f"setting '{changed[0]}' cannot change on resume; those that can: {', '.join(_MAY_CHANGE)}"
        )
    try:
        start = json.loads((folder / START).read_bytes())
        source, given = start["data"], dict(start["options"])
    except FileNotFoundError as exc:
        raise UsageError(
            f"{folder}: no interrupted training to resume here; headstart fit DATA -o {folder} "
            "starts one"
        ) from exc
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(f"{folder / START}: damaged; fit again with --overwrite") from exc
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


def _remove_start(folder: Path) -> None:
    for name in (START, PLAN, CHECKPOINT):
        (folder / name).unlink(missing_ok=True)
    for part in folder.glob(".*.partial"):  # of a fit that was killed while it wrote
        part.unlink(missing_ok=True)


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
        (conflicts, "images stand in the data with different labels"),
        (leaks, "images are in the training and in the validation part, so figures will flatter"),
    ):
        if found:
            first = " and ".join(f"'{dataset.ids[i]}'" for i in found[0][:2])
            result.append(f"{len(found)} identical {what} (first: {first})")
    return result


def _with_origins(
    settings: Settings, measured: dict[str, Any], recipe: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    origins = settings.origins()
    values = settings.model_dump()
    result = {}
    for name, value in values.items():
        if name in measured and (value is None or value == "auto"):
            result[name] = {"value": measured[name], "origin": "measured"}
        elif value is None and name in recipe:
            result[name] = {"value": recipe[name], "origin": "default"}
        else:
            result[name] = {"value": value, "origin": origins[name]}
    return result


def to_json(value: Any) -> Any:
    """Estimates as objects and NaN as null, for JSON that any program reads."""
    if isinstance(value, Estimate):
        return {k: to_json(v) for k, v in dataclasses.asdict(value).items()}
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(run: Run, dataset: Dataset, features: Features, trained: Trained) -> None:
    lines = []
    for i, image_id in enumerate(dataset.ids):
        label = dataset.classes[dataset.labels[i]] if dataset.labels[i] >= 0 else None
        lines.append(
            json.dumps(
                {
                    "id": image_id,
                    "split": dataset.splits[i],
                    "label": label,
                    "group": dataset.groups[i] or None,
                    "sha256": features.sha256[i] or None,
                    "error": features.errors[i] or None,
                }
            )
        )
    metrics = {
        "measured_on": run.measured_on,
        "metrics": run.metrics,
        "images": run.images,
        "evidence": trained.evidence,
        "warnings": run.warnings,
    }
    if "training" not in trained.evidence:  # it would be that of the run before
        (run.folder / HISTORY).unlink(missing_ok=True)
    for name, value in (("settings.json", run.settings), ("metrics.json", to_json(metrics))):
        write_atomically(run.folder / name, (json.dumps(value, indent=2) + "\n").encode())
    write_atomically(run.folder / "split.jsonl", ("\n".join(lines) + "\n").encode())
    run.classifier.save(run.folder)


# ---------------------------------------------------------------- parts of evaluate


def _read_members(folder: Path) -> dict[str, tuple[str, str]]:
    """{image id: (SHA-256, split)} of the images that a run used; empty where it was not kept."""
    path = folder / "split.jsonl"
    if not path.is_file():
        return {}
    members = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            members[str(row["id"])] = (str(row["sha256"] or ""), str(row["split"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(f"{path}: damaged; remove it to evaluate without it") from exc
    return members


def _read_choices(folder: Path) -> dict[str, str]:
    """The engine and precision that the user chose for a run; its head was trained on those features."""
    try:
        recorded = json.loads((folder / "settings.json").read_bytes())
        chosen = {name: recorded[name] for name in ("engine", "precision")}
        return {n: str(c["value"]) for n, c in chosen.items() if c["origin"] == "user"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _choose_split(
    dataset: Dataset, split: str | None, members: dict[str, tuple[str, str]]
) -> tuple[Dataset, str]:
    """The rows to evaluate, and what they are."""
    splits = [
        given or (members[i][1] if i in members else "")
        for given, i in zip(dataset.splits, dataset.ids, strict=True)
    ]
    present = {s for s in splits if s}
    chosen = split or next((s for s in ("test", "val") if s in present), "all")
    if chosen == "all":
        return dataset, chosen
    known = [s for s in ("train", "val", "test") if s in present]
    if chosen not in known:
        raise UsageError(
            f"split '{chosen}' is not in the data{nearest(chosen, known)}; "
            f"there {'is' if len(known) == 1 else 'are'} {', '.join([*known, 'all'])}"
        )
    return dataset.select(np.flatnonzero([s == chosen for s in splits])), chosen

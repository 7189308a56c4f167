"""Takes a `Task`, trains; where `folds` says so it then measures that way of training by cross-validation.

What is kept is trained as without `folds`, which change the figures alone. Then the same is done once without
each fold of the images, which is predicted: an epoch, a penalty, a cut point, mirroring and whatever else is
chosen by measurement is chosen there again, so no image has a part in what it is measured by. Features and
activations lie in the store, and all trainings read the same.

Each of these trainings keeps its state in a folder of its own and what it has predicted in a file, so that
none is done again after a kill or Ctrl-C (docs/decisions/0037-folds.md).
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from headstart.arrays import FloatNC, IntN
from headstart.data.dataset import Dataset
from headstart.data.splits import hold_out
from headstart.errors import InputError, UsageError
from headstart.files import translate_errors, write_atomically
from headstart.parallel import Progress
from headstart.problem import SINGLE_LABEL
from headstart.runs.budget import Budget
from headstart.runs.refitting import train_and_refit
from headstart.training.decisions import Decisions
from headstart.training.heads import assign_folds
from headstart.training.outputs import ADVICE, FOLDS
from headstart.training.probes import units_of
from headstart.training.settings import AUTO, Settings, make_settings
from headstart.training.strategies.table import choose_strategy
from headstart.training.task import Folds, Task, Trained

__all__ = [
    "FoldOutcome",
    "check_folds",
    "check_measured_once",
    "read_fold",
    "save_fold",
    "train_in_folds",
]

# Settings of the whole, which the training of a fold has no use for.
WHOLE_ALONE = frozenset({"folds", "budget", "tensorboard"})
# What a training by gradient decides by the clock and the disk, and not by labels: once for all folds, which
# then read the same activations.
BY_CLOCK = ("cut", "views", "train_precision")
# What a fold has chosen by measurement, as far as it has.
TOLD = ("cut", "penalty", "class_weights", "flip")
# Of the file of a fold, beside its probabilities.
MAX_HEADER_BYTES = 2**20
# What a damaged one raises.
_DAMAGE = (
    SafetensorError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)


class _TimeIsUp(Exception):
    """The budget has ended in the middle of a fold."""


@dataclasses.dataclass(frozen=True, eq=False)
class FoldOutcome:
    """What the training without a fold gave: probabilities of its images (m, C), choices, warnings."""

    probabilities: FloatNC
    chosen: dict[str, Any]
    warnings: list[str]


def check_measured_once(settings: Settings, dataset: Dataset) -> None:
    """Refuse `folds` where other images are measured on, or a `val` that would have no effect.

    Raises:
        UsageError: names both.
    """
    if settings.folds is None:
        return
    if "val" in dataset.splits:
        raise UsageError(
            "setting 'folds' has no effect where there are validation images, which are measured on; leave "
            "it out"
        )
    named = settings.strategy != AUTO
    if settings.data.val is not None and not (
        named and choose_strategy(settings).has_epochs(settings)
    ):
        raise UsageError(
            "setting 'val' has no effect with folds, which measure on all training images, unless a strategy "
            "that is named chooses its epoch by it; leave one of them out"
        )


def check_folds(settings: Settings, dataset: Dataset, units: Sequence[str]) -> None:
    """Check that `folds` can be made: every class needs as many images, or groups, as there are folds.

    Where an image may have several labels, all together need as many; a rare label is not in every fold.

    Args:
        dataset: N images, those to train on without a split or of "train".
        units: N names; images of one unit stay in one fold.

    Raises:
        InputError: names the class that has fewest, and how many folds work.
    """
    if settings.folds is None:
        return
    rows = [
        (own, unit)
        for own, unit, split in zip(dataset.classes_of_rows(), units, dataset.splits, strict=True)
        if split in ("train", "")
    ]
    what, most = "all classes together have", len({unit for _, unit in rows})
    if dataset.problem.name == SINGLE_LABEL.name:
        of_class = Counter(label for label, _ in {(c, unit) for own, unit in rows for c in own})
        rarest = min(range(len(dataset.classes)), key=lambda c: (of_class[c], c))
        what, most = f"class '{dataset.classes[rarest]}' has", of_class[rarest]
    if most >= settings.folds:
        return
    images = "image or group" if most == 1 else "images or groups"
    advice = f"choose --folds {most}" if most >= 2 else "leave --folds out"
    raise InputError(
        f"{dataset.name}: {settings.folds} folds need as many images or groups of images, and {what} {most} "
        f"{images} to train on; {advice}, or add images"
    )


def train_in_folds(task: Task, budget: Budget | None) -> tuple[Task, Trained]:
    """Train as `train_and_refit` does; with `folds`, then measure that by cross-validation.

    Folds for which there is no time are left out, and those that are finished measure on their images; after
    Ctrl-C likewise, and the result says that it was interrupted.

    Returns:
        The task and the result of `train_and_refit`, whose probabilities are those out of fold, if any.

    Raises:
        InputError: a class has too few images, or the state of a fold is damaged or of other data.
        And what `train_and_refit` raises; KeyboardInterrupt, if it does.
    """
    count = task.settings.folds
    if count is None:
        return train_and_refit(task, budget)
    rows = np.sort(np.concatenate([task.rows, task.val_rows]))
    numbers = _assign(task, rows, count)
    whole, share = task, budget
    if budget is not None:  # each fold takes a little less than the whole
        share = budget.part(1 / count)
        whole = dataclasses.replace(task, deadline=share.deadline)
    kept, trained = train_and_refit(whole, share)
    if trained.interrupted:
        return kept, trained
    folder, options = _make_folder(task), _list_options(task, budget)
    folds: list[FoldOutcome] = []
    ended = ""
    try:
        for number in range(1, count + 1):
            progress = _tell_fold(task.progress, f"fold {number} of {count}", budget)
            own = dataclasses.replace(_without(task, rows, numbers == number), progress=progress)
            on_epoch = functools.partial(_tell_epoch, task.on_epoch, number)
            own = dataclasses.replace(own, settings=make_settings(options), on_epoch=on_epoch)
            folds.append(_train_fold(own, folder, number))
    except KeyboardInterrupt:
        ended, trained = "it was interrupted", dataclasses.replace(trained, interrupted=True)
    except _TimeIsUp:
        assert budget is not None
        ended = f"the budget of {budget.text} ended"
    if ended:
        kept.decisions.warn(_say_unfinished(ended, len(folds), count))
    if not folds:
        return kept, trained
    _record(kept, rows, numbers, folds)
    is_measured = numbers <= len(folds)
    result = Folds(rows[is_measured], numbers[is_measured])
    probabilities = np.empty((len(result.rows), len(task.dataset.classes)), dtype=np.float32)
    for number, fold in enumerate(folds, 1):
        probabilities[result.numbers == number] = fold.probabilities
    return kept, dataclasses.replace(trained, probabilities=probabilities, folds=result)


def _say_unfinished(why: str, done: int, count: int) -> str:
    if not done:
        return f"{why} before the first of {count} folds was done, so the figures are not of folds"
    return f"{why} after {done} of {count} folds, so the figures are of the images in those alone"


def _assign(task: Task, rows: IntN, count: int) -> IntN:
    """Give each of these rows its fold, from 1.

    Raises:
        InputError: a class has too few units; or those of several classes leave nothing to learn one from.
    """
    units, problem, targets = units_of(task, rows), task.dataset.problem, task.dataset.targets[rows]
    dataset = dataclasses.replace(task.dataset.select(rows), splits=("train",) * len(rows))
    check_folds(task.settings, dataset, units)
    numbers = 1 + assign_folds(targets, units, count, task.settings.seed, problem=problem)
    if problem.name == SINGLE_LABEL.name:
        for number in range(1, count + 1):
            missing = set(range(len(dataset.classes))) - set(targets[numbers != number].tolist())
            if missing:
                raise InputError(
                    f"{dataset.name}: all images of class '{dataset.classes[min(missing)]}' are in groups "
                    f"that lie in fold {number} of {count}; choose fewer --folds, or leave them out"
                )
    return numbers


def _without(task: Task, rows: IntN, is_fold: np.ndarray) -> Task:
    """Give the task of training without a fold, on what `fit` would train on if there were no more images."""
    settings, inside = task.settings, rows[~is_fold]
    fraction = choose_strategy(settings).held_fraction(settings)
    is_held = np.zeros(len(inside), dtype=bool)
    if fraction:
        units = units_of(task, inside)
        held = hold_out(task.dataset.select(inside), units, fraction, settings.seed)
        is_held = np.array([unit in held for unit in units], dtype=bool)
    return dataclasses.replace(
        task,
        rows=inside[~is_held],
        val_rows=inside[is_held],
        fold_rows=rows[is_fold],
        decisions=Decisions(),
        deadline=None,
    )


def _list_options(task: Task, budget: Budget | None) -> dict[str, object]:
    """Give the options of the same training, with what the clock has decided in it as given."""
    settings, decisions = task.settings, task.decisions
    options = {n: v for n, v in settings.given().items() if n not in WHOLE_ALONE}
    if choose_strategy(settings).by_gradient:
        options |= {n: decisions.settled[n].value for n in BY_CLOCK if n in decisions.settled}
    # Without a budget it has as many epochs as its number of images asks for, as the whole has; and where
    # epochs end by `patience`, images have decided when.
    if budget is not None and not settings.recipe.patience and "training" in decisions.facts:
        options["epochs"] = max(1, decisions.facts["training"]["epochs"])
    return options


def _tell_fold(progress: Progress, fold: str, budget: Budget | None) -> Progress:
    """Give a progress that names the fold, and ends it when the time is up."""

    def tell(stage: str, done: int, total: int) -> None:
        if budget is not None and time.monotonic() > budget.deadline:
            raise _TimeIsUp
        progress(f"{fold}: {stage}", done, total)

    return tell


def _tell_epoch(
    on_epoch: Callable[[dict[str, Any]], None], number: int, entry: dict[str, Any]
) -> None:
    on_epoch({**entry, "fold": number})


def _train_fold(task: Task, folder: Path | None, number: int) -> FoldOutcome:
    """Train without a fold and predict it, or read what was predicted before."""
    task.progress("training", 0, 0)
    identity = _identify(task, number)
    path = None if folder is None else folder / f"{number}.safetensors"
    if path is not None and os.path.lexists(path):
        return read_fold(path, identity, (len(task.fold_rows), len(task.dataset.classes)))
    state = None if folder is None else _make_inside(folder, str(number))
    done, trained = train_and_refit(dataclasses.replace(task, folder=state), None)
    if trained.interrupted:
        raise KeyboardInterrupt
    assert trained.fold_probabilities is not None
    # Where a probe took its place, that was told as of the images that are kept.
    is_same = done.settings.strategy == task.settings.strategy
    fold = FoldOutcome(
        np.ascontiguousarray(trained.fold_probabilities, dtype=np.float32),
        _list_chosen(done),
        list(done.decisions.warnings) if is_same else [],
    )
    if path is not None and state is not None:
        save_fold(path, fold, identity)
        shutil.rmtree(state, ignore_errors=True)  # as large as several networks
    return fold


def _list_chosen(task: Task) -> dict[str, Any]:
    settled, training = task.decisions.settled, task.decisions.facts.get("training")
    chosen = {n: settled[n].value for n in TOLD if n in settled and settled[n].origin == "measured"}
    if training is not None:
        chosen |= {"epoch": training["best_epoch"], "epochs": training["epochs"]}
    return {"strategy": task.settings.strategy, **chosen}


def _record(task: Task, rows: IntN, numbers: IntN, folds: Sequence[FoldOutcome]) -> None:
    """Record the figures of each fold and what it chose, and its warnings."""
    dataset, images, figures = task.dataset, list[int](), list[float]()
    name = ""
    for number, fold in enumerate(folds, 1):
        own = rows[numbers == number]
        predicted = (dataset.targets[own], fold.probabilities, dataset.classes)
        measured = dataset.problem.measure(*predicted)
        name, first = next(iter(measured.items()))
        images.append(len(own))
        figures.append(first.value)
    # Of several labels no image of a fold may have any.
    known = [value for value in figures if not math.isnan(value)]
    task.decisions.record(
        "folds",
        {
            "count": int(numbers.max()),
            "images": images,
            "figure": name,
            "values": figures,
            "mean": float(np.mean(known)) if known else math.nan,
            "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
            "chosen": [fold.chosen for fold in folds],
        },
    )
    saying: dict[str, list[int]] = {}
    for number, fold in enumerate(folds, 1):
        for text in fold.warnings:
            saying.setdefault(text, []).append(number)
        if fold.chosen["strategy"] != task.settings.strategy:
            text = f"{fold.chosen['strategy']} was chosen, where {task.settings.strategy} is kept"
            saying.setdefault(text, []).append(number)
    for text, which in saying.items():
        task.decisions.warn(f"without fold{'s' if len(which) > 1 else ''} {_join(which)}: {text}")


def _join(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


# ---------------------------------------------------------------- on disk


def _make_folder(task: Task) -> Path | None:
    return None if task.folder is None else _make_inside(task.folder, FOLDS)


def _make_inside(place: Path, name: str) -> Path:
    """Make a folder; a link there, which may lead anywhere, is taken away."""
    folder = place / name
    with translate_errors(place, advice=ADVICE):
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    return folder


def _identify(task: Task, number: int) -> str:
    """Name the fold by the images that it is trained with and predicts."""
    dataset, sha256 = task.dataset, task.features.sha256
    parts = [
        [(dataset.ids[i], sha256[i], dataset.targets[i].tolist()) for i in part]
        for part in (task.rows, task.val_rows, task.fold_rows)
    ]
    settings = task.settings
    described = [number, settings.seed, settings.strategy, task.backbone.fingerprint, parts]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def save_fold(path: Path, fold: FoldOutcome, identity: str) -> None:
    """Write what a fold has given, whole or not at all.

    Raises:
        ResourceError: out of disk or permission.
    """
    told = {"identity": identity, "chosen": fold.chosen, "warnings": fold.warnings}
    data = save_arrays({"probabilities": fold.probabilities}, {"fold": json.dumps(told)})
    with translate_errors(path.parent, advice=ADVICE):
        write_atomically(path, data, kind="fold")


def read_fold(path: Path, identity: str, shape: tuple[int, int]) -> FoldOutcome:
    """Read what a fold has given; the file may come from anywhere.

    Raises:
        InputError: it is damaged, or of other data.
    """
    try:
        if not path.is_file() or path.stat().st_size > 4 * shape[0] * shape[1] + MAX_HEADER_BYTES:
            raise ValueError("no file, or too large")
        with safe_open(path, framework="np") as file:
            told = json.loads(file.metadata()["fold"])
            probabilities = file.get_tensor("probabilities")
        own, chosen, warnings = told["identity"], told["chosen"], told["warnings"]
        if own == identity:
            fits = probabilities.dtype == np.float32 and probabilities.shape == shape
            if not fits or not ((probabilities >= 0) & (probabilities <= 1)).all():
                raise ValueError("no probabilities of these images")
            texts = [*warnings, chosen["strategy"]] if isinstance(warnings, list) else [None]
            plain = all(isinstance(value, str | int | float) for value in chosen.values())
            if not plain or not all(isinstance(text, str) for text in texts):
                raise ValueError("no choices and warnings")
            return FoldOutcome(probabilities, chosen, warnings)
    except _DAMAGE as exc:
        raise InputError(f"{path}: damaged; remove it to train without that fold again") from exc
    raise InputError(
        f"{path}: of other data or settings than these; put them back as they were, or fit anew with "
        "--overwrite"
    )

"""Takes a `Task` (images, backbone, settings), gives a `Trained` classifier: the ways to use a backbone.

Every strategy is a function Task -> Trained in `STRATEGIES`. What is trained by gradient starts from the
linear probe, which keeps the features of the frozen network from being distorted in the first steps
(Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR
2022: LP-FT).
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.choices import choose
from headstart.data.dataset import Dataset
from headstart.data.splits import join_units
from headstart.data.views import AUGMENTATIONS, Augmentation
from headstart.draws import draw
from headstart.errors import InputError, UsageError
from headstart.features.activations import Activations, extract_activations
from headstart.features.engine import EngineChoice
from headstart.features.engines import make_engine, start_engine, use_engine
from headstart.features.extraction import Features, to_half
from headstart.features.pixels import ViewReader
from headstart.files import write_atomically
from headstart.networks.backbones import Backbone, truncate, with_cut, with_state
from headstart.parallel import Progress
from headstart.training.cuts import VIEWS, CutCost, given_cut, plan_cut, probe_cuts, shallow_cuts
from headstart.training.heads import (
    Head,
    MlpHead,
    Penalty,
    assign_folds,
    choose_cuts,
    choose_penalty,
    choose_shallow,
    fit_linear,
    parse_head,
)
from headstart.training.logistic import fold_standardisation, standardise
from headstart.training.outputs import CHECKPOINT, HISTORY, PLAN
from headstart.training.settings import Settings, trains_by_gradient

if TYPE_CHECKING:
    from headstart.training.inputs import Source
    from headstart.training.loop import Outcome, Recipe

__all__ = ["STRATEGIES", "Task", "Trained", "train"]

# The largest class has this many times the images of the smallest: from here on a classifier that
# ignores the small class starts to look good, so classes are weighted alike.
IMBALANCE = 3.0

# Values of `loop.Recipe` by strategy; docs/strategies.md has the measurements behind them.
RECIPES: dict[str, dict[str, Any]] = {
    "head": {"epochs": 20, "batch": 128, "lr": 1e-3, "optimizer": "adam", "warmup": 0.0,
             "schedule": "constant"},
    "partial-fine-tune": {"epochs": 15, "batch": 32, "lr": 4e-4, "weight_decay": 0.05,
                          "label_smoothing": 0.1, "clip": 1.0, "monitor": "accuracy"},
    "fine-tune": {"epochs": 10, "batch": 32, "lr": 2e-4, "layer_decay": 0.9, "weight_decay": 0.05,
                  "label_smoothing": 0.1, "clip": 1.0, "monitor": "accuracy"},
    "scratch": {"epochs": 60, "batch": 64, "lr": 2e-3, "weight_decay": 0.05, "clip": 1.0,
                "monitor": "accuracy"},
}  # fmt: skip

# What the cached views may take of the free disk where nothing else is said.
AUGMENT = "medium"
DISK_SHARE = 0.25
MINUTES = 5.0

# Share of mirrored images that a probe may get wrong beyond the plain ones before mirroring is left out,
# in standard errors of the difference.
FLIP_ERRORS, FLIP_LOSS = 2.0, 0.05
FLIP_IMAGES, FLIP_PENALTY, FLIP_GRID = 1000, 0.1, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a strategy trains on.

    Attributes:
        dataset: N images.
        backbone: the pre-trained network, or one of random weights for `scratch`.
        features: N rows, those of unreadable images without values; no cut points for `scratch`.
        rows: int64, the readable labelled images to train on, each class at least once.
        held: int64, those to validate on; may be empty.
        settings: all of them.
        folder: for checkpoints and the history; None keeps neither.
        progress: told how far the work is.
        on_epoch: told the figures of every epoch.
    """

    dataset: Dataset
    backbone: Backbone
    features: Features
    rows: np.ndarray
    held: np.ndarray
    settings: Settings
    folder: Path | None
    progress: Progress
    on_epoch: Callable[[dict[str, Any]], None]

    @property
    def labels(self) -> np.ndarray:
        """int64, of the training rows."""
        return np.asarray(self.dataset.labels[self.rows])

    def matrix(self, cuts: tuple[str, ...], rows: np.ndarray | None = None) -> np.ndarray:
        """float32 (n, D): features at these cut points side by side, of the training rows."""
        chosen = self.rows if rows is None else rows
        columns = [self.features.values[c][chosen] for c in cuts]
        return np.asarray(np.concatenate(columns, axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a strategy gives.

    Attributes:
        backbone: the network that the head reads, with trained weights where they were.
        cuts: the cut points whose features the head reads, side by side.
        head: the classifier on the pooled features there.
        measured: settings that were left open and decided by what was measured: {name: value}.
        evidence: what the decisions rest on, as JSON.
        probabilities: float32 (n, C): of the held-out rows; without any, out of fold on the training
            rows; None where neither could be.
        interrupted: ended early by Ctrl-C, with the best model so far.
        warnings: one line each, for people.
        chosen: settings that were left open and have the strategy's own values: {name: value}.
    """

    backbone: Backbone
    cuts: tuple[str, ...]
    head: Head
    measured: dict[str, Any]
    evidence: dict[str, Any]
    probabilities: np.ndarray | None
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)


def train(task: Task) -> Trained:
    """Run the strategy that the settings name."""
    strategy = choose("strategy", task.settings.strategy, STRATEGIES)
    if trains_by_gradient(task.settings):
        task.progress("loading PyTorch", 0, 0)
        importlib.import_module("headstart.training.loop")
    return strategy(task)


def linear_probe(task: Task) -> Trained:
    """A head on the frozen network's features (Alain and Bengio 2016 name it so); by default a linear
    one on the last, else at the cut points chosen."""
    return _probe(task, probe_cuts(task.settings, task.backbone), shallow=False)


def shallow_probe(task: Task) -> Trained:
    """A head on early features; what is above the cut point is thrown away (case 2 of the four)."""
    trained = _probe(task, shallow_cuts(task.settings, task.backbone), shallow=True)
    small = truncate(task.backbone, trained.cuts[0])
    evidence = {**trained.evidence, "saved": _compare_sizes(task, small)}
    return dataclasses.replace(trained, backbone=small, evidence=evidence)


def _probe(task: Task, candidates: Sequence[tuple[str, ...]], *, shallow: bool) -> Trained:
    """A head at the best of these cut points."""
    weights, measured = _class_weights(task)
    chosen: dict[str, Any] = {}
    evidence: dict[str, Any] = {"images_per_class": np.bincount(task.labels).tolist()}
    cuts, found = candidates[0], None
    if len(candidates) > 1:
        choice = choose_cuts(
            task.features.select(task.rows).values,
            task.labels,
            _units(task, task.rows),
            len(task.dataset.classes),
            candidates=candidates,
            weights=weights[task.labels],
            seed=task.settings.seed,
            progress=task.progress,
        )
        cuts, found = choice.cuts, choice.penalty
        if shallow:  # with too few images a class to measure, half of the network
            middle = candidates[(len(candidates) - 1) // 2]
            cuts = (choose_shallow(choice.scores),) if choice.scores else middle
            found = None
        (measured if choice.scores else chosen)["cut"] = ",".join(cuts)
        evidence["cuts"] = [
            {n: getattr(score, n) for n in ("cuts", "log_loss", "accuracy", "error")}
            for score in choice.scores
        ]
    if task.settings.head != "linear":
        trained = _mlp_probe(task, cuts, weights, measured, evidence)
        return dataclasses.replace(trained, chosen=trained.chosen | chosen)
    head, penalty = _fit_head(task, cuts, weights, found)
    if task.settings.penalty is None:
        _note_penalty(penalty, measured, chosen)
        evidence["penalty"] = {"folds": penalty.folds, "log_loss": [list(p) for p in penalty.path]}
    held = head.predict_proba(task.matrix(cuts, task.held)) if len(task.held) else None
    probabilities = penalty.probabilities if held is None else held
    return Trained(task.backbone, cuts, head, measured, evidence, probabilities, chosen=chosen)


def _note_penalty(penalty: Penalty, measured: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Without folds nothing was measured."""
    (measured if penalty.folds else chosen)["penalty"] = penalty.value


def _class_weights(task: Task) -> tuple[np.ndarray, dict[str, Any]]:
    """(float (C,), what was decided)."""
    counts = np.bincount(task.labels, minlength=len(task.dataset.classes))
    scheme, measured = task.settings.class_weights, {}
    if scheme == "auto":
        scheme = "balanced" if counts.max() >= IMBALANCE * counts.min() else "none"
        measured["class_weights"] = scheme
    balanced = len(task.labels) / (len(counts) * counts)
    return balanced if scheme == "balanced" else np.ones(len(counts)), measured


def _units(task: Task, rows: np.ndarray) -> tuple[str, ...]:
    """What no fold may part: groups, and byte-identical images, which extraction has hashed."""
    units = join_units(task.dataset.units(), task.features.sha256)
    return tuple(units[i] for i in rows)


def _fit_head(
    task: Task, cuts: tuple[str, ...], weights: np.ndarray, penalty: Penalty | None = None
) -> tuple[Head, Penalty]:
    """A linear head with the penalty given, found before, or chosen now."""
    matrix, classes = task.matrix(cuts), len(task.dataset.classes)
    each = weights[task.labels]
    if task.settings.penalty is not None:
        penalty = Penalty(task.settings.penalty, (), 0, None)
    elif penalty is None:
        penalty = choose_penalty(
            matrix,
            task.labels,
            _units(task, task.rows),
            classes,
            weights=each,
            seed=task.settings.seed,
            progress=task.progress,
        )
    head = fit_linear(matrix, task.labels, classes, penalty=penalty.value, weights=each)
    return head, penalty


def _mlp_probe(
    task: Task,
    cuts: tuple[str, ...],
    weights: np.ndarray,
    measured: dict[str, Any],
    evidence: dict[str, Any],
) -> Trained:
    from headstart.training.inputs import MatrixSource

    matrix = task.matrix(cuts, np.arange(len(task.dataset)))
    mean, scale = standardise(matrix[task.rows])
    source = MatrixSource((matrix - mean) / scale)
    module = _new_head(task, matrix.shape[1])
    head, outcome = _train_head(task, module, source, weights, task.folder)
    first = fold_standardisation(*head.layers[0], mean, scale)
    return Trained(
        task.backbone,
        cuts,
        MlpHead((first, *head.layers[1:])),
        measured,
        {**evidence, "training": _summary(outcome)},
        outcome.probabilities,
        outcome.interrupted,
        _tell_idle(outcome, "head"),
        dataclasses.asdict(_recipe(task.settings, "head")),
    )


def _new_head(task: Task, width: int) -> Any:
    from headstart.training.trainable import new_head

    shape = parse_head(task.settings.head)
    return new_head(shape, width, len(task.dataset.classes), task.settings.seed)


def _train_head(
    task: Task, module: Any, source: "Source", weights: np.ndarray, folder: Path | None
) -> "tuple[Head, Outcome]":
    from headstart.training.trainable import head_of_module

    recipe = _recipe(task.settings, "head")
    outcome = _run_training(task, module, source, recipe, weights, {}, folder, "head")
    return head_of_module(module), outcome


def _compare_sizes(task: Task, small: Backbone) -> dict[str, Any]:
    """What the cut saves: bytes of weights, and images a second, of the whole and the shallow one."""

    def measure(backbone: Backbone, choice: EngineChoice) -> dict[str, float]:
        cuts = (backbone.cuts[-1].name,)
        engine = make_engine(backbone, choice, task.settings.runtime, cuts=cuts, threads=1)
        pixels = np.zeros((engine.micro_batch, *backbone.preprocessing.input_px, 3), np.uint8)
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            engine.run(pixels)
            seconds.append(time.perf_counter() - began)
        size = sum(a.nbytes for a in backbone.state.values())
        rate = engine.micro_batch / min(seconds)
        return {"megabytes": round(size / 1e6, 2), "images_per_s": round(rate, 1)}

    def measure_both(choice: EngineChoice) -> dict[str, Any]:  # on one engine, to be comparable
        return {"whole": measure(task.backbone, choice), "shallow": measure(small, choice)}

    return use_engine(small, task.settings.runtime, measure_both)


def partial_fine_tune(task: Task) -> Trained:
    """Train what is above a cut point on cached activations of K views; below it stays frozen."""
    from headstart.training.inputs import ActivationSource, PixelSource

    start = _start(task)
    flip = _choose_flip(task, start)
    style = _augmentation(task.settings, flip)
    recipe = _recipe(task.settings, "partial-fine-tune")
    backbone, cut, views, plan = _choose_cut(task, recipe, start.head)
    (start.measured if "cut_costs" in plan else start.chosen).update(cut=cut, views=views)
    start.evidence.update(plan)
    axis = backbone.cut(cut).axis
    source: Source
    if task.settings.cached:

        def extract(rows: np.ndarray, views: int) -> Activations:
            return extract_activations(
                task.dataset.select(rows),
                backbone,
                cut,
                task.settings.runtime,
                views=views,
                augmentation=style,
                seed=task.settings.seed,
                progress=task.progress,
            )

        train = (task.rows, extract(task.rows, views))
        held = (task.held, extract(task.held, 1)) if len(task.held) else None
        source = ActivationSource(train, held, axis=axis)
    else:
        trunk, choice = start_engine(backbone, task.settings.runtime, cuts=(cut,), pooled=False)
        reader = _reader(task, style, exact=choice.precision == "fp32")
        run_trunk = functools.partial(_run_trunk, trunk, cut)
        source = PixelSource(reader, trunk=run_trunk, views=views, axis=axis)
    return _tune(task, backbone, cut, start, source, recipe)


def fine_tune(task: Task) -> Trained:
    """Train all weights from pixels, a new augmented view in every epoch."""
    start = _start(task)
    source = _pixels(task, _augmentation(task.settings, _choose_flip(task, start)))
    return _tune(task, task.backbone, None, start, source, _recipe(task.settings, "fine-tune"))


def scratch(task: Task) -> Trained:
    """Train all weights from random ones (case 4 of the four)."""
    from headstart.training.trainable import head_of_module

    weights, measured = _class_weights(task)
    flip = task.settings.flip != "no"  # there is no probe to ask
    source = _pixels(task, _augmentation(task.settings, flip))
    module = _new_head(task, task.backbone.cuts[-1].channels)
    evidence = {"images_per_class": np.bincount(task.labels).tolist()}
    plain = task.settings.augment == "none"
    chosen = {"flip": "no" if plain else "yes"}
    start = _Start(head_of_module(module), weights, measured, chosen, evidence)
    return _tune(task, task.backbone, None, start, source, _recipe(task.settings, "scratch"))


@dataclasses.dataclass(frozen=True, eq=False)
class _Start:
    """What a training of the network starts from, and what was decided on the way there."""

    head: Head
    weights: np.ndarray  # of the classes
    measured: dict[str, Any]
    chosen: dict[str, Any]
    evidence: dict[str, Any]


def _start(task: Task) -> _Start:
    """The probe on the last features."""
    weights, measured = _class_weights(task)
    last = (task.backbone.cuts[-1].name,)
    chosen: dict[str, Any] = {}
    evidence: dict[str, Any] = {"images_per_class": np.bincount(task.labels).tolist()}
    if task.settings.head == "linear":
        head, penalty = _fit_head(task, last, weights)
        if task.settings.penalty is None:
            _note_penalty(penalty, measured, chosen)
        return _Start(head, weights, measured, chosen, evidence)
    quiet = dataclasses.replace(
        task,
        folder=None,
        on_epoch=lambda entry: None,
        settings=Settings(head=task.settings.head, seed=task.settings.seed),
    )
    trained = _mlp_probe(quiet, last, weights, {}, {})
    if trained.interrupted:  # half a head is no starting point, and nothing to keep yet
        raise KeyboardInterrupt
    return _Start(trained.head, weights, measured, chosen, evidence)


def _tune(
    task: Task,
    backbone: Backbone,
    cut: str | None,
    start: _Start,
    source: "Source",
    recipe: "Recipe",
) -> Trained:
    """Train from the cut up and take the network apart again."""
    from headstart.training.trainable import TrainableNetwork, head_of_module, module_of_head

    scratch = task.settings.strategy == "scratch"
    module = module_of_head(start.head, parse_head(task.settings.head))
    network = TrainableNetwork(
        backbone, cut, module, batchnorm="adapt" if scratch else task.settings.batchnorm
    )
    top = max(network.stages.values(), default=0)
    scales = {
        f"body.{name}": recipe.layer_decay ** (top - stage)
        for name, stage in network.stages.items()
    }
    identity = f"{backbone.fingerprint} {cut}"
    outcome = _run_training(
        task, network, source, recipe, start.weights, scales, task.folder, identity
    )
    state = {**backbone.state, **network.body_state()}
    tuned = with_state(task.backbone, state, f"trained from {backbone.weights}")
    values = dataclasses.asdict(recipe) | {"augment": task.settings.augment or AUGMENT}
    return Trained(
        backbone=tuned,
        cuts=(tuned.cuts[-1].name,),
        head=head_of_module(module),
        measured=start.measured | {"train_precision": outcome.precision},
        evidence={**start.evidence, "training": _summary(outcome)},
        probabilities=outcome.probabilities,
        interrupted=outcome.interrupted,
        warnings=_tell_idle(outcome, "network") if scratch else (),
        chosen=start.chosen | values,
    )


def _tell_idle(outcome: "Outcome", what: str) -> tuple[str, ...]:
    """A warning where a training from random weights has found nothing better than those."""
    if outcome.best_epoch or outcome.probabilities is None:
        return ()
    return (
        f"no epoch was better on the validation images than the random weights that the {what} "
        "started with, which were kept: it has learned nothing; try more --epochs or another --lr",
    )


def _run_training(
    task: Task,
    network: Any,
    source: "Source",
    recipe: "Recipe",
    weights: np.ndarray,
    scales: dict[str, float],
    folder: Path | None,
    start: str,
) -> "Outcome":
    from headstart.training.loop import train_network

    labels = task.dataset.labels
    identity = json.dumps(
        [
            start,
            dataclasses.asdict(recipe),
            [
                [(task.dataset.ids[i], task.features.sha256[i], int(labels[i])) for i in part]
                for part in (task.rows, task.held)
            ],
        ]
    )
    return train_network(
        network,
        source,
        task.dataset.labels,
        task.dataset.ids,
        rows=task.rows,
        held=task.held,
        recipe=recipe,
        scales=scales,
        class_weights=weights,
        device=task.features.engine.device,
        checkpoint=folder / CHECKPOINT if folder else None,
        history=folder / HISTORY if folder else None,
        identity=hashlib.sha256(identity.encode()).hexdigest(),
        progress=task.progress,
        on_epoch=task.on_epoch,
    )


def _recipe(settings: Settings, kind: str) -> "Recipe":
    """The strategy's own values, and the user's over them."""
    from headstart.training.loop import Recipe

    given: dict[str, Any] = dict(RECIPES[kind])
    for field in dataclasses.fields(Recipe):
        value = getattr(settings, field.name, None)
        if value is not None and field.name != "precision":
            given[field.name] = value
    # Steps of a head take microseconds, which a measurement cannot tell apart.
    precision = "fp32" if kind == "head" else settings.train_precision
    return Recipe(**{**given, "precision": precision})


def _summary(outcome: "Outcome") -> dict[str, Any]:
    return {
        "epochs": len(outcome.history) - 1,
        "best_epoch": outcome.best_epoch,
        "start": outcome.history[0],
        "best": outcome.history[outcome.best_epoch],
        "wise_ft": outcome.wise_ft,
    }


def _pixels(task: Task, style: Augmentation) -> "Source":
    from headstart.training.inputs import PixelSource

    return PixelSource(_reader(task, style, exact=False), views=1 if style.is_plain else None)


def _reader(task: Task, style: Augmentation, *, exact: bool) -> Callable[[Any], Any]:
    return ViewReader(
        task.dataset,
        task.backbone.preprocessing,
        augmentation=style,
        seed=task.settings.seed,
        exact=exact,
        sha256=task.features.sha256,
        runtime=task.settings.runtime,
    ).read


def _run_trunk(engine: Any, cut: str, pixels: np.ndarray) -> Any:
    """uint8 (B, H, W, 3) -> the activations as they would lie on disk, (B, …) bfloat16."""
    import torch

    size = engine.micro_batch
    parts = [engine.run(pixels[i : i + size])[cut] for i in range(0, len(pixels), size)]
    return torch.from_numpy(to_half(np.concatenate(parts), "bfloat16")).view(torch.bfloat16)


def _augmentation(settings: Settings, flip: bool) -> Augmentation:
    style = AUGMENTATIONS[settings.augment or AUGMENT]
    return style if flip else style.without_flip()


def _choose_flip(task: Task, start: _Start) -> bool:
    """Whether to mirror, noted where the training starts."""
    if task.settings.flip != "auto" or task.settings.augment == "none":
        start.chosen["flip"] = "no"  # where nothing is augmented
        start.evidence["flip"] = {}
        return task.settings.flip != "no"
    flip, evidence = _measure_flip(task)
    (start.measured if "accuracy_lost" in evidence else start.chosen)["flip"] = (
        "yes" if flip else "no"
    )
    start.evidence["flip"] = evidence
    return flip


def _measure_flip(task: Task) -> tuple[bool, dict[str, Any]]:
    """Whether to mirror: not where a probe takes many more mirrored images for another class.

    The probe reads activations two thirds up the network in a grid of places: the last, pooled
    features hardly tell left from right, since networks are trained on mirrored images too. On
    traffic signs it loses 0.14 of its accuracy, on digits 0.46, on photographs less than 0.02.
    """
    cut = task.backbone.cuts[2 * len(task.backbone.cuts) // 3]
    some = task.rows
    if len(some) > FLIP_IMAGES:
        draws = [draw(task.settings.seed, "flip", task.dataset.ids[i]) for i in some]
        some = np.sort(some[np.argsort(draws)[:FLIP_IMAGES]])
    mirrored = extract_activations(
        task.dataset.select(some),
        task.backbone,
        cut.name,
        task.settings.runtime,
        views=2,
        augmentation=dataclasses.replace(AUGMENTATIONS["none"], flip=1.0),
        seed=task.settings.seed,
        progress=task.progress,
    )
    plain, turned = (
        _pool_grid(mirrored.read_tensor(np.arange(len(some)), view).float().numpy(), cut.axis)
        for view in (0, 1)
    )
    labels, classes = task.dataset.labels[some], len(task.dataset.classes)
    fold = assign_folds(labels, _units(task, some), 2, task.settings.seed)
    lost = np.zeros(len(some))
    for part in (0, 1):
        inside, outside = fold != part, fold == part
        if len(np.unique(labels[inside])) < classes:
            return True, {"reason": "too few images a class to measure"}
        head = fit_linear(plain[inside], labels[inside], classes, penalty=FLIP_PENALTY)
        right = [
            head.predict_proba(m[outside]).argmax(axis=1) == labels[outside]
            for m in (plain, turned)
        ]
        lost[outside] = right[0].astype(float) - right[1]
    error = lost.std() / np.sqrt(len(lost))
    flip = not lost.mean() > max(FLIP_ERRORS * error, FLIP_LOSS)
    return flip, {"accuracy_lost": float(lost.mean()), "standard_error": float(error)}


def _pool_grid(activations: np.ndarray, axis: int) -> np.ndarray:
    """(N, …) -> (N, D), averaged over each of `FLIP_GRID` x `FLIP_GRID` places."""
    values = np.moveaxis(activations, axis, -1)
    if values.ndim == 3:  # tokens of a square, after those that stand for the whole
        side = math.isqrt(values.shape[1])
        values = values[:, -(side**2) :].reshape(len(values), side, side, -1)
    if values.ndim == 2:
        return values
    rows, columns = (np.array_split(np.arange(n), min(n, FLIP_GRID)) for n in values.shape[1:3])
    places = [values[:, r][:, :, c].mean(axis=(1, 2)) for r in rows for c in columns]
    return np.concatenate(places, axis=1)


def _choose_cut(
    task: Task, recipe: "Recipe", head: Head
) -> tuple[Backbone, str, int, dict[str, Any]]:
    """(backbone with that cut point, cut point, views, evidence): as given, or by measured cost.

    A choice that rests on a measured time is kept in the run's folder, for a run that goes on.
    """
    settings, backbone = task.settings, task.backbone
    most = settings.views or (1 if settings.augment == "none" else VIEWS)
    given, told = given_cut(settings, backbone)
    if given is not None:
        return with_cut(backbone, given), given, most, {"freeze_until": told} if told else {}
    kept = task.folder / PLAN if task.folder else None
    if kept is not None and kept.exists():
        try:
            plan = json.loads(kept.read_bytes())
            cut, views = backbone.cut(plan["cut"]).name, int(plan["views"])
            return backbone, cut, max(1, min(views, most)), dict(plan["evidence"])
        except (UsageError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InputError(f"{kept}: damaged; fit anew with --overwrite") from exc
    minutes = settings.minutes or MINUTES
    free = shutil.disk_usage(task.settings.runtime.cache).free / 1e6
    costs = _measure_cuts(task, head, recipe, minutes)
    cut, views = plan_cut(
        costs,
        images=len(task.rows),
        epochs=recipe.epochs,
        minutes=minutes,
        disk_mb=DISK_SHARE * free,
        most_views=most,
    )
    evidence = {"cut_costs": [dataclasses.asdict(c) for c in costs], "minutes": minutes}
    plan = {"cut": cut, "views": views, "evidence": evidence}
    if kept is not None:
        write_atomically(kept, json.dumps(plan).encode())
    return backbone, cut, views, evidence


def _measure_cuts(task: Task, head: Head, recipe: "Recipe", minutes: float) -> list[CutCost]:
    """Cost of training from each cut point of the upper two thirds, from the last down to the first
    that is too dear."""
    from headstart.training.loop import measure_step
    from headstart.training.trainable import TrainableNetwork, module_of_head

    shape = parse_head(task.settings.head)
    found: list[CutCost] = []
    points = task.backbone.cuts[:-1]
    points = points[len(task.backbone.cuts) // 3 :]
    for done, cut in enumerate(reversed(points)):
        task.progress("measuring cuts", done, len(points))
        network = TrainableNetwork(task.backbone, cut.name, module_of_head(head, shape))
        seconds = measure_step(network, cut.shape, task.features.engine.device)
        size = 2e-6 * math.prod(cut.shape)
        found.insert(0, CutCost(cut.name, size, 1000 * seconds))
        if len(task.rows) * recipe.epochs * seconds / 60 > minutes:
            break  # those below cost more
    task.progress("measuring cuts", len(points), len(points))
    if not found:
        raise UsageError(
            f"{task.backbone.name} has no cut point below its classifier; use --strategy fine-tune"
        )
    return found


STRATEGIES: dict[str, Callable[[Task], Trained]] = {
    "linear-probe": linear_probe,
    "shallow-probe": shallow_probe,
    "partial-fine-tune": partial_fine_tune,
    "fine-tune": fine_tune,
    "scratch": scratch,
}

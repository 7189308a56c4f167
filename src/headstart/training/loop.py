"""Takes a network, labelled inputs and a `Recipe`, trains by gradient: the one loop.

`epochs` trains with it whatever is not linear. The network reads `Inputs`: a matrix of
features, activations on disk, or pixels. Shape letters: N images, B images a batch, C classes, K views.

Every random draw is a function of (seed, purpose, epoch, image or step), so a run that was killed
resumes from its last checkpoint and ends with the same bytes as one that was not.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import nn

from headstart.arrays import FloatC, FloatNC, IntN, Targets
from headstart.choices import choose
from headstart.draws import draw
from headstart.errors import InputError, ResourceError, TrainingError
from headstart.files import translate_errors, write_atomically
from headstart.parallel import Progress, no_progress
from headstart.problem import SINGLE_LABEL, Problem
from headstart.training.inputs import Batches, Inputs, view_of
from headstart.training.objectives import OBJECTIVES, Objective
from headstart.training.outputs import ADVICE, CHECKPOINT, HISTORY
from headstart.training.recipes import Recipe

__all__ = [
    "Examples",
    "Outcome",
    "Place",
    "Watch",
    "learning_rate_factor",
    "predict_network",
    "train_network",
]

EVALUATION_BATCH = 64

# bf16 must be this much faster than fp32 in the measurement to be worth its rounding.
FASTER = 1.2
# Steps below which the measurement costs more than it can gain.
STEPS_WORTH_MEASURING = 100

# Tables of a ViT that, like a bias, are not decayed.
POSITIONS = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")

WISE_FT_FRACTIONS = (0.25, 0.5, 0.75)


def _ignore(entry: dict[str, Any]) -> None:
    pass


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The images to train on, and those to validate on.

    Attributes:
        inputs: of the network, by row.
        labels: (N, …), the targets as `problem` keeps them.
        ids: N image ids, which the draws depend on.
        rows: int64, the rows to train on.
        val_rows: int64, the rows to validate on; may be empty, then the last epoch is the best.
        class_weights: float (C,), the weight of each class in the loss.
        problem: the kind of problem, which names the loss.
    """

    inputs: Inputs
    labels: Targets
    ids: tuple[str, ...]
    rows: IntN
    val_rows: IntN
    class_weights: FloatC
    problem: Problem = SINGLE_LABEL


@dataclasses.dataclass(frozen=True)
class Place:
    """The files in which a training keeps its state.

    Attributes:
        checkpoint: the file to keep the state in and to resume from; None keeps none.
        history: the file for one JSON object an epoch; None keeps none.
        identity: names the data and settings; a checkpoint with another identity is refused.
        is_followed: whether other trainings follow, so that the state at the end is kept too: a resume after
            that has nothing of this one to do again.
    """

    checkpoint: Path | None = None
    history: Path | None = None
    identity: str = ""
    is_followed: bool = False

    @classmethod
    def inside(cls, folder: Path | None, description: str, *, is_followed: bool = False) -> "Place":
        """Choose the files in a folder, or none; the description says all of data and settings."""
        if folder is None:
            return cls()
        identity = hashlib.sha256(description.encode()).hexdigest()
        return cls(folder / CHECKPOINT, folder / HISTORY, identity, is_followed)


@dataclasses.dataclass(frozen=True)
class Watch:
    """What follows a training from outside.

    Attributes:
        progress: called with how far it is.
        on_epoch: called with the figures of every epoch, with `epochs`, of how many, and `best_epoch` so far.
        deadline: by `time.monotonic()`; the epochs that no longer fit are left out, so that the learning
            rate still falls to its end, and none is begun in vain. None for no end.
    """

    progress: Progress = no_progress
    on_epoch: Callable[[dict[str, Any]], None] = _ignore
    deadline: float | None = None

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def count_epochs(self, done: int, planned: int, epoch_s: float) -> int:
        """Count the epochs that fit, where `done` of those planned took so long each."""
        if self.deadline is None:
            return planned
        left = max(0.0, self.deadline - time.monotonic())
        return min(planned, done + int(left / max(epoch_s, 1e-9)))


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a training; the network holds the best weights.

    Attributes:
        epochs: how many were planned at the end; fewer than the recipe's where the time did not allow them.
        history: one dict an epoch, 0 the starting point.
        best_epoch: the epoch whose weights were kept.
        probabilities: float32 (N, C) of the validation images with those weights; None without any.
        precision: of the arithmetic, "fp32" or "bf16".
        wise_ft: the fraction of the trained weights that was chosen; None where `recipe` has no `wise_ft`.
        interrupted: whether Ctrl-C ended it early.
    """

    epochs: int
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    probabilities: FloatNC | None
    precision: str
    wise_ft: float | None
    interrupted: bool


def train_network(
    network: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int = 0,
    scales: Mapping[str, float] | None = None,
    device: str = "cpu",
    place: Place | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Train all parameters of a network that require gradients; it ends with its best weights.

    Args:
        network: inputs -> logits (B, C); trained in place.
        seed: decides every draw.
        scales: {parameter's name: factor on its learning rate}; 1 by default.

    Raises:
        TrainingError: a loss is not finite; says at which step and images, and what to try.
        InputError: the checkpoint in the folder is of other data or settings, or damaged.
        ResourceError: out of memory.
    """
    place, watch = place or Place(), watch or Watch()
    rows, val_rows, ids = examples.rows, examples.val_rows, examples.ids
    start = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network.to(device)
    weights = torch.from_numpy(examples.class_weights.astype(np.float32)).to(device)
    labels = torch.from_numpy(examples.labels.astype(np.int64))
    objective = choose("loss", examples.problem.loss, OBJECTIVES)
    batches = max(1, round(len(rows) / recipe.batch))
    state = _State(network, recipe, scales or {})
    checkpoint = _Checkpoint(place.checkpoint, place.identity)
    evaluate = functools.partial(_evaluate, objective, examples, labels, weights, device)
    with _held_interrupts() as interrupted, torch.random.fork_rng():
        if not checkpoint.load(state):
            watch.progress("measuring where the training starts", 0, 0)
            state.precision = _choose_precision(
                network, objective, examples.inputs, rows, labels, recipe, batches, device
            )
            figures = evaluate(state.averaged(), state.precision)
            state.finish_epoch({"epoch": 0, **figures.entry()}, figures, recipe)
            watch.on_epoch(state.tell())
        micro = math.ceil(len(rows) / batches)  # a part of one image would have no variance
        watch.progress("training", state.seen(batches, len(rows)), state.epochs * len(rows))
        while state.epoch <= state.epochs and not state.stopped and not interrupted.is_set():
            order = _draw_batches(examples, batches, state.epoch, seed)
            epoch_began, before = time.monotonic(), state.images
            network.train()
            for values in examples.inputs.read(order[state.step :]):
                members = order[state.step][0]
                step = (state.epoch - 1) * batches + state.step
                rate = recipe.lr * learning_rate_factor(step, batches * state.epochs, recipe)
                for group in state.optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                # Dropout draws from torch's generator.
                torch.manual_seed(_hash(seed, "step", step))
                targets = objective.soften(labels[members], len(weights)).to(device)
                mix_seed, axis = _hash(seed, "mix", step), examples.inputs.axis
                batch = _mix(objective, values.to(device), axis, targets, recipe, mix_seed)
                loss, correct, micro = _accumulate(
                    network, objective, batch, weights, recipe, state.precision, micro
                )
                if not math.isfinite(loss):
                    names = ", ".join(f"'{ids[i]}'" for i in members[:3])
                    where = f"step {state.step + 1} of epoch {state.epoch} (images {names}, …)"
                    raise _not_finite(f"the loss is {loss} at {where}", recipe)
                if recipe.clip:
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
                state.optimizer.step()
                state.optimizer.zero_grad(set_to_none=True)
                state.average(recipe.ema)
                state.step += 1
                state.images += len(members)
                state.loss += loss * len(members)
                state.correct += correct
                watch.progress("training", state.seen(batches, len(rows)), state.epochs * len(rows))
                if interrupted.is_set() or (watch.is_over() and state.step < batches):
                    break
                if state.step < batches:
                    checkpoint.save_if_due(state, recipe.checkpoint_s)
            if state.step < batches:
                if not interrupted.is_set():  # the time is up
                    state.epochs = state.epoch - 1
                break
            figures = evaluate(state.averaged(), state.precision, watch.progress)
            if figures.probabilities is None and not _is_finite(network):
                raise _not_finite(f"weights are not finite after epoch {state.epoch}", recipe)
            entry = {
                "epoch": state.epoch,
                "train_loss": state.loss / len(rows),
                "train_accuracy": state.correct / len(rows),
                **figures.entry(),
                "lr": rate,
                "images_per_s": (state.images - before) / max(time.monotonic() - epoch_began, 1e-9),
            }
            state.finish_epoch(entry, figures, recipe)
            _write_history(place.history, state.history)
            watch.on_epoch(state.tell())
            epoch_s = time.monotonic() - epoch_began
            state.epochs = watch.count_epochs(state.epoch - 1, state.epochs, epoch_s)
            watch.progress("training", state.seen(batches, len(rows)), state.epochs * len(rows))
            checkpoint.save_if_due(state, recipe.checkpoint_s)
        if interrupted.is_set() or place.is_followed:
            checkpoint.save(state)
        unfinished = state.epoch <= state.epochs and not state.stopped and interrupted.is_set()
        if unfinished and len(state.history) < 2:
            raise KeyboardInterrupt
        network.load_state_dict(state.best)
        fraction = None
        if recipe.wise_ft and len(val_rows) and not unfinished:
            fraction = _average_with_start(network, start, state, evaluate)
    return Outcome(
        epochs=state.epochs,
        history=tuple(state.history),
        best_epoch=state.best_epoch,
        probabilities=state.probabilities,
        precision=state.precision,
        wise_ft=fraction,
        interrupted=unfinished,
    )


def predict_network(
    network: nn.Module, examples: Examples, rows: IntN, *, device: str, precision: str
) -> FloatNC:
    """Give the probabilities of the plain view of some images, float32 (n, C).

    Args:
        network: on the device.
        examples: whose inputs have these rows.
        precision: of the arithmetic, "fp32" or "bf16".

    Raises:
        TrainingError: a logit is not finite.
    """
    logits = _compute_logits(network, examples.inputs, rows, device, precision)
    if not bool(torch.isfinite(logits).all()):
        raise TrainingError("the network that was trained gives values that are not finite")
    objective = choose("loss", examples.problem.loss, OBJECTIVES)
    return np.asarray(objective.link(logits).numpy())


def learning_rate_factor(step: int, total: int, recipe: Recipe) -> float:
    """Give the fraction of the highest learning rate at a step (0, 1, …) of `total`, in [0, 1]."""
    rise = 0.3 if recipe.schedule == "one-cycle" else recipe.warmup
    warmup_steps = rise * total
    if step < warmup_steps:
        return (step + 1) / math.ceil(warmup_steps)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1.0, total - warmup_steps)))


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in network.parameters())


def _not_finite(problem: str, recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"{problem}; try a lower --lr than {recipe.lr:g}, --clip 1, or --train-precision fp32"
    )


def _draw_batches(examples: Examples, batches: int, epoch: int, seed: int) -> Batches:
    """Draw the batches of an epoch, of sizes that differ by one at most."""
    rows, ids, views = examples.rows, examples.ids, examples.inputs.views
    drawn = np.array([draw(seed, "order", ids[i], epoch) for i in rows])
    shuffled = rows[np.argsort(drawn, kind="stable")]
    view = np.array([view_of(ids[i], epoch, views, seed) for i in shuffled], dtype=np.int64)
    return list(zip(np.array_split(shuffled, batches), np.array_split(view, batches), strict=True))


def _hash(seed: int, purpose: str, step: int) -> int:
    text = f"{seed}\0{purpose}\0{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
    """Inputs (B, …) with their soft targets (B, C), and the labels (B, …) that weigh most in those."""

    inputs: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor


def _mix(
    objective: Objective,
    inputs: torch.Tensor,
    axis: int,
    targets: torch.Tensor,
    recipe: Recipe,
    seed: int,
) -> _Batch:
    """Apply mixup or cutmix, each on half of the steps where both are wanted.

    On activations mixup is that of Verma et al., Manifold Mixup (ICML 2019).
    """
    labels = objective.read(targets)
    kinds = [k for k in ("mixup", "cutmix") if getattr(recipe, k)]
    if not kinds or len(labels) < 2:
        return _Batch(inputs, targets, labels)
    rng = np.random.default_rng(seed)
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = getattr(recipe, kind)
    fraction = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(labels))).to(inputs.device)
    if kind == "mixup" or inputs.ndim < 4:
        values = inputs.float()
        inputs = fraction * values + (1 - fraction) * values[other]
    else:
        first = 2 if axis == 1 else 1  # (B, C, H, W), or (B, H, W, C)
        sides = inputs.shape[first : first + 2]
        cut = [max(0, round(side * math.sqrt(1 - fraction))) for side in sides]
        corner = [int(rng.integers(side - c + 1)) for side, c in zip(sides, cut, strict=True)]
        box = [slice(None)] * first + [slice(a, a + c) for a, c in zip(corner, cut, strict=True)]
        inputs = inputs.clone()
        inputs[tuple(box)] = inputs[other][tuple(box)]
        fraction = 1 - math.prod(cut) / math.prod(sides)
    mixed = fraction * targets + (1 - fraction) * targets[other]
    return _Batch(inputs, mixed, labels if fraction >= 0.5 else labels[other])


def _accumulate(
    network: nn.Module,
    objective: Objective,
    batch: _Batch,
    weights: torch.Tensor,
    recipe: Recipe,
    precision: str,
    micro: int,
) -> tuple[float, float, int]:
    """Add up the gradients of a batch, in parts where memory is short: (loss, correct, size of the parts)."""
    while True:
        try:
            loss, correct = 0.0, 0.0
            for part in range(0, len(batch.labels), micro):
                some = slice(part, part + micro)
                value, logits = _loss(network, objective, batch, some, weights, recipe, precision)
                fraction = len(batch.labels[some]) / len(batch.labels)
                torch.autograd.backward(value * fraction)
                loss += float(value.detach()) * fraction
                correct += objective.right(logits, batch.labels[some]).sum().item()
            return loss, correct, micro
        except torch.OutOfMemoryError as exc:
            network.zero_grad(set_to_none=True)  # the step starts again, in smaller parts
            torch.cuda.empty_cache()
            if micro == 1:
                raise ResourceError(
                    "out of memory with one image at a time; use --device cpu, a smaller "
                    "--input-px, or a later --cut"
                ) from exc
            micro = max(1, micro // 2)


def _loss(
    network: nn.Module,
    objective: Objective,
    batch: _Batch,
    some: slice,
    weights: torch.Tensor,
    recipe: Recipe,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give (loss, logits (b, C)) of some images of a batch."""
    inputs = batch.inputs[some]
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = network(inputs)
    value = objective.loss(logits.float(), batch.targets[some], weights, recipe.label_smoothing)
    return value, logits


@dataclasses.dataclass(frozen=True, eq=False)
class _Figures:
    loss: float  # classes weighted as in the training
    accuracy: float
    probabilities: FloatNC | None
    log_loss: float | None = None  # all images weighted alike; None where that is the same

    def entry(self) -> dict[str, float]:
        if self.probabilities is None:
            return {}
        unweighted = {} if self.log_loss is None else {"val_log_loss": self.log_loss}
        return {"val_loss": self.loss, **unweighted, "val_accuracy": self.accuracy}

    def score(self, monitor: str) -> float:
        """Higher is better."""
        return self.accuracy if monitor == "accuracy" else -self.loss


def _evaluate(
    objective: Objective,
    examples: Examples,
    labels: torch.Tensor,
    weights: torch.Tensor,
    device: str,
    network: nn.Module,
    precision: str,
    progress: Progress = no_progress,
) -> _Figures:
    """Measure losses, accuracy and probabilities on the plain view of the validation images."""
    val_rows = examples.val_rows
    if not len(val_rows):
        return _Figures(math.nan, math.nan, None)
    logits = _compute_logits(network, examples.inputs, val_rows, device, precision, progress)
    if not bool(torch.isfinite(logits).all()):
        return _Figures(math.inf, 0.0, np.zeros(logits.shape, dtype=np.float32))
    loss = objective.val_loss(logits, labels[val_rows], weights.cpu())
    unweighted = None
    if not torch.all(weights == weights[0]):
        unweighted = float(objective.val_loss(logits, labels[val_rows], None))
    accuracy = objective.right(logits, labels[val_rows]).float().mean()
    return _Figures(float(loss), float(accuracy), objective.link(logits).numpy(), unweighted)


def _compute_logits(
    network: nn.Module,
    inputs: Inputs,
    rows: IntN,
    device: str,
    precision: str,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Give the logits of the plain view of some images, float32 (n, C)."""
    network.eval()
    starts = range(0, len(rows), EVALUATION_BATCH)
    chunks = [rows[i : i + EVALUATION_BATCH] for i in starts]
    parts = []
    with torch.inference_mode():
        plain = inputs.read([(c, np.zeros(len(c), dtype=np.int64)) for c in chunks])
        for done, values in zip(starts, plain, strict=True):
            progress("validating", done, len(rows))
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                parts.append(network(values.to(device)).float().cpu())
    return torch.cat(parts)


def _average_with_start(
    network: nn.Module,
    start: dict[str, torch.Tensor],
    state: "_State",
    evaluate: Callable[[nn.Module, str], _Figures],
) -> float:
    """Average trained and starting weights by the fraction that does best on validation, and return it."""
    best, fraction = state.best_figures, 1.0
    for candidate in WISE_FT_FRACTIONS:
        network.load_state_dict(_interpolate(start, state.best, candidate))
        figures = evaluate(network, state.precision)
        if figures.score("loss") > best.score("loss"):
            best, fraction = figures, candidate
    network.load_state_dict(_interpolate(start, state.best, fraction))
    state.probabilities = best.probabilities
    return fraction


def _interpolate(
    start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], fraction: float
) -> dict[str, torch.Tensor]:
    return {
        k: torch.lerp(start[k].to(v.device), v, fraction) if v.is_floating_point() else v
        for k, v in end.items()
    }


def _choose_precision(
    network: nn.Module,
    objective: Objective,
    inputs: Inputs,
    rows: IntN,
    labels: torch.Tensor,
    recipe: Recipe,
    batches: int,
    device: str,
) -> str:
    """Choose bf16 where a few steps of it are clearly faster, else fp32."""
    if recipe.train_precision != "auto":
        return recipe.train_precision
    small = sum(p.numel() for p in network.parameters()) < 1_000_000
    if small or batches * recipe.epochs < STEPS_WORTH_MEASURING or device == "mps":
        return "fp32"
    few = rows[: 8 if device == "cpu" else recipe.batch]
    values = next(iter(inputs.read([(few, np.zeros(len(few), dtype=np.int64))]))).to(device)
    trial = copy.deepcopy(network).train()
    few_labels = labels[few].to(device)
    seconds = {}
    for precision in ("fp32", "bf16"):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            try:
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                    logits = trial(values)
                torch.autograd.backward(objective.val_loss(logits.float(), few_labels, None))
            except torch.OutOfMemoryError:  # the training will compute its steps in parts
                torch.cuda.empty_cache()
                return "bf16"
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        seconds[precision] = min(times)
    return "bf16" if seconds["fp32"] > FASTER * seconds["bf16"] else "fp32"


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True),
}


class _State:
    """All that changes in training; a checkpoint holds its `tensors` and `values`."""

    def __init__(self, network: nn.Module, recipe: Recipe, scales: Mapping[str, float]) -> None:
        self.network = network
        self.parameters = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters:
            exempt = parameter.ndim < 2 or name.endswith(POSITIONS)
            decay = 0.0 if exempt else recipe.weight_decay
            groups.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            [{"params": p, "scale": s, "weight_decay": d} for (s, d), p in groups.items()]
        )
        self.ema = copy.deepcopy(network) if recipe.ema else None
        self.best: dict[str, torch.Tensor] = {}
        self.best_figures = _Figures(math.inf, 0.0, None)
        self.probabilities: FloatNC | None = None
        self.epochs = recipe.epochs
        self.epoch, self.step, self.images, self.loss = 1, 0, 0, 0.0
        self.correct = 0.0
        self.best_epoch, self.waited, self.stopped = 0, 0, False
        self.precision = "fp32"
        self.history: list[dict[str, Any]] = []

    def seen(self, batches: int, images: int) -> int:
        """Count the images that were trained on so far, for the progress."""
        return (self.epoch - 1) * images + round(self.step / batches * images)

    def averaged(self) -> nn.Module:
        """Give the network that is evaluated and kept: the moving average, where there is one."""
        return self.network if self.ema is None else self.ema

    def average(self, decay: float) -> None:
        if self.ema is None:
            return
        with torch.no_grad():
            current = self.network.state_dict()
            for name, value in self.ema.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(current[name], 1 - decay)
                else:
                    value.copy_(current[name])

    def tell(self) -> dict[str, Any]:
        """The last epoch's figures, of how many epochs, and which is the best so far."""
        return {**self.history[-1], "epochs": self.epochs, "best_epoch": self.best_epoch}

    def finish_epoch(self, entry: dict[str, Any], figures: _Figures, recipe: Recipe) -> None:
        """Record an epoch's figures, keep its weights if they are the best, and begin the next."""
        self.history.append(entry)
        epoch = int(entry["epoch"])
        gain = figures.score(recipe.monitor) - self.best_figures.score(recipe.monitor)
        kept = figures.probabilities is None or epoch == 0 or recipe.monitor == "last"
        if kept or gain > recipe.min_delta:
            weights = self.averaged().state_dict()
            self.best = {k: v.detach().clone() for k, v in weights.items()}
            self.best_figures, self.probabilities = figures, figures.probabilities
            self.best_epoch, self.waited = epoch, 0
        else:
            self.waited += 1
            self.stopped = bool(recipe.patience) and self.waited >= recipe.patience
        if epoch > 0:
            self.epoch, self.step = epoch + 1, 0
            self.images, self.loss, self.correct = 0, 0.0, 0.0

    # -------- as tensors and JSON

    COUNTERS = (
        "epochs epoch step images loss correct best_epoch waited stopped precision history".split()
    )

    def tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        if self.ema is not None:
            tensors |= {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        for name, parameter in self.parameters:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        if self.probabilities is not None:
            tensors["probabilities"] = torch.from_numpy(self.probabilities)
        return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}

    def values(self) -> dict[str, Any]:
        best = {"loss": self.best_figures.loss, "accuracy": self.best_figures.accuracy}
        return {"best": best, **{n: getattr(self, n) for n in self.COUNTERS}}

    def restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = collections.defaultdict(dict)
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.network.load_state_dict(parts["network"])
        device = next(iter(self.network.parameters())).device
        self.best = {k: v.to(device) for k, v in parts["best"].items()}
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        by_name = dict(self.parameters)
        for key, value in parts["optimizer"].items():
            kind, _, name = key.partition("/")
            parameter = by_name[name]
            layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
            moved = value.to(device, memory_format=layout) if value.ndim == 4 else value.to(device)
            self.optimizer.state[parameter][kind] = moved
        if "probabilities" in tensors:
            self.probabilities = tensors["probabilities"].numpy()
        for name in self.COUNTERS:
            setattr(self, name, values[name])
        best = values["best"]
        self.best_figures = _Figures(best["loss"], best["accuracy"], self.probabilities)


class _Checkpoint:
    """The file that a training resumes from."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._last = time.monotonic()

    def load(self, state: _State) -> bool:
        """Restore the state from the checkpoint; False if there is none."""
        path = self._path
        if path is None or not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["state"])
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            if values["identity"] == self._identity:
                state.restore(tensors, values)
                return True
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as exc:
            raise InputError(
                f"{path}: damaged or of another network; remove it to train from the beginning"
            ) from exc
        raise InputError(
            f"{path}: of other data or settings than these; put them back as they were, or fit "
            "anew with --overwrite"
        )

    def save_if_due(self, state: _State, interval_s: float) -> None:
        """Save if the last checkpoint is older than the interval."""
        if self._path is not None and time.monotonic() - self._last >= interval_s:
            self.save(state)

    def save(self, state: _State) -> None:
        """Write the state so that a process killed at any moment leaves this checkpoint or the one before."""
        if self._path is None:
            return
        values = {**state.values(), "identity": self._identity}
        data = save_tensors(state.tensors(), metadata={"state": json.dumps(values)})
        with translate_errors(self._path.parent, advice=ADVICE):
            write_atomically(self._path, data, kind="checkpoint")
        self._last = time.monotonic()


def _write_history(path: Path | None, history: list[dict[str, Any]]) -> None:
    if path is not None:  # JSON has no infinity
        entries = [{k: v if math.isfinite(v) else None for k, v in e.items()} for e in history]
        with translate_errors(path.parent, advice=ADVICE):
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            write_atomically(path, lines.encode(), kind="history")


@contextlib.contextmanager
def _held_interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no step is cut in half; the second is as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)

"""Takes a `Task`, gives a head on the frozen network's features, and records why that one.

It needs no PyTorch unless the head is an MLP.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart.arrays import FloatC, FloatN, FloatNC, IntN
from headstart.data.splits import join_units
from headstart.problem import MULTI_LABEL
from headstart.training.cuts import Heads, name_cuts
from headstart.training.decisions import Origin
from headstart.training.heads import (
    CutChoice,
    Head,
    LinearHead,
    Penalty,
    average_heads,
    average_probabilities,
    choose_cuts,
    choose_penalty,
    fit_linear,
)
from headstart.training.recipes import HEAD
from headstart.training.rules import choose_class_weights
from headstart.training.task import HeadTask, Task, Trained

__all__ = ["compare_cuts", "fit_head", "probe", "settle_cut", "units_of", "weigh_classes"]


def weigh_classes(task: HeadTask) -> FloatC:
    """Give the weight of an image of each class, float (C,): 1 where images may have several labels."""
    problem, classes = task.dataset.problem, len(task.dataset.classes)
    own = [label for row in problem.decode(task.targets) for label in row]
    counts = np.bincount(np.array(own, dtype=np.int64), minlength=classes)
    task.decisions.record("images_per_class", counts.tolist())
    scheme = task.settings.class_weights
    if problem.name == MULTI_LABEL.name:
        task.settle_default("class_weights", "none")
        return np.ones(classes)
    if scheme == "auto":
        scheme = choose_class_weights(counts.tolist())
        task.decisions.settle("class_weights", scheme, "measured", images=counts.tolist())
    if scheme == "none":
        return np.ones(len(counts))
    return np.asarray(len(task.labels) / (len(counts) * counts))


def weigh_images(task: HeadTask, weights: FloatC) -> FloatN:
    """Give the weight of each training image, float (n,), from that of the classes, (C,)."""
    if task.dataset.problem.name == MULTI_LABEL.name:
        return np.ones(len(task.rows))
    return np.asarray(weights[task.labels])


def units_of(task: HeadTask, rows: IntN) -> tuple[str, ...]:
    """Name the unit of each row, which no fold may part: its group and byte-identical images."""
    units = join_units(task.dataset.units(), task.features.sha256)
    return tuple(units[i] for i in rows)


def compare_cuts(task: Task, candidates: Sequence[tuple[str, ...]], weights: FloatC) -> CutChoice:
    """Choose among cut points, or groups of them, by cross-validation; `weights`: float (C,)."""
    return choose_cuts(
        task.features.select(task.rows).values,
        task.targets,
        units_of(task, task.rows),
        len(task.dataset.classes),
        candidates=candidates,
        weights=weigh_images(task, weights),
        seed=task.settings.seed,
        progress=task.progress,
    )


def settle_cut(task: Task, heads: Heads, choice: CutChoice) -> None:
    """Record the cut points of the chosen heads, and the scores of all where there are any."""
    names = ("log_loss", "accuracy", "error")
    scores = [
        {"cut": name_cuts(score.heads), **{n: getattr(score, n) for n in names}}
        for score in choice.scores
    ]
    origin: Origin = "measured" if scores else "default"
    task.decisions.settle("cut", name_cuts(heads), origin, scores=scores)


def probe(task: Task, heads: Heads, weights: FloatC, penalties: Sequence[Penalty] = ()) -> Trained:
    """Train a head on the features at some cut points; or several linear ones, for their mean.

    Args:
        weights: float (C,), of the classes.
        penalties: of linear heads, one each, where they are known already.
    """
    if task.settings.head == "linear":
        return _probe_linear(task, heads, weights, penalties)
    from headstart.training.epochs import settle_recipe, tell_unlearned, train_mlp

    [cuts] = heads
    recipe = task.settings.recipe.over(HEAD)
    mlp, outcome = train_mlp(task, cuts, weights, recipe, kept=True)
    settle_recipe(task, recipe)
    tell_unlearned(task, outcome, "head")
    of_fold = _predict_fold(task, cuts, mlp)
    trained = Trained(task.backbone, cuts, mlp, outcome.probabilities, outcome.interrupted, of_fold)
    return dataclasses.replace(trained, frozen=cuts[-1])


def _predict_fold(task: Task, cuts: tuple[str, ...], head: Head) -> FloatNC | None:
    rows = task.fold_rows
    return head.predict_proba(task.matrix(cuts, rows)) if len(rows) else None


def _probe_linear(
    task: Task, heads: Heads, weights: FloatC, penalties: Sequence[Penalty]
) -> Trained:
    fitted: dict[tuple[str, ...], LinearHead] = {}
    chosen: list[Penalty] = []
    for place, cuts in enumerate(heads):
        known = penalties[place] if penalties else None
        fitted[cuts], penalty = _fit(task, cuts, weights, known)
        chosen.append(penalty)
    _settle_penalties(task, heads, chosen)
    cuts, head = heads[0], fitted[heads[0]]
    probabilities = chosen[0].probabilities
    if len(heads) > 1:
        widths = {c.name: c.channels for c in task.backbone.cuts}
        cuts, head = average_heads(fitted, widths)
        held_out = [p.probabilities for p in chosen if p.probabilities is not None]
        problem = task.dataset.problem
        probabilities = average_probabilities(held_out, problem) if held_out else None
    if len(task.val_rows):
        probabilities = head.predict_proba(task.matrix(cuts, task.val_rows))
    of_fold = _predict_fold(task, cuts, head)
    return Trained(
        task.backbone, cuts, head, probabilities, frozen=cuts[-1], fold_probabilities=of_fold
    )


def fit_head(task: HeadTask, cuts: tuple[str, ...], weights: FloatC) -> tuple[LinearHead, Penalty]:
    """Fit a linear head with the penalty that the user gave, or that is chosen now."""
    head, penalty = _fit(task, cuts, weights, None)
    _settle_penalties(task, (cuts,), [penalty])
    return head, penalty


def _fit(
    task: HeadTask, cuts: tuple[str, ...], weights: FloatC, penalty: Penalty | None
) -> tuple[LinearHead, Penalty]:
    matrix, classes = task.matrix(cuts), len(task.dataset.classes)
    image_weights = weigh_images(task, weights)
    if task.settings.penalty is not None:
        penalty = Penalty(task.settings.penalty, (), 0, None)
    penalty = penalty or choose_penalty(
        matrix,
        task.targets,
        units_of(task, task.rows),
        classes,
        weights=image_weights,
        seed=task.settings.seed,
        progress=task.progress,
    )
    head = fit_linear(
        matrix,
        task.targets,
        classes,
        penalty=penalty.value,
        weights=image_weights,
    )
    return head, penalty


def _settle_penalties(task: HeadTask, heads: Heads, penalties: Sequence[Penalty]) -> None:
    """Record the penalty of the first head, which is the best alone, and those of all."""
    if task.settings.penalty is not None:
        return
    first = penalties[0]
    evidence: dict[str, Any] = {
        "folds": first.folds,
        "log_loss": [list(point) for point in first.path],
    }
    if len(heads) > 1:
        evidence["heads"] = {
            name_cuts([cuts]): p.value for cuts, p in zip(heads, penalties, strict=True)
        }
    # Without folds nothing was measured.
    origin: Origin = "measured" if first.folds else "default"
    task.decisions.settle("penalty", first.value, origin, **evidence)

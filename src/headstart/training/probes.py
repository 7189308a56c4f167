"""Takes a `Task`, gives a head on the frozen network's features, and records why that one.

It needs no PyTorch unless the head is an MLP.
"""

from collections.abc import Sequence

import numpy as np

from headstart.arrays import FloatC, IntN
from headstart.data.splits import join_units
from headstart.training.decisions import Origin
from headstart.training.heads import (
    CutChoice,
    Head,
    Penalty,
    choose_cuts,
    choose_penalty,
    fit_linear,
)
from headstart.training.recipes import HEAD
from headstart.training.rules import choose_class_weights
from headstart.training.task import Task, Trained

__all__ = ["compare_cuts", "fit_head", "probe", "settle_cut", "units_of", "weigh_classes"]


def weigh_classes(task: Task) -> FloatC:
    """Give the weight of an image of each class, float (C,)."""
    counts = np.bincount(task.labels, minlength=len(task.dataset.classes))
    task.decisions.record("images_per_class", counts.tolist())
    scheme = task.settings.class_weights
    if scheme == "auto":
        scheme = choose_class_weights(counts.tolist())
        task.decisions.settle("class_weights", scheme, "measured", images=counts.tolist())
    if scheme == "none":
        return np.ones(len(counts))
    return np.asarray(len(task.labels) / (len(counts) * counts))


def units_of(task: Task, rows: IntN) -> tuple[str, ...]:
    """Name the unit of each row, which no fold may part: its group and byte-identical images."""
    units = join_units(task.dataset.units(), task.features.sha256)
    return tuple(units[i] for i in rows)


def compare_cuts(task: Task, candidates: Sequence[tuple[str, ...]], weights: FloatC) -> CutChoice:
    """Choose among cut points, or groups of them, by cross-validation; `weights`: float (C,)."""
    return choose_cuts(
        task.features.select(task.rows).values,
        task.labels,
        units_of(task, task.rows),
        len(task.dataset.classes),
        candidates=candidates,
        weights=weights[task.labels],
        seed=task.settings.seed,
        progress=task.progress,
    )


def settle_cut(task: Task, cuts: tuple[str, ...], choice: CutChoice) -> None:
    """Record the chosen cut points, and the scores of all where there are any."""
    names = ("cuts", "log_loss", "accuracy", "error")
    scores = [{n: getattr(score, n) for n in names} for score in choice.scores]
    origin: Origin = "measured" if scores else "default"
    task.decisions.settle("cut", ",".join(cuts), origin, scores=scores)


def probe(
    task: Task, cuts: tuple[str, ...], weights: FloatC, penalty: Penalty | None = None
) -> Trained:
    """Train a head on the features at these cut points side by side.

    Args:
        weights: float (C,), of the classes.
        penalty: of a linear head, where it is known already.
    """
    if task.settings.head == "linear":
        head, penalty = fit_head(task, cuts, weights, penalty)
        probabilities = penalty.probabilities
        if len(task.val_rows):
            probabilities = head.predict_proba(task.matrix(cuts, task.val_rows))
        return Trained(task.backbone, cuts, head, probabilities)
    from headstart.training.epochs import settle_recipe, tell_unlearned, train_mlp

    recipe = task.settings.recipe.over(HEAD)
    head, outcome = train_mlp(task, cuts, weights, recipe, kept=True)
    settle_recipe(task, recipe)
    tell_unlearned(task, outcome, "head")
    return Trained(task.backbone, cuts, head, outcome.probabilities, outcome.interrupted)


def fit_head(
    task: Task, cuts: tuple[str, ...], weights: FloatC, penalty: Penalty | None = None
) -> tuple[Head, Penalty]:
    """Fit a linear head with the penalty that the user gave, that is known already, or that is chosen now."""
    matrix, classes = task.matrix(cuts), len(task.dataset.classes)
    image_weights = weights[task.labels]
    if task.settings.penalty is not None:
        penalty = Penalty(task.settings.penalty, (), 0, None)
    else:
        penalty = penalty or choose_penalty(
            matrix,
            task.labels,
            units_of(task, task.rows),
            classes,
            weights=image_weights,
            seed=task.settings.seed,
            progress=task.progress,
        )
        # Without folds nothing was measured.
        origin: Origin = "measured" if penalty.folds else "default"
        path = [list(p) for p in penalty.path]
        task.decisions.settle("penalty", penalty.value, origin, folds=penalty.folds, log_loss=path)
    head = fit_linear(matrix, task.labels, classes, penalty=penalty.value, weights=image_weights)
    return head, penalty

"""Takes a `HeadTask`, a network and its inputs; trains it for epochs in the task's folder.

It stands between the strategies and the loop, which knows neither tasks nor decisions.
"""

import json
from collections.abc import Mapping

import numpy as np
from torch import nn

from headstart.arrays import FloatC
from headstart.training.heads import Head, MlpHead, parse_head
from headstart.training.inputs import Inputs, MatrixInputs
from headstart.training.logistic import fold_standardisation, standardise
from headstart.training.loop import Examples, Outcome, Place, Watch, train_network
from headstart.training.recipes import Recipe
from headstart.training.task import HeadTask
from headstart.training.trainable import head_of_module, new_head

__all__ = ["list_examples", "settle_recipe", "tell_unlearned", "train_epochs", "train_mlp"]


def train_epochs(
    task: HeadTask,
    network: nn.Module,
    examples: Examples,
    recipe: Recipe,
    start: str,
    scales: Mapping[str, float] | None = None,
) -> Outcome:
    """Train a network, keep its state and history in the task's folder, and record how it went.

    Args:
        start: names what it starts from, so that no other training resumes it.
        scales: as in `train_network`.
    """
    parts = (examples.rows, examples.val_rows)
    sha256, labels = task.features.sha256, examples.labels
    members = [[(examples.ids[i], sha256[i], labels[i].tolist()) for i in part] for part in parts]
    description = json.dumps([start, task.settings.seed, recipe.model_dump(), members])
    is_followed = task.settings.refit or task.settings.folds is not None
    outcome = train_network(
        network,
        examples,
        recipe,
        seed=task.settings.seed,
        scales=scales,
        device=task.features.engine.device,
        place=Place.inside(task.folder, description, is_followed=is_followed),
        watch=Watch(task.progress, task.on_epoch, task.deadline),
    )
    training = {
        "epochs": len(outcome.history) - 1,
        "best_epoch": outcome.best_epoch,
        "start": outcome.history[0],
        "best": outcome.history[outcome.best_epoch],
        "wise_ft": outcome.wise_ft,
    }
    task.decisions.record("training", training)
    if outcome.epochs < recipe.epochs:
        task.decisions.warn(
            f"the time was up after {len(outcome.history) - 1} of {recipe.epochs} epochs; a longer "
            "--budget trains for all"
        )
    return outcome


def list_examples(task: HeadTask, inputs: Inputs, weights: FloatC) -> Examples:
    """Put the task's images in the form that the loop takes; `weights`: float (C,), of the classes."""
    dataset = task.dataset
    return Examples(
        inputs, dataset.targets, dataset.ids, task.rows, task.val_rows, weights, dataset.problem
    )


def settle_recipe(task: HeadTask, recipe: Recipe) -> None:
    """Record the strategy's own values of the settings that the user did not give."""
    for name, value in recipe.model_dump().items():
        task.settle_default(name, value)


def tell_unlearned(task: HeadTask, outcome: Outcome, what: str) -> None:
    """Warn where a training has found nothing better than its random starting weights."""
    if outcome.best_epoch == 0 and outcome.probabilities is not None:
        task.decisions.warn(
            f"no epoch was better on the validation images than the random weights that the {what} "
            "started with, which were kept: it has learned nothing; try more --epochs or another --lr"
        )


def train_mlp(
    task: HeadTask, cuts: tuple[str, ...], weights: FloatC, recipe: Recipe, *, kept: bool
) -> tuple[Head, Outcome]:
    """Train an MLP head on the features at these cut points side by side.

    Args:
        weights: float (C,), of the classes.
        kept: whether this head is the task's result, whose state, history and decisions are kept.
    """
    matrix = task.matrix(cuts, np.arange(len(task.dataset)))
    mean, scale = standardise(matrix[task.rows])
    examples = list_examples(task, MatrixInputs((matrix - mean) / scale), weights)
    seed, shape = task.settings.seed, parse_head(task.settings.head)
    module = new_head(shape, matrix.shape[1], len(task.dataset.classes), seed)
    if kept:
        outcome = train_epochs(task, module, examples, recipe, "head")
    else:
        device, watch = task.features.engine.device, Watch(task.progress)
        outcome = train_network(module, examples, recipe, seed=seed, device=device, watch=watch)
    layers = head_of_module(module).layers
    folded = (fold_standardisation(*layers[0], mean, scale), *layers[1:])
    return MlpHead(folded, task.dataset.problem), outcome

"""Takes a `Task` and a starting point, trains the network above a cut point, gives its backbone and head.

A network with pre-trained weights starts with the linear probe as its head, which keeps the first steps
from distorting its features (Kumar et al., Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution, ICLR 2022: LP-FT).
"""

import dataclasses

from headstart.arrays import FloatC, FloatNC
from headstart.data.views import AUGMENTATIONS, Augmentation
from headstart.features.drawing import Drawing
from headstart.features.pixels import ViewReader
from headstart.networks.backbones import Backbone, with_state
from headstart.problem import MULTI_LABEL
from headstart.training.epochs import (
    list_examples,
    settle_recipe,
    tell_unlearned,
    train_epochs,
    train_mlp,
)
from headstart.training.heads import Head, parse_head
from headstart.training.inputs import Inputs, PixelInputs
from headstart.training.loop import predict_network
from headstart.training.probes import fit_head, weigh_classes
from headstart.training.recipes import AUGMENT, HEAD, Recipe
from headstart.training.rules import count_epochs
from headstart.training.task import Task, Trained
from headstart.training.trainable import (
    TrainableNetwork,
    head_of_module,
    module_of_head,
    new_head,
)

__all__ = [
    "Start",
    "pixels_of",
    "recipe_for",
    "recipe_of",
    "start_at_random",
    "start_from_probe",
    "style_of",
    "tune",
    "views_of",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The starting point of a training of the network.

    Attributes:
        head: the head on the network.
        weights: float (C,), of the classes.
        random: whether the network's weights are random.
    """

    head: Head
    weights: FloatC
    random: bool = False


def start_from_probe(task: Task) -> Start:
    """Start from the probe on the last features.

    Raises:
        KeyboardInterrupt: while the head was trained; an unfinished one is no starting point.
    """
    weights = weigh_classes(task)
    last = (task.backbone.cuts[-1].name,)
    if task.settings.head == "linear":
        return Start(fit_head(task, last, weights)[0], weights)
    head, outcome = train_mlp(task, last, weights, HEAD, kept=False)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return Start(head, weights)


def start_at_random(task: Task) -> Start:
    """Start from a random head on the random network."""
    shape, seed = parse_head(task.settings.head), task.settings.seed
    module = new_head(shape, task.backbone.cuts[-1].channels, len(task.dataset.classes), seed)
    head = head_of_module(module, task.dataset.problem)
    return Start(head, weigh_classes(task), random=True)


def recipe_for(task: Task, own: Recipe) -> Recipe:
    """Give a strategy's own recipe, as suits the kind of problem, with what the user gave.

    Where images have several labels, most targets say that one is not there: smoothing would lift the
    probabilities of them all, and what is right at one half says little of rare labels.
    """
    if task.dataset.problem.name == MULTI_LABEL.name:
        own = own.model_copy(update={"label_smoothing": 0.0, "monitor": "loss"})
    return task.settings.recipe.over(own)


def recipe_of(task: Task, own: Recipe) -> Recipe:
    """Give the same, with more epochs where images are few."""
    recipe = recipe_for(task, own)
    if "epochs" in task.settings.recipe.model_fields_set:
        return recipe
    epochs = count_epochs(len(task.rows), batch=recipe.batch, least=own.epochs)
    return recipe.model_copy(update={"epochs": epochs})


def tune(
    task: Task, backbone: Backbone, cut: str | None, start: Start, inputs: Inputs, recipe: Recipe
) -> Trained:
    """Train a backbone above a cut point, or all of it, and give its backbone and head."""
    if task.settings.refit and "monitor" not in task.settings.given():
        # What is kept is trained without validation images; so is what is measured, and unbiased.
        recipe = recipe.model_copy(update={"monitor": "last"})
    module = module_of_head(start.head, parse_head(task.settings.head))
    batchnorm = "adapt" if start.random else task.settings.batchnorm
    network = TrainableNetwork(backbone, cut, module, batchnorm=batchnorm)
    top = max(network.depths.values(), default=0)
    scales = {
        f"body.{name}": recipe.layer_decay ** (top - depth)
        for name, depth in network.depths.items()
    }
    examples = list_examples(task, inputs, start.weights)
    start_name = f"{backbone.fingerprint} {cut}"
    outcome = train_epochs(task, network, examples, recipe, start_name, scales)
    if outcome.probabilities is not None and not start.random:
        _compare_with_probe(task, start, outcome.probabilities)
    settle_recipe(task, recipe)
    if recipe.train_precision == "auto":
        task.decisions.settle("train_precision", outcome.precision, "measured")
    task.settle_default("augment", AUGMENT)
    if start.random:
        tell_unlearned(task, outcome, "network")
    state = {**backbone.state, **network.body_state()}
    tuned = with_state(task.backbone, state, f"trained from {backbone.weights}")
    last = (tuned.cuts[-1].name,)
    head = head_of_module(module, task.dataset.problem)
    of_fold = None
    if len(task.fold_rows) and not outcome.interrupted:
        device, precision = task.features.engine.device, outcome.precision
        of_fold = predict_network(
            network, examples, task.fold_rows, device=device, precision=precision
        )
    return Trained(tuned, last, head, outcome.probabilities, outcome.interrupted, of_fold)


def _compare_with_probe(task: Task, start: Start, probabilities: FloatNC) -> None:
    """Record how many validation images the training has won and lost against the probe it started from."""
    last = (task.backbone.cuts[-1].name,)
    targets, right = task.dataset.targets[task.val_rows], task.dataset.problem.right
    before = right(targets, start.head.predict_proba(task.matrix(last, task.val_rows)))
    after = right(targets, probabilities)
    won, lost = int((after > before).sum()), int((before > after).sum())
    task.decisions.record("against_probe", {"images": len(targets), "won": won, "lost": lost})


def style_of(task: Task, *, flip: bool) -> Augmentation:
    """Say how training views differ from the plain image."""
    style = AUGMENTATIONS[task.settings.augment or AUGMENT]
    return style if flip else style.without_flip()


def views_of(task: Task, style: Augmentation, *, exact: bool) -> ViewReader:
    """Make a reader of views of the task's images, as pixels."""
    settings, runtime = task.settings, task.settings.runtime
    drawing = Drawing(task.backbone.preprocessing, style, settings.seed, exact, runtime.max_pixels)
    return ViewReader(task.dataset, drawing, sha256=task.features.sha256, runtime=runtime)


def pixels_of(task: Task, *, flip: bool) -> PixelInputs:
    """Give pixels for a network that is trained whole, a new view of an image in every epoch."""
    style = style_of(task, flip=flip)
    read = views_of(task, style, exact=False).read
    return PixelInputs(read, views=1 if style.is_plain else None)

"""The types of a strategy, of what it takes and of what it gives.

Each strategy is one `Strategy` in a file of `strategies/` and one line of its table. Whatever other
modules need to know of a strategy is an attribute here; nothing asks for its name.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headstart.arrays import FloatNC, FloatND, IntN, Targets
from headstart.data.dataset import Dataset
from headstart.features.extraction import Features
from headstart.features.runtime import Runtime
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress
from headstart.training.decisions import Decisions
from headstart.training.heads import Head
from headstart.training.recipes import Recipe
from headstart.training.settings import DataSettings, Settings

__all__ = [
    "FEATURES",
    "GRADIENT",
    "IMAGES",
    "PRETRAINED",
    "Folds",
    "HeadTask",
    "Strategy",
    "Task",
    "Trained",
]

# Settings that are of use to every strategy, and to those that read features of a pre-trained network.
IMAGES = frozenset(
    {"strategy", "budget", "backbone", "input_px", "head", "class_weights", "seed", "folds"}
    | DataSettings.model_fields.keys()
    | Runtime.model_fields.keys() - {"engine", "precision"}
)
FEATURES = IMAGES | {"weights", "engine", "precision"}
# Settings that are of use to those that train the network by gradient, and to those among them that start
# from its weights.
_FROM_WEIGHTS = frozenset({"layer_decay", "wise_ft"})
GRADIENT = frozenset(Recipe.model_fields.keys()) - _FROM_WEIGHTS | {
    "refit",
    "tensorboard",
    "augment",
    "flip",
}
PRETRAINED = _FROM_WEIGHTS | {"batchnorm", "penalty"}
# Settings that are of use to an MLP head that is trained on features.
_MLP = GRADIENT - {"augment", "flip", "refit", "cutmix", "train_precision"}

# The fraction of the images that a training by gradient holds out by default.
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HeadTask:
    """Everything that training a head on features needs.

    Attributes:
        dataset: N images.
        features: N rows, those of unreadable images without values; no cut points for a strategy that
            reads pixels.
        rows: int64, the readable labelled images to train on, each class at least once.
        val_rows: int64, those to validate on; may be empty.
        settings: all of them.
        folder: for checkpoints and the history; None keeps neither.
        progress: called with how far the work is.
        on_epoch: called with the figures of every epoch.
        decisions: where the strategy records what it decides and finds.
        deadline: when epochs have to end, by `time.monotonic()`; None for no end.
    """

    dataset: Dataset
    features: Features
    rows: IntN
    val_rows: IntN
    settings: Settings
    folder: Path | None
    progress: Progress
    on_epoch: Callable[[dict[str, Any]], None]
    decisions: Decisions
    deadline: float | None = None

    @property
    def labels(self) -> IntN:
        """int64, of the training rows; where images have several, UsageError."""
        return np.asarray(self.dataset.labels[self.rows])

    @property
    def targets(self) -> Targets:
        """(n, …) as the data's `Problem` keeps them, of the training rows."""
        return np.asarray(self.dataset.targets[self.rows])

    def matrix(self, cuts: tuple[str, ...], rows: IntN | None = None) -> FloatND:
        """float32 (n, D): the features at these cut points side by side, of the training rows."""
        chosen = self.rows if rows is None else rows
        columns = [self.features.values[c][chosen] for c in cuts]
        return np.asarray(np.concatenate(columns, axis=1))

    def settle_default(self, name: str, value: Any, **evidence: Any) -> None:
        """Record the strategy's own value of a setting, unless the user gave another than auto."""
        if self.settings.given().get(name, "auto") == "auto":
            self.decisions.settle(name, value, "default", **evidence)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(HeadTask):
    """Everything a strategy needs in order to train.

    Attributes:
        backbone: the network, pre-trained or with random weights as the strategy needs it.
        fold_rows: int64, images that are predicted by what was trained, and nothing is chosen by; none but
            in the trainings of `folds`.
    """

    backbone: Backbone
    fold_rows: IntN = dataclasses.field(default_factory=lambda: np.arange(0))


@dataclasses.dataclass(frozen=True, eq=False)
class Folds:
    """Images that were each predicted by a training without them.

    Attributes:
        rows: int64 (n,), rising; those of folds that were not trained without are missing.
        numbers: int64 (n,), the fold of each, from 1.
    """

    rows: IntN
    numbers: IntN


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The result of a strategy; its decisions are in the task.

    Attributes:
        backbone: the network that the head reads, with its weights as trained.
        cuts: the cut points whose features the head reads, side by side.
        head: the classifier on the pooled features there.
        probabilities: float32 (n, C) of the validation rows; without any, out of fold on the training
            rows; None where neither was possible; with `folds`, of the rows there.
        interrupted: whether Ctrl-C ended it early, with the best model so far.
        fold_probabilities: float32 (m, C) of the task's `fold_rows`; None without any.
        folds: the images of which `probabilities` are, where it was measured by `folds`.
        frozen: the last cut point of the task's features at which the training has left them as they were;
            "" for none.
    """

    backbone: Backbone
    cuts: tuple[str, ...]
    head: Head
    probabilities: FloatNC | None
    interrupted: bool = False
    fold_probabilities: FloatNC | None = None
    folds: Folds | None = None
    frozen: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
    """One way of using a backbone.

    Attributes:
        name: as people write it.
        help: one line of what is trained, on what.
        run: trains; imports PyTorch itself if it needs it.
        uses: names of the settings that have an effect.
        recipe: its own defaults for training by gradient, the network or an MLP head.
        by_gradient: whether the network's weights are trained, in epochs.
        reads: "features" of all images at the backbone's cut points, which `fit` extracts first, or
            "pixels" alone.
        random_weights: whether the backbone starts with random weights.
        check_cut: raises where the strategy cannot use the settings' cut point or layer; None where it
            has no cut.
        better: (another strategy that may do better, at what price), as `fit` suggests it.
    """

    name: str
    help: str
    run: Callable[[Task], Trained]
    uses: frozenset[str]
    recipe: Recipe
    by_gradient: bool
    reads: Literal["features", "pixels"] = "features"
    random_weights: bool = False
    check_cut: Callable[[Settings, Backbone], object] | None = None
    better: tuple[str, str] | None = None

    def has_epochs(self, settings: Settings) -> bool:
        """Whether it trains in epochs, which can be interrupted and resumed."""
        return self.by_gradient or settings.head != "linear"

    def uses_with(self, settings: Settings) -> frozenset[str]:
        """Names of the settings that have an effect with this head."""
        return self.uses | _MLP if self.has_epochs(settings) else self.uses

    def held_fraction(self, settings: Settings) -> float:
        """The fraction of the training images to hold out where the data have no validation split."""
        val = settings.data.val
        if isinstance(val, float | int):
            return float(val)
        return HELD_OUT if self.has_epochs(settings) else 0.0

"""What a strategy is, what it takes and what it gives.

Each strategy is one `Strategy` in a file of `strategies/` and one line of its table. What the rest of the
house wants to know of a strategy is an attribute here; nothing asks for its name.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headstart.data.dataset import Dataset
from headstart.features.extraction import Features
from headstart.features.runtime import Runtime
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress
from headstart.training.decisions import Decisions
from headstart.training.heads import Head
from headstart.training.recipes import Recipe
from headstart.training.settings import DataSettings, Settings

__all__ = ["FEATURES", "GRADIENT", "IMAGES", "PRETRAINED", "Strategy", "Task", "Trained"]

# Settings that are of use to every strategy, and to those that read features of a pre-trained network.
IMAGES = frozenset(
    {"strategy", "backbone", "input_px", "head", "class_weights", "seed"}
    | DataSettings.model_fields.keys()
    | Runtime.model_fields.keys() - {"engine", "precision"}
)
FEATURES = IMAGES | {"weights", "engine", "precision"}
# To those that train the network by gradient, and to those among them that begin with its weights.
_FROM_WEIGHTS = frozenset({"layer_decay", "wise_ft"})
GRADIENT = frozenset(Recipe.model_fields.keys()) - _FROM_WEIGHTS | {
    "tensorboard",
    "augment",
    "flip",
}
PRETRAINED = _FROM_WEIGHTS | {"batchnorm", "penalty"}
# To an MLP head that is trained on features.
_MLP = GRADIENT - {"augment", "flip", "cutmix", "train_precision"}

# The fraction of the images that what is trained by gradient holds out where nothing else is said.
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a strategy trains on.

    Attributes:
        dataset: N images.
        backbone: the pre-trained network, or one of random weights where the strategy wants such.
        features: N rows, those of unreadable images without values; no cut points for a strategy that
            reads pixels.
        rows: int64, the readable labelled images to train on, each class at least once.
        held: int64, those to validate on; may be empty.
        settings: all of them.
        folder: for checkpoints and the history; None keeps neither.
        progress: told how far the work is.
        on_epoch: told the figures of every epoch.
        decisions: where the strategy tells what it decides and finds.
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
    decisions: Decisions

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
    """What a strategy gives; what it decided on the way is in the task's decisions.

    Attributes:
        backbone: the network that the head reads, with trained weights where they were.
        cuts: the cut points whose features the head reads, side by side.
        head: the classifier on the pooled features there.
        probabilities: float32 (n, C): of the held-out rows; without any, out of fold on the training
            rows; None where neither could be.
        interrupted: ended early by Ctrl-C, with the best model so far.
    """

    backbone: Backbone
    cuts: tuple[str, ...]
    head: Head
    probabilities: np.ndarray | None
    interrupted: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
    """One way of using a backbone.

    Attributes:
        name: as people write it.
        help: one line of what is trained, on what.
        run: trains; imports PyTorch itself where it wants it.
        uses: names of the settings that have an effect.
        recipe: its own values of the training by gradient; of the head's where only an MLP head is.
        by_gradient: whether the network's weights are trained, in epochs.
        reads: "features" of all images at the backbone's cut points, which `fit` extracts first, or
            "pixels" alone.
        random_weights: whether the backbone begins with random weights.
        check_cut: refuses the settings' cut point or layer where it cannot take it; None takes none.
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
        """Whether there are epochs, which can be interrupted and gone on with."""
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

"""Takes a `Task` (features, labels, settings), gives a `Trained` head: the ways to use a backbone.

Place in the flow: after `heads`. Every strategy is a function Task -> Trained in `STRATEGIES`.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headstart.datasets import choose, nearest
from headstart.errors import UsageError
from headstart.features import Features, Progress
from headstart.heads import LinearHead, choose_penalty, fit_linear
from headstart.images import MAX_PIXELS

__all__ = ["STRATEGIES", "Settings", "Task", "Trained", "make_settings", "train"]

# The largest class has this many times the images of the smallest: from here on a classifier that
# ignores the small class starts to look good, so classes are weighted alike.
IMBALANCE = 3.0


class Settings(BaseModel):
    """Everything that decides what `fit` does; one object goes through whole.

    Attributes:
        strategy: a key of `STRATEGIES`.
        backbone: a network of timm by name.
        weights: file with the backbone's weights; None for the package, cache or download.
        val: fraction of the training images held out to measure on, in (0, 1); 0 measures by
            cross-validation and trains on all; a path names a folder or manifest to measure on;
            None takes the data's own validation split, or 0 when there is none.
        group: regular expression whose captures in an image id name its group.
        root: folder that a manifest's paths are relative to.
        allow_outside: let links and manifest paths lead out of the data folder.
        penalty: L2 penalty of the head; None has it chosen by cross-validation.
        class_weights: "balanced" counts every class alike, "none" every image; "auto" balances when
            the largest class has at least 3 times the images of the smallest.
        max_bad: fraction of unreadable images allowed; one is always allowed.
        max_pixels: an image with more is unreadable.
        engine: auto, openvino or torch.
        precision: auto, fp32, bf16 or fp16, of the frozen network's arithmetic.
        device: auto, cpu, cuda or mps.
        workers: threads; None for one more than CPUs.
        cache_dir: the place of the feature store; None for `store.default_cache_dir()`.
        rehash: read every file again instead of trusting its size and times.
        seed: of every random draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str = "linear-probe"
    backbone: str = "tf_efficientnet_lite0"
    weights: str | None = None
    val: float | str | None = None
    group: str | None = None
    root: str | None = None
    allow_outside: bool = False
    penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    class_weights: Literal["auto", "balanced", "none"] = "auto"
    max_bad: float = Field(default=0.001, ge=0, le=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1, le=256)
    cache_dir: str | None = None
    rehash: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("val")
    @classmethod
    def _check_val(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError("must be a fraction in [0, 1), or the path of a folder or manifest")
        return value

    def origins(self) -> dict[str, str]:
        """For each setting "user" or "default"."""
        return {
            name: "user" if name in self.model_fields_set else "default"
            for name in type(self).model_fields
        }


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by name.

    Raises:
        UsageError: an unknown name, or a value out of range; says what is allowed.
    """
    for name in options:
        if name not in Settings.model_fields:
            raise UsageError(
                f"setting '{name}' is unknown{nearest(name, Settings.model_fields)}; "
                f"known: {', '.join(Settings.model_fields)}"
            )
    try:
        plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in options.items()}
        settings = Settings(**plain)
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = str(problem["loc"][0])
        raise UsageError(f"{name}: {problem['msg']}, got {problem['input']!r}") from exc
    choose("strategy", settings.strategy, STRATEGIES)
    return settings


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a strategy trains on; every row is a readable training image.

    Attributes:
        features: N rows.
        labels: int64 (N,) indices into `classes`, each class at least once.
        units: N names of what stays together in cross-validation.
        classes: C names.
        cut: the cut point before the classifier.
        settings: all of them.
        progress: told how far the work is.
    """

    features: Features
    labels: np.ndarray
    units: tuple[str, ...]
    classes: tuple[str, ...]
    cut: str
    settings: Settings
    progress: Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a strategy gives.

    Attributes:
        cut: the cut point that the head reads.
        head: the classifier on the pooled features there.
        measured: settings that were left open and are now decided: {name: value}.
        evidence: what the decisions rest on, as JSON.
        probabilities: float32 (N, C), out of fold on the training images; None where there were too
            few images for cross-validation.
    """

    cut: str
    head: LinearHead
    measured: dict[str, Any]
    evidence: dict[str, Any]
    probabilities: np.ndarray | None


def train(task: Task) -> Trained:
    """Run the strategy that the settings name."""
    return choose("strategy", task.settings.strategy, STRATEGIES)(task)


def linear_probe(task: Task) -> Trained:
    """A linear head on the frozen network's last features (Alain and Bengio 2016 name it so)."""
    matrix = task.features.values[task.cut]
    classes = len(task.classes)
    counts = np.bincount(task.labels, minlength=classes)
    scheme = task.settings.class_weights
    measured: dict[str, Any] = {}
    evidence: dict[str, Any] = {"images_per_class": counts.tolist()}
    if scheme == "auto":
        scheme = "balanced" if counts.max() >= IMBALANCE * counts.min() else "none"
        measured["class_weights"] = scheme
    weights = len(task.labels) / (classes * counts) if scheme == "balanced" else np.ones(classes)
    weights = weights[task.labels]
    probabilities = None
    penalty = task.settings.penalty
    if penalty is None:
        found = choose_penalty(
            matrix,
            task.labels,
            task.units,
            classes,
            weights=weights,
            seed=task.settings.seed,
            progress=task.progress,
        )
        penalty, probabilities = found.value, found.probabilities
        measured["penalty"] = penalty
        evidence["penalty"] = {"folds": found.folds, "log_loss": [list(p) for p in found.path]}
    head = fit_linear(matrix, task.labels, classes, penalty=penalty, weights=weights)
    return Trained(task.cut, head, measured, evidence, probabilities)


STRATEGIES: dict[str, Callable[[Task], Trained]] = {"linear-probe": linear_probe}

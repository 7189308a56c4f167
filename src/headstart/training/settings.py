"""Takes options by name, gives `Settings`: everything that decides what `fit` does.

One object goes through whole. A setting that the chosen strategy would not heed is refused.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headstart.choices import choose, nearest
from headstart.data.decoding import MAX_PIXELS
from headstart.data.views import AUGMENTATIONS
from headstart.errors import UsageError
from headstart.features.runtime import Runtime
from headstart.training.heads import parse_head

__all__ = ["HEEDED", "Settings", "holds_out", "make_settings", "trains_by_gradient"]


class Settings(BaseModel):
    """Everything that decides what `fit` does; one object goes through whole.

    None means the strategy's own value; a run's settings.json tells it.

    Attributes:
        strategy: a key of `STRATEGIES`.
        backbone: a network by name.
        weights: file with the backbone's weights; None for the package, cache or download.
        input_px: side of the square input; None for what the network was trained at.
        cut: where the head reads or the training begins: a cut point, several with commas (linear
            probe), "all" (likewise), "last", or "auto" for a choice by measurement.
        freeze_until: any layer that `headstart layers` prints, in the place of `cut`.
        head: "linear", or hidden layers and dropouts of an MLP: "d0.5-480-d0.5".
        val: fraction of the training images held out to measure on, in (0, 1); 0 holds none out: the
            linear head is then measured by cross-validation, the other strategies not at all; a path
            names a folder or manifest to measure on; None takes the data's own validation split, else
            0 for a linear head on a frozen network and 0.2 for what is trained by gradient.
        group: regular expression whose captures in an image id name its group.
        root: folder that a manifest's paths are relative to.
        allow_outside: let links and manifest paths lead out of the data folder.
        penalty: L2 penalty of the linear head; None has it chosen by cross-validation.
        class_weights: "balanced" counts every class alike, "none" every image; "auto" balances when
            the largest class has at least 3 times the images of the smallest.
        augment: how training views differ from the plain image, a key of `AUGMENTATIONS`.
        flip: mirror views left to right: "yes", "no", or "auto", which leaves it out where a probe
            takes mirrored images for other classes.
        views: augmented views an image that are cached (K), the plain one included.
        cached: train from activations on disk; False computes them anew in every epoch.
        batchnorm: "frozen" keeps the pre-trained statistics, "adapt" lets them move.
        minutes: that the training may take; decides the cut where that is "auto".
        epochs, batch, lr, layer_decay, schedule, warmup, optimizer, weight_decay, label_smoothing,
            mixup, cutmix, clip, ema, wise_ft, monitor, min_delta, patience, checkpoint_s: as in
            `loop.Recipe`.
        train_precision: of the training's arithmetic: fp32, bf16, or auto by a short measurement.
        tensorboard: also write the history as TensorBoard events.
        max_bad: fraction of unreadable images allowed; one is always allowed.
        max_pixels: an image with more is unreadable.
        engine: auto, openvino or torch.
        precision: auto, fp32, bf16 or fp16, of the frozen network's arithmetic.
        device: auto, cpu, cuda or mps.
        workers: threads; None for one more than CPUs.
        cache_dir: the place of the feature store; None for `files.default_cache_dir()`.
        rehash: read every file again instead of trusting its size and times.
        seed: of every random draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str = "linear-probe"
    backbone: str = "tf_efficientnet_lite0"
    weights: str | None = None
    input_px: int | None = Field(default=None, ge=16, le=2048)
    cut: str | None = None
    freeze_until: str | None = None
    head: str = "linear"
    val: float | str | None = None
    group: str | None = None
    root: str | None = None
    allow_outside: bool = False
    penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    class_weights: Literal["auto", "balanced", "none"] = "auto"
    augment: str | None = None
    flip: Literal["auto", "yes", "no"] = "auto"
    views: int | None = Field(default=None, ge=1, le=1000)
    cached: bool = True
    batchnorm: Literal["frozen", "adapt"] = "frozen"
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    batch: int | None = Field(default=None, ge=1, le=65_536)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    schedule: Literal["cosine", "one-cycle", "constant"] | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    optimizer: Literal["adamw", "adam", "amsgrad", "sgd"] | None = None
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    mixup: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cutmix: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    clip: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    ema: float | None = Field(default=None, ge=0, lt=1)
    wise_ft: bool = False
    monitor: Literal["loss", "accuracy"] | None = None
    min_delta: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    patience: int | None = Field(default=None, ge=0)
    checkpoint_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    train_precision: Literal["auto", "fp32", "bf16"] = "auto"
    tensorboard: bool = False
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
            raise ValueError("out of range")
        return value

    @property
    def runtime(self) -> Runtime:
        """Those settings that say on what and how carefully a network is run."""
        return Runtime(**{name: getattr(self, name) for name in Runtime.model_fields})

    def origins(self) -> dict[str, str]:
        """For each setting "user" or "default"."""
        return {
            name: "user" if name in self.model_fields_set else "default"
            for name in type(self).model_fields
        }


# What every strategy heeds, and what some do.
_READING = (
    "strategy backbone weights input_px val group root allow_outside class_weights max_bad "
    "max_pixels device workers cache_dir rehash seed head"
)
_FROZEN = "engine precision"
_TRAINING = (
    "epochs batch lr schedule warmup optimizer weight_decay label_smoothing mixup clip ema monitor "
    "min_delta patience checkpoint_s train_precision tensorboard"
)
_PROBE = "penalty cut"
_IMAGES = "augment flip cutmix"
_TUNING = "layer_decay wise_ft batchnorm penalty"

HEEDED: dict[str, frozenset[str]] = {
    "linear-probe": frozenset(f"{_READING} {_FROZEN} {_PROBE}".split()),
    "shallow-probe": frozenset(f"{_READING} {_FROZEN} {_PROBE}".split()),
    "partial-fine-tune": frozenset(
        f"{_READING} {_FROZEN} {_TRAINING} {_IMAGES} {_TUNING} cut freeze_until views cached "
        "minutes".split()
    ),
    "fine-tune": frozenset(f"{_READING} {_FROZEN} {_TRAINING} {_IMAGES} {_TUNING}".split()),
    "scratch": frozenset(f"{_READING} {_TRAINING} {_IMAGES}".split()) - {"weights"},
}
# How pydantic names the ends of a range, and people do.
BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}

_HEAD_TRAINING = frozenset(_TRAINING.split()) - {"train_precision"}


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by name.

    Raises:
        UsageError: an unknown name, a value out of range, or a setting without effect; says what is
            allowed.
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
        given = plain[name]
        # A list where one value belongs is as long as it likes.
        shown = given if isinstance(given, str) else ascii(given)[:80]
        raise UsageError(f"{name} {_say_wanted(name)}, got {shown!s}") from exc
    choose("strategy", settings.strategy, HEEDED)
    if settings.augment is not None:
        choose("augment", settings.augment, AUGMENTATIONS)
    parse_head(settings.head)
    _refuse_idle(settings)
    return settings


def _say_wanted(name: str) -> str:
    """What a setting takes, in words."""
    if name == "val":
        return "must be a fraction in [0, 1), or the path of a folder or manifest"
    field = Settings.model_fields[name]
    kind = str(field.annotation)
    if "Literal" in kind:
        choices = re.findall("'([^']+)'", kind)
        return f"must be {', '.join(choices[:-1])} or {choices[-1]}"
    bounds = {w: getattr(m, w) for m in field.metadata for w in BOUNDS if hasattr(m, w)}
    words = " and ".join(f"{BOUNDS[w]} {bound:,}" for w, bound in bounds.items())
    for part, noun in (("float", "a number"), ("int", "a whole number"), ("bool", "true or false")):
        if part in kind:
            return f"must be {noun} {words}".rstrip()
    return "must be text"


def _refuse_idle(settings: Settings) -> None:
    strategy = settings.strategy
    heeded = HEEDED[strategy]
    frozen = strategy in ("linear-probe", "shallow-probe")
    if frozen and settings.head != "linear":
        heeded = heeded | _HEAD_TRAINING
    given = settings.model_fields_set
    idle = [n for n in Settings.model_fields if n in given and n not in heeded]
    if idle:
        name = idle[0]
        others = [s for s, names in HEEDED.items() if name in names]
        hint = f"; it has on {', '.join(others)}" if others else ""
        if frozen and name in _HEAD_TRAINING:
            hint = f"{hint}, and with an MLP head"
        raise UsageError(f"setting '{name}' has no effect on {strategy}{hint}; leave it out")
    if settings.head != "linear" and "penalty" in given:
        raise UsageError("setting 'penalty' has no effect with an MLP --head; leave it out")
    if settings.schedule == "one-cycle" and "warmup" in given:
        raise UsageError("setting 'warmup' has no effect on the one-cycle schedule; leave it out")
    if settings.cut not in (None, "auto") and "minutes" in given:
        raise UsageError(
            f"setting 'minutes' has no effect with cut '{settings.cut}'; leave it out, or cut auto"
        )
    for name, other in (("freeze_until", "cut"), ("freeze_until", "minutes")):
        if name in given and other in given:
            raise UsageError(f"settings '{name}' and '{other}' exclude each other; choose one")
    if settings.augment == "none":
        idle = [n for n in ("flip", "views") if n in given]
        if idle:
            raise UsageError(f"setting '{idle[0]}' has no effect without augmentation")


def holds_out(settings: Settings) -> float:
    """The fraction of the training images to hold out where the data have no validation split."""
    if isinstance(settings.val, float | int):
        return float(settings.val)
    return 0.2 if trains_by_gradient(settings) else 0.0


def trains_by_gradient(settings: Settings) -> bool:
    """Whether there are epochs, which can be interrupted and gone on with."""
    strategies = ("partial-fine-tune", "fine-tune", "scratch")
    return settings.strategy in strategies or settings.head != "linear"

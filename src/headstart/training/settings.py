"""Takes options by name, gives `Settings`: everything that decides what `fit` does.

A setting is declared once, in the part that it belongs to: its name, type, bounds, default and help.
Users see flat names: `FIELDS` has them all. This file checks only types and bounds; `strategies.table`
refuses unknown names of strategies and the like, and settings without effect on a strategy.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from headstart.choices import nearest
from headstart.errors import UsageError
from headstart.features.runtime import Runtime
from headstart.options import Option
from headstart.training.decisions import Decisions
from headstart.training.recipes import Recipe

__all__ = [
    "AUTO",
    "FIELDS",
    "READING",
    "DataSettings",
    "Setting",
    "Settings",
    "make_settings",
    "read_budget",
    "say_wanted",
]

# The strategy that stands for whichever the advice names.
AUTO = "auto"

BUDGET_UNITS = {"s": 1, "m": 60, "h": 3600}
LEAST_BUDGET_S = 20

DATA, STRATEGY, TRAINING = "Data", "Strategy", "Training of the network"


class DataSettings(BaseModel):
    """The images that are read, and how they are split.

    Attributes:
        val: fraction of the training images held out to measure on, in (0, 1); 0 holds none out: the
            linear head is then measured by cross-validation, the other strategies not at all; a path
            names a folder or manifest to measure on; None takes the data's own validation split, else
            0 for a linear head on a frozen network and 0.2 for training by gradient.
        group: regular expression whose captures in an image id name its group, or "none"; by default groups
            are found by measurement.
        root: folder that a manifest's paths are relative to.
        allow_outside: let links and manifest paths lead out of the data folder.
        path_column: column of a manifest that has the paths; None for one with a usual name.
        label_column: likewise of the labels, or several with commas, of 0 and 1.
        label_separator: what stands between several labels in a cell; None for what is found.
        multi_label: whether an image has any number of labels; None for what is found.
        class_names: file with the names of classes that are numbers.
        per_class: so many training images of each class are used, drawn at random; None for all.
        max_bad: fraction of images that may be unreadable; one is always allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: Annotated[
        float | str | None,
        Option(
            "Measure on this fraction (0.2), folder or manifest.",
            DATA,
            common=True,
        ),
    ] = None
    group: Annotated[
        str | None,
        Option(
            "Keep images together if this captures the same in their paths: "
            "'([^/]+/[^/]+)_[^/]*$'; or none.",
            DATA,
            common=True,
        ),
    ] = None
    root: Annotated[
        str | None,
        Option("Read a manifest's paths relative to this folder instead of its own.", DATA),
    ] = None
    allow_outside: Annotated[
        bool, Option("Follow links and manifest paths that lead out of the folder.", DATA)
    ] = False
    path_column: Annotated[
        str | None, Option("Take images' paths from this column of a manifest.", DATA)
    ] = None
    label_column: Annotated[
        str | None,
        Option(
            "Take labels from this column of a manifest, or from several of 0 and 1: cat,dog.", DATA
        ),
    ] = None
    label_separator: Annotated[
        str | None,
        Option("Take what has this between as several labels of one image.", DATA),
    ] = None
    multi_label: Annotated[
        bool | None,
        Option(
            "Let an image have any number of labels, or exactly one; by default as found.", DATA
        ),
    ] = None
    class_names: Annotated[
        str | None,
        Option(
            "Call classes that are numbers by the names in this file: a table of numbers and "
            "names, or one name a line.",
            DATA,
        ),
    ] = None
    per_class: Annotated[
        int | None,
        Field(ge=1, le=10_000_000),
        Option(
            "Use at most this many training images a class, drawn at random by the seed.",
            DATA,
            unit="images",
        ),
    ] = None
    max_bad: Annotated[
        float,
        Field(ge=0, le=1),
        Option(
            "Continue if at most this fraction of the images is unreadable; one always may be.",
            DATA,
        ),
    ] = 0.001

    @field_validator("val")
    @classmethod
    def _check_val(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError("out of range")
        return value


class Settings(BaseModel):
    """Everything that decides what `fit` does, passed as one object.

    None means the strategy's own value, which a run's settings.json has.

    Attributes:
        strategy: a key of `STRATEGIES`, or "auto" for the one that `advise` names.
        budget: the time that all of `fit` may take, such as "90s", "10m" or "1h"; None for five minutes
            where the strategy is "auto", and else for no bound.
        backbone: a network by name.
        weights: file with the backbone's weights; None for the package, cache or download.
        input_px: side of the square input; None for the network's own size.
        cut: where the head reads or the training begins: a cut point, several with commas or + (linear
            probe), "all" (likewise), "last", or "auto" for a choice by measurement.
        freeze_until: any layer that `headstart layers` prints, instead of `cut`.
        head: "linear", or hidden layers and dropouts of an MLP: "d0.5-480-d0.5".
        penalty: L2 penalty of the linear head; None chooses it by cross-validation.
        class_weights: "balanced" weights all classes alike, "none" all images; "auto" balances when
            the largest class has at least 3 times the images of the smallest.
        seed: decides every random draw.
        data: which images are read.
        folds: measure every way of training by cross-validation in so many folds, and all that it chooses
            within each; None as the strategy does by itself.
        augment: how training views differ from the plain image, a key of `AUGMENTATIONS`.
        flip: mirror views left to right: "yes", "no", or "auto", which does not mirror where a
            probe takes mirrored images for other classes.
        views: augmented views an image that are cached (K), the plain one included.
        cached: train from activations on disk; False computes them anew in every epoch.
        batchnorm: "frozen" keeps the pre-trained statistics, "adapt" updates them.
        refit: after a part of the images was held out and measured on, train once more in the same way on
            all of them, and keep that.
        tensorboard: also write the history as TensorBoard events.
        recipe: of training by gradient; values that are not given are the strategy's own.
        runtime: the machine: engine, precision, device, threads and cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Annotated[
        str,
        Option(
            "Train in this way: {choices}; auto does what headstart advise names.",
            STRATEGY,
            common=True,
        ),
    ] = AUTO
    budget: Annotated[
        str | None,
        Option(
            "Take at most this long: 90s, 10m, 1h (auto: 5m).",
            STRATEGY,
            common=True,
            unit="time",
        ),
    ] = None
    backbone: Annotated[
        str,
        Option("Use this network; headstart backbones lists all.", STRATEGY, common=True),
    ] = "tf_efficientnet_lite0"
    weights: Annotated[
        str | None,
        Option("Read the network's weights from this file (.safetensors, .pth).", STRATEGY),
    ] = None
    input_px: Annotated[
        int | None,
        Field(ge=16, le=2048),
        Option(
            "Resize images to squares of this side instead of the network's own size.",
            STRATEGY,
            unit="pixels",
        ),
    ] = None
    cut: Annotated[
        str | None,
        Option(
            "Read features, or begin training, at this cut point (headstart layers "
            "lists them). A linear probe takes last, all, auto, several with commas, or the "
            "mean of heads joined by +; a shallow probe and partial fine-tuning take auto or "
            "one.",
            STRATEGY,
        ),
    ] = None
    freeze_until: Annotated[
        str | None,
        Option(
            "Freeze everything before this layer, a name or index of headstart layers.", STRATEGY
        ),
    ] = None
    head: Annotated[
        str,
        Option(
            "Train a linear head, or an MLP of these layers and dropouts: 1024, d0.5-480-d0.5.",
            STRATEGY,
            common=True,
        ),
    ] = "linear"
    penalty: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Option(
            "Fit a linear head with this L2 penalty instead of the one that cross-validation chooses.",
            STRATEGY,
        ),
    ] = None
    class_weights: Annotated[
        Literal["auto", "balanced", "none"],
        Option(
            "Weight all classes alike (balanced) or all images (none); auto decides by the "
            "imbalance.",
            STRATEGY,
        ),
    ] = "auto"
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63),
        Option("Derive every random draw from this number.", STRATEGY),
    ] = 0
    data: DataSettings = DataSettings()
    folds: Annotated[
        int | None,
        Field(ge=2, le=20),
        Option("Measure by cross-validation in so many folds.", DATA, common=True),
    ] = None
    augment: Annotated[
        str | None,
        Option(
            "Augment training images this strongly: none, light, medium or strong.",
            TRAINING,
        ),
    ] = None
    flip: Annotated[
        Literal["auto", "yes", "no"],
        Option(
            "Mirror some views, {choices}; auto measures whether mirroring does harm.", TRAINING
        ),
    ] = "auto"
    views: Annotated[
        int | None,
        Field(ge=1, le=1000),
        Option("Keep activations of this many views of an image on disk.", TRAINING, unit="views"),
    ] = None
    cached: Annotated[
        bool,
        Option("Keep activations on disk, or compute them in every epoch.", TRAINING),
    ] = True
    batchnorm: Annotated[
        Literal["frozen", "adapt"],
        Option(
            "Keep BatchNorm's pre-trained statistics (frozen), or update them (adapt).", TRAINING
        ),
    ] = "frozen"
    refit: Annotated[
        bool,
        Option(
            "After measuring on the images that were held out, train once more on all of them.",
            TRAINING,
        ),
    ] = False
    tensorboard: Annotated[bool, Option("Write TensorBoard events too.", TRAINING)] = False
    recipe: Recipe = Recipe()
    runtime: Runtime = Runtime()

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, value: str | None) -> str | None:
        if value is not None:
            read_budget(value)
        return value

    def given(self) -> dict[str, Any]:
        """Give {name: value} of the settings that the user gave."""
        return {n: v for n, v in self._flat().items() if n in self._names_given()}

    def describe(self, decisions: Decisions) -> dict[str, dict[str, Any]]:
        """Give {name: {"value": …, "origin": "user", "default", "advised" or "measured"}} of every setting.

        A setting that the user did not give has the value that was decided; null where none was.
        """
        given, result = self._names_given(), {}
        for name, value in self._flat().items():
            decision = decisions.settled.get(name)
            is_recipe = FIELDS[name].part == "recipe" and name not in given
            open_ = is_recipe or value is None or value == "auto"
            if decision is not None and (open_ or decision.origin == "advised"):
                result[name] = {"value": decision.value, "origin": decision.origin}
            else:
                origin = "user" if name in given else "default"
                result[name] = {"value": None if is_recipe else value, "origin": origin}
        return result

    def _flat(self) -> dict[str, Any]:
        return {n: getattr(getattr(self, f.part) if f.part else self, n) for n, f in FIELDS.items()}

    def _names_given(self) -> set[str]:
        parts = [getattr(self, part) for part in PARTS]
        return self.model_fields_set.union(*(p.model_fields_set for p in parts)) & set(FIELDS)


# The parts of `Settings` that are objects of their own, by the name of their field.
PARTS: dict[str, type[BaseModel]] = {"data": DataSettings, "recipe": Recipe, "runtime": Runtime}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The declaration of a setting.

    Attributes:
        part: the field of `Settings` that holds it, "" for `Settings` itself.
        info: type, default and bounds.
        option: its help text and how it is shown.
    """

    part: str
    info: FieldInfo
    option: Option


def _list_fields() -> dict[str, Setting]:
    fields: dict[str, Setting] = {}
    for name, info in Settings.model_fields.items():
        inside = PARTS[name].model_fields if name in PARTS else {name: info}
        for own, field in inside.items():
            [option] = [m for m in field.metadata if isinstance(m, Option)]
            assert own not in fields, f"two settings are named {own}"
            fields[own] = Setting(name if name in PARTS else "", field, option)
    return fields


# Every setting by the flat name that users give.
FIELDS: dict[str, Setting] = _list_fields()


# Settings that say how a folder or manifest is read, whatever is done with its images then.
READING = (
    "root",
    "allow_outside",
    "path_column",
    "label_column",
    "label_separator",
    "multi_label",
    "class_names",
)

# The ends of a range as pydantic names them, and in words.
BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Make settings from options by name.

    Raises:
        UsageError: a name is unknown, or a value is out of range; says what is allowed.
    """
    by_part: dict[str, dict[str, Any]] = {part: {} for part in ("", *PARTS)}
    for name, value in options.items():
        if name not in FIELDS:
            raise UsageError(
                f"setting '{name}' is unknown{nearest(name, FIELDS)}; known: {', '.join(FIELDS)}"
            )
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        by_part[FIELDS[name].part][name] = plain
    own = by_part.pop("")
    try:
        own |= {part: PARTS[part](**values) for part, values in by_part.items() if values}
        return Settings(**own)
    except ValidationError as exc:
        name = str(exc.errors()[0]["loc"][0])
        given = options[name]
        # A list in the place of one value may be very long.
        shown = given if isinstance(given, str) else ascii(given)[:80]
        raise UsageError(f"{name} must be {say_wanted(name)}, got {shown!s}") from exc


def read_budget(text: str) -> float:
    """Read a time such as "90s", "10m" or "1.5h"; give the seconds.

    Raises:
        ValueError: it is no such time, or one below `LEAST_BUDGET_S`.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in BUDGET_UNITS or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", number):
        raise ValueError("no time")
    seconds = float(number) * BUDGET_UNITS[unit]
    if seconds < LEAST_BUDGET_S:
        raise ValueError("too short")
    return seconds


def say_wanted(name: str) -> str:
    """Say in words which values a setting takes."""
    if name == "budget":
        return f"a time of at least {LEAST_BUDGET_S}s, such as 90s, 10m or 1h"
    if name == "val":
        return "a fraction in [0, 1), or the path of a folder or manifest"
    field = FIELDS[name].info
    kind = str(field.annotation)
    if "Literal" in kind:
        choices = re.findall("'([^']+)'", kind)
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    bounds = {w: getattr(m, w) for m in field.metadata for w in BOUNDS if hasattr(m, w)}
    words = " and ".join(f"{BOUNDS[w]} {bound:,}" for w, bound in bounds.items())
    for part, noun in (("float", "a number"), ("int", "a whole number"), ("bool", "true or false")):
        if part in kind:
            return f"{noun} {words}".rstrip()
    return "text"

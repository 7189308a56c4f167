"""Takes options by name, gives `Settings`: everything that decides what `fit` does.

A setting is declared once, in the part that it belongs to: its name, type, bounds, default, and what
people are told of it. Outside, names are flat: `FIELDS` has them all. Here only types and bounds are
looked at; `strategies.table` refuses names that no table has, and what has no effect on a strategy.
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

__all__ = ["FIELDS", "DataSettings", "Setting", "Settings", "make_settings", "say_wanted"]

DATA, STRATEGY, TRAINING = "Data", "Strategy", "Training of the network"


class DataSettings(BaseModel):
    """Which images are read, and what becomes of them.

    Attributes:
        val: fraction of the training images held out to measure on, in (0, 1); 0 holds none out: the
            linear head is then measured by cross-validation, the other strategies not at all; a path
            names a folder or manifest to measure on; None takes the data's own validation split, else
            0 for a linear head on a frozen network and 0.2 for what is trained by gradient.
        group: regular expression whose captures in an image id name its group.
        root: folder that a manifest's paths are relative to.
        allow_outside: let links and manifest paths lead out of the data folder.
        max_bad: fraction of unreadable images allowed; one is always allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: Annotated[
        float | str | None,
        Option(
            "Measure on this: a fraction of the training images (0.2), a folder or a "
            "manifest; 0 for nothing.",
            DATA,
            common=True,
        ),
    ] = None
    group: Annotated[
        str | None,
        Option(
            "Keep images together in whose path this captures the same text: "
            "'([^/]+/[^/]+)_[^/]*$'.",
            DATA,
            common=True,
        ),
    ] = None
    root: Annotated[
        str | None,
        Option("Read a manifest's paths relative to this folder, and not to its own.", DATA),
    ] = None
    allow_outside: Annotated[
        bool, Option("Follow links and manifest paths that lead out of the folder.", DATA)
    ] = False
    max_bad: Annotated[
        float,
        Field(ge=0, le=1),
        Option(
            "Go on where at most this fraction of the images is unreadable; one always may be.",
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
        penalty: L2 penalty of the linear head; None has it chosen by cross-validation.
        class_weights: "balanced" counts every class alike, "none" every image; "auto" balances when
            the largest class has at least 3 times the images of the smallest.
        seed: decides every random draw.
        data: which images are read.
        augment: how training views differ from the plain image, a key of `AUGMENTATIONS`.
        flip: mirror views left to right: "yes", "no", or "auto", which leaves it out where a probe
            takes mirrored images for other classes.
        views: augmented views an image that are cached (K), the plain one included.
        cached: train from activations on disk; False computes them anew in every epoch.
        batchnorm: "frozen" keeps the pre-trained statistics, "adapt" lets them move.
        minutes: how long the epochs may take, without the measuring of cuts and the computing of
            activations before them; decides the cut where that is "auto".
        tensorboard: also write the history as TensorBoard events.
        recipe: how to train by gradient; what is not given there is the strategy's own.
        runtime: on what networks run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Annotated[
        str,
        Option("Use the backbone in this way: {choices}.", STRATEGY, common=True),
    ] = "linear-probe"
    backbone: Annotated[
        str,
        Option("Take this network; headstart backbones lists all.", STRATEGY, common=True),
    ] = "tf_efficientnet_lite0"
    weights: Annotated[
        str | None,
        Option("Read the network's weights from this file (.safetensors, .pth).", STRATEGY),
    ] = None
    input_px: Annotated[
        int | None,
        Field(ge=16, le=2048),
        Option(
            "Show the network squares of this side, and not of its own size.",
            STRATEGY,
            unit="pixels",
        ),
    ] = None
    cut: Annotated[
        str | None,
        Option(
            "Have the head read, or the training begin, at this cut point (headstart layers "
            "lists them). A linear probe takes last, all, auto, or several with commas; a "
            "shallow probe and partial fine-tuning take auto or one.",
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
            "Give a linear head this L2 penalty, and not the one that cross-validation chooses.",
            STRATEGY,
        ),
    ] = None
    class_weights: Annotated[
        Literal["auto", "balanced", "none"],
        Option(
            "Count every class alike (balanced) or every image (none); auto looks at the "
            "imbalance.",
            STRATEGY,
        ),
    ] = "auto"
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63),
        Option("Make every random draw follow from this number.", STRATEGY),
    ] = 0
    data: DataSettings = DataSettings()
    augment: Annotated[
        str | None,
        Option(
            "Train on images that differ from the plain ones this much: none, light, medium "
            "or strong.",
            TRAINING,
        ),
    ] = None
    flip: Annotated[
        Literal["auto", "yes", "no"],
        Option("Mirror some views, {choices}; auto measures whether that does harm.", TRAINING),
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
            "Keep BatchNorm's statistics as they were (frozen), or let them move (adapt).", TRAINING
        ),
    ] = "frozen"
    minutes: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Option(
            "Choose a cut with which the epochs take at most this long; what comes before them, "
            "measuring the cuts and computing activations, is not counted.",
            TRAINING,
            unit="minutes",
        ),
    ] = None
    tensorboard: Annotated[bool, Option("Write TensorBoard events too.", TRAINING)] = False
    recipe: Recipe = Recipe()
    runtime: Runtime = Runtime()

    def given(self) -> dict[str, Any]:
        """{name: value} of what the user set."""
        return {n: v for n, v in self._flat().items() if n in self._names_given()}

    def describe(self, decisions: Decisions) -> dict[str, dict[str, Any]]:
        """{name: {"value": …, "origin": "user", "default" or "measured"}} of every setting.

        What a user left open has the value that was decided; null where nothing was.
        """
        given, result = self._names_given(), {}
        for name, value in self._flat().items():
            decision = decisions.settled.get(name)
            is_recipe = FIELDS[name].part == "recipe" and name not in given
            if decision is not None and (is_recipe or value is None or value == "auto"):
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
    """Where a setting is declared, and as what.

    Attributes:
        part: the field of `Settings` that holds it, "" for `Settings` itself.
        info: type, default and bounds.
        option: what people are told of it.
    """

    part: str
    info: FieldInfo
    option: Option


def _list_fields() -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for name, info in Settings.model_fields.items():
        inside = PARTS[name].model_fields if name in PARTS else {name: info}
        for own, field in inside.items():
            [option] = [m for m in field.metadata if isinstance(m, Option)]
            assert own not in found, f"two settings are named {own}"
            found[own] = Setting(name if name in PARTS else "", field, option)
    return found


# Every setting by the flat name that people know.
FIELDS: dict[str, Setting] = _list_fields()


# How pydantic names the ends of a range, and people do.
BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by name.

    Raises:
        UsageError: an unknown name, or a value out of range; says what is allowed.
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
        # A list where one value belongs is as long as it likes.
        shown = given if isinstance(given, str) else ascii(given)[:80]
        raise UsageError(f"{name} must be {say_wanted(name)}, got {shown!s}") from exc


def say_wanted(name: str) -> str:
    """What a setting takes, in words."""
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

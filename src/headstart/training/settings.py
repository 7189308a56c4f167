"""Takes options by name, gives `Settings`: everything that decides what `fit` does.

A setting is declared once, in the part that it belongs to: its name, type, bounds, default, and what
people are told of it. Outside, names are flat: `FIELDS` has them all. Here only types and bounds are
looked at; `strategies.table` refuses what has no effect on a strategy.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from headstart.choices import choose, nearest
from headstart.data.views import AUGMENTATIONS
from headstart.errors import UsageError
from headstart.features.runtime import Runtime
from headstart.options import Option
from headstart.training.decisions import Decisions
from headstart.training.heads import parse_head
from headstart.training.recipes import Recipe

__all__ = ["FIELDS", "DataSettings", "Setting", "Settings", "make_settings"]

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
            "The run is measured on this: a fraction of the training images (0.2), a folder or a "
            "manifest; 0 for none. By default on the data's val folder; else a linear head is measured "
            "by cross-validation, and what is trained by gradient on 0.2.",
            DATA,
            common=True,
        ),
    ] = None
    group: Annotated[
        str | None,
        Option(
            "Images in whose path this regular expression captures the same text stay on one side of a "
            "split: '([^/]+/[^/]+)_[^/]*$'.",
            DATA,
            common=True,
        ),
    ] = None
    root: Annotated[
        str | None,
        Option("A manifest's paths are relative to this folder; its own by default.", DATA),
    ] = None
    allow_outside: Annotated[
        bool, Option("Links and manifest paths may lead out of the folder.", DATA)
    ] = False
    max_bad: Annotated[
        float,
        Field(ge=0, le=1),
        Option("This fraction of the images may be unreadable; one always may.", DATA),
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
        minutes: how long the training may take; decides the cut where that is "auto".
        tensorboard: also write the history as TensorBoard events.
        recipe: how to train by gradient; what is not given there is the strategy's own.
        runtime: on what networks run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Annotated[
        str,
        Option(
            "The backbone is used like this: linear-probe, shallow-probe, partial-fine-tune, fine-tune "
            "or scratch.",
            STRATEGY,
            common=True,
        ),
    ] = "linear-probe"
    backbone: Annotated[
        str,
        Option(
            "This network sees the images; headstart backbones lists all.", STRATEGY, common=True
        ),
    ] = "tf_efficientnet_lite0"
    weights: Annotated[
        str | None, Option("The network's weights are in this file (.safetensors, .pth).", STRATEGY)
    ] = None
    input_px: Annotated[
        int | None,
        Field(ge=16, le=2048),
        Option(
            "The network sees squares of this side; of its own size by default.",
            STRATEGY,
            unit="pixels",
        ),
    ] = None
    cut: Annotated[
        str | None,
        Option(
            "The head reads at this cut point (linear-probe: last, all, auto, or names with commas; "
            "shallow-probe: auto or one), or the training begins there (partial-fine-tune: auto or one).",
            STRATEGY,
        ),
    ] = None
    freeze_until: Annotated[
        str | None,
        Option(
            "Everything before this layer, a name or index of headstart layers, stays as it is "
            "(partial-fine-tune).",
            STRATEGY,
        ),
    ] = None
    head: Annotated[
        str,
        Option(
            "The classifier is linear, or an MLP of these layers and dropouts: 1024, d0.5-480-d0.5.",
            STRATEGY,
            common=True,
        ),
    ] = "linear"
    penalty: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Option(
            "A linear head has this L2 penalty; cross-validation chooses it by default.", STRATEGY
        ),
    ] = None
    class_weights: Annotated[
        Literal["auto", "balanced", "none"],
        Option("Every class counts alike, or every image; auto looks at the imbalance.", STRATEGY),
    ] = "auto"
    seed: Annotated[
        int, Field(ge=0, lt=2**63), Option("Every random draw follows from this.", STRATEGY)
    ] = 0
    data: DataSettings = DataSettings()
    augment: Annotated[
        str | None,
        Option("Training images differ from the plain: none, light, medium or strong.", TRAINING),
    ] = None
    flip: Annotated[
        Literal["auto", "yes", "no"],
        Option("Some views are mirrored: yes, no, or auto by a measurement.", TRAINING),
    ] = "auto"
    views: Annotated[
        int | None,
        Field(ge=1, le=1000),
        Option("The disk keeps this many views of an image (partial-fine-tune).", TRAINING),
    ] = None
    cached: Annotated[
        bool,
        Option("The disk keeps activations, or every epoch computes them.", TRAINING),
    ] = True
    batchnorm: Annotated[
        Literal["frozen", "adapt"],
        Option("BatchNorm keeps its statistics (frozen) or lets them move (adapt).", TRAINING),
    ] = "frozen"
    minutes: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Option("The training may take this long, which decides the cut.", TRAINING, unit="minutes"),
    ] = None
    tensorboard: Annotated[bool, Option("TensorBoard events are written too.", TRAINING)] = False
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
        settings = Settings(**own)
    except ValidationError as exc:
        name = str(exc.errors()[0]["loc"][0])
        given = options[name]
        # A list where one value belongs is as long as it likes.
        shown = given if isinstance(given, str) else ascii(given)[:80]
        raise UsageError(f"{name} {_say_wanted(name)}, got {shown!s}") from exc
    if settings.augment is not None:
        choose("augment", settings.augment, AUGMENTATIONS)
    parse_head(settings.head)
    return settings


def _say_wanted(name: str) -> str:
    """What a setting takes, in words."""
    if name == "val":
        return "must be a fraction in [0, 1), or the path of a folder or manifest"
    field = FIELDS[name].info
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

"""Takes a trained head and its backbone, gives a `Classifier`: predict, save, load.

This file holds no training code. A saved classifier is a folder with config.json, model.safetensors and
headstart.json, which is written last and so marks the folder as complete. Where the classifier is one layer
on the last features of a whole network of timm, timm loads the folder too
(`timm.create_model("local-dir:FOLDER", pretrained=True)`); timm has no head on other features, no MLP and no
network cut short, so config.json then names no architecture.
"""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.arrays import FloatNC, FloatND
from headstart.data.decoding import INTERPOLATIONS, check_input_px
from headstart.errors import InputError, UsageError, one_line
from headstart.files import read_json, to_json_bytes
from headstart.networks.backbones import Backbone, backbone_of_state, load_backbone
from headstart.parallel import Progress, no_progress
from headstart.problem import MULTI_LABEL, PROBLEMS, SINGLE_LABEL, Problem, multi_label
from headstart.runs.folder import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_SEVERAL,
    KNOWLEDGE,
    MODEL,
    check_folder,
    recover,
    replace_run,
)
from headstart.runs.knowledge import NO_KNOWLEDGE, Knowledge, read_knowledge
from headstart.runs.prediction import ImageLike, Prediction, predict_once, read_runtime
from headstart.training.heads import Head, LinearHead, head_of_arrays
from headstart.training.outputs import START
from headstart.training.temperature import HIGHEST, LOWEST

__all__ = [
    "CARD",
    "PRETRAINED",
    "Card",
    "Classifier",
    "pretrained_classifier",
    "read_card",
]

HEAD_PREFIX = "headstart.head."
PRETRAINED = "pretrained:"  # before a network's name, instead of a run's folder


class Card(BaseModel):
    """headstart.json, which describes a classifier; strict, since it may come from anywhere."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    status: Literal["incomplete", "complete"]
    reads: Literal["images", "features"] = "images"
    classes: list[str] = Field(default_factory=list)
    names: list[str] = Field(default_factory=list)  # what people call them
    strategy: str = ""
    backbone: str = ""
    backbone_fingerprint: str = ""
    backbone_weights: str = ""
    licence: str = "unknown"
    cuts: list[str] = Field(default_factory=list)
    end: str = ""
    library: str = "timm"
    loads_in_timm: bool = True
    classifier: str = ""
    model_sha256: str = ""
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    problem: str = SINGLE_LABEL.name
    thresholds: list[float] = Field(
        default_factory=list
    )  # of the classes, where there may be several
    temperature: float = Field(default=1.0, ge=LOWEST, le=HIGHEST)
    novelty_cut: str = ""
    knowledge_sha256: str = ""  # "" where there is none


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained image classifier.

    Attributes:
        backbone: the frozen network with its pre-processing.
        head: reads the pooled features at `cuts`, side by side.
        cuts: the names of those cut points.
        classes: C class names, pinned: probability i belongs to class i.
        strategy: how it was trained.
        seed: of the training.
        names: readable names of the classes, in their order; () where the classes are readable.
        thresholds: of each class, the probability from which on an image is said to be of it; () where
            an image is of exactly one.
        temperature: by which the head's logits are divided, as they are in its weights already; 1 where
            nothing could be measured.
        knowledge: of its own limits.
    """

    backbone: Backbone
    head: Head
    cuts: tuple[str, ...]
    classes: tuple[str, ...]
    strategy: str
    seed: int = 0
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    temperature: float = 1.0
    knowledge: Knowledge = NO_KNOWLEDGE

    @property
    def problem(self) -> Problem:
        """The kind of problem, which reads probabilities by these thresholds."""
        return multi_label(np.array(self.thresholds)) if self.thresholds else SINGLE_LABEL

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        coverage: float | None = None,
        allow_outside: bool = False,
        progress: Progress = no_progress,
        **options: Any,
    ) -> Iterator[Prediction]:
        """Classify images; a `Predictor` is made for this call alone.

        Args:
            images, top, coverage, allow_outside, progress: as in `Predictor.predict`.
            **options: fields of `Runtime`. In fp32, the default here, images are decoded exactly and the
                probabilities are those of the network as timm runs it.

        Returns:
            One prediction an image, in order; an unreadable one has its reason in `error`.

        Raises:
            UsageError: an option is out of range, or something is no image.
            InputError: a folder holds no image.
            VerificationError: while iterating: the network's outputs are not finite.
        """
        runtime = read_runtime(options)
        asked = {"top": top, "coverage": coverage, "allow_outside": allow_outside}
        return predict_once(self, images, runtime, **asked, progress=progress)

    def __repr__(self) -> str:
        return f"Classifier({self.strategy} on {self.backbone.name}, {len(self.classes):,} classes)"

    def predict_proba(self, features: Mapping[str, FloatND]) -> FloatNC:
        """{cut point: float32 (N, D)} -> float32 (N, C); rows sum to one where an image is of one class."""
        parts = [features[cut] for cut in self.cuts]
        return self.head.predict_proba(parts[0] if len(parts) == 1 else np.concatenate(parts, 1))

    def loads_in_timm(self) -> bool:
        """Whether timm can load a saved folder."""
        return (
            self.backbone.library == "timm"
            and self.backbone.is_whole()
            and self.cuts == (self.backbone.cuts[-1].name,)
            and isinstance(self.head, LinearHead)
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the classifier to a folder; it replaces a run that is there.

        Raises:
            UsageError: the folder holds other files.
            OSError: out of disk or permission; what was there is untouched.
        """
        check_folder(Path(folder), overwrite=True)
        replace_run(Path(folder), self.files())

    def files(self) -> dict[str, bytes]:
        """Make the files that `load` reads, {name: content}."""
        state = dict(self.backbone.state)
        layer = self.backbone.classifier
        if self.loads_in_timm():
            weight, bias = self.head.layers[0]
            shape = (len(self.classes), *state[f"{layer}.weight"].shape[1:])
            state |= {f"{layer}.weight": weight.reshape(shape), f"{layer}.bias": bias}
        else:
            state |= {HEAD_PREFIX + k: v for k, v in self.head.arrays().items()}
        arrays = {k: np.asarray(v, order="C") for k, v in state.items()}  # scalars stay scalars
        model = save_arrays(arrays, metadata={"format": "pt"})
        known, novelty = self.knowledge.to_bytes(), self.knowledge.novelty
        card = Card(
            format=FORMAT_SEVERAL if self.thresholds else FORMAT,
            status="complete",
            classes=list(self.classes),
            names=list(self.names),
            strategy=self.strategy,
            backbone=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            backbone_weights=self.backbone.weights,
            licence=self.backbone.licence,
            cuts=list(self.cuts),
            end=self.backbone.cuts[-1].name,
            library=self.backbone.library,
            loads_in_timm=self.loads_in_timm(),
            classifier=layer,
            model_sha256=hashlib.sha256(model).hexdigest(),
            preprocessing=dataclasses.asdict(self.backbone.preprocessing),
            versions=find_versions(),
            seed=self.seed,
            problem=self.problem.name,
            thresholds=list(self.thresholds),
            temperature=self.temperature,
            novelty_cut="" if novelty is None else novelty.cut,
            knowledge_sha256=hashlib.sha256(known).hexdigest() if known else "",
        )
        several = set() if self.thresholds else {"problem", "thresholds"}
        return {
            MODEL: model,
            CONFIG: to_json_bytes(self._timm_config()),
            **({KNOWLEDGE: known} if known else {}),
            CARD: to_json_bytes(card.model_dump(exclude=several)),
        }

    def _timm_config(self) -> dict[str, Any]:
        names = (
            "input_size fixed_input_size interpolation crop_pct crop_mode mean std pool_size "
            "first_conv classifier license"
        ).split()
        config = {k: self.backbone.config[k] for k in names if k in self.backbone.config}
        return {
            **({"architecture": self.backbone.name} if self.loads_in_timm() else {}),
            "num_classes": len(self.classes),
            "num_features": self.head.width,
            "label_names": list(self.classes),
            "pretrained_cfg": {
                "tag": "headstart",
                "custom_load": False,
                "num_classes": len(self.classes),
                **config,
            },
        }

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
    ) -> "Classifier":
        """Read a saved classifier; no file in the folder can run code.

        Args:
            folder: of a run, or "pretrained:NAME" for a network with ImageNet's classes.
            cache_dir: the folder that caches facts about its network; `files.default_cache_dir()` by
                default.

        Raises:
            InputError: missing, incomplete, damaged, or written by a newer headstart.
            UsageError: there is no pre-trained network of that name.
        """
        if os.fspath(folder).startswith(PRETRAINED):
            name = os.fspath(folder).removeprefix(PRETRAINED)
            return pretrained_classifier(name, cache_dir=cache_dir)
        path = Path(folder)
        card = read_card(path)
        config = read_json(path / CONFIG)
        if not (path / MODEL).is_file():
            raise InputError(f"{path / MODEL}: missing, or not a regular file")
        try:
            model = (path / MODEL).read_bytes()
        except OSError as exc:
            raise InputError(f"{path / MODEL}: cannot be read: {exc.strerror}") from exc
        if hashlib.sha256(model).hexdigest() != card.model_sha256:
            raise InputError(
                f"{path / MODEL}: damaged (its checksum is not the one recorded); "
                "fit again or restore the file"
            )
        try:
            state = load_arrays(model)
            _check_finite(state)
            arrays = {k: state.pop(k) for k in [k for k in state if k.startswith(HEAD_PREFIX)]}
            backbone = backbone_of_state(
                card.backbone,
                state,
                _checked_config(config),
                classifier=card.classifier,
                weights=card.backbone_weights,
                end=card.end,
                cache_dir=None if cache_dir is None else Path(cache_dir),
            )
            if card.loads_in_timm:
                arrays = _classifier_arrays(state, card.classifier)
            head = head_of_arrays(
                {k.removeprefix(HEAD_PREFIX): v for k, v in arrays.items()}, PROBLEMS[card.problem]
            )
            cuts = tuple(backbone.cut(name).name for name in card.cuts)
            if head.classes != len(card.classes):
                raise ValueError(f"{head.classes} outputs for {len(card.classes)} classes")
            if card.loads_in_timm and cuts != (backbone.cuts[-1].name,):
                raise ValueError(f"its head cannot read features at '{cuts[0]}'")
            width = sum(backbone.cut(name).channels for name in cuts)
            if head.width != width:
                raise ValueError(f"its head reads {head.width} features and {width} are given")
        except (
            SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, AssertionError,
        ) as exc:  # fmt: skip
            raise InputError(
                f"{path}: not a classifier that can be loaded: {one_line(exc)}"
            ) from exc
        if backbone.fingerprint != card.backbone_fingerprint:
            raise InputError(
                f"{path / CONFIG}: its pre-processing is not the one recorded in "
                "headstart.json; fit again or restore the file"
            )
        return cls(
            backbone=backbone,
            head=head,
            cuts=cuts,
            classes=tuple(card.classes),
            strategy=card.strategy,
            seed=card.seed,
            names=tuple(card.names),
            thresholds=tuple(card.thresholds),
            temperature=card.temperature,
            knowledge=_read_knowledge(path, card, backbone),
        )


def _read_knowledge(path: Path, card: Card, backbone: Backbone) -> Knowledge:
    if not card.knowledge_sha256:  # an older headstart, or nothing was measured
        return NO_KNOWLEDGE
    width = 0
    if card.novelty_cut:
        try:
            width = backbone.cut(card.novelty_cut).channels
        except UsageError as exc:
            raise InputError(f"{path / CARD}: field 'novelty_cut': {exc}") from exc
    return read_knowledge(path / KNOWLEDGE, card.knowledge_sha256, card.novelty_cut, width)


def pretrained_classifier(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Classifier:
    """Load a network with the classifier it was published with: ImageNet's classes, synset ids with names.

    Args:
        name, weights, cache_dir: as in `load_backbone`.

    Raises:
        UsageError: no such network, or its classes are not known to be ImageNet's.
        InputError: the weights are missing or do not fit.
    """
    backbone = load_backbone(name, weights=weights, cache_dir=cache_dir)
    from headstart.networks.architectures import imagenet_classes

    weight = backbone.state[f"{backbone.classifier}.weight"]
    imagenet = imagenet_classes(len(weight))
    if imagenet is None or f"{backbone.classifier}.bias" not in backbone.state:
        raise UsageError(
            f"backbone '{name}' has {len(weight)} classes, which are not ImageNet's; "
            "train a classifier on it with headstart fit"
        )
    classes, names = imagenet
    head = LinearHead(
        weight.reshape(len(weight), -1), backbone.state[f"{backbone.classifier}.bias"]
    )
    cut = backbone.cuts[-1].name
    return Classifier(backbone, head, (cut,), classes, "pretrained", names=names)


def _check_finite(state: Mapping[str, np.ndarray]) -> None:
    for name, values in state.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"tensor '{name}' has NaN or infinite values")
        if name.endswith("running_var") and (values < 0).any():
            raise ValueError(f"tensor '{name}' has negative variances")


def _classifier_arrays(state: Mapping[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    """Turn the last layer of a network, dense or a 1 x 1 convolution, into the arrays of a linear head."""
    weight, bias = (state[f"{layer}.{name}"].astype(np.float32) for name in ("weight", "bias"))
    if weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(f"tensor '{layer}.weight' has the shape {weight.shape}")
    return {"weight": weight.reshape(weight.shape[:2]), "bias": bias}


def _checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check the pre-processing part of config.json, which may come from anywhere, against bounds."""
    settings = dict(config["pretrained_cfg"])
    _, height, width = (int(v) for v in settings["input_size"])
    for px in (height, width):
        check_input_px(px)
    if not 0.1 <= float(settings["crop_pct"]) <= 1:
        raise ValueError(f"crop_pct {settings['crop_pct']} is out of 0.1 to 1")
    if settings["interpolation"] not in INTERPOLATIONS:
        raise ValueError(f"interpolation '{settings['interpolation']}' is unknown")
    for name in ("mean", "std"):
        values = list(settings[name])
        if (
            len(values) != 3
            or not all(isinstance(v, int | float) for v in values)
            or not np.isfinite(values).all()
            or (name == "std" and min(values) <= 0)
        ):
            raise ValueError(f"{name} {values} is not three usable numbers")
    return settings


def read_card(path: Path, *, reads: Literal["images", "features"] | None = "images") -> Card:
    """Read the description of the classifier in a folder, without its tensors.

    Args:
        reads: what it has to take; None for either.

    Raises:
        InputError: missing, incomplete, damaged, written by a newer headstart, or of another kind.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such run; headstart fit DATA -o {path} makes one")
    recover(path)
    if not (path / CARD).exists():
        raise InputError(f"{path}: not a run of headstart (no headstart.json in it)")
    try:
        card = Card(**read_json(path / CARD))
    except (ValidationError, TypeError) as exc:
        raise InputError(f"{path / CARD}: not as headstart writes it") from exc
    if card.format > FORMAT_SEVERAL:
        raise InputError(
            f"{path}: written by a newer headstart (format {card.format}, this one reads up to "
            f"{FORMAT_SEVERAL}); upgrade headstart"
        )
    if card.status != "complete":
        started = (path / START).exists()
        again = (
            f"headstart fit --resume {path} goes on" if started else "fit again with the same -o"
        )
        raise InputError(f"{path}: incomplete, its fit did not end; {again}")
    if len(card.classes) < 2 or len(set(card.classes)) < len(card.classes):
        raise InputError(f"{path / CARD}: needs at least two different classes")
    if card.names and len(card.names) != len(card.classes):
        raise InputError(
            f"{path / CARD}: has {len(card.names)} names for {len(card.classes)} classes"
        )
    if reads not in (None, card.reads):
        raise InputError(
            f"{path}: a head on features from a file, without the network that images would go through; "
            "headstart fit IMAGES makes a classifier of images"
            if reads == "images"
            else f"{path}: a classifier of images; headstart fit --features FILE makes a head on features"
        )
    if card.problem not in PROBLEMS:
        raise InputError(f"{path / CARD}: problem '{card.problem}' is unknown; upgrade headstart")
    wanted = len(card.classes) if card.problem == MULTI_LABEL.name else 0
    if len(card.thresholds) != wanted or not all(0 < t < 1 for t in card.thresholds):
        raise InputError(
            f"{path / CARD}: needs {wanted} thresholds between 0 and 1, has {len(card.thresholds)}"
        )
    return card


def find_versions() -> dict[str, str]:
    """List the versions of the libraries that a result depends on."""
    names = (
        "headstart",
        "torch",
        "timm",
        "openvino",
        "numpy",
        "torchvision",
        "pillow",
        "simplejpeg",
    )
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}

"""Takes a trained head and its backbone, gives a `Classifier`: predict, save, load.

Place in the flow: after `strategies`; holds no training code. A saved classifier is a folder with
config.json, model.safetensors and headstart.json, which is written last and so marks the folder whole.
Where the classifier is one layer on the last features of a whole network of timm, timm loads the folder
too (`timm.create_model("local-dir:FOLDER", pretrained=True)`); a head on other features, an MLP, or a
network cut short is none of timm's, and config.json names no architecture then.
"""

import dataclasses
import hashlib
import json
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

from headstart.backbones import Backbone, backbone_of_state, load_backbone
from headstart.datasets import list_files
from headstart.engines import choose_engine, count_threads, make_engine
from headstart.errors import InputError, UsageError
from headstart.features import Progress, no_progress, run_images
from headstart.heads import Head, LinearHead, head_of_arrays
from headstart.images import INTERPOLATIONS, MAX_PIXELS
from headstart.store import write_atomically

__all__ = [
    "PRETRAINED",
    "START",
    "Classifier",
    "Prediction",
    "check_folder",
    "find_images",
    "mark_incomplete",
    "pretrained_classifier",
]

FORMAT = 2
CARD = "headstart.json"
START = "start.json"  # of a training that can be gone on with
HEAD_PREFIX = "headstart.head."
PRETRAINED = "pretrained:"  # before a network's name, in the place of a run's folder
MAX_JSON_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        image: as it was given.
        label: the most probable class, "" for an unreadable image.
        probability: of that class, in [0, 1]; NaN for an unreadable image.
        top: (class, probability) of the most probable classes, in falling order.
        error: why the image could not be read, "" for a good one.
        names: what people call the classes of `top`, in its order; () where they are the names.
    """

    image: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str = ""
    names: tuple[str, ...] = ()


class _Card(BaseModel):
    """headstart.json; strict, since it may come from anywhere."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    status: Literal["incomplete", "complete"]
    classes: list[str] = Field(default_factory=list)
    strategy: str = ""
    backbone: str = ""
    backbone_fingerprint: str = ""
    backbone_weights: str = ""
    licence: str = "unknown"
    cuts: list[str] = Field(default_factory=list)
    cut: str = ""  # of format 1
    end: str = ""
    library: str = "timm"
    loads_in_timm: bool = True
    classifier: str = ""
    model_sha256: str = ""
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0


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
        names: what people call the classes, in their order; () where the classes are names.
    """

    backbone: Backbone
    head: Head
    cuts: tuple[str, ...]
    classes: tuple[str, ...]
    strategy: str
    seed: int = 0
    names: tuple[str, ...] = ()

    def predict(
        self,
        images: Iterable[str | os.PathLike[str]],
        *,
        errors: Mapping[str, str] | None = None,
        top: int = 5,
        engine: str = "auto",
        precision: str = "fp32",
        device: str = "auto",
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress = no_progress,
    ) -> Iterator[Prediction]:
        """Classify image files.

        Args:
            images: paths; read as they are needed.
            errors: {path: reason} of those that must not be read.
            top: how many classes to list for each, at least 1.
            engine, precision, device, workers: as in `Settings`. In fp32, the default, images are
                decoded exactly and the probabilities are those of the network as timm runs it.

        Yields:
            One prediction an image, in order; an unreadable one has its reason in `error`.

        Raises:
            UsageError: an option is out of range.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, got {top}")
        names = [os.fspath(i) for i in images]
        choice = choose_engine(self.backbone, engine=engine, precision=precision, device=device)
        threads = min(count_threads(workers), max(1, len(names)))
        stream = run_images(
            ((errors or {}).get(n) or Path(n) for n in names),
            make_engine(self.backbone, choice, cuts=self.cuts, threads=threads),
            self.backbone.preprocessing,
            workers=threads,
            exact=choice.precision == "fp32",
            max_pixels=max_pixels,
        )
        progress("predict", 0, len(names))
        done = 0
        for readings, outputs in stream:
            probabilities = iter(self.predict_proba(outputs) if outputs else ())
            for reading in readings:
                name = names[done]
                done += 1
                if reading.error:
                    yield Prediction(name, "", float("nan"), (), reading.error)
                else:
                    yield self._prediction(name, next(probabilities), top)
            progress("predict", done, len(names))

    def predict_proba(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """{cut point: float32 (N, D)} -> float32 (N, C); rows sum to one."""
        parts = [features[cut] for cut in self.cuts]
        return self.head.predict_proba(parts[0] if len(parts) == 1 else np.concatenate(parts, 1))

    def loads_in_timm(self) -> bool:
        """Whether a saved folder is a model of timm's."""
        return (
            self.backbone.library == "timm"
            and self.backbone.is_whole()
            and self.cuts == (self.backbone.cuts[-1].name,)
            and isinstance(self.head, LinearHead)
        )

    def _prediction(self, image: str, probabilities: np.ndarray, top: int) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = tuple((self.classes[i], float(probabilities[i])) for i in order)
        names = tuple(self.names[i] for i in order) if self.names else ()
        return Prediction(image, best[0][0], best[0][1], best, names=names)

    def save(self, folder: Path) -> None:
        """Write the classifier; headstart.json last, so that a folder without it is not whole."""
        state = dict(self.backbone.state)
        layer = self.backbone.classifier
        if self.loads_in_timm():
            weight, bias = self.head.layers[0]
            shape = (len(self.classes), *state[f"{layer}.weight"].shape[1:])
            state |= {f"{layer}.weight": weight.reshape(shape), f"{layer}.bias": bias}
        else:
            state |= {HEAD_PREFIX + k: v for k, v in self.head.arrays().items()}
        arrays = {k: np.ascontiguousarray(v) for k, v in state.items()}
        model = save_arrays(arrays, metadata={"format": "pt"})
        write_atomically(folder / "model.safetensors", model)
        write_atomically(folder / "config.json", _to_json(self._timm_config()))
        card = _Card(
            format=FORMAT,
            status="complete",
            classes=list(self.classes),
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
        )
        write_atomically(folder / CARD, _to_json(card.model_dump()))

    def _timm_config(self) -> dict[str, Any]:
        kept = (
            "input_size fixed_input_size interpolation crop_pct crop_mode mean std pool_size "
            "first_conv classifier license"
        ).split()
        config = {k: self.backbone.config[k] for k in kept if k in self.backbone.config}
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
    def load(cls, folder: str | os.PathLike[str]) -> "Classifier":
        """Read a saved classifier; nothing in the folder can run code.

        Args:
            folder: of a run, or "pretrained:NAME" for a network that knows ImageNet's classes.

        Raises:
            InputError: missing, incomplete, damaged, or written by a newer headstart.
        """
        if os.fspath(folder).startswith(PRETRAINED):
            return pretrained_classifier(os.fspath(folder).removeprefix(PRETRAINED))
        path = Path(folder)
        card = _read_card(path)
        config = _read_json(path / "config.json")
        if not (path / "model.safetensors").is_file():
            raise InputError(f"{path / 'model.safetensors'}: missing, or not a regular file")
        try:
            model = (path / "model.safetensors").read_bytes()
        except OSError as exc:
            raise InputError(
                f"{path / 'model.safetensors'}: cannot be read: {exc.strerror}"
            ) from exc
        if hashlib.sha256(model).hexdigest() != card.model_sha256:
            raise InputError(
                f"{path / 'model.safetensors'}: damaged (its checksum is not the one recorded); "
                "fit again or restore the file"
            )
        try:
            state = load_arrays(model)
            arrays = {k: state.pop(k) for k in [k for k in state if k.startswith(HEAD_PREFIX)]}
            backbone = backbone_of_state(
                card.backbone,
                state,
                _checked_config(config),
                classifier=card.classifier,
                weights=card.backbone_weights,
                end=card.end or card.cut,
            )
            head: Head
            if card.loads_in_timm:
                weight = state[f"{card.classifier}.weight"].astype(np.float32)
                bias = state[f"{card.classifier}.bias"].astype(np.float32)
                head = LinearHead(weight.reshape(len(weight), -1), bias)
            else:
                head = head_of_arrays({k.removeprefix(HEAD_PREFIX): v for k, v in arrays.items()})
            cuts = tuple(backbone.cut(name).name for name in (card.cuts or [card.cut]))
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
            reason = " ".join(str(exc).split())[:200]
            raise InputError(f"{path}: not a classifier that can be loaded: {reason}") from exc
        if backbone.fingerprint != card.backbone_fingerprint:
            raise InputError(
                f"{path / 'config.json'}: its pre-processing is not the one recorded in "
                "headstart.json; fit again or restore the file"
            )
        return cls(
            backbone=backbone,
            head=head,
            cuts=cuts,
            classes=tuple(card.classes),
            strategy=card.strategy,
            seed=card.seed,
        )


def pretrained_classifier(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Classifier:
    """The classifier that a network was published with: ImageNet's classes, as synset ids with names.

    Args:
        name, weights, cache_dir: as `load_backbone` takes them.

    Raises:
        UsageError: no such network, or its classes are not known to be ImageNet's.
        InputError: the weights are missing or do not fit.
    """
    backbone = load_backbone(name, weights=weights, cache_dir=cache_dir)
    from headstart.architectures import imagenet_classes

    weight = backbone.state[f"{backbone.classifier}.weight"]
    known = imagenet_classes(len(weight))
    if known is None or f"{backbone.classifier}.bias" not in backbone.state:
        raise UsageError(
            f"backbone '{name}' has {len(weight)} classes, which are not ImageNet's; "
            "train a classifier on it with headstart fit"
        )
    classes, names = known
    head = LinearHead(
        weight.reshape(len(weight), -1), backbone.state[f"{backbone.classifier}.bias"]
    )
    cut = backbone.cuts[-1].name
    return Classifier(backbone, head, (cut,), classes, "pretrained", names=names)


def _checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """The pre-processing part of config.json, within bounds that a file from anywhere must keep."""
    settings = dict(config["pretrained_cfg"])
    _, height, width = (int(v) for v in settings["input_size"])
    if not (16 <= height <= 2048 and 16 <= width <= 2048):
        raise ValueError(f"input_size {height} x {width} is out of 16 to 2048")
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


def check_folder(folder: Path, *, overwrite: bool) -> bool:
    """Whether a complete run is in the folder, and may be replaced.

    Raises:
        UsageError: the folder holds a complete run that may not, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file of this name exists; choose another folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / CARD).is_file():
        raise UsageError(f"{folder}: holds other files; choose an empty or new folder")
    complete = _read_status(folder) != "incomplete"
    if complete and not overwrite:
        raise UsageError(f"{folder}: holds a run already; choose another, or --overwrite")
    return complete


def mark_incomplete(folder: Path) -> None:
    """Make the folder and have it say that it holds no whole run, until `save` has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CARD, _to_json({"format": FORMAT, "status": "incomplete"}))


def _read_status(folder: Path) -> str:
    try:
        return str(_read_json(folder / CARD).get("status"))
    except InputError:
        return "unknown"


def _read_card(path: Path) -> _Card:
    if not path.is_dir():
        raise InputError(f"{path}: no such run; headstart fit DATA -o {path} makes one")
    if not (path / CARD).exists():
        raise InputError(f"{path}: not a run of headstart (no headstart.json in it)")
    try:
        card = _Card(**_read_json(path / CARD))
    except (ValidationError, TypeError) as exc:
        raise InputError(f"{path / 'headstart.json'}: not as headstart writes it") from exc
    if card.format > FORMAT:
        raise InputError(
            f"{path}: written by a newer headstart (format {card.format}, this one reads up to "
            f"{FORMAT}); upgrade headstart"
        )
    if card.status != "complete":
        started = (path / START).exists()
        again = (
            f"headstart fit --resume {path} goes on" if started else "fit again with the same -o"
        )
        raise InputError(f"{path}: incomplete, its fit did not end; {again}")
    if len(card.classes) < 2 or len(set(card.classes)) < len(card.classes):
        raise InputError(f"{path / 'headstart.json'}: needs at least two different classes")
    return card


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: missing, or not a regular file")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_bytes())
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not JSON") from exc
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def find_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
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


def find_images(
    sources: Iterable[str | os.PathLike[str]], *, allow_outside: bool = False
) -> list[tuple[str, str]]:
    """Files as given and, for folders, every image file below them: (name, why not to read it or "").

    Raises:
        InputError: a folder holds no image, or there is nothing at all.
    """
    found: list[tuple[str, str]] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = list(list_files(path, allow_outside=allow_outside))
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            found += [(str(path / name), reason) for name, reason in inside]
        else:
            found.append((os.fspath(source), ""))
    if not found:
        raise InputError("no images given; name files or folders, or - to read names from stdin")
    return found

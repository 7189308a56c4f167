"""Takes a trained head and its backbone, gives a `Classifier`: predict, save, load.

Holds no training code. A saved classifier is a folder with config.json, model.safetensors and
headstart.json, which is written last and so marks the folder whole. Where the classifier is one layer on
the last features of a whole network of timm, timm loads the folder too (`timm.create_model("local-
dir:FOLDER", pretrained=True)`); a head on other features, an MLP, or a network cut short is none of
timm's, and config.json names no architecture then.
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
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.data.decoding import INTERPOLATIONS, MAX_PIXELS, PillowSource
from headstart.data.folders import list_files
from headstart.data.images import FileSource, ImageRef, MemorySource
from headstart.errors import InputError, UsageError, VerificationError
from headstart.features.engines import choose_engine, start_engine
from headstart.features.reading import run_images
from headstart.features.runtime import Runtime, make_runtime
from headstart.files import read_json, to_json_bytes
from headstart.networks.backbones import Backbone, backbone_of_state, load_backbone
from headstart.parallel import PREPARING, READING, Progress, no_progress
from headstart.runs.folder import CARD, CONFIG, FORMAT, MODEL, check_folder, recover, replace_run
from headstart.training.heads import Head, LinearHead, head_of_arrays
from headstart.training.outputs import START

__all__ = [
    "CARD",
    "PRETRAINED",
    "Card",
    "Classifier",
    "ImageLike",
    "Prediction",
    "list_images",
    "pretrained_classifier",
    "read_card",
]

HEAD_PREFIX = "headstart.head."
PRETRAINED = "pretrained:"  # before a network's name, in the place of a run's folder


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        image: the path, or "image 3" for the third of those given where it is none.
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


class Card(BaseModel):
    """headstart.json: what a classifier is; strict, since it may come from anywhere."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    status: Literal["incomplete", "complete"]
    classes: list[str] = Field(default_factory=list)
    names: list[str] = Field(default_factory=list)  # what people call them
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
        images: "ImageLike | Iterable[ImageLike]",
        *,
        allow_outside: bool = False,
        top: int = 5,
        engine: str = "auto",
        precision: str = "fp32",
        device: str = "auto",
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress = no_progress,
    ) -> Iterator[Prediction]:
        """Classify images.

        Args:
            images: one or many, of any of these kinds: the path of a file or of a folder of files, the
                bytes of a file, a uint8 array (H, W, 3) in the order R, G, B, an image of Pillow's.
                Files are read as they are needed.
            allow_outside: follow links in a folder that lead out of it.
            top: how many classes to list for each, at least 1.
            engine, precision, device, workers: as in `Settings`. In fp32, the default, images are
                decoded exactly and the probabilities are those of the network as timm runs it.
            max_pixels: an image with more is unreadable.

        Returns:
            One prediction an image, in order; an unreadable one has its reason in `error`.

        Raises:
            UsageError: an option is out of range, or something is none of these kinds.
            InputError: a folder holds no image.
            VerificationError: on the way, the network gives something that is no number.
        """
        if not isinstance(top, int) or top < 1:
            raise UsageError(f"top must be a whole number of at least 1, got {top!r}")
        found = _refer(list_images(images), allow_outside, max_pixels)
        runtime = make_runtime(
            engine=engine,
            precision=precision,
            device=device,
            workers=workers,
            max_pixels=max_pixels,
        )
        few = max(1, min(runtime.threads, len(found)))
        runtime = runtime.model_copy(update={"workers": few})
        choose_engine(self.backbone, runtime)  # what cannot be is refused at the call
        return self._stream(found, runtime, top, progress)

    def _stream(
        self, found: list[ImageRef], runtime: Runtime, top: int, progress: Progress
    ) -> Iterator[Prediction]:
        progress(PREPARING, 0, 0)
        engine, choice = start_engine(self.backbone, runtime, cuts=self.cuts)
        stream = run_images(
            found,
            engine,
            self.backbone.preprocessing,
            runtime,
            exact=choice.precision == "fp32",
        )
        progress(READING, 0, len(found))
        advice = "fit again" if choice.precision == "fp32" else "use --precision fp32"
        done = 0
        for readings, outputs in stream:
            for cut, values in outputs.items():
                if not np.isfinite(values).all():
                    raise VerificationError(
                        f"the network gives NaN or infinite features at {cut}; {advice}"
                    )
            probabilities = iter(self.predict_proba(outputs) if outputs else ())
            for reading in readings:
                name = found[done].id
                done += 1
                if reading.error:
                    yield Prediction(name, "", float("nan"), (), reading.error)
                else:
                    yield self._prediction(name, next(probabilities), top)
            progress(READING, done, len(found))

    def __repr__(self) -> str:
        return f"Classifier({self.strategy} on {self.backbone.name}, {len(self.classes):,} classes)"

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

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the classifier to a folder, in the place of the run that may be there.

        Raises:
            UsageError: the folder holds other files.
            OSError: out of disk or permission; what was there is untouched.
        """
        check_folder(Path(folder), overwrite=True)
        replace_run(Path(folder), self.files())

    def files(self) -> dict[str, bytes]:
        """{name: content} of the files that `load` reads."""
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
        card = Card(
            format=FORMAT,
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
        )
        return {
            MODEL: model,
            CONFIG: to_json_bytes(self._timm_config()),
            CARD: to_json_bytes(card.model_dump()),
        }

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
    def load(
        cls, folder: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
    ) -> "Classifier":
        """Read a saved classifier; nothing in the folder can run code.

        Args:
            folder: of a run, or "pretrained:NAME" for a network that knows ImageNet's classes.
            cache_dir: where what was found of its network is kept; `files.default_cache_dir()` by
                default.

        Raises:
            InputError: missing, incomplete, damaged, or written by a newer headstart.
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
                end=card.end or card.cut,
                cache_dir=None if cache_dir is None else Path(cache_dir),
            )
            if card.loads_in_timm:
                arrays = _classifier_arrays(state, card.classifier)
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
    from headstart.networks.architectures import imagenet_classes

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


def _check_finite(state: Mapping[str, np.ndarray]) -> None:
    for name, values in state.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"tensor '{name}' has NaN or infinite values")
        if name.endswith("running_var") and (values < 0).any():
            raise ValueError(f"tensor '{name}' has negative variances")


def _classifier_arrays(state: Mapping[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    """The last layer of a network, dense or a convolution of 1 x 1, as those of a linear head."""
    weight, bias = (state[f"{layer}.{name}"].astype(np.float32) for name in ("weight", "bias"))
    if weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(f"tensor '{layer}.weight' has the shape {weight.shape}")
    return {"weight": weight.reshape(weight.shape[:2]), "bias": bias}


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


def read_card(path: Path) -> Card:
    """What the classifier in a folder is, without reading it.

    Raises:
        InputError: missing, incomplete, damaged, or written by a newer headstart.
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
        raise InputError(f"{path / CARD}: needs at least two different classes")
    if card.names and len(card.names) != len(card.classes):
        raise InputError(
            f"{path / CARD}: has {len(card.names)} names for {len(card.classes)} classes"
        )
    return card


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


# What `predict` takes: a path, the bytes of a file, uint8 (H, W, 3), or an image of Pillow's.
ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def list_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """One or many images as a list, each of a kind that can be read.

    Raises:
        UsageError: one is of another kind; says which, and what it is.
    """
    one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    # An array of text or objects holds paths.
    if one or (
        isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind not in "UO"
    ):
        return [_check_image(images, "the image")]
    if not isinstance(images, Iterable):
        return [_check_image(images, "the image")]
    many: Iterable[Any] = images
    return [_check_image(image, f"image {n}") for n, image in enumerate(many, 1)]


def _check_image(image: Any, name: str) -> ImageLike:
    if isinstance(image, str | os.PathLike):
        if os.fspath(image) == "":
            raise UsageError(f"{name} is an empty name; give the path of a file or folder")
        return os.fspath(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UsageError(
                f"{name} is an array of {image.dtype} {image.shape}; give uint8 (height, width, 3)"
            )
        return image
    if isinstance(image, Image.Image):
        return image
    raise UsageError(
        f"{name} is of type {type(image).__name__}; give a path, bytes, a uint8 array "
        "(height, width, 3), an image of Pillow's, or several of these"
    )


def _refer(images: list[ImageLike], allow_outside: bool, max_pixels: int) -> list[ImageRef]:
    """Each image, and for folders every image file below them.

    Raises:
        InputError: a folder holds no image.
    """
    found: list[ImageRef] = []
    for number, image in enumerate(images, 1):
        if isinstance(image, str | os.PathLike):
            path = Path(image)
            if not path.is_dir():
                found.append(ImageRef(os.fspath(image), FileSource(path)))
                continue
            inside = list(list_files(path, allow_outside=allow_outside))
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            found += [ImageRef(str(path / n), FileSource(path / n), why) for n, why in inside]
        elif isinstance(image, bytes):
            found.append(ImageRef(f"image {number}", MemorySource(image)))
        else:
            pixels = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            found.append(ImageRef(f"image {number}", PillowSource(pixels, max_pixels)))
    return found

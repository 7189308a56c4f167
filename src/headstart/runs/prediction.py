"""Takes images and a network with its head, gives probabilities: the one way from pixels to what is in them.

A `Pipeline` makes its engine once and keeps it, and its threads, for as many images as come. Every
engine works in micro-batches of one size, the last one padded, so what is said of an image does not depend on
which others it came with. Shape letters: N images, C classes, D features, H W pixels.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from headstart.choices import nearest
from headstart.data.decoding import PillowSource
from headstart.data.folders import list_files
from headstart.data.images import FileSource, ImageRef, MemorySource
from headstart.errors import InputError, UsageError, VerificationError
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engines import choose_engine, make_engine, use_engine
from headstart.features.reading import run_images
from headstart.features.runtime import Runtime, make_runtime
from headstart.networks.backbones import Backbone
from headstart.parallel import PREPARING, READING, Progress, no_progress

__all__ = [
    "EXACT",
    "ImageLike",
    "Model",
    "Pipeline",
    "Prediction",
    "list_images",
    "predict_once",
    "read_runtime",
]

# A path, the bytes of a file, uint8 (H, W, 3), or an image of Pillow's.
ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image

# Images are decoded exactly, and probabilities are those of the network as timm runs it.
EXACT = Runtime(precision="fp32")

# (the image's name, why it could not be read or "", float32 (C,) or None)
_Answer = tuple[str, str, np.ndarray | None]

Self = TypeVar("Self", bound="Pipeline")


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


class Model(Protocol):
    """What a pipeline runs: a network, and a head on its features; a `Classifier` is one."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def cuts(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...

    def predict_proba(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """{cut point: float32 (N, D)} -> float32 (N, C); rows sum to one."""
        ...


def read_runtime(options: Mapping[str, Any]) -> Runtime:
    """The `Runtime` of options by name, for what predicts.

    Raises:
        UsageError: an unknown name, or a value that is out of range.
    """
    known = [name for name in Runtime.model_fields if name != "rehash"]
    for name in options:
        if name not in known:
            raise UsageError(
                f"option '{name}' is unknown{nearest(name, known)}; known: top, allow_outside, "
                f"progress, {', '.join(known)}"
            )
    return make_runtime(**options)


class Pipeline:
    """Images to probabilities, with an engine that is made once and kept open.

    May be called from several threads at once, which share the engine and its threads. Close it, or use it
    as a context manager, to let go of both.

    Attributes:
        model: the network and its head.
        runtime: on what it runs.
    """

    def __init__(self, model: Model, runtime: Runtime) -> None:
        if runtime.rehash:
            raise UsageError("setting 'rehash' has no effect on predict; leave it out")
        if "precision" not in runtime.model_fields_set:
            runtime = runtime.model_copy(update={"precision": EXACT.precision})
        self.model, self.runtime = model, runtime
        choose_engine(model.backbone, runtime)  # what cannot be is told before the first image
        self._lock = threading.Lock()
        self._started: tuple[Engine, EngineChoice, ThreadPoolExecutor] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def start(self) -> None:
        """Make the engine now, which takes seconds where it was never compiled; else the first image does.

        Raises:
            UsageError: it has been closed, or the engine cannot take the network.
            ResourceError: out of disk, memory or permission.
        """
        self._start()

    def _start(self) -> tuple[Engine, EngineChoice, ThreadPoolExecutor]:
        with self._lock:
            if self._is_closed:
                raise UsageError("the predictor is closed; make another")
            if self._started is None:
                model = self.model
                engine = _start_engine(model.backbone, self.runtime, model.cuts)
                pool = ThreadPoolExecutor(self.runtime.threads, thread_name_prefix="headstart")
                self._started = (*engine, pool)
            return self._started

    def close(self) -> None:
        """Let go of the engine and the threads; what is being predicted comes to its end first."""
        with self._lock:
            started, self._started, self._is_closed = self._started, None, True
        if started is not None:
            started[2].shutdown(wait=True)

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        allow_outside: bool = False,
        progress: Progress = no_progress,
    ) -> Iterator[Prediction]:
        """Say what is in images.

        Args:
            images: one or many, of any of these kinds: the path of a file or of a folder of files, the
                bytes of a file, a uint8 array (H, W, 3) in the order R, G, B, an image of Pillow's.
                Files are read as they are needed.
            top: how many classes to list for each, at least 1.
            allow_outside: follow links in a folder that lead out of it.
            progress: told how far the work is.

        Returns:
            One prediction an image, in order; an unreadable one has its reason in `error`.

        Raises:
            UsageError: `top` is out of range, something is none of these kinds, or it has been closed.
            InputError: a folder holds no image.
            VerificationError: on the way, the network gives something that is no number.
        """
        if not isinstance(top, int) or isinstance(top, bool) or top < 1:
            raise UsageError(f"top must be a whole number of at least 1, got {top!r}")
        found = _refer(list_images(images), allow_outside, self.runtime.max_pixels)
        return self._name(self._answer(found, progress), top)

    def predict_proba(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        allow_outside: bool = False,
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """float32 (N, C): the probabilities of every class, in the model's order, of N images.

        Args:
            images, allow_outside, progress: as `predict`.

        Returns:
            Rows that sum to one; of unreadable images, rows of NaN. `predict` says why.

        Raises:
            UsageError, InputError, VerificationError: as `predict`.
        """
        found = _refer(list_images(images), allow_outside, self.runtime.max_pixels)
        result = np.full((len(found), len(self.model.classes)), np.nan, dtype=np.float32)
        for row, (_, _, probabilities) in enumerate(self._answer(found, progress)):
            if probabilities is not None:
                result[row] = probabilities
        return result

    def _answer(self, found: list[ImageRef], progress: Progress) -> Iterator[_Answer]:
        with self._lock:
            if self._is_closed:
                raise UsageError("the predictor is closed; make another")
        return self._stream(found, progress)

    def _stream(self, found: list[ImageRef], progress: Progress) -> Iterator[_Answer]:
        if not found:
            return
        progress(PREPARING, 0, 0)
        engine, choice, pool = self._start()
        progress(READING, 0, len(found))
        advice = "fit again" if choice.precision == "fp32" else "use --precision fp32"
        stream = run_images(
            found,
            engine,
            self.model.backbone.preprocessing,
            self.runtime,
            exact=choice.precision == "fp32",
            pool=pool,
        )
        done = 0
        with contextlib.closing(stream):
            for readings, outputs in stream:
                for cut, values in outputs.items():
                    if not np.isfinite(values).all():
                        raise VerificationError(
                            f"the network gives NaN or infinite features at {cut}; {advice}"
                        )
                rows = iter(self.model.predict_proba(outputs) if outputs else ())
                for reading in readings:
                    name = found[done].id
                    done += 1
                    yield (name, reading.error, None if reading.error else next(rows))
                progress(READING, done, len(found))

    def _name(self, answers: Iterator[_Answer], top: int) -> Iterator[Prediction]:
        classes, names = self.model.classes, self.model.names
        for image, error, probabilities in answers:
            if probabilities is None:
                yield Prediction(image, "", float("nan"), (), error)
                continue
            order = np.argsort(-probabilities, kind="stable")[:top]
            best = tuple((classes[i], float(probabilities[i])) for i in order)
            called = tuple(names[i] for i in order) if names else ()
            yield Prediction(image, best[0][0], best[0][1], best, names=called)


def predict_once(
    model: Model,
    images: ImageLike | Iterable[ImageLike],
    runtime: Runtime,
    *,
    top: int,
    allow_outside: bool,
    progress: Progress,
) -> Iterator[Prediction]:
    """As `Pipeline.predict`, of a pipeline that serves these images alone."""
    given = list_images(images)
    if not any(isinstance(i, str | os.PathLike) and Path(i).is_dir() for i in given):
        # An engine of fewer threads gives each of them more of the processor.
        few = max(1, min(runtime.threads, len(given)))
        runtime = runtime.model_copy(update={"workers": few})
    pipeline = Pipeline(model, runtime)
    predictions = pipeline.predict(given, top=top, allow_outside=allow_outside, progress=progress)

    def stream() -> Iterator[Prediction]:
        with contextlib.closing(pipeline):
            yield from predictions

    return stream()


def _start_engine(
    backbone: Backbone, runtime: Runtime, cuts: tuple[str, ...]
) -> tuple[Engine, EngineChoice]:
    """A running engine, and which it is; on a processor of one image at a time.

    Who asks of one image waits for it, and in a micro-batch of four it takes twice the processor's time (68
    against 32 ms with EfficientNet-Lite0 in OpenVINO); many images take a tenth more in ones.
    """

    def start(choice: EngineChoice) -> tuple[Engine, EngineChoice]:
        if choice.device == "cpu":
            choice = dataclasses.replace(choice, micro_batch=1)
        return make_engine(backbone, choice, runtime, cuts=cuts), choice

    return use_engine(backbone, runtime, start)


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

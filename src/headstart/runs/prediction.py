"""Takes images and a network with its head, gives probabilities: the one way from pixels to classes.

A `Pipeline` makes its engine and threads once and keeps them for all the images that follow. Every
engine works in micro-batches of one size, the last one padded, so the prediction for an image does not
depend on the other images. Shape letters: N images, C classes, D features, H W pixels.
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

from headstart.arrays import FloatC, FloatNC, FloatND, PixelsHW3
from headstart.choices import nearest
from headstart.data.decoding import PillowSource
from headstart.data.folders import list_files
from headstart.data.images import FileSource, ImageRef, MemorySource
from headstart.errors import InputError, UsageError, VerificationError
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engines import choose_engine, make_engine, use_engine
from headstart.features.reading import run_images
from headstart.features.runtime import Runtime, make_runtime
from headstart.label_metrics import give_labels
from headstart.networks.backbones import Backbone
from headstart.parallel import PREPARING, READING, Progress, T, no_progress
from headstart.runs.knowledge import Knowledge
from headstart.training.novelty import NOVEL

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

# A path, the bytes of a file, uint8 (H, W, 3), or a Pillow image.
ImageLike = str | os.PathLike[str] | bytes | PixelsHW3 | Image.Image

# Images are decoded exactly, and probabilities are those of the network as timm runs it.
EXACT = Runtime(precision="fp32")

CLOSED = "the predictor is closed; make another"

# (the image's name, why it could not be read or "", float32 (C,) or None, its novelty or None)
_Answer = tuple[str, str, FloatC | None, float | None]

Self = TypeVar("Self", bound="Pipeline")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one image.

    Attributes:
        image: the path, or "image 3" for the third image where it has no path.
        label: the most probable class, "" for an unreadable image; where an image may have several labels,
            those of `labels` joined by "|", "" for none.
        probability: of the most probable class, in [0, 1]; NaN for an unreadable image.
        top: (class, probability) of the most probable classes, in descending order.
        error: why the image could not be read, "" for a good one.
        names: readable names of the classes of `top`, in its order; () where the classes are readable.
        labels: where an image may have several labels, (label, probability) of those whose probability is at
            least their threshold, in descending order; None where an image has exactly one.
        set: (class, probability) of the classes in the prediction set of the coverage that was asked for, in
            descending order, at least one; None where none was asked for, and () for an unreadable image.
        novelty: the share in (0, 1] of known images that are at least as unlike the others as this one is;
            None where the classifier does not know, and for an unreadable image.
    """

    image: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str = ""
    names: tuple[str, ...] = ()
    labels: tuple[tuple[str, float], ...] | None = None
    set: tuple[tuple[str, float], ...] | None = None
    novelty: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the image is like those that the classifier knows; if not, it is of none of the classes."""
        return self.novelty is None or self.novelty > NOVEL


class Model(Protocol):
    """A network and a head on its features, as a pipeline needs them; a `Classifier` is one."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def cuts(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of each class, where an image may be of several; ()."""
        ...

    @property
    def knowledge(self) -> Knowledge: ...

    def predict_proba(self, features: Mapping[str, FloatND]) -> FloatNC:
        """{cut point: float32 (N, D)} -> float32 (N, C); rows sum to one where an image is of one class."""
        ...


def read_runtime(options: Mapping[str, Any]) -> Runtime:
    """Make the `Runtime` of a prediction from options by name.

    Raises:
        UsageError: an unknown name, or a value that is out of range.
    """
    known = [name for name in Runtime.model_fields if name != "rehash"]
    for name in options:
        if name not in known:
            raise UsageError(
                f"option '{name}' is unknown{nearest(name, known)}; known: top, coverage, "
                f"allow_outside, progress, {', '.join(known)}"
            )
    return make_runtime(**options)


class Pipeline:
    """Images to probabilities, with an engine that is made once and kept open.

    Several threads may call it at once; they share the engine and its threads. Close it, or use it as a
    context manager, to free both.

    Attributes:
        model: the network and its head.
        runtime: the engine, precision, device and threads it runs with.
    """

    def __init__(self, model: Model, runtime: Runtime) -> None:
        if runtime.rehash:
            raise UsageError("setting 'rehash' has no effect on predict; leave it out")
        if "precision" not in runtime.model_fields_set:
            runtime = runtime.model_copy(update={"precision": EXACT.precision})
        self.model, self.runtime = model, runtime
        choose_engine(model.backbone, runtime)  # raises before the first image if it cannot run
        self._lock = threading.Lock()
        self._started: tuple[Engine, EngineChoice, ThreadPoolExecutor] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def start(self) -> None:
        """Make the engine now, which takes seconds if it was never compiled; else the first image makes it.

        Raises:
            UsageError: it has been closed, or the engine cannot take the network.
            ResourceError: out of disk, memory or permission.
        """
        self._start()

    def _start(self) -> tuple[Engine, EngineChoice, ThreadPoolExecutor]:
        with self._lock:
            if self._is_closed:
                raise UsageError(CLOSED)
            if self._started is None:
                model = self.model
                novelty = model.knowledge.novelty
                cuts = (*model.cuts, *([] if novelty is None else [novelty.cut]))
                engine = _start_engine(model.backbone, self.runtime, tuple(dict.fromkeys(cuts)))
                pool = ThreadPoolExecutor(self.runtime.threads, thread_name_prefix="headstart")
                self._started = (*engine, pool)
            return self._started

    def close(self) -> None:
        """Free the engine and the threads, once the images that are being read are done.

        A prediction that has not ended raises UsageError where it would go on.
        """
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
        coverage: float | None = None,
        allow_outside: bool = False,
        progress: Progress = no_progress,
    ) -> Iterator[Prediction]:
        """Classify images.

        Args:
            images: one or many, of any of these kinds: the path of a file or of a folder of files, the
                bytes of a file, a uint8 array (H, W, 3) in the order R, G, B, a Pillow image.
                Files are read as they are needed.
            top: how many classes to list for each, at least 1.
            coverage: in (0, 1): also give each image a set of classes, such that this share of images like
                those that the classifier was measured on have theirs in it.
            allow_outside: follow links in a folder that lead out of it.
            progress: called with how far the work is.

        Returns:
            One prediction an image, in order; an unreadable one has its reason in `error`.

        Raises:
            UsageError: `top` is out of range, something is none of these kinds, it has been closed, or
                there are no sets of that coverage.
            InputError: a folder holds no image.
            VerificationError: while iterating: the network's outputs are not finite.
        """
        if not isinstance(top, int) or isinstance(top, bool) or top < 1:
            raise UsageError(f"top must be a whole number of at least 1, got {top!r}")
        if coverage is not None:
            self.model.knowledge.check_coverage(coverage)
        refs = _refer(list_images(images), allow_outside, self.runtime.max_pixels)
        return self._name(self._answer(refs, progress), top, coverage)

    def predict_proba(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        allow_outside: bool = False,
        progress: Progress = no_progress,
    ) -> FloatNC:
        """Give the probabilities of every class, in the model's order, of N images: float32 (N, C).

        Args:
            images, allow_outside, progress: as in `predict`.

        Returns:
            Rows that sum to one where an image is of one class; rows of NaN for unreadable images, whose
            reasons `predict` gives.

        Raises:
            UsageError, InputError, VerificationError: as `predict`.
        """
        refs = _refer(list_images(images), allow_outside, self.runtime.max_pixels)
        result = np.full((len(refs), len(self.model.classes)), np.nan, dtype=np.float32)
        for row, (_, _, probabilities, _) in enumerate(self._answer(refs, progress)):
            if probabilities is not None:
                result[row] = probabilities
        return result

    def _answer(self, refs: list[ImageRef], progress: Progress) -> Iterator[_Answer]:
        with self._lock:
            if self._is_closed:
                raise UsageError(CLOSED)
        return self._stream(refs, progress)

    def _stream(self, refs: list[ImageRef], progress: Progress) -> Iterator[_Answer]:
        if not refs:
            return
        progress(PREPARING, 0, 0)
        engine, choice, pool = self._start()
        progress(READING, 0, len(refs))
        advice = "fit again" if choice.precision == "fp32" else "use --precision fp32"
        stream = run_images(
            refs,
            engine,
            self.model.backbone.preprocessing,
            self.runtime,
            exact=choice.precision == "fp32",
            pool=pool,
        )
        done = 0
        with contextlib.closing(stream):
            for readings, outputs in self._until_closed(stream):
                for cut, values in outputs.items():
                    if not np.isfinite(values).all():
                        raise VerificationError(
                            f"the network gives NaN or infinite features at {cut}; {advice}"
                        )
                rows = iter(self._judge(outputs) if outputs else ())
                for reading in readings:
                    name = refs[done].id
                    done += 1
                    yield (name, reading.error, *((None, None) if reading.error else next(rows)))
                progress(READING, done, len(refs))

    def _judge(self, outputs: Mapping[str, FloatND]) -> Iterator[tuple[FloatC, float | None]]:
        """Give (probabilities, novelty) of each image."""
        novelty, probabilities = self.model.knowledge.novelty, self.model.predict_proba(outputs)
        shares: list[float | None] = [None] * len(probabilities)
        if novelty is not None:
            shares = novelty.p_values(outputs[novelty.cut]).tolist()
        return zip(probabilities, shares, strict=True)

    def _until_closed(self, stream: Iterator[T]) -> Iterator[T]:
        """Go through a stream that needs the pool, whose own error says nothing of the predictor."""
        try:
            yield from stream
        except RuntimeError as exc:
            if not self._is_closed:
                raise
            raise UsageError(CLOSED) from exc

    def _name(
        self, answers: Iterator[_Answer], top: int, coverage: float | None
    ) -> Iterator[Prediction]:
        classes, names = self.model.classes, self.model.names
        thresholds = np.array(self.model.thresholds)
        for image, error, probabilities, novelty in answers:
            if probabilities is None:
                none = None if coverage is None else ()
                yield Prediction(image, "", float("nan"), (), error, set=none)
                continue
            ranks = np.argsort(-probabilities, kind="stable")
            order = ranks[:top]
            best = tuple((classes[i], float(probabilities[i])) for i in order)
            best_names = tuple(names[i] for i in order) if names else ()
            label, given = best[0][0], None
            if len(thresholds):
                over = ranks[give_labels(probabilities, thresholds)[ranks]]
                given = tuple((classes[i], float(probabilities[i])) for i in over)
                label = "|".join(name for name, _ in given)
            inside = None
            if coverage is not None:
                [found] = self.model.knowledge.find_sets(probabilities[None], coverage)
                inside = tuple((classes[i], float(probabilities[i])) for i in ranks[found[ranks]])
            yield Prediction(
                image, label, best[0][1], best, "", best_names, given, set=inside, novelty=novelty
            )


def predict_once(
    model: Model,
    images: ImageLike | Iterable[ImageLike],
    runtime: Runtime,
    **options: Any,
) -> Iterator[Prediction]:
    """Predict as `Pipeline.predict` does, with a pipeline for these images alone."""
    listed = list_images(images)
    if not any(isinstance(i, str | os.PathLike) and os.path.isdir(i) for i in listed):
        # With fewer threads, each gets more of the processor.
        workers = max(1, min(runtime.threads, len(listed)))
        runtime = runtime.model_copy(update={"workers": workers})
    pipeline = Pipeline(model, runtime)
    predictions = pipeline.predict(listed, **options)

    def stream() -> Iterator[Prediction]:
        with contextlib.closing(pipeline):
            yield from predictions

    return stream()


def _start_engine(
    backbone: Backbone, runtime: Runtime, cuts: tuple[str, ...]
) -> tuple[Engine, EngineChoice]:
    """Start an engine, on a CPU with micro-batches of one image; give it with its choice.

    Whoever asks about one image waits for it, and a micro-batch of four takes twice the CPU time for it (68
    against 32 ms with EfficientNet-Lite0 in OpenVINO); many images take a tenth longer one by one.
    """

    def start(choice: EngineChoice) -> tuple[Engine, EngineChoice]:
        if choice.device == "cpu":
            choice = dataclasses.replace(choice, micro_batch=1)
        return make_engine(backbone, choice, runtime, cuts=cuts), choice

    return use_engine(backbone, runtime, start)


def list_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """List one or many images, each of a kind that can be read.

    Raises:
        UsageError: one is of another kind; names it and its type.
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
    """List each image, and for folders every image file below them.

    Raises:
        InputError: a folder holds no image.
    """
    refs: list[ImageRef] = []
    for number, image in enumerate(images, 1):
        if isinstance(image, str | os.PathLike):
            path = Path(image)
            if not os.path.isdir(path):  # which raises nothing, however odd the path
                refs.append(ImageRef(os.fspath(image), FileSource(path)))
                continue
            inside = list(list_files(path, allow_outside=allow_outside))
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            refs += [ImageRef(str(path / n), FileSource(path / n), error) for n, error in inside]
        elif isinstance(image, bytes):
            refs.append(ImageRef(f"image {number}", MemorySource(image)))
        else:
            pixels = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            refs.append(ImageRef(f"image {number}", PillowSource(pixels, max_pixels)))
    return refs

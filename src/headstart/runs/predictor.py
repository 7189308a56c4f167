"""Takes the folder of a run, gives a `Predictor`, which answers at once however often it is asked."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from headstart.errors import InputError, UsageError
from headstart.features.runtime import Runtime
from headstart.parallel import Progress, no_progress
from headstart.runs.classifier import Classifier
from headstart.runs.prediction import (
    EXACT,
    ImageLike,
    Pipeline,
    Prediction,
    list_images,
    predict_once,
    read_runtime,
)
from headstart.runs.record import Run

__all__ = ["ModelLike", "Predictor", "predict", "read_classifier"]

# The folder of a run or "pretrained:NAME", a run, or a classifier.
ModelLike = str | os.PathLike[str] | Run | Classifier


class Predictor(Pipeline):
    """A classifier that is kept ready: images in, predictions or probabilities out.

    The network is compiled once, and its threads stay. Safe to call from several threads. Close it, or
    use it as a context manager, when it is no longer needed.

    Args:
        classifier: a `Classifier`, or a `Run` for its own.
        runtime: on what it runs; where it names no precision, in fp32: images are decoded exactly then, and
            the probabilities are those of the network as timm runs it.

    Raises:
        UsageError: the engine, precision or device is unknown or cannot be.
    """

    def __init__(self, classifier: Run | Classifier, *, runtime: Runtime = EXACT) -> None:
        super().__init__(read_classifier("classifier", classifier, None), runtime)

    @classmethod
    def load(cls, model: ModelLike, *, runtime: Runtime = EXACT) -> "Predictor":
        """A predictor of a saved classifier.

        Args:
            model: the folder of a run, or "pretrained:NAME" for a network that knows ImageNet's classes.
            runtime: as of the class; its `cache_dir` keeps what is found of the network and compiled.

        Raises:
            InputError: as `Classifier.load`.
            UsageError: as the class.
        """
        return cls(read_classifier("model", model, runtime.cache_dir), runtime=runtime)


def predict(
    model: ModelLike,
    images: ImageLike | Iterable[ImageLike],
    *,
    top: int = 5,
    allow_outside: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> Iterator[Prediction]:
    """Say what is in images: paths of files and folders, bytes, arrays, images of Pillow's; one or many.

    A `Predictor` is made for this call alone; who calls often keeps one.

    Args:
        model: the folder of a run, "pretrained:NAME" for a network that knows ImageNet's classes, a run
            as `fit` gives it, or a classifier.
        images, top, allow_outside, progress: as `Predictor.predict`.
        **options: fields of `Runtime`.

    Raises:
        UsageError: an option is out of range, or an argument of a kind that is not taken.
        InputError: the model cannot be loaded, a folder holds no image, or there is none at all.
    """
    given = list_images(images)
    if not given:
        raise InputError("no images given; name files or folders, or - to read names from stdin")
    runtime = read_runtime(options)
    classifier = read_classifier("model", model, runtime.cache_dir)
    return predict_once(
        classifier, given, runtime, top=top, allow_outside=allow_outside, progress=progress
    )


def read_classifier(
    what: str, model: ModelLike, cache_dir: str | os.PathLike[str] | None
) -> Classifier:
    """The classifier of whatever has one; `what` names the argument.

    Raises:
        UsageError: it has none.
        InputError: as `Classifier.load`.
    """
    if isinstance(model, Run):
        return model.classifier
    if isinstance(model, Classifier):
        return model
    if isinstance(model, str | os.PathLike):
        return Classifier.load(model, cache_dir=cache_dir)
    raise UsageError(
        f"{what} is of type {type(model).__name__}; give the folder of a run, a Run or a Classifier"
    )

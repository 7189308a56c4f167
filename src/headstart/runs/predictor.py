"""Takes the folder of a run, gives a `Predictor`, which keeps its engine for quick repeated predictions."""

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

    The network is compiled once, and its threads stay. Several threads may call it at once. Close it, or
    use it as a context manager, when it is no longer needed.

    Args:
        classifier: a `Classifier`, or a `Run` that has one.
        runtime: the engine, precision, device and threads. The default precision is fp32: images are then
            decoded exactly, and the probabilities are those of the network as timm runs it.

    Raises:
        UsageError: the engine, precision or device is unknown or not available.
    """

    def __init__(self, classifier: Run | Classifier, *, runtime: Runtime = EXACT) -> None:
        super().__init__(read_classifier("classifier", classifier, None), runtime)

    @classmethod
    def load(cls, model: ModelLike, *, runtime: Runtime = EXACT) -> "Predictor":
        """Make a predictor of a saved classifier.

        Args:
            model: the folder of a run, or "pretrained:NAME" for a network with ImageNet's classes.
            runtime: as for the class; its `cache_dir` caches facts about the network and its compiled form.

        Raises:
            InputError: as in `Classifier.load`.
            UsageError: as for the class.
        """
        return cls(read_classifier("model", model, runtime.cache_dir), runtime=runtime)


def predict(
    model: ModelLike,
    images: ImageLike | Iterable[ImageLike],
    *,
    top: int = 5,
    coverage: float | None = None,
    allow_outside: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> Iterator[Prediction]:
    """Classify images: paths of files and folders, bytes, arrays, Pillow images; one or many.

    A `Predictor` is made for this call alone; keep one yourself for frequent calls.

    Args:
        model: the folder of a run, "pretrained:NAME" for a network with ImageNet's classes, a run as
            `fit` gives it, or a classifier.
        images, top, coverage, allow_outside, progress: as in `Predictor.predict`.
        **options: fields of `Runtime`.

    Raises:
        UsageError: an option is out of range, or an argument is of an unknown kind.
        InputError: the model cannot be loaded, a folder holds no image, or there is none at all.
    """
    listed = list_images(images)
    if not listed:
        raise InputError("no images given; name files or folders, or - to read names from stdin")
    runtime = read_runtime(options)
    classifier = read_classifier("model", model, runtime.cache_dir)
    asked = {"top": top, "coverage": coverage, "allow_outside": allow_outside}
    return predict_once(classifier, listed, runtime, **asked, progress=progress)


def read_classifier(
    argument: str, model: ModelLike, cache_dir: str | os.PathLike[str] | None
) -> Classifier:
    """Get the classifier of anything that has one; `argument` names it in the error.

    Raises:
        UsageError: it has none.
        InputError: as in `Classifier.load`.
    """
    if isinstance(model, Run):
        return model.classifier
    if isinstance(model, Classifier):
        return model
    if isinstance(model, str | os.PathLike):
        return Classifier.load(model, cache_dir=cache_dir)
    raise UsageError(
        f"{argument} is of type {type(model).__name__}; give the folder of a run, a Run or a Classifier"
    )

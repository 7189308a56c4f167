"""headstart: an image classifier from a folder of labelled images, by transfer learning that measures.

The public names, in the order of the pipeline. They are imported when first used, so that
`import headstart` is quick and does not import torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.activations import Activations, extract_activations
    from headstart.backbones import Backbone, load_backbone
    from headstart.classifier import Classifier, Prediction
    from headstart.datasets import Dataset, load_dataset, split_dataset
    from headstart.engines import choose_engine, make_engine
    from headstart.errors import (
        HeadstartError,
        InputError,
        ResourceError,
        TrainingError,
        UsageError,
    )
    from headstart.features import Features, export_features, extract
    from headstart.fit import Evaluation, Run, evaluate, fit, predict
    from headstart.images import Preprocessing, scan_images
    from headstart.metrics import Estimate, measure
    from headstart.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Backbone",
    "Classifier",
    "Dataset",
    "Estimate",
    "Evaluation",
    "Features",
    "HeadstartError",
    "InputError",
    "Prediction",
    "Preprocessing",
    "ResourceError",
    "Run",
    "Settings",
    "TrainingError",
    "UsageError",
    "choose_engine",
    "evaluate",
    "export_features",
    "extract",
    "extract_activations",
    "fit",
    "load_backbone",
    "load_dataset",
    "make_engine",
    "measure",
    "predict",
    "scan_images",
    "split_dataset",
]

_MODULES = {
    "errors": ("HeadstartError", "InputError", "ResourceError", "TrainingError", "UsageError"),
    "datasets": ("Dataset", "load_dataset", "split_dataset"),
    "images": ("Preprocessing", "scan_images"),
    "backbones": ("Backbone", "load_backbone"),
    "engines": ("choose_engine", "make_engine"),
    "features": ("Features", "export_features", "extract"),
    "activations": ("Activations", "extract_activations"),
    "metrics": ("Estimate", "measure"),
    "settings": ("Settings",),
    "classifier": ("Classifier", "Prediction"),
    "fit": ("Evaluation", "Run", "evaluate", "fit", "predict"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """Importing the file fit.py must not put that module in the place of the function `fit`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'headstart' has no attribute '{name}'")
        return getattr(importlib.import_module(f"headstart.{_HOME[name]}"), name)

    def __dir__(self) -> list[str]:
        return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Package

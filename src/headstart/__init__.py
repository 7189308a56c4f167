"""headstart: an image classifier from a folder of labelled images, by transfer learning that measures.

The public names, in the order of the pipeline. They are imported when first used, so that
`import headstart` is quick and does not import torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.contrasts import Contrast
    from headstart.data.dataset import Dataset
    from headstart.data.decoding import Preprocessing
    from headstart.data.downloading import download
    from headstart.data.images import ImageRef
    from headstart.data.in_memory import from_arrays
    from headstart.data.loading import load_dataset
    from headstart.data.scan import scan_images
    from headstart.data.splits import split_dataset
    from headstart.data.views import Augmentation, Views
    from headstart.errors import (
        HeadstartError,
        InputError,
        ResourceError,
        TrainingError,
        UsageError,
        VerificationError,
    )
    from headstart.features.activations import Activations, extract_activations
    from headstart.features.engines import choose_engine, start_engine
    from headstart.features.extraction import Features, extract
    from headstart.features.runtime import Runtime
    from headstart.features.tables import export_features
    from headstart.metrics import ClassFigures, Estimate, measure, measure_each
    from headstart.networks.backbones import Backbone, load_backbone
    from headstart.publish.reporting import Report, report
    from headstart.runs.advising import advise
    from headstart.runs.auditing import Audit, audit
    from headstart.runs.bottleneck import extract_bottleneck, fit_features, load_head
    from headstart.runs.classifier import Classifier
    from headstart.runs.comparing import compare
    from headstart.runs.comparison import Comparison, Contender, Pair
    from headstart.runs.evaluation import Evaluation, evaluate
    from headstart.runs.fitting import fit
    from headstart.runs.prediction import Prediction
    from headstart.runs.predictor import Predictor, predict
    from headstart.runs.record import Run
    from headstart.training.advice import Advice, Candidate, Case
    from headstart.training.costs import Bill, Costs
    from headstart.training.decisions import Decision, Decisions
    from headstart.training.facts import Facts
    from headstart.training.settings import Settings

__version__ = "0.1.0"

# No library that is imported from here on reports who uses it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = [
    "Activations",
    "Advice",
    "Audit",
    "Augmentation",
    "Backbone",
    "Bill",
    "Candidate",
    "Case",
    "ClassFigures",
    "Classifier",
    "Comparison",
    "Contender",
    "Contrast",
    "Costs",
    "Dataset",
    "Decision",
    "Decisions",
    "Estimate",
    "Evaluation",
    "Facts",
    "Features",
    "HeadstartError",
    "ImageRef",
    "InputError",
    "Pair",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "Report",
    "ResourceError",
    "Run",
    "Runtime",
    "Settings",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "Views",
    "advise",
    "audit",
    "choose_engine",
    "compare",
    "download",
    "evaluate",
    "export_features",
    "extract",
    "extract_activations",
    "extract_bottleneck",
    "fit",
    "fit_features",
    "from_arrays",
    "load_backbone",
    "load_dataset",
    "load_head",
    "measure",
    "measure_each",
    "predict",
    "report",
    "scan_images",
    "split_dataset",
    "start_engine",
]

# The house from the ground floor up, each wing with its files: a file imports only what stands before it.
# A * stands for all others of a wing: forms of data, engines, strategies. None of them imports another, and
# a file after them has their table, so one more is its file and its line there.
ORDER = {
    "": (
        "errors process choices options draws files parallel arrays metrics label_metrics contrasts "
        "problem mistakes frames cards canvas"
    ),
    "data": (
        "images bounds decoding groups dataset form trees streams members paths parquet tables "
        "label_cells rows image_arrays array_names unpickling * class_names known downloading loading "
        "shots groupings views scan splits"
    ),
    "networks": "openvino_library lite architectures building graphs weights backbones catalogue",
    "features": (
        "runtime file_hashes store cache engine * engines shards reading "
        "drawing extraction tables bottleneck activations pixels shift neighbours near_copies clusters "
        "looks duplicates odd_files"
    ),
    "training": (
        "decisions recipes rules cuts facts costs advice thresholds temperature conformal logistic heads "
        "novelty settings task outputs trainable inputs objectives loop epochs probes mirroring tuning "
        "evidence grouping calibration label_errors shortcuts"
    ),
    "training.strategies": "* table",
    "runs": (
        "folder documents knowledge readings sources showing prediction classifier record predictor "
        "checks budget sampling grouping advising refitting folding calibrating remarks fitting "
        "bottleneck evaluation grid comparison comparing auditing corrections thumbnails"
    ),
    "publish": (
        "charts comparisons drawings findings pictures report_charts report_words way_charts pages "
        "run_page comparison_page advice_page audit_page reporting"
    ),
    "cli": (
        "demo words hints terminal printers options listings reporting commands extraction comparing "
        "app reference"
    ),
}

_HOMES = {
    "errors": (
        "HeadstartError",
        "InputError",
        "ResourceError",
        "TrainingError",
        "UsageError",
        "VerificationError",
    ),
    "metrics": ("ClassFigures", "Estimate", "measure", "measure_each"),
    "contrasts": ("Contrast",),
    "data.images": ("ImageRef",),
    "data.dataset": ("Dataset",),
    "data.in_memory": ("from_arrays",),
    "data.downloading": ("download",),
    "data.loading": ("load_dataset",),
    "data.decoding": ("Preprocessing",),
    "data.scan": ("scan_images",),
    "data.views": ("Augmentation", "Views"),
    "data.splits": ("split_dataset",),
    "networks.backbones": ("Backbone", "load_backbone"),
    "features.engines": ("choose_engine", "start_engine"),
    "features.runtime": ("Runtime",),
    "features.extraction": ("Features", "extract"),
    "features.tables": ("export_features",),
    "features.activations": ("Activations", "extract_activations"),
    "training.decisions": ("Decision", "Decisions"),
    "training.facts": ("Facts",),
    "training.costs": ("Bill", "Costs"),
    "training.advice": ("Advice", "Candidate", "Case"),
    "training.settings": ("Settings",),
    "runs.prediction": ("Prediction",),
    "runs.bottleneck": ("extract_bottleneck", "fit_features", "load_head"),
    "runs.classifier": ("Classifier",),
    "runs.predictor": ("Predictor", "predict"),
    "runs.record": ("Run",),
    "runs.advising": ("advise",),
    "runs.auditing": ("Audit", "audit"),
    "runs.fitting": ("fit",),
    "runs.evaluation": ("Evaluation", "evaluate"),
    "runs.comparison": ("Comparison", "Contender", "Pair"),
    "runs.comparing": ("compare",),
    "publish.reporting": ("Report", "report"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headstart' has no attribute '{name}'")
    return getattr(importlib.import_module(f"headstart.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

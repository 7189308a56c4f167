"""Takes a `Task`, trains, and where `refit` says so trains once more, on the images that were held out too.

What was held out tells whether the training is better than the linear probe that it started from, and how
good it is. After that those images would be wasted: with 10 images a class, training on all instead of
four fifths was worth 3 to 7 points (docs/advice.md).
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from headstart.files import translate_errors
from headstart.runs.budget import Budget, OutOfTime
from headstart.training.decisions import Decisions
from headstart.training.outputs import ADVICE, WHOLE
from headstart.training.rules import expect_gain
from headstart.training.settings import make_settings
from headstart.training.strategies.table import ADVISABLE, train
from headstart.training.task import Task, Trained

__all__ = ["MEASURING", "train_and_refit"]

# Settings that need validation images, which a training on all images has none of.
MEASURING = frozenset({"wise_ft", "monitor", "min_delta", "patience", "refit"})
# A training on all images is begun where this share of its time is there; it ends with what it has then.
REFIT_SHARE = 0.7


def train_and_refit(task: Task, budget: Budget | None) -> tuple[Task, Trained]:
    """Train as a task says; give the result, and the task that its probabilities are of.

    After a second training the probabilities, and so all figures, are those of the first, on the images that
    were held out from it.
    """
    began = time.monotonic()
    trained = train(task)
    if not task.settings.refit or trained.interrupted:
        return task, trained
    if not _is_better(task.decisions):
        return _take_probe(task)
    rows = np.sort(np.concatenate([task.rows, task.val_rows]))
    needed_s = (time.monotonic() - began) * len(rows) / len(task.rows)
    if budget is not None and budget.left() < REFIT_SHARE * needed_s:
        task.decisions.warn(
            f"there was no time to train once more on all {len(rows):,} images, which takes about "
            f"{needed_s:.0f} s; a longer --budget does"
        )
        return task, trained
    again = dataclasses.replace(
        _on_all(task, _fix(task)), folder=_make_folder(task), on_epoch=lambda entry: None
    )
    try:
        whole = train(again)
    except (KeyboardInterrupt, OutOfTime):
        whole = None
    if whole is None or whole.interrupted:
        task.decisions.warn("the training on all images was ended early; this is the one before it")
        return task, trained
    task.decisions.record("refit", {"images": len(rows)})
    return task, dataclasses.replace(whole, probabilities=trained.probabilities)


def _is_better(decisions: Decisions) -> bool:
    """Whether the training is expected to be better than the probe, by what was known and what was seen."""
    against = decisions.facts.get("against_probe")
    if against is None:
        return True
    expectation = {}
    if "advice" in decisions.facts:
        chosen, others = (decisions.facts["advice"][n] for n in ("chosen", "others"))
        probes = [c["accuracy"] for c in others if c["strategy"] == "linear-probe"]
        expectation = {
            "expected": chosen["accuracy"] - max(probes),
            "spread": (chosen["high"] - chosen["low"]) / 4,
        }
    gain = expect_gain(**against, **expectation)
    decisions.record("against_probe", {**against, **expectation, "gain": gain})
    return gain > 0


def _take_probe(task: Task) -> tuple[Task, Trained]:
    """Fit the probe on all images, by the features that do best, and measure it by cross-validation."""
    given = {n: v for n, v in task.settings.given().items() if n in ADVISABLE}
    probe = _on_all(task, {**given, "strategy": "linear-probe", "cut": "auto"})
    for name in ("advice", "against_probe"):
        if name in task.decisions.facts:
            probe.decisions.record(name, task.decisions.facts[name])
    probe.decisions.settle("strategy", probe.settings.strategy, "advised")
    against = task.decisions.facts["against_probe"]
    probe.decisions.warn(
        f"{task.settings.strategy} was tried and is no better than a linear probe: of "
        f"{against['images']} images held out it won {against['won']} and lost {against['lost']}; so "
        "this is a linear probe, on all images"
    )
    return probe, train(probe)


def _fix(task: Task) -> dict[str, object]:
    """Give the options of the same training, with what it has measured as given."""
    settled = task.decisions.settled
    names = ["cut", "views", "epochs", "train_precision"]
    names += ["flip"] if task.settings.augment != "none" else []
    given = {n: v for n, v in task.settings.given().items() if n not in MEASURING}
    return {**given, **{n: settled[n].value for n in names if n in settled}}


def _on_all(task: Task, options: dict[str, object]) -> Task:
    rows = np.sort(np.concatenate([task.rows, task.val_rows]))
    return dataclasses.replace(
        task,
        rows=rows,
        val_rows=rows[:0],
        settings=make_settings(options),
        folder=None,
        decisions=Decisions(),
    )


def _make_folder(task: Task) -> Path | None:
    """Make the folder in which the second training keeps its state."""
    if task.folder is None:
        return None
    with translate_errors(task.folder, advice=ADVICE):
        (task.folder / WHOLE).mkdir(exist_ok=True)
    return task.folder / WHOLE

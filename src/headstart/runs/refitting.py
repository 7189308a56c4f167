"""Takes a `Task`, trains, and where `refit` says so trains once more, on the images that were held out too.

What was held out tells whether the training is better than the linear probe that it started from, and how
good it is. After that those images would be wasted: with 10 images a class, training on all instead of
four fifths was worth 5 and 7 points on two data sets (docs/decisions/0025-refit.md).
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

__all__ = ["MEASURING", "take_probe", "train_and_refit"]

# Settings that need validation images, which a training on all images has none of.
MEASURING = frozenset({"wise_ft", "monitor", "min_delta", "patience", "refit"})
# A training on all images is begun where this share of its time is there; it ends with what it has then.
REFIT_SHARE = 0.7
# The share of the time that the first training may take.
FIRST_SHARE = 0.55


def train_and_refit(task: Task, budget: Budget | None) -> tuple[Task, Trained]:
    """Train as a task says; give the result, and the task that its probabilities are of.

    After a second training the probabilities, and so all figures, are those of the first, on the images that
    were held out from it.
    """
    if not task.settings.refit:
        return task, train(task)
    began = time.monotonic()
    first = task
    if budget is not None:  # the second takes as long, and a quarter more
        first = dataclasses.replace(task, deadline=began + FIRST_SHARE * budget.left())
    trained = train(first)
    if trained.interrupted:
        return task, trained
    if not _is_better(task):
        return take_probe(task)
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
    except KeyboardInterrupt:
        return task, dataclasses.replace(trained, interrupted=True)
    except OutOfTime:
        return task, _keep_first(task, trained)
    if whole.interrupted:
        return task, dataclasses.replace(trained, interrupted=True)
    done, planned = (t.decisions.facts["training"]["epochs"] for t in (again, task))
    if done < REFIT_SHARE * planned:
        return task, _keep_first(task, trained)
    task.decisions.warnings.extend(again.decisions.warnings)
    task.decisions.record("refit", {"images": len(rows), "epochs": done})
    return task, dataclasses.replace(whole, probabilities=trained.probabilities)


def _keep_first(task: Task, trained: Trained) -> Trained:
    task.decisions.warn(
        "the time was up before the training on all images had come far; this is the one before it, on "
        f"{len(task.rows):,} of them; a longer --budget has time for both"
    )
    return trained


def _is_better(task: Task) -> bool:
    """Whether the training is expected to be better than a probe, by what was known and what was seen."""
    decisions = task.decisions
    against = decisions.facts.get("against_probe")
    if against is None:
        return True
    expectation, needed = {}, 0.0
    if probes := _list_probes(decisions):
        chosen = decisions.facts["advice"]["chosen"]
        last = probes.get(task.backbone.cuts[-1].name, max(probes.values()))
        expectation = {
            "expected": chosen["accuracy"] - last,
            "spread": chosen["spread"],
        }
        # The training began with the probe on the last features, and the best one would take its place.
        needed = max(probes.values()) - last
    gain = expect_gain(**against, **expectation)
    decisions.record("against_probe", {**against, **expectation, "gain": gain, "needed": needed})
    return gain > needed


def _list_probes(decisions: Decisions) -> dict[str, float]:
    """Give {cut points: expected accuracy} of the linear probes that the advice knows of."""
    advice = decisions.facts.get("advice")
    listed = [] if advice is None else [advice["chosen"], *advice["others"]]
    return {
        c["settings"]["cut"]: c["accuracy"]
        for c in listed
        if c["strategy"] == "linear-probe" and c["accuracy"] is not None and "cut" in c["settings"]
    }


def take_probe(task: Task, why: str = "") -> tuple[Task, Trained]:
    """Fit the probe by the features that do best, in the place of a training.

    Images that were held out for a second training are trained on, and it is measured by cross-validation.

    Args:
        why: a warning; by default what the images held out have said.
    """
    given = {n: v for n, v in task.settings.given().items() if n in ADVISABLE}
    probes = _list_probes(task.decisions)
    cut = max(probes, key=lambda name: probes[name]) if probes else "auto"
    options = {**given, "strategy": "linear-probe", "cut": cut}
    if task.settings.refit:
        options.pop("val", None)
        splits = tuple("train" if s == "val" else s for s in task.dataset.splits)
        probe = dataclasses.replace(
            _on_all(task, options),
            dataset=dataclasses.replace(task.dataset, splits=splits),
            features=dataclasses.replace(task.features, splits=splits),
        )
    else:
        settings = make_settings(options)
        probe = dataclasses.replace(task, settings=settings, folder=None, decisions=Decisions())
    for name in ("advice", "against_probe"):
        if name in task.decisions.facts:
            probe.decisions.record(name, task.decisions.facts[name])
    advised = {n for n, d in task.decisions.settled.items() if d.origin == "advised"}
    for name in {"strategy", "cut"} | (advised & probe.settings.given().keys()):
        probe.decisions.settle(name, probe.settings.given()[name], "advised")
    if not why:
        against = task.decisions.facts["against_probe"]
        why = (
            f"{task.settings.strategy} was tried and is no better than a linear probe: of "
            f"{against['images']} images held out it won {against['won']} and lost {against['lost']}; so "
            "this is a linear probe, on all images"
        )
    probe.decisions.warn(why)
    return probe, train(probe)


def _fix(task: Task) -> dict[str, object]:
    """Give the options of the same training, with what it has measured as given."""
    settled = task.decisions.settled
    names = ["cut", "views", "train_precision"]
    names += ["flip"] if task.settings.augment != "none" else []
    given = {n: v for n, v in task.settings.given().items() if n not in MEASURING}
    given["epochs"] = max(1, task.decisions.facts["training"]["epochs"])
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

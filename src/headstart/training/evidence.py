"""Takes a `Task`, measures the `Facts` that advice is decided on: what probes and the network say.

Everything comes from the features of at most a few thousand images; only the shift of the statistics runs
some images through the network again.
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from headstart.arrays import FloatC, FloatND
from headstart.draws import draw
from headstart.features.shift import measure_shift
from headstart.networks.backbones import Backbone
from headstart.parallel import count_cpus
from headstart.problem import softmax
from headstart.training.facts import CurvePoint, Depth, Facts
from headstart.training.heads import CutScore, assign_folds, suggest_cuts
from headstart.training.probes import compare_cuts, units_of, weigh_classes
from headstart.training.task import Task

__all__ = ["measure_confidence", "measure_facts"]

# The median over a layer's channels is stable from about this many images on.
SHIFT_IMAGES = 48
# The learning curve has its points at one, two and all of so many parts.
QUARTERS = 4


def measure_facts(task: Task) -> tuple[Facts, float]:
    """Measure the facts about a task's training images; its validation images are not looked at.

    Returns:
        (the facts, seconds that fitting a linear probe on these images takes by the clock).

    Raises:
        InputError: NaN or infinite features; or an image has changed meanwhile.
    """
    names = tuple(cut.name for cut in task.backbone.cuts)
    last, labels = names[-1:], task.labels
    weights = weigh_classes(task)
    candidates = suggest_cuts(names)
    began = time.process_time()
    scores = compare_cuts(task, candidates, weights).scores
    probe_s = (time.process_time() - began) / len(candidates) / count_cpus()
    curve = [_at_point(task, last, weights, parts) for parts in (1, 2)] if scores else []
    whole = [
        CurvePoint(len(task.rows), s.accuracy, s.accuracy_error)
        for s in scores
        if s.heads == (last,)
    ]
    facts = Facts(
        images=len(task.rows),
        per_class=tuple(np.bincount(labels, minlength=len(task.dataset.classes)).tolist()),
        measured=len(task.rows),
        depths=_list_depths(scores),
        curve=tuple([p for p in curve if p is not None] + whole),
        shift=_measure_shift(task),
        confidence=measure_confidence(task.backbone, task.matrix(last)),
    )
    return facts, probe_s


def _list_depths(scores: Sequence[CutScore]) -> tuple[Depth, ...]:
    best = min(scores, key=lambda s: s.log_loss, default=None)
    depths = []
    for score in scores:
        assert best is not None
        gaps = score.losses - best.losses
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
        depths.append(
            Depth(
                score.heads,
                score.accuracy,
                score.accuracy_error,
                score.log_loss,
                float(gaps.mean()),
                error,
            )
        )
    return tuple(depths)


def _at_point(task: Task, cuts: tuple[str, ...], weights: FloatC, parts: int) -> CurvePoint | None:
    """Measure the probe on some quarters of the images; None with too few of a class in them."""
    quarter = assign_folds(task.labels, units_of(task, task.rows), QUARTERS, task.settings.seed)
    rows = task.rows[quarter < parts]
    if len(np.unique(task.dataset.labels[rows])) < len(task.dataset.classes):
        return None
    choice = compare_cuts(dataclasses.replace(task, rows=rows), [cuts], weights)
    if not choice.scores:
        return None
    [score] = choice.scores
    return CurvePoint(len(rows), score.accuracy, score.accuracy_error)


def _measure_shift(task: Task) -> tuple[float, ...]:
    rows = task.rows
    if len(rows) > SHIFT_IMAGES:
        draws = [draw(task.settings.seed, "shift", task.dataset.ids[i]) for i in rows]
        rows = np.sort(rows[np.argsort(draws)[:SHIFT_IMAGES]])
    runtime, sha256 = task.settings.runtime, task.features.sha256
    return measure_shift(
        task.dataset, rows, task.backbone, runtime, sha256=sha256, progress=task.progress
    )


def measure_confidence(backbone: Backbone, features: FloatND) -> float | None:
    """Measure how sure the network's own head is: its mean highest probability, in [0, 1].

    Args:
        features: float (N, D), the last.

    Returns:
        None where the network has no head for these features.
    """
    weight = backbone.state.get(f"{backbone.classifier}.weight")
    bias = backbone.state.get(f"{backbone.classifier}.bias")
    if weight is None or weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        return None
    logits = features @ weight.T + (0 if bias is None else bias)
    return float(softmax(logits).max(axis=1).mean())

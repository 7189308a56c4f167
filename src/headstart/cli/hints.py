"""Takes a run, gives what its figures say should be tried next: nothing that was not measured.

Rules of thumb on what the run keeps; each says the figures that it goes by.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.cli.words import say_class

if TYPE_CHECKING:
    from headstart.runs.record import Run

__all__ = ["Hint", "list_hints"]

# A training has learnt by heart where the validation loss has risen by so much since its best epoch, in the
# first half, and the accuracy on what it was trained on is by so much higher.
RISEN, APART = 1.1, 0.05
NAME_WIDTH = 24


class Hint(NamedTuple):
    """What to try: settings to fit with again, or {} where the images are to change; and why."""

    changes: dict[str, Any]
    why: str


def list_hints(run: "Run") -> list[Hint]:
    """List what to try after a run, from its epochs and from its weakest class."""
    found = [_judge_epochs(run), _judge_weakest(run)]
    return [hint for hint in found if hint is not None]


def _judge_epochs(run: "Run") -> Hint | None:
    planned = run.settings.get("epochs", {}).get("value")
    last = len(run.history) - 1
    losses = [entry["val_loss"] for entry in run.history if entry.get("val_loss") is not None]
    if run.interrupted or last < 1 or last != planned or len(losses) != len(run.history):
        return None
    best = losses.index(min(losses))
    if best == last:
        return Hint(
            {"epochs": 2 * last}, f"epoch {best} of {last} was the best, so train for longer"
        )
    start, end = run.history[best], run.history[-1]
    apart = (end["train_accuracy"] or 0) - (start["val_accuracy"] or 0)
    if 0 < best <= last / 2 and losses[-1] > RISEN * losses[best] and apart > APART:
        why = f"epoch {best} of {last} was the best, then it learnt by heart"
        augment = run.settings.get("augment", {})
        if augment.get("value") in ("none", "light", "medium") and augment.get("origin") != "user":
            return Hint({"augment": "strong"}, why)
        return Hint({}, f"{why}: add images")
    return None


def _judge_weakest(run: "Run") -> Hint | None:
    from headstart.mistakes import list_weak

    weak = list_weak(run.metrics, run.per_class, run.problem, most=1)
    members = run.members
    counts = Counter(
        name
        for label, split in zip(members.labels, members.splits, strict=True)
        if split == "train"
        for name in (label.split("|") if run.problem == "multi-label" else [label])
    )
    if not weak or not weak[0].is_clear or weak[0].name not in counts:
        return None
    own, middle = counts[weak[0].name], sorted(counts.values())[len(counts) // 2]
    if 3 * own > 2 * middle:  # a few more would hardly be seen
        return None
    name = say_class(weak[0].name, NAME_WIDTH)
    return Hint({}, f"add images of {name}: it has {own:,}, the middle class {middle:,}")

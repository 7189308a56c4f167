"""Takes settings, gives the strategy that they name, or refuses a setting without effect on it."""

import importlib

from headstart.choices import choose
from headstart.data.views import AUGMENTATIONS
from headstart.errors import UsageError
from headstart.training.heads import parse_head
from headstart.training.settings import AUTO, FIELDS, Settings
from headstart.training.strategies.fine_tune import FINE_TUNE
from headstart.training.strategies.linear_probe import LINEAR_PROBE
from headstart.training.strategies.partial_fine_tune import PARTIAL_FINE_TUNE
from headstart.training.strategies.scratch import SCRATCH
from headstart.training.strategies.shallow_probe import SHALLOW_PROBE
from headstart.training.task import FEATURES, Strategy, Task, Trained

__all__ = ["ADVISABLE", "STRATEGIES", "check_advisable", "choose_strategy", "train"]

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (LINEAR_PROBE, SHALLOW_PROBE, PARTIAL_FINE_TUNE, FINE_TUNE, SCRATCH)
}

# Settings that leave the advice its choice.
ADVISABLE = FEATURES - {"head"}


def check_advisable(settings: Settings) -> None:
    """Check the settings of a fit whose strategy the advice will name.

    Raises:
        UsageError: a setting that was given goes with a strategy.
    """
    unused = [name for name in FIELDS if name in settings.given().keys() - ADVISABLE]
    if unused:
        users = [s.name for s in STRATEGIES.values() if unused[0] in s.uses_with(settings)]
        raise UsageError(
            f"setting '{unused[0]}' goes with a strategy that is named, and the strategy is auto; name "
            f"one that it has an effect on: {', '.join(users)}"
        )


def choose_strategy(settings: Settings) -> Strategy:
    """Choose the strategy that the settings name.

    Raises:
        UsageError: it, the augmentation or the head is unknown, or a setting that the user gave has no
            effect on it.
    """
    if settings.strategy not in STRATEGIES:
        choose("strategy", settings.strategy, {AUTO: None, **STRATEGIES})
    strategy = STRATEGIES[settings.strategy]
    if settings.augment is not None:
        choose("augment", settings.augment, AUGMENTATIONS)
    parse_head(settings.head)
    given = settings.given()
    unused = [name for name in FIELDS if name in given and name not in strategy.uses_with(settings)]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on {strategy.name}"
            f"{_say_where_used(unused[0], strategy, settings)}; leave it out"
        )
    if settings.head != "linear" and "penalty" in given:
        raise UsageError("setting 'penalty' has no effect with an MLP --head; leave it out")
    if settings.recipe.schedule == "one-cycle" and "warmup" in given:
        raise UsageError("setting 'warmup' has no effect on the one-cycle schedule; leave it out")
    if {"freeze_until", "cut"} <= given.keys():
        raise UsageError("settings 'freeze_until' and 'cut' exclude each other; choose one")
    unused = [n for n in ("wise_ft", "patience", "min_delta") if n in given]
    if unused and (settings.refit or settings.recipe.monitor == "last"):
        raise UsageError(
            f"setting '{unused[0]}' has no effect with refit or monitor last, which keep the last epoch; "
            "leave it out"
        )
    if settings.augment == "none":
        unused = [n for n in ("flip", "views") if n in given]
        if unused:
            raise UsageError(f"setting '{unused[0]}' has no effect without augmentation")
    return strategy


def _say_where_used(name: str, strategy: Strategy, settings: Settings) -> str:
    others = [s.name for s in STRATEGIES.values() if name in s.uses]
    hint = f"; it has on {', '.join(others)}" if others else ""
    mlp = settings.model_copy(update={"head": "1"})
    return f"{hint}, and with an MLP head" if name in strategy.uses_with(mlp) else hint


def train(task: Task) -> Trained:
    """Run the strategy that the task's settings name."""
    strategy = choose("strategy", task.settings.strategy, STRATEGIES)
    if strategy.has_epochs(task.settings):
        task.progress("loading PyTorch", 0, 0)
        importlib.import_module("headstart.training.loop")
    return strategy.run(task)

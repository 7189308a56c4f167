"""Takes strategies with their settings and networks as people write them, gives the entries to compare.

An entry is written `STRATEGY:NAME=VALUE:NAME=VALUE`, such as `fine-tune:batchnorm=adapt`; the names are those
of `Settings`, and a value may have anything but a colon.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from headstart.errors import UsageError
from headstart.features.runtime import Runtime
from headstart.training.settings import AUTO, FIELDS, make_settings
from headstart.training.strategies.table import (
    ADVISABLE,
    STRATEGIES,
    check_advisable,
    choose_strategy,
)

__all__ = ["CHANGES_NOTHING", "STANDARD", "Entry", "list_entries", "name_folder"]

# What is compared where nothing is said: minutes each on a CPU.
STANDARD = ("linear-probe", "partial-fine-tune")

# Settings by which two runs of one contender may differ.
CHANGES_NOTHING = frozenset(Runtime.model_fields) - {"engine", "precision", "max_pixels"} | {
    "seed",
    "checkpoint_s",
    "tensorboard",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of training to compare.

    Attributes:
        name: as people know it: the strategy with its settings, and the network where there are several.
        options: of `fit`, the strategy and the network among them, without the seed.
    """

    name: str
    options: dict[str, Any]


def list_entries(
    strategies: Sequence[str], backbones: Sequence[str], common: Mapping[str, Any]
) -> tuple[Entry, ...]:
    """List every strategy with every network.

    Args:
        strategies: as people write entries; `STANDARD` where there are none.
        backbones: names of networks; that of `common`, or the built-in one, where there are none.
        common: settings of all entries. One without effect on a strategy is left out there.

    Raises:
        UsageError: an entry is wrong, given twice or alone, or a setting has no effect on any.
    """
    if backbones and "backbone" in common:
        raise UsageError("backbone and backbones are both given; choose one")
    make_settings(common)  # refuses an unknown name or a value out of range
    entries, used = [], set[str]()
    for text in strategies or STANDARD:
        strategy, own = _read_entry(text)
        if backbones and "backbone" in own:
            raise UsageError(f"strategies: '{text}' and backbones both name a network; choose one")
        # With another head than a linear one there is more to set.
        head = {n: v for n, v in common.items() if n == "head" and strategy != AUTO}
        known = _list_uses({"strategy": strategy, **head, **own})
        used |= known
        shared = {n: v for n, v in common.items() if n in known and n not in own}
        for backbone in backbones or [""]:
            network = {"backbone": backbone} if backbone else {}
            name = f"{text} on {backbone}" if len(backbones) > 1 else text
            options = {**shared, **own, **network, "strategy": strategy}
            settings = make_settings(options)
            (check_advisable if strategy == AUTO else choose_strategy)(settings)
            entries.append(Entry(name, options))
    for name in common:
        if name not in used:
            raise UsageError(
                f"setting '{name}' has no effect on any of the strategies; leave it out"
            )
    seen: dict[str, str] = {}
    for entry in entries:
        key = _write_options(entry.options)
        if key in seen:
            raise UsageError(
                f"strategies: '{entry.name}' and '{seen[key]}' are the same; leave one out"
            )
        seen[key] = entry.name
    if len(entries) < 2:
        raise UsageError(
            f"only '{entries[0].name}' is given; name at least two ways with --strategies a,b or "
            "--backbones x,y"
        )
    return tuple(entries)


def name_folder(entry: Entry, seed: int, data: str) -> str:
    """Name the folder of a run, by all that decides what it will be.

    Args:
        data: a digest of the training images.
    """
    options = {n: v for n, v in entry.options.items() if n not in CHANGES_NOTHING}
    text = f"{data} {seed} {_write_options(options)}"
    plain = re.sub(r"[^\w.=-]+", "-", entry.name).strip(".-")[:80]
    return f"{plain}-seed-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _write_options(options: Mapping[str, Any]) -> str:
    return json.dumps(make_settings(options).given(), sort_keys=True, default=str)


def _read_entry(text: str) -> tuple[str, dict[str, Any]]:
    """Give (strategy, settings) of an entry as it is written."""
    strategy, *parts = text.strip().split(":")
    options: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name in ("strategy", "seed"):
            raise UsageError(
                f"strategies: '{text}' has '{part}' where a setting NAME=VALUE should be, as in "
                "fine-tune:batchnorm=adapt"
            )
        if name in options:
            raise UsageError(f"strategies: '{text}' has the setting '{name}' twice")
        options[name] = _read_value(name, value.strip())
    make_settings(
        {"strategy": strategy, **options}
    )  # refuses an unknown name or a value out of range
    return strategy, options


def _read_value(name: str, text: str) -> str | float:
    """A number where the setting takes a number or a text, which else would stay a text."""
    if name in FIELDS and {float, str} <= set(get_args(FIELDS[name].info.annotation)):
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _list_uses(options: Mapping[str, Any]) -> frozenset[str]:
    """Name the settings that have an effect on a strategy."""
    settings = make_settings(options)
    if settings.strategy == AUTO:
        return frozenset(ADVISABLE)
    choose_strategy(settings)
    return STRATEGIES[settings.strategy].uses_with(settings)

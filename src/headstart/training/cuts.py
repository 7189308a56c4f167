"""Takes settings and a backbone, gives the cut points that a strategy may take: names and pure rules.

`strategies` measures what is left open here.
"""

import dataclasses
from collections.abc import Callable, Sequence

from headstart.errors import UsageError
from headstart.networks.backbones import Backbone, find_cut
from headstart.training.heads import suggest_cuts
from headstart.training.settings import Settings

__all__ = ["VIEWS", "CutCost", "check_cut", "given_cut", "plan_cut", "probe_cuts", "shallow_cuts"]

# Cached views of a training image where nothing else is said.
VIEWS = 8


def check_cut(settings: Settings, backbone: Backbone) -> None:
    """Refuse a cut point or layer that a strategy cannot take before any image is read.

    Raises:
        UsageError: lists those that there are.
    """
    if settings.strategy in CUTS:
        CUTS[settings.strategy](settings, backbone)


def probe_cuts(settings: Settings, backbone: Backbone) -> list[tuple[str, ...]]:
    """The candidates of a linear probe, each of the cut points that a head reads together."""
    names = tuple(c.name for c in backbone.cuts)
    wanted = settings.cut or "last"
    if wanted == "auto":
        return list(suggest_cuts(names))
    if wanted in ("last", "all"):
        return [names[-1:] if wanted == "last" else names]
    given = [backbone.cut(part.strip()).name for part in wanted.split(",")]
    return [tuple(n for n in names if n in given)]


def shallow_cuts(settings: Settings, backbone: Backbone) -> list[tuple[str, ...]]:
    """The candidates of a shallow probe."""
    names = tuple(c.name for c in backbone.cuts)
    wanted = settings.cut or "auto"
    given = names if wanted == "auto" else (backbone.cut(wanted).name,)
    if len(names) < 2 or given == names[-1:]:
        raise UsageError(
            f"cut '{wanted}' is not before the last cut point of {backbone.name}; a shallow "
            f"probe can be cut at {', '.join(names[:-1]) or 'none'}"
        )
    return [(name,) for name in given]


def given_cut(settings: Settings, backbone: Backbone) -> tuple[str | None, str]:
    """(the cut point that partial fine-tuning is told, or None; "" or why it is an earlier one)."""
    if settings.freeze_until is not None:
        return find_cut(backbone, settings.freeze_until)
    if settings.cut in (None, "auto"):
        return None, ""
    cut = backbone.cut(str(settings.cut)).name
    if cut == backbone.cuts[-1].name:
        raise UsageError(
            f"cut '{cut}' leaves nothing but the head to train; use --strategy linear-probe, or "
            f"one of {', '.join(c.name for c in backbone.cuts[:-1])}"
        )
    return cut, ""


@dataclasses.dataclass(frozen=True)
class CutCost:
    """What training from a cut point costs, measured.

    Attributes:
        name: the cut point.
        megabytes: of the activations of one view of an image.
        milliseconds: of training on one image once.
    """

    name: str
    megabytes: float
    milliseconds: float


def plan_cut(
    costs: Sequence[CutCost],
    *,
    images: int,
    epochs: int,
    minutes: float,
    disk_mb: float,
    most_views: int = VIEWS,
) -> tuple[str, int]:
    """(cut point, views): the earliest cut that can be trained in the time with two views or more on
    the disk; else the cheapest.

    The earlier the cut, the more of the network adapts, which on the sets tried paid down to a
    third of the network and no further (docs/strategies.md).

    Args:
        costs: in the order of the data.
        disk_mb: that the activations may take.
    """

    def views(cost: CutCost) -> int:
        return min(most_views, int(disk_mb / max(images * cost.megabytes, 1e-9)))

    for cost in costs:
        needed = images * epochs * cost.milliseconds / 60_000
        if needed <= minutes and views(cost) >= min(2, most_views):
            return cost.name, views(cost)
    cheapest = min(costs, key=lambda c: c.milliseconds)
    return cheapest.name, max(1, views(cheapest))


# What each of the strategies that can be told a cut point makes of it.
CUTS: dict[str, Callable[[Settings, Backbone], object]] = {
    "linear-probe": probe_cuts,
    "shallow-probe": shallow_cuts,
    "partial-fine-tune": given_cut,
}

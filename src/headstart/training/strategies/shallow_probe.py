"""A head on early features; what is above the cut point is thrown away: `shallow-probe`.

For few images that are unlike those that the network was trained on.
"""

import dataclasses

from headstart.errors import UsageError
from headstart.features.engine import EngineChoice
from headstart.features.engines import measure_rate, use_engine
from headstart.networks.backbones import Backbone, truncate
from headstart.training.heads import choose_shallow
from headstart.training.probes import compare_cuts, probe, settle_cut, weigh_classes
from headstart.training.recipes import HEAD
from headstart.training.settings import Settings
from headstart.training.task import FEATURES, Strategy, Task, Trained

__all__ = ["SHALLOW_PROBE"]


def _list_cuts(settings: Settings, backbone: Backbone) -> list[tuple[str, ...]]:
    """The candidates, each of one cut point."""
    names = tuple(c.name for c in backbone.cuts)
    wanted = settings.cut or "auto"
    given = names if wanted == "auto" else (backbone.cut(wanted).name,)
    if len(names) < 2 or given == names[-1:]:
        raise UsageError(
            f"cut '{wanted}' is not before the last cut point of {backbone.name}; a shallow "
            f"probe can be cut at {', '.join(names[:-1]) or 'none'}"
        )
    return [(name,) for name in given]


def _run(task: Task) -> Trained:
    candidates = _list_cuts(task.settings, task.backbone)
    weights = weigh_classes(task)
    cuts = candidates[0]
    if len(candidates) > 1:
        choice = compare_cuts(task, candidates, weights)
        # With too few images a class to measure, half of the network.
        middle = candidates[(len(candidates) - 1) // 2]
        cuts = (choose_shallow(choice.scores),) if choice.scores else middle
        settle_cut(task, (cuts,), choice)
    trained = probe(task, (cuts,), weights)
    small = truncate(task.backbone, cuts[0])
    if not len(task.fold_rows):  # which is of figures alone
        task.decisions.record("saved", _compare_sizes(task, small))
    return dataclasses.replace(trained, backbone=small)


def _compare_sizes(task: Task, small: Backbone) -> dict[str, dict[str, float]]:
    """What the cut saves: bytes of weights, and images a second, of the whole and the shallow one."""

    def measure(backbone: Backbone, choice: EngineChoice) -> dict[str, float]:
        cuts = (backbone.cuts[-1].name,)
        size = sum(a.nbytes for a in backbone.state.values())
        rate = measure_rate(backbone, choice, task.settings.runtime, cuts=cuts)
        return {"megabytes": round(size / 1e6, 2), "images_per_s": round(rate, 1)}

    def measure_both(choice: EngineChoice) -> dict[str, dict[str, float]]:
        # On one engine, to be comparable.
        return {"whole": measure(task.backbone, choice), "shallow": measure(small, choice)}

    return use_engine(small, task.settings.runtime, measure_both)


SHALLOW_PROBE = Strategy(
    name="shallow-probe",
    help="a head is trained on early features, and the network above them thrown away",
    run=_run,
    uses=FEATURES | {"cut", "penalty"},
    recipe=HEAD,
    by_gradient=False,
    check_cut=_list_cuts,
    better=("linear-probe", "reads the whole network"),
)

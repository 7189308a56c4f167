"""A head on the frozen network's features (Alain and Bengio 2016 name it so): `linear-probe`.

By default the head is linear and reads the last features; else it reads those at the cut points chosen.
"""

from headstart.networks.backbones import Backbone
from headstart.training.heads import suggest_cuts
from headstart.training.probes import compare_cuts, probe, settle_cut, weigh_classes
from headstart.training.recipes import HEAD
from headstart.training.settings import Settings
from headstart.training.task import FEATURES, Strategy, Task, Trained

__all__ = ["LINEAR_PROBE"]


def _list_cuts(settings: Settings, backbone: Backbone) -> list[tuple[str, ...]]:
    """The candidates, each of the cut points that a head reads together."""
    names = tuple(c.name for c in backbone.cuts)
    wanted = settings.cut or "last"
    if wanted == "auto":
        return list(suggest_cuts(names))
    if wanted in ("last", "all"):
        return [names[-1:] if wanted == "last" else names]
    given = [backbone.cut(part.strip()).name for part in wanted.split(",")]
    return [tuple(n for n in names if n in given)]


def _run(task: Task) -> Trained:
    candidates = _list_cuts(task.settings, task.backbone)
    weights = weigh_classes(task)
    if len(candidates) == 1:
        return probe(task, candidates[0], weights)
    choice = compare_cuts(task, candidates, weights)
    settle_cut(task, choice.cuts, choice)
    return probe(task, choice.cuts, weights, choice.penalty)


LINEAR_PROBE = Strategy(
    name="linear-probe",
    help="a head is trained on the frozen network's features",
    run=_run,
    uses=FEATURES | {"cut", "penalty"},
    recipe=HEAD,
    by_gradient=False,
    check_cut=_list_cuts,
    better=("partial-fine-tune", "trains the network too, in minutes"),
)

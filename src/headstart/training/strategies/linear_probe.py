"""A head on the frozen network's features (Alain and Bengio 2016 name it so): `linear-probe`.

By default the head is linear and reads the last features; else it reads those at the cut points chosen.
"""

from headstart.errors import UsageError
from headstart.networks.backbones import Backbone
from headstart.training.cuts import Heads, read_cuts
from headstart.training.heads import suggest_cuts
from headstart.training.probes import compare_cuts, probe, settle_cut, weigh_classes
from headstart.training.recipes import HEAD
from headstart.training.settings import Settings
from headstart.training.task import FEATURES, Strategy, Task, Trained

__all__ = ["LINEAR_PROBE"]


def _read_cut(settings: Settings, backbone: Backbone) -> Heads:
    """Give the heads that the settings name; none for auto."""
    names = tuple(c.name for c in backbone.cuts)
    wanted = settings.cut or "last"
    if wanted == "auto" and len(names) > 1:
        return ()
    if wanted in ("auto", "last", "all"):
        return (names if wanted == "all" else names[-1:],)
    given = [{backbone.cut(name).name for name in cuts} for cuts in read_cuts(wanted)]
    heads = tuple(dict.fromkeys(tuple(n for n in names if n in own) for own in given))
    if len(heads) > 1 and settings.head != "linear":
        raise UsageError(
            f"cut '{wanted}' is the mean of linear heads, and the head is {settings.head}; join cut "
            "points by commas, which one head reads side by side"
        )
    return heads


def _run(task: Task) -> Trained:
    heads = _read_cut(task.settings, task.backbone)
    weights = weigh_classes(task)
    if heads:
        return probe(task, heads, weights)
    choice = compare_cuts(task, suggest_cuts(tuple(c.name for c in task.backbone.cuts)), weights)
    heads = choice.heads if task.settings.head == "linear" else choice.heads[:1]
    settle_cut(task, heads, choice)
    return probe(task, heads, weights, choice.penalties)


LINEAR_PROBE = Strategy(
    name="linear-probe",
    help="a head is trained on the frozen network's features",
    run=_run,
    uses=FEATURES | {"cut", "penalty"},
    recipe=HEAD,
    by_gradient=False,
    check_cut=_read_cut,
    better=("partial-fine-tune", "trains the network too, in minutes"),
)

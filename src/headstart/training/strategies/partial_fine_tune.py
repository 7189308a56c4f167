"""What is above a cut point is trained on cached activations of K views: `partial-fine-tune`.

Below the cut the network stays frozen, so an image passes through that part once a view.
"""

import dataclasses
import functools
import json
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np

from headstart.arrays import IntN, PixelsNHW3
from headstart.data.views import Augmentation, Views
from headstart.errors import InputError, UsageError
from headstart.features.activations import Activations, extract_activations
from headstart.features.engine import Engine
from headstart.features.engines import start_engine
from headstart.features.extraction import to_half
from headstart.files import translate_errors, write_atomically
from headstart.networks.backbones import Backbone, find_cut, with_cut
from headstart.training.outputs import ADVICE, PLAN
from headstart.training.recipes import Recipe
from headstart.training.rules import DISK_SHARE, MINUTES, CutCost, count_views, plan_cut
from headstart.training.settings import Settings
from headstart.training.task import FEATURES, GRADIENT, PRETRAINED, Strategy, Task, Trained

if TYPE_CHECKING:
    import torch

    from headstart.training.inputs import Inputs

__all__ = ["PARTIAL_FINE_TUNE"]

# The share of the time that is left which the epochs may take; computing activations takes the rest.
TRAINING_SHARE = 0.7

RECIPE = Recipe(
    epochs=15,
    batch=32,
    lr=4e-4,
    weight_decay=0.05,
    label_smoothing=0.1,
    clip=1.0,
    monitor="accuracy",
)


def _run(task: Task) -> Trained:
    from headstart.training.mirroring import settle_flip
    from headstart.training.tuning import recipe_of, start_from_probe, style_of, tune

    start = start_from_probe(task)
    style = style_of(task, flip=settle_flip(task))
    recipe = recipe_of(task, RECIPE)
    backbone, cut, views = _settle_cut(task, recipe)
    make_inputs = _cache_inputs if task.settings.cached else _compute_inputs
    inputs = make_inputs(task, backbone, cut, style, views)
    trained = tune(task, backbone, cut, start, inputs, recipe)
    names = [c.name for c in backbone.cuts]
    known = [n for n in names[: names.index(cut) + 1] if n in task.features.values]
    return dataclasses.replace(trained, frozen=known[-1] if known else "")


def _cache_inputs(
    task: Task, backbone: Backbone, cut: str, style: Augmentation, views: int
) -> "Inputs":
    """Store the activations on disk, those of images that are not trained on in one view."""
    from headstart.training.inputs import ActivationInputs

    def extract(rows: IntN, views: int) -> Activations:
        return extract_activations(
            task.dataset.select(rows),
            backbone,
            cut,
            task.settings.runtime,
            views=Views(views, style, task.settings.seed),
            progress=task.progress,
        )

    train = (task.rows, extract(task.rows, views))
    others = np.concatenate([task.val_rows, task.fold_rows])
    plain = (others, extract(others, 1)) if len(others) else None
    return ActivationInputs(train, plain, axis=backbone.cut(cut).axis)


def _compute_inputs(
    task: Task, backbone: Backbone, cut: str, style: Augmentation, views: int
) -> "Inputs":
    """Compute the same activations whenever they are needed."""
    from headstart.training.inputs import PixelInputs
    from headstart.training.tuning import views_of

    engine, choice = start_engine(backbone, task.settings.runtime, cuts=(cut,), pooled=False)
    return PixelInputs(
        views_of(task, style, exact=choice.precision == "fp32").read,
        frozen_part=functools.partial(_run_frozen_part, engine, cut),
        views=views,
        axis=backbone.cut(cut).axis,
    )


def _run_frozen_part(engine: Engine, cut: str, pixels: PixelsNHW3) -> "torch.Tensor":
    """uint8 (B, H, W, 3) -> the activations as they would lie on disk, (B, …) bfloat16."""
    import torch

    size = engine.micro_batch
    parts = [engine.run(pixels[i : i + size])[cut] for i in range(0, len(pixels), size)]
    return torch.from_numpy(to_half(np.concatenate(parts), "bfloat16")).view(torch.bfloat16)


def _find_given(settings: Settings, backbone: Backbone) -> tuple[str | None, str]:
    """(the cut point that the user names, or None; "" or why it is an earlier one)."""
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


def _settle_cut(task: Task, recipe: Recipe) -> tuple[Backbone, str, int]:
    """(backbone with that cut point, cut point, views): as given, or by measured cost.

    A choice by measured time is kept in the run's folder, so that a resumed training repeats it.
    """
    settings, backbone = task.settings, task.backbone
    most = count_views(settings.views, augmented=settings.augment != "none")
    given, reason = _find_given(settings, backbone)
    if given is not None:
        if "cut" not in task.decisions.settled:  # which follows from the layer that the user named
            task.decisions.settle(
                "cut", given, "user", **({"freeze_until": reason} if reason else {})
            )
        task.settle_default("views", most)
        return with_cut(backbone, given), given, most
    plan_path = task.folder / PLAN if task.folder else None
    if plan_path is not None and plan_path.exists():
        try:
            plan = json.loads(plan_path.read_bytes())
            cut, views = backbone.cut(plan["cut"]).name, max(1, min(int(plan["views"]), most))
            evidence = dict(plan["evidence"])
        except (UsageError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InputError(f"{plan_path}: damaged; fit anew with --overwrite") from exc
    else:
        minutes = MINUTES
        if task.deadline is not None:
            minutes = max(0.0, task.deadline - time.monotonic()) / 60 * TRAINING_SHARE
        costs = _measure_cuts(task)
        cut, views = plan_cut(
            costs,
            images=len(task.rows),
            epochs=recipe.epochs,
            minutes=minutes,
            disk_mb=DISK_SHARE * shutil.disk_usage(settings.runtime.cache).free / 1e6,
            most_views=most,
        )
        evidence = {"costs": [dataclasses.asdict(c) for c in costs], "minutes": minutes}
        if plan_path is not None:
            plan = {"cut": cut, "views": views, "evidence": evidence}
            with translate_errors(plan_path.parent, advice=ADVICE):
                write_atomically(plan_path, json.dumps(plan).encode())
    task.decisions.settle("cut", cut, "measured", **evidence)
    task.decisions.settle("views", views, "measured")
    if settings.views is not None and views < settings.views:
        task.decisions.warn(
            f"{views} of the {settings.views} views of each image are cached: more do not fit into "
            f"{DISK_SHARE:.0%} of the free disk; free space, or name another --cache-dir"
        )
    return backbone, cut, views


def _measure_cuts(task: Task) -> list[CutCost]:
    """Measure the cost of training above each cut point of the upper two thirds."""
    from headstart.training.calibration import measure_costs

    costs = measure_costs(task, 0.0)
    points = [cut.name for cut in task.backbone.cuts[:-1]][len(task.backbone.cuts) // 3 :]
    if not points:
        raise UsageError(
            f"{task.backbone.name} has no cut point below its classifier; use --strategy fine-tune"
        )
    return [
        CutCost(cut.name, cut.megabytes, 1000 * costs.seconds(cut.train_ms))
        for cut in costs.cuts
        if cut.name in points
    ]


PARTIAL_FINE_TUNE = Strategy(
    name="partial-fine-tune",
    help="everything above a cut point is trained, on cached activations of augmented views",
    run=_run,
    uses=FEATURES | GRADIENT | PRETRAINED | {"cut", "freeze_until", "views", "cached"},
    recipe=RECIPE,
    by_gradient=True,
    check_cut=_find_given,
    better=("fine-tune", "trains all weights, and wants a GPU"),
)

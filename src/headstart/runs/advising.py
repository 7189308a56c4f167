"""Takes data, gives the `Advice`: measures the facts and the costs on a sample, and has the rules decide."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.scan import Scan
from headstart.errors import InputError, UsageError
from headstart.features.extraction import extract
from headstart.features.reading import check_bad_images
from headstart.files import check_cache, read_json, write_quietly
from headstart.networks.backbones import Backbone
from headstart.networks.lite import list_packaged
from headstart.parallel import Progress, no_progress
from headstart.runs.budget import Budget
from headstart.runs.grouping import find_groups
from headstart.runs.sampling import SAMPLE, draw_parts, draw_per_class
from headstart.runs.sources import Data, check_trainable, load_data, load_network, report_scan
from headstart.training.advice import Advice, Limits, choose_network, give_advice
from headstart.training.calibration import measure_costs
from headstart.training.decisions import Decisions
from headstart.training.evidence import measure_facts
from headstart.training.facts import Facts
from headstart.training.probes import units_of
from headstart.training.rules import DISK_SHARE
from headstart.training.settings import AUTO, Settings, make_settings
from headstart.training.strategies.table import check_advisable
from headstart.training.task import Task

__all__ = [
    "COMPARING_SHARE",
    "advise",
    "advise_for",
    "compare_networks",
    "list_networks",
    "may_refit",
]

# The share of a budget that comparing networks may take where the user named none; seconds of measuring the
# first one's work, beside extracting features; how much more each of the built-in ones takes than the one
# before.
COMPARING_SHARE, MEASURING_S, LARGER = 0.2, 8.0, 1.5


def advise(
    data: Data,
    *,
    backbones: Sequence[str] = (),
    progress: Progress = no_progress,
    report: Callable[[Dataset, Scan], None] | None = None,
    **options: Any,
) -> Advice:
    """Say which way of training these images will bring most in the time there is, and why.

    Nothing is trained but linear probes, and nothing is written but the feature store. `fit` with the same
    options does what is advised.

    Args:
        data: as `load_dataset` takes it, or a `Dataset`.
        backbones: names of networks to choose among; by default those that `list_networks` gives.
        progress: called with how far the work is.
        report: called with the data set and its scan, before any work.
        **options: fields of `Settings` that leave the strategy open: `budget`, `seed`, `group`, …

    Raises:
        UsageError: an option is unknown or goes with a strategy.
        InputError: the data cannot be used.
        TooManyBadImagesError: more unreadable images than `max_bad`.
        ResourceError: out of disk, memory or permission.
    """
    began = time.monotonic()
    settings = make_settings(options)
    if settings.strategy != AUTO:
        raise UsageError("setting 'strategy' has no effect on advise, which chooses it")
    check_advisable(settings)
    for name in ("backbone", "weights"):
        if backbones and name in settings.given():
            raise UsageError(f"{name} and backbones are both given; choose one")
    check_cache(settings.runtime.cache_dir)
    progress("listing images", 0, 0)
    dataset = load_data(data, settings)
    dataset.check_single_label()
    check_trainable(dataset)
    dataset, _ = find_groups(dataset, settings, progress)
    dataset = draw_per_class(dataset, settings.data.per_class, settings.seed)
    if report is not None:
        report_scan(dataset, settings, report)
    budget = Budget.of(settings, began)
    assert budget is not None
    return compare_networks(
        dataset,
        settings,
        backbones or list_networks(settings),
        budget=budget,
        bound_s=math.inf if backbones else COMPARING_SHARE * budget.seconds,
        progress=progress,
    )


def list_networks(settings: Settings) -> tuple[str, ...]:
    """Name the networks to choose among: the one that is given, else all that are installed with weights."""
    named = {"backbone", "weights", "input_px"} & settings.given().keys()
    return (settings.backbone,) if named else list_packaged() or (settings.backbone,)


def compare_networks(
    dataset: Dataset,
    settings: Settings,
    names: Sequence[str],
    *,
    budget: Budget,
    bound_s: float,
    progress: Progress,
) -> Advice:
    """Advise with each of some networks, give the best advice.

    Args:
        names: the smallest first.
        bound_s: what all but the first are expected to take, in seconds. By expectation and not by the
            clock, so that the same networks are compared whatever is kept from before.

    Raises:
        As `load_network` and `advise_for` say.
    """
    advices: list[Advice] = []
    left_s, refit, expected_s = budget.left(), may_refit(dataset, settings), 0.0
    for name in names:
        if advices:
            first = advices[0]
            own_s = MEASURING_S + first.costs.extraction_s(first.facts.measured)
            expected_s += own_s * LARGER ** len(advices)
            if expected_s > bound_s:
                break
        progress("loading the network", 0, 0)
        own = settings.model_copy(update={"backbone": name})
        backbone = load_network(own)
        options: dict[str, Any] = {"left_s": left_s, "refit": refit, "is_read": False}
        advices.append(advise_for(dataset, backbone, own, **options, progress=progress))
    return choose_network(advices)


def may_refit(dataset: Dataset, settings: Settings) -> bool:
    """Whether `fit` holds images out itself, which it may train on in the end."""
    return "val" not in dataset.splits and settings.data.val != 0


def advise_for(
    dataset: Dataset,
    backbone: Backbone,
    settings: Settings,
    *,
    left_s: float,
    refit: bool,
    is_read: bool,
    progress: Progress,
) -> Advice:
    """Advise on a data set, the backbone being known.

    Args:
        dataset: its images without a split, or of "train", are measured; no others are looked at.
        left_s: seconds that the training may take.
        refit: as in `Limits`.
        is_read: whether all images have been read, and not only those that are measured.

    Raises:
        InputError, TooManyBadImagesError, VerificationError, ResourceError: as `extract` and
            `measure_facts` say.
    """
    began = time.monotonic()
    of_train = np.array([split in ("train", "") for split in dataset.splits], dtype=bool)
    pool = np.flatnonzero(of_train & dataset.labelled())
    parts = draw_parts(dataset, pool, len(pool) // SAMPLE, settings.seed)
    some = dataset.select(np.sort(parts[0]))
    features = extract(some, backbone, settings.runtime, progress=progress)
    check_bad_images(features.unreadable(), len(pool), settings.data.max_bad)
    task = Task(
        dataset=some,
        backbone=backbone,
        features=features,
        rows=np.flatnonzero(features.good()),
        val_rows=np.arange(0),
        settings=settings,
        folder=None,
        progress=progress,
        on_epoch=lambda entry: None,
        decisions=Decisions(),
    )
    facts, probe_s = _find_facts(task)
    costs = measure_costs(task, probe_s * len(pool) / max(1, len(task.rows)))
    unread_s = 0.0 if is_read else costs.extraction_s(len(pool) - len(some))
    counts = np.bincount(dataset.labels[pool], minlength=len(dataset.classes))
    facts = dataclasses.replace(facts, images=len(pool), per_class=tuple(counts.tolist()))
    limits = Limits(
        seconds=max(0.0, left_s - (time.monotonic() - began) - unread_s),
        disk_mb=DISK_SHARE * shutil.disk_usage(settings.runtime.cache).free / 1e6,
        val_images=0 if refit else sum(split == "val" for split in dataset.splits),
        refit=refit,
    )
    return give_advice(facts, costs, limits, backbone=backbone.name)


def _find_facts(task: Task) -> tuple[Facts, float]:
    """Take the facts from the cache, where they lie under all that they depend on; else measure them."""
    dataset, features, settings = task.dataset, task.features, task.settings
    units = units_of(task, task.rows)
    images = [
        (dataset.ids[row], features.sha256[row], int(dataset.labels[row]), unit)
        for row, unit in zip(task.rows.tolist(), units, strict=True)
    ]
    described = [
        importlib.metadata.version("headstart"),
        features.engine.key(),
        settings.seed,
        settings.class_weights,
        len(dataset.classes),
        images,
    ]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    folder = settings.runtime.cache / "backbones" / task.backbone.fingerprint
    path = folder / f"facts-{key[:32]}.json"
    try:
        kept = read_json(path)
        return Facts.from_json(kept["facts"]), float(kept["probe_s"])
    except (InputError, KeyError, TypeError, ValueError):
        facts, probe_s = measure_facts(task)
    write_quietly(path, json.dumps({"facts": facts.to_json(), "probe_s": probe_s}).encode())
    return facts, probe_s

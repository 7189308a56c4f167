"""Takes runs, or data with strategies and networks to train on them, gives a `Comparison` on the same images.

What is missing is trained, with several seeds, each run in a folder that is named by all that decides what it
is; so a comparison that was interrupted, or gets one more strategy, goes on with what is there.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.arrays import BoolN, BoolSN
from headstart.contrasts import contrast_runs, estimate_accuracy
from headstart.data.dataset import Dataset
from headstart.data.groupings import name_groups
from headstart.data.splits import split_dataset
from headstart.errors import InputError, UsageError
from headstart.features.engines import measure_rate, use_engine
from headstart.features.runtime import Runtime, make_runtime
from headstart.metrics import image_losses
from headstart.parallel import Progress, no_progress
from headstart.runs.classifier import Classifier
from headstart.runs.comparison import Comparison, Contender, judge
from headstart.runs.documents import Measured
from headstart.runs.evaluation import EVALUATE_SETTINGS, evaluate
from headstart.runs.fitting import fit
from headstart.runs.folder import CARD, MODEL, check_folder, find_training
from headstart.runs.grid import CHANGES_NOTHING, Entry, list_entries, name_folder
from headstart.runs.grouping import find_groups
from headstart.runs.record import Run
from headstart.runs.sources import Data, locate, read_data
from headstart.training.outputs import START
from headstart.training.settings import READING, make_settings

__all__ = ["compare", "is_run"]

# The fraction of the images that is held out to test on where the data have no such part.
HELD_OUT = 0.2
# As few as tell what a seed changes.
SEEDS = 3
RUNS = "runs"  # the folder of what is trained
MOST_RUNS = 1000
# What may be said anew when a run is resumed.
AGAIN = ("workers", "device", "cache_dir", "allow_outside", "max_pixels")
# Where a run is measured.
MEASURING = tuple(n for n in EVALUATE_SETTINGS if n not in ("group", *READING))


def compare(
    what: Data | Sequence[str | os.PathLike[str] | Run],
    out: str | os.PathLike[str] | None = None,
    *,
    strategies: Sequence[str] = (),
    backbones: Sequence[str] = (),
    seeds: int | None = None,
    test: Data | float | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Comparison:
    """Compare ways of training on the same test images: differences with intervals, ranks and costs.

    Args:
        what: at least two runs; or labelled images, as `load_dataset` takes them, to train on.
        out: the folder that what is trained goes to; what lies there already is not trained again.
        strategies: to train, each a strategy with settings of `fit`, such as
            "fine-tune:batchnorm=adapt:lr=1e-4"; a linear probe and partial fine-tuning by default.
        backbones: networks to train them with, by name.
        seeds: how many runs of each, with the seeds from `seed` on; 3 by default. One tells of that run, and
            not of the way of training.
        test: labelled images to measure on; or the fraction of the images that is held out for it where the
            data have no test split, 0.2 by default. By default images of a test split, else those of a
            validation split, which then no training sees. Runs are compared by default on the
            validation images that they kept the probabilities of.
        progress: called with how far the work is.
        **options: of `fit` for all strategies on which they have an effect; for runs, those of `evaluate`.

    Raises:
        UsageError: an option is wrong or has no effect, or there is one contender only.
        InputError: the data or a run cannot be used; the runs have other classes, or no image in common.
        KeyboardInterrupt: interrupted; the same call goes on.
        HeadstartError: as `fit` and `evaluate` say.
    """
    named = what if isinstance(what, list | tuple) else [what]
    runs = [is_run(word) for word in named]
    if not any(runs):
        if out is None:
            raise UsageError("out is missing; name the folder that runs are trained in")
        grid = list_entries(strategies, backbones, _without_reading(options))
        return _compare_entries(
            what, Path(out), grid, SEEDS if seeds is None else seeds, test, options, progress
        )
    if not all(runs):
        other = named[runs.index(False)]
        raise UsageError(
            f"{other if isinstance(other, str | os.PathLike) else type(other).__name__} is no run and "
            "others are; name runs, or data to train on"
        )
    for name, value in (("strategies", strategies), ("backbones", backbones), ("seeds", seeds)):
        if value:
            raise UsageError(f"{name} has no effect on runs, which are trained; leave it out")
    if out is not None:
        raise UsageError("out has no effect on runs, which are trained; leave it out")
    return _compare_runs(named, test, options, progress)


def is_run(word: object) -> bool:
    """Whether this is a run, or the folder of one."""
    if isinstance(word, str | os.PathLike):
        return os.path.isfile(os.path.join(word, CARD))
    return isinstance(word, Run)


# ---------------------------------------------------------------- runs that are there


def _compare_runs(
    named: Sequence[Any], test: Data | float | None, options: dict[str, Any], progress: Progress
) -> Comparison:
    progress("loading the runs", 0, 0)
    cache_dir = options.get("cache_dir")
    runs = [w if isinstance(w, Run) else Run.load(w, cache_dir=cache_dir) for w in named]
    places = [os.path.realpath(run.folder) for run in runs]
    for place, run in zip(places, runs, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{run.folder} is named twice; name each run once")
    contenders: dict[str, list[Run]] = {}
    for run in runs:
        contenders.setdefault(_describe(run), []).append(run)
    if len(contenders) < 2:
        raise UsageError(
            f"{runs[0].folder}: the runs differ by nothing but their seeds, if at all; name runs to "
            "compare them with"
        )
    entries = {}
    for alike in contenders.values():
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        entries[f"{alike[0].folder}{more}"] = alike
    unused = [n for n in options if n not in EVALUATE_SETTINGS]
    if unused:
        raise UsageError(
            f"setting '{unused[0]}' has no effect on runs, which are trained; leave it out"
        )
    if isinstance(test, float):
        raise UsageError("a fraction to test on has no effect on runs; name labelled images")
    if test is None:
        unused = [n for n in options if n in (*READING, "group")]
        if unused:
            raise UsageError(f"setting '{unused[0]}' has no effect without images to test on")
        measured = [_take_kept(run) for run in runs]
        told = [
            "measured on the validation images that the runs kept, by which the best epochs were chosen; "
            "--test DATA measures on new ones"
        ]
        groups = _read_groups(runs)
    else:
        dataset = read_data(test, make_settings(options))
        dataset = _group_alike(dataset, runs)
        groups = dict(zip(dataset.ids, dataset.units(), strict=True))
        measured, told = _measure(runs, dataset, None, options, progress)
    return _make_comparison(
        entries, dict(zip(places, measured, strict=True)), groups, told, options, progress
    )


def _describe(run: Run) -> str:
    """Say all that makes a contender, other than its seed."""
    chosen = {
        name: entry["value"]
        for name, entry in run.settings.items()
        if entry["origin"] in ("user", "advised") and name not in CHANGES_NOTHING
    }
    images = hashlib.sha256("\0".join(run.members.ids).encode("utf-8", "surrogateescape"))
    parts = run.strategy, run.backbone, sorted(chosen.items()), run.classes, images.hexdigest()
    return repr(parts)


def _take_kept(run: Run) -> Measured:
    if run.measured is None:
        raise InputError(f"{run.folder}: nothing was measured there; name images with --test DATA")
    # Images of one name and other bytes are others.
    digests = dict(zip(run.members.ids, run.members.sha256, strict=True))
    ids = tuple(f"{i}\0{digests[i]}" for i in run.measured.ids)
    return dataclasses.replace(run.measured, ids=ids)


def _read_groups(runs: Sequence[Run]) -> dict[str, str]:
    """Name the group of each image, as the first run that has it says; by the names of `_take_kept`."""
    groups: dict[str, str] = {}
    for run in runs:
        m = run.members
        for image_id, digest, group in zip(m.ids, m.sha256, m.groups, strict=True):
            groups.setdefault(f"{image_id}\0{digest}", group or image_id)
    return groups


def _group_alike(dataset: Dataset, runs: Sequence[Run]) -> Dataset:
    """Group images by their names as the first run does that found groups by measurement."""
    if any(dataset.groups):
        return dataset
    for run in runs:
        found = run.decisions.facts.get("groupings")
        scores = found if isinstance(found, list) else []  # the folder may come from anywhere
        names = [str(score.get("name")) for score in scores if isinstance(score, dict)]
        by_name = name_groups(run.members.ids) if names and any(run.members.groups) else {}
        for name in names:
            if by_name.get(name) == run.members.groups:
                return dataclasses.replace(dataset, groups=name_groups(dataset.ids)[name])
    return dataset


# ---------------------------------------------------------------- runs to train


def _compare_entries(
    data: Data,
    out: Path,
    grid: tuple[Entry, ...],
    seeds: int,
    test: Data | float | None,
    options: dict[str, Any],
    progress: Progress,
) -> Comparison:
    if not 1 <= seeds <= MOST_RUNS // len(grid):
        raise UsageError(
            f"seeds must be a whole number from 1 to {MOST_RUNS // len(grid)}, of which each of the "
            f"{len(grid)} ways has a run, got {seeds}"
        )
    first = int(make_settings({n: v for n, v in options.items() if n == "seed"}).seed)
    _check_place(out, data)
    training, testing, told = _read_both(data, grid[0], test, options, first, progress)
    digest = _digest(training)
    plans = [
        (entry, seed, out / RUNS / name_folder(entry, seed, digest))
        for seed in range(first, first + seeds)
        for entry in grid
    ]
    pace, runs = _Pace(plans, progress), dict[str, list[Run]]()
    for entry, seed, folder in plans:
        began = time.monotonic()
        trained = _train(entry, seed, folder, training, pace.begin(entry, seed))
        pace.end(entry, time.monotonic() - began, new=trained)
        # Read back, so that no network stays in memory.
        run = Run.load(folder, cache_dir=options.get("cache_dir"))
        runs.setdefault(entry.name, []).append(run)
    every = [run for alike in runs.values() for run in alike]
    measured, more = _measure(every, testing, "all", options, progress)
    by_place = {os.path.realpath(r.folder): m for r, m in zip(every, measured, strict=True)}
    groups = dict(zip(testing.ids, testing.units(), strict=True))
    told = [*told, *more]
    return _make_comparison(runs, by_place, groups, told, options, progress, part="test")


def _check_place(out: Path, data: Data) -> None:
    trees = locate(data)
    for tree in trees if isinstance(trees, tuple) else [trees]:
        if tree is not None and tree.is_dir() and out.resolve().is_relative_to(tree.resolve()):
            raise UsageError(f"{out}: lies in the data, as a class would; choose one outside")


def _without_reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is done with when images are read, and the seed, of which there are several."""
    done = ({"group", *READING} - {"allow_outside"}) | {"seed"}
    return {n: v for n, v in options.items() if n not in done}


def _read_both(
    data: Data,
    entry: Entry,
    test: Data | float | None,
    options: dict[str, Any],
    seed: int,
    progress: Progress,
) -> tuple[Dataset, Dataset, list[str]]:
    """Give the images to train on, those to test on, and what people should know of that."""
    progress("listing images", 0, 0)
    reading = {n: options[n] for n in ("group", *READING) if n in options}
    dataset = read_data(data, make_settings(reading))
    dataset.labels  # noqa: B018 - refuses data of other kinds before any work
    dataset = _with_groups(dataset, entry, reading, progress)
    told = list(dataset.warnings)
    if test is not None and not isinstance(test, float):
        testing = read_data(test, make_settings(reading))
        rows = np.flatnonzero([s == "test" for s in testing.splits])
        testing = testing.select(rows) if len(rows) else testing
        told += testing.warnings
    else:
        progress("splitting the images", 0, 0)
        dataset, remark = _with_test(dataset, test, seed)
        told += [remark] if remark else []
        testing = dataset.select(np.flatnonzero([s == "test" for s in dataset.splits]))
    training = dataset.select(np.flatnonzero([s != "test" for s in dataset.splits]))
    # What was said of the data is said once, and not again by each run.
    return (
        dataclasses.replace(training, warnings=()),
        dataclasses.replace(testing, warnings=()),
        told,
    )


def _with_groups(
    dataset: Dataset, entry: Entry, reading: dict[str, Any], progress: Progress
) -> Dataset:
    """Group images once for all runs: as given, or as measured."""
    if "group" not in reading:
        dataset, _ = find_groups(dataset, make_settings(entry.options), progress)
    if any(dataset.groups):
        return dataset
    # Each image its own group, so that no run looks for others.
    return dataclasses.replace(dataset, groups=dataset.ids)


def _with_test(dataset: Dataset, fraction: float | None, seed: int) -> tuple[Dataset, str]:
    """Give the data set with a test split, and what is to be said of it."""
    splits = np.array([s or "train" for s in dataset.splits], dtype=object)
    if "test" in splits:
        if fraction is not None:
            raise UsageError(
                f"test {fraction} would have no effect: the data have a test split; leave it out"
            )
        return dataset, ""
    if "val" in splits and fraction is None:
        splits[splits == "val"] = "test"
        remark = (
            "the data have no test split: the validation images are tested on, and no run sees them"
        )
    else:
        fraction = HELD_OUT if fraction is None else fraction
        if not 0 < fraction < 1:
            raise UsageError(
                f"test must be a fraction in (0, 1), or labelled images, got {fraction}"
            )
        pool = np.flatnonzero(splits == "train")
        parts = np.array(split_dataset(dataset.select(pool), val=fraction, seed=seed).splits)
        splits[pool[parts == "val"]] = "test"
        remark = f"the data have no test split: {(parts == 'val').sum():,} images are held out to test on"
    return dataclasses.replace(dataset, splits=tuple(splits.tolist())), remark


def _digest(dataset: Dataset) -> str:
    """Digest what a run is trained on: names, sizes, times, labels, splits and groups of the images."""
    digest = hashlib.sha256(repr((str(dataset.root), dataset.classes)).encode())
    columns = (dataset.ids, dataset.label_names(), dataset.splits, dataset.groups)
    for number, row in enumerate(zip(*columns, strict=True)):
        stamp = dataset.image(number).stamp()
        digest.update(
            repr((row, stamp and (stamp.size, stamp.modified_ns))).encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()


def _train(entry: Entry, seed: int, folder: Path, training: Dataset, progress: Progress) -> bool:
    """Train a run where it is missing, go on with one that was interrupted; say whether there was work."""
    options = {**entry.options, "seed": seed}
    if (find_training(folder) / START).exists():
        again = {n: options[n] for n in AGAIN if n in options}
        run = fit(training, folder, resume=True, progress=progress, **again)
    elif check_folder(folder, overwrite=True):
        return False
    else:
        run = fit(training, folder, progress=progress, **options)
    if run.interrupted:
        raise KeyboardInterrupt
    return True


class _Pace:
    """Says which run is going on, and how long all that are left will take.

    That is told once a run of each way has been done: a way may take a hundred times as long as another.
    """

    def __init__(self, plans: Sequence[tuple[Entry, int, Path]], progress: Progress) -> None:
        self._left = [entry.name for entry, _, _ in plans]
        self._total, self._progress = len(plans), progress
        self._seconds: dict[str, list[float]] = {}

    def begin(self, entry: Entry, seed: int) -> Progress:
        """Give the progress of the next run."""
        number = self._total - len(self._left) + 1
        left = self._estimate()
        time_left = f", {max(1, round(left / 60)):,} min left" if left else ""
        head = f"run {number} of {self._total}{time_left}: {entry.name}, seed {seed}"

        def tell(stage: str, done: int, total: int) -> None:
            self._progress(f"{head}: {stage}", done, total)

        return tell

    def end(self, entry: Entry, seconds: float, *, new: bool) -> None:
        """Note what a run took, where it was trained now."""
        self._left.remove(entry.name)
        if new:
            self._seconds.setdefault(entry.name, []).append(seconds)

    def _estimate(self) -> float:
        if not self._seconds.keys() >= set(self._left):
            return 0.0
        return sum(float(np.mean(self._seconds[name])) for name in self._left)


# ---------------------------------------------------------------- measuring


def _measure(
    runs: Sequence[Run],
    dataset: Dataset,
    split: str | None,
    options: Mapping[str, Any],
    progress: Progress,
) -> tuple[list[Measured], list[str]]:
    """Evaluate every run once; give the probabilities, and warnings without repetition."""
    own = {n: v for n, v in options.items() if n in MEASURING}
    measured, warnings = [], dict[str, None]()
    for number, run in enumerate(runs, 1):

        def tell(stage: str, done: int, total: int, number: int = number) -> None:
            progress(f"testing run {number} of {len(runs)}: {stage}", done, total)

        # Read anew, so that its network does not stay in memory.
        fresh = Run.load(run.folder, cache_dir=options.get("cache_dir"))
        result = evaluate(fresh, dataset, split=split, progress=tell, **own)
        measured.append(result.measured)
        warnings |= dict.fromkeys(result.warnings)
        if told := str(result.readings):
            warnings[f"{run.folder}: {told}"] = None
    return measured, list(warnings)


def _make_comparison(
    runs: Mapping[str, Sequence[Run]],
    measured: Mapping[str, Measured],
    groups: Mapping[str, str],
    told: Sequence[str],
    options: Mapping[str, Any],
    progress: Progress,
    *,
    part: str = "",
) -> Comparison:
    """Compare contenders by what their runs gave, by the real path of each run's folder."""
    every = {os.path.realpath(r.folder): r for alike in runs.values() for r in alike}
    common, warnings = _find_common({p: (every[p], m) for p, m in measured.items()})
    names = {name: number for number, name in enumerate(dict.fromkeys(groups[i] for i in common))}
    units = np.array([names[groups[i]] for i in common], dtype=np.int64)
    runtime = make_runtime(**{n: v for n, v in options.items() if n in Runtime.model_fields})
    rates: dict[object, float] = {}
    found: list[tuple[Contender, BoolSN]] = []
    for name, alike in runs.items():
        progress(f"measuring the speed of {name}", 0, 0)
        kept = [_select(measured[os.path.realpath(run.folder)], common) for run in alike]
        right = np.stack([row for row, _ in kept])
        contender = Contender(
            name=name,
            runs=tuple(alike),
            accuracy=estimate_accuracy(right, units),
            log_loss=float(np.mean([loss for _, loss in kept])),
            minutes=max(run.seconds for run in alike) / 60,
            megabytes=float(np.mean([(r.folder / MODEL).stat().st_size for r in alike])) / 1e6,
            images_per_s=_find_rate(alike[0], runtime, rates),
        )
        found.append((contender, right))
    found.sort(key=lambda own: -own[0].accuracy.value)
    contrasts = [
        contrast_runs(first, second, units)
        for (_, first), (_, second) in itertools.combinations(found, 2)
    ]
    contenders, pairs = judge([contender for contender, _ in found], contrasts)
    if max(len(c.runs) for c in contenders) == 1:
        warnings.append(
            "one seed each: the differences are between these runs, and another seed may give others; three "
            "or more tell what the ways of training give"
        )
    where = part or next(iter(measured.values())).part
    return Comparison(contenders, pairs, len(common), len(names), where, (*told, *warnings))


def _find_common(
    measured: Mapping[str, tuple[Run, Measured]],
) -> tuple[dict[str, str], list[str]]:
    """Give {image: label} of those that all runs were measured on, and what is to be said of it.

    Raises:
        InputError: classes differ, or there is no such image.
    """
    (one, first), *others = measured.values()
    for run, own in measured.values():
        if own.labels.ndim != 1:
            raise InputError(
                f"{run.folder}: has several labels an image; compare takes those of one"
            )
    labels = [dict(_list_labels(m)) for _, m in measured.values()]
    for other, second in others:
        odd = set(first.classes) ^ set(second.classes)
        if odd:
            raise InputError(
                f"{one.folder} and {other.folder} have different classes: '{min(odd)}' is of one alone; "
                "compare runs of the same classes"
            )
    shared = set.intersection(*(set(own.items()) for own in labels))
    common = {i: label for i, label in labels[0].items() if (i, label) in shared}
    if not common:
        raise InputError(
            f"{one.folder} and {others[-1][0].folder} were measured on different images; name images to "
            "measure all on, with --test DATA"
        )
    most = max(map(len, labels))
    if len(common) < most:
        return common, [
            f"compared on the {len(common):,} images that all runs were measured on, of up to {most:,}"
        ]
    return common, []


def _list_labels(measured: Measured) -> list[tuple[str, str]]:
    names = [measured.classes[label] for label in measured.labels.tolist()]
    return list(zip(measured.ids, names, strict=True))


def _select(measured: Measured, common: Mapping[str, str]) -> tuple[BoolN, float]:
    """Give which of the common images a run gets right, in their order, and its mean log loss on them."""
    place = {image_id: row for row, image_id in enumerate(measured.ids)}
    rows = np.array([place[i] for i in common], dtype=np.int64)
    probabilities, labels = measured.probabilities[rows], measured.labels[rows]
    right = probabilities.argmax(axis=1) == labels
    return right, float(image_losses(labels, probabilities).mean())


def _find_rate(run: Run, runtime: Runtime, known: dict[object, float]) -> float:
    """Images a second of a run's network, which is the same for all with its shape."""
    classifier = Classifier.load(run.folder, cache_dir=runtime.cache_dir)
    backbone, cuts = classifier.backbone, classifier.cuts
    body = (n for n in backbone.state if not n.startswith(f"{backbone.classifier}."))
    shapes = tuple((name, backbone.state[name].shape) for name in body)
    key = (backbone.name, cuts, backbone.preprocessing.input_px, shapes)
    if key not in known:
        measure = functools.partial(measure_rate, backbone, runtime=runtime, cuts=cuts)
        known[key] = use_engine(backbone, runtime, measure)
    return known[key]

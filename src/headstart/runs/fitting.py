"""Takes data and `Settings`, gives a `Run`: read, extract, train, measure, write the run folder.

The only file that knows all the others.
"""

import contextlib
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.arrays import IntN
from headstart.data.dataset import Dataset
from headstart.data.scan import Scan
from headstart.data.splits import split_dataset
from headstart.errors import UsageError
from headstart.features.engines import choose_device, choose_engine
from headstart.features.extraction import Features, extract
from headstart.features.pixels import check_images
from headstart.features.reading import check_bad_images
from headstart.files import check_cache, to_json_bytes, translate_errors, write_atomically
from headstart.metrics import ClassFigures, Estimate
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress, no_progress
from headstart.problem import MULTI_LABEL
from headstart.runs.advising import (
    COMPARING_SHARE,
    advise_for,
    compare_networks,
    list_networks,
    may_refit,
)
from headstart.runs.budget import DEFAULT, Budget, OutOfTime
from headstart.runs.calibrating import calibrate, find_measured, know_images, settle_thresholds
from headstart.runs.checks import check_data, say_next
from headstart.runs.classifier import Classifier
from headstart.runs.documents import Measured, Members, Start, name_data, read_start
from headstart.runs.folder import (
    CARD,
    NEXT,
    check_folder,
    clear_training,
    find_training,
    mark_incomplete,
    recover,
)
from headstart.runs.folding import check_folds, check_measured_once, train_in_folds
from headstart.runs.grouping import find_groups
from headstart.runs.knowledge import Knowledge
from headstart.runs.record import Parts, Run, save_run
from headstart.runs.refitting import MEASURING, take_probe
from headstart.runs.remarks import find_warnings
from headstart.runs.sampling import draw_parts, draw_per_class
from headstart.runs.sources import (
    Data,
    check_trainable,
    load_data,
    load_network,
    locate,
    report_scan,
)
from headstart.training.advice import Advice, Candidate
from headstart.training.decisions import Decisions
from headstart.training.grouping import GroupingScore
from headstart.training.outputs import (
    ADVICE,
    CHECKPOINT,
    FOLDS,
    HISTORY,
    PLAN,
    START,
    TENSORBOARD,
    WHOLE,
)
from headstart.training.settings import AUTO, FIELDS, Settings, make_settings
from headstart.training.strategies.table import (
    check_advisable,
    choose_strategy,
)
from headstart.training.task import Strategy, Task, Trained

__all__ = [
    "Report",
    "check_place",
    "extract_with",
    "fit",
    "list_members",
]

Report = Callable[[Dataset, Scan | Advice], None]

# Where a budget may not allow all images to be read, the clock is looked at after about so many.
PART = 1000


def fit(
    data: Data | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
    report: Report | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    **options: Any,
) -> Run:
    """Train a classifier from labelled images and write it to a folder.

    Args:
        data: as `load_dataset` takes it, or a `Dataset`; None where `resume` knows it.
        out: the folder of the run; made if missing.
        overwrite: replace a complete run in that folder.
        resume: continue the interrupted training in that folder, with its data and settings. `workers`,
            `device` and `cache_dir` may change; `allow_outside` and `max_pixels` must be given again.
        progress: called with how far the work is.
        report: called with the data set and what is known of it: its scan before any work, and the
            advice before it is followed.
        on_epoch: called with an epoch's figures, how many `epochs`, the `best_epoch` so far, the `fold`.
        **options: fields of `Settings`.

    Raises:
        UsageError: a setting is wrong, `out` is taken or holds an interrupted training, or there is
            nothing to resume.
        InputError: the data cannot be used, or are not those that the training was started with.
        TooManyBadImagesError: more unreadable images than `max_bad`.
        TrainingError, VerificationError: a loss, or a feature, is not finite.
        ResourceError: out of disk, memory or permission.
        KeyboardInterrupt: interrupted before there was a model to keep; `resume` continues.
    """
    began = time.monotonic()
    folder = Path(out)
    if resume and overwrite:
        raise UsageError("overwrite has no effect with resume; choose one")
    plan_before: dict[str, Any] = {}
    if resume:
        data, options, plan_before = _read_start(folder, data, options)
    elif data is None:
        raise UsageError("data is missing; name a folder or manifest of labelled images")
    settings = make_settings(options)
    _check_settings(settings)
    progress("listing images", 0, 0)
    dataset = load_data(data, settings)
    check_trainable(dataset)
    replaces = check_place(folder, data, overwrite, resume)
    settings, dataset, suited = _suit_labels(settings, dataset)
    if suited:
        plan_before["advised"] = {"settings": suited}
    budget = Budget.of(settings, began)
    plan = _Plan(dataset, settings, **plan_before)
    if settings.strategy != AUTO:  # before an image is read
        plan = _load(plan, progress)
    dataset, groupings = find_groups(dataset, settings, progress)
    dataset = draw_per_class(dataset, settings.data.per_class, settings.seed)
    check_folds(settings, dataset, dataset.units())
    plan = dataclasses.replace(plan, dataset=dataset, groupings=groupings)
    if settings.strategy == AUTO:
        plan = _follow_advice(plan, budget, report, progress)
        report = None
    plan = _complete(plan, budget, progress)
    progress("checking the data", 0, 0)
    flaws = check_data(plan.dataset, settings.runtime.max_pixels)
    found = tuple(f"{flaw}; {say_next(data)}" for flaw in flaws)
    if report is not None:
        progress("reading the images' headers", 0, 0)
        report_scan(plan.dataset, settings, report)
    with _writing(folder):
        place = _begin(folder, data, plan, replaces=replaces, resume=resume)
    with _with_tensorboard(settings, place, on_epoch) as write:
        task, trained = _train(plan, place, budget, progress, write)
    run = _measure(folder, data, task, trained)
    progress("writing the run", 0, 0)
    seconds = time.monotonic() - began
    run = dataclasses.replace(run, warnings=(*run.warnings, *found), seconds=seconds)
    with _writing(folder):
        return save_run(run, keep=_list_kept(run), model=run.classifier.files())


def _suit_labels(settings: Settings, dataset: Dataset) -> tuple[Settings, Dataset, dict[str, Any]]:
    """Give settings that go with images of several labels, a warning where they stand for others, and those.

    Raises:
        UsageError: a setting has no effect on these.
    """
    check_measured_once(settings, dataset)
    if dataset.problem.name != MULTI_LABEL.name:
        return settings, dataset, {}
    if settings.class_weights == "balanced":
        raise UsageError(
            "class_weights balanced has no effect where images have several labels, each with a head and a "
            "threshold of its own; leave it out"
        )
    if settings.strategy != AUTO:
        return settings, dataset, {}
    suited = {"strategy": "linear-probe", "cut": "auto"}
    told = (
        "the advice is for one label an image; a linear probe is trained where images have several, and "
        "--strategy names another way"
    )
    dataset = dataclasses.replace(dataset, warnings=(*dataset.warnings, told))
    return make_settings({**settings.given(), **suited}), dataset, suited


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be trained.

    Attributes:
        dataset: its images, with their splits once it is complete.
        settings: of a strategy that is named.
        advised: the settings among them that follow the advice, and the advice, as JSON; {} without.
        parts: of the images that are read, where the budget does not allow all; 0 for all.
        is_read: whether they have been read.
        groupings: what was measured of groups.
        backbone: None until it is loaded: at once where the strategy is named, else after the advice.
    """

    dataset: Dataset
    settings: Settings
    advised: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: int = 0
    is_read: bool = False
    groupings: tuple[GroupingScore, ...] = ()
    backbone: Backbone | None = None

    @property
    def strategy(self) -> Strategy:
        return choose_strategy(self.settings)

    def follow(self, strategy: str, values: Mapping[str, Any], advice: dict[str, Any]) -> "_Plan":
        """Give the plan for the strategy that was advised."""
        chosen = {"strategy": strategy, **values}
        if self.settings.budget is None:  # which bounds a resumed training, too
            chosen["budget"] = DEFAULT
        settings = make_settings({**self.settings.given(), **chosen})
        advised = {"settings": chosen, "advice": advice}
        return dataclasses.replace(self, settings=settings, advised=advised)


def _follow_advice(
    plan: _Plan,
    budget: Budget | None,
    report: Report | None,
    progress: Progress,
) -> _Plan:
    """Measure which strategy to take."""
    settings = plan.settings
    val = settings.data.val if isinstance(settings.data.val, float) else 0.0
    if report is not None:
        progress("reading the images' headers", 0, 0)
        report_scan(split_dataset(plan.dataset, val=val, seed=settings.seed), settings, report)
    assert budget is not None
    refit, names = may_refit(plan.dataset, settings), list_networks(settings)
    networks: tuple[tuple[str, Candidate], ...] = ()
    if len(names) > 1:
        first = compare_networks(
            split_dataset(plan.dataset, val=val, seed=settings.seed),
            settings,
            names,
            budget=budget,
            bound_s=COMPARING_SHARE * budget.seconds,
            progress=progress,
        )
        networks = first.networks
        settings = settings.model_copy(update={"backbone": first.backbone})
    progress("loading the network", 0, 0)
    backbone = load_network(settings)
    plan = _read_within(plan, backbone, budget, progress)
    dataset = split_dataset(plan.dataset, val=val, seed=settings.seed)
    advice = advise_for(
        dataset,
        backbone,
        settings,
        left_s=budget.left(),
        refit=refit,
        is_read=True,
        progress=progress,
    )
    advice = dataclasses.replace(advice, networks=networks)
    if report is not None:
        report(dataset, advice)
    chosen = dict(advice.chosen.settings)
    if len(names) > 1:
        chosen["backbone"] = advice.backbone
    return plan.follow(advice.chosen.strategy, chosen, advice.to_json())


def _load(plan: _Plan, progress: Progress) -> _Plan:
    """Load the network, and see whether it can be cut as the settings say."""
    progress("loading the network", 0, 0)
    backbone = load_network(plan.settings, random_weights=plan.strategy.random_weights)
    if plan.strategy.check_cut is not None:
        plan.strategy.check_cut(plan.settings, backbone)
    return dataclasses.replace(plan, backbone=backbone)


def _complete(plan: _Plan, budget: Budget | None, progress: Progress) -> _Plan:
    """Load the network, where it is not yet, and split the images."""
    if plan.backbone is None:
        plan = _load(plan, progress)
    settings, strategy = plan.settings, plan.strategy
    assert plan.backbone is not None
    if budget is not None and strategy.reads == "features":
        plan = _read_within(plan, plan.backbone, budget, progress)
    dataset = plan.dataset
    if settings.refit and "val" in dataset.splits:
        raise UsageError(
            "setting 'refit' has no effect on data with a validation split, which stays apart; leave "
            "it out"
        )
    # Only now, since it reads images to find identical ones.
    progress("splitting the images", 0, 0)
    dataset = split_dataset(dataset, val=strategy.held_fraction(settings), seed=settings.seed)
    _refuse_unmeasured(settings, dataset)
    return dataclasses.replace(plan, dataset=dataset)


def _read_within(plan: _Plan, backbone: Backbone, budget: Budget, progress: Progress) -> _Plan:
    """Read images for features, part by part, while the budget allows; the others are left out.

    A plan that says how many parts, as that of a resumed training does, has those and no others.
    """
    dataset, settings = plan.dataset, plan.settings
    used = np.flatnonzero([s != "test" for s in dataset.splits])
    count = len(used) // PART
    if count < 2 or plan.is_read:
        return plan
    of_split = [
        draw_parts(
            dataset, np.flatnonzero([s == name for s in dataset.splits]), count, settings.seed
        )
        for name in sorted(set(dataset.splits) - {"test"})
    ]
    parts = [np.sort(np.concatenate(rows)) for rows in zip(*of_split, strict=True)]
    read: list[IntN] = []

    def tell(stage: str, done: int, total: int) -> None:
        before = sum(map(len, read)) if total else 0
        progress(stage, before + done, len(used) if total else 0)

    for part in parts[: plan.parts or count]:
        extract_with(settings, dataset.select(part), backbone, tell)
        read.append(part)
        if not (plan.parts or budget.may_read()):
            break
    if len(read) == count:
        return dataclasses.replace(plan, is_read=True)
    kept = dataset.select(np.sort(np.concatenate(read)))
    warning = (
        f"{len(kept):,} of {len(used):,} images are used, which is what the budget of {budget.text} "
        "allows; a longer --budget reads more, and those that are read are kept"
    )
    kept = dataclasses.replace(kept, warnings=(*kept.warnings, warning))
    return dataclasses.replace(plan, dataset=kept, parts=len(read), is_read=True)


def _train(
    plan: _Plan,
    place: Path,
    budget: Budget | None,
    progress: Progress,
    on_epoch: Callable[[dict[str, Any]], None],
) -> tuple[Task, Trained]:
    """Train as planned; where the budget ends before there is anything, the linear probe, which is there."""
    # The test split is looked at by `evaluate` alone.
    splits = plan.dataset.splits
    used = plan.dataset.select(np.flatnonzero([s in ("train", "val") for s in splits]))
    assert plan.backbone is not None
    task = _read_images(plan.settings, used, plan.backbone, progress)
    task = dataclasses.replace(task, folder=place, on_epoch=on_epoch)
    for name, value in plan.advised.get("settings", {}).items():
        task.decisions.settle(name, value, "advised")
    if "advice" in plan.advised:
        task.decisions.record("advice", plan.advised["advice"])
    if plan.groupings:
        task.decisions.record("groupings", [dataclasses.asdict(s) for s in plan.groupings])
    progress("training the head", 0, 0)
    if budget is None:
        return train_in_folds(task, None)
    guarded = dataclasses.replace(task, progress=budget.guard(progress), deadline=budget.deadline)
    try:
        return train_in_folds(guarded, budget)
    except OutOfTime:
        unfolded = "" if plan.settings.folds is None else ", and its figures are not of folds"
        return take_probe(
            task,
            f"the budget of {budget.text} ended before {plan.settings.strategy} had begun to train; "
            f"this is a linear probe, and what was computed is kept{unfolded}",
        )


def _check_settings(settings: Settings) -> None:
    """Check before any work that the settings go together, and what they need of the machine."""
    if settings.strategy == AUTO:
        check_advisable(settings)
    choose_device(settings.runtime.device)
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard events need a package: pip install 'headstart[tensorboard]'")
    if settings.strategy == AUTO or choose_strategy(settings).reads == "features":
        check_cache(settings.runtime.cache_dir)


def check_place(folder: Path, data: Data, overwrite: bool, resume: bool) -> bool:
    """Check that the run may be written there; say whether it replaces a complete run.

    Raises:
        UsageError: it may not; says what to choose.
    """
    tree = locate(data)
    if isinstance(tree, Path) and tree.is_dir() and folder.resolve().is_relative_to(tree.resolve()):
        raise UsageError(f"{folder}: lies in the data, as a class would; choose one outside")
    replaces = check_folder(folder, overwrite=overwrite or resume)
    place = find_training(folder)
    can_resume = (place / START).exists() and any(
        (place / name).exists() for name in (CHECKPOINT, FOLDS)
    )
    if can_resume and not (overwrite or resume):
        raise UsageError(
            f"{folder}: holds an interrupted training; headstart fit --resume {folder} goes on with "
            "it, and --overwrite starts anew"
        )
    return replaces


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    with translate_errors(folder, advice=ADVICE):
        yield


def _begin(folder: Path, data: Data, plan: _Plan, *, replaces: bool, resume: bool) -> Path:
    """Mark the folder as one of a training under way; give the place where that keeps its state."""
    place = find_training(folder)
    if not replaces:  # a complete run stays until there is something to replace it with
        mark_incomplete(folder)
    if not resume:
        place = folder / NEXT if replaces else folder
        clear_training(place)
        if plan.strategy.has_epochs(plan.settings) or plan.settings.folds is not None:
            _write_start(place, data, plan)
    return place


def _read_images(settings: Settings, used: Dataset, backbone: Backbone, progress: Progress) -> Task:
    """Read the images to train on: the readable labelled ones, with their features."""
    reads_features = choose_strategy(settings).reads == "features"
    read = extract_with if reads_features else _check_with
    features = read(settings, used, backbone, progress)
    check_bad_images(features.unreadable(), len(used), settings.data.max_bad)
    good = features.good() & used.labelled()
    rows = np.flatnonzero(good & (np.array(used.splits) == "train"))
    val_rows = np.flatnonzero(good & (np.array(used.splits) == "val"))
    check_trainable(used.select(rows))
    return Task(
        dataset=used,
        backbone=backbone,
        features=features,
        rows=rows,
        val_rows=val_rows,
        settings=settings,
        folder=None,
        progress=progress,
        on_epoch=lambda entry: None,
        decisions=Decisions(),
    )


def _measure(folder: Path, data: Data, task: Task, trained: Trained) -> Run:
    """Measure what was trained; give the run, complete except for its history and time."""
    used, features, settings = task.dataset, task.features, task.settings
    task.progress("measuring", 0, 0)
    images = {"train": len(task.rows), "val": len(task.val_rows)}
    novelty = know_images(task, trained)
    if trained.folds is not None:  # all are measured on, each by a training without it
        rows = trained.folds.rows
        task = dataclasses.replace(task, rows=rows, val_rows=rows[:0])
    measured = find_measured(task, trained.probabilities, trained.folds)
    calibrated = calibrate(task, trained.head, measured)
    measured = calibrated.measured
    metrics, per_class = dict[str, Estimate](), dict[str, ClassFigures]()
    problem, thresholds = used.problem, tuple[float, ...]()
    if problem.name == MULTI_LABEL.name:
        problem, thresholds = settle_thresholds(task, measured)
    if measured is not None:
        predicted = (measured.labels, measured.probabilities, used.classes)
        metrics = problem.measure(*predicted, groups=measured.groups)
        per_class = problem.measure_each(*predicted, groups=measured.groups)
        for name, threshold in zip(used.classes, thresholds, strict=False):  # () of one label
            per_class[name] = dataclasses.replace(per_class[name], threshold=threshold)
    engine, decisions = features.engine, task.decisions
    for name, value in (
        ("engine", engine.library),
        ("device", engine.device),
        ("precision", engine.precision),
    ):
        decisions.settle(name, value, "measured", reason=engine.reason)
    classifier = Classifier(
        trained.backbone,
        calibrated.head,
        trained.cuts,
        used.classes,
        settings.strategy,
        settings.seed,
        thresholds=thresholds,
        temperature=calibrated.temperature,
        knowledge=Knowledge(calibrated.sets, novelty),
    )
    unreadable = len(features.unreadable())
    return Run(
        folder=folder,
        strategy=settings.strategy,
        backbone=trained.backbone.name,
        classes=used.classes,
        names=(),
        metrics=metrics,
        per_class=per_class,
        measured_on="" if measured is None else measured.part,
        images={**images, "unreadable": unreadable},
        settings=settings.describe(decisions),
        decisions=decisions,
        warnings=find_warnings(task, measured, f"; {say_next(data)}"),
        history=(),
        data=locate(data),
        root=Path(os.path.abspath(used.root)),
        computed=features.computed,
        engine=engine,
        seconds=0.0,
        interrupted=trained.interrupted,
        parts=Parts(
            lambda: classifier, lambda: list_members(used, features, measured), lambda: measured
        ),
        problem=used.problem.name,
    )


def extract_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """Extract features with the settings that concern it."""
    return extract(dataset, backbone, settings.runtime, progress=progress)


def _refuse_unmeasured(settings: Settings, dataset: Dataset) -> None:
    """Refuse settings that need validation images where there are none."""
    unused = MEASURING & settings.given().keys()
    if unused and "val" not in dataset.splits:
        raise UsageError(
            f"setting '{min(unused)}' has no effect without validation images; leave it out, or hold "
            "some out with --val 0.2"
        )


def _check_with(
    settings: Settings, dataset: Dataset, backbone: Backbone, progress: Progress
) -> Features:
    """Check which images can be read, for a training that needs no features."""
    errors, digests = check_images(dataset, settings.runtime, progress=progress)
    update = {"engine": "torch", "precision": "fp32"}
    engine = choose_engine(backbone, settings.runtime.model_copy(update=update))
    return Features(
        dataset.ids, dataset.targets, dataset.splits, dataset.classes, {}, errors, digests, engine
    )


@contextlib.contextmanager
def _with_tensorboard(
    settings: Settings, folder: Path, on_epoch: Callable[[dict[str, Any]], None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Also write every epoch's figures as TensorBoard events."""
    if not settings.tensorboard:
        yield on_epoch
        return
    from torch.utils.tensorboard import SummaryWriter

    with _writing(folder):
        writer = SummaryWriter(str(folder / TENSORBOARD))

    def write(entry: dict[str, Any]) -> None:
        with _writing(folder):
            for name, value in entry.items() if "fold" not in entry else ():
                if name not in ("epoch", "epochs", "best_epoch") and value is not None:
                    writer.add_scalar(name, value, entry["epoch"])
            writer.flush()
        on_epoch(entry)

    with contextlib.closing(writer):
        yield write


_MAY_CHANGE = ("workers", "device", "cache_dir")
# A file, which may come from anywhere, must not lower these guards: whoever lowered them does so again.
_GUARDS = ("allow_outside", "max_pixels")


def _write_start(place: Path, data: Data, plan: _Plan) -> None:
    """Write the data and settings that `resume` needs."""
    settings = plan.settings
    options = dict(sorted(settings.given().items()))
    for name in ("root", "class_names", "weights", "cache_dir"):
        if options.get(name) is not None:
            options[name] = os.path.abspath(options[name])
    if isinstance(settings.data.val, str):
        options["val"] = os.path.abspath(settings.data.val)
    place.mkdir(exist_ok=True)
    start = Start(
        data=name_data(locate(data)), options=options, advised=plan.advised, parts=plan.parts
    )
    write_atomically(place / START, to_json_bytes(start.model_dump()))


def _read_start(
    folder: Path, data: Data | None, options: dict[str, Any]
) -> tuple[Data, dict[str, Any], dict[str, Any]]:
    changed = [name for name in options if name not in _MAY_CHANGE + _GUARDS]
    if changed:
        raise UsageError(
            f"setting '{changed[0]}' cannot change on resume; those that can: {', '.join(_MAY_CHANGE)}"
        )
    recover(folder)
    path = find_training(folder) / START
    if not os.path.lexists(path):
        if (folder / CARD).exists():
            raise UsageError(f"{folder}: its training is complete; there is nothing to resume")
        raise UsageError(
            f"{folder}: no interrupted training to resume here; headstart fit DATA -o {folder} "
            "starts one"
        )
    start = read_start(path)
    stored = dict(start.options)
    data = start.data if data is None else data
    if data is None:
        raise UsageError(f"{folder}: was started from a Dataset; give it again")
    for name in _GUARDS:
        default = FIELDS[name].info.default
        if options.get(name, default) != stored.get(name, default):
            raise UsageError(
                f"{folder}: was started with {name} {stored.get(name, default)!r}, which is not taken "
                "from a file; give it again"
            )
    return data, {**stored, **options}, {"advised": dict(start.advised), "parts": start.parts}


def list_members(dataset: Dataset, features: Features, measured: Measured | None = None) -> Members:
    """List the images that a run used, with their folds where it measured by those."""
    folds: dict[str, int] = {}
    if measured is not None and measured.folds:
        folds = dict(zip(measured.ids, measured.folds, strict=True))
    return Members(
        ids=dataset.ids,
        splits=dataset.splits,
        labels=dataset.label_names(),
        groups=dataset.groups,
        sha256=features.sha256,
        errors=features.errors,
        folds=tuple(folds.get(image_id, 0) for image_id in dataset.ids) if folds else (),
    )


def _list_kept(run: Run) -> list[str]:
    """List the files of the training that belong to its run."""
    keep = [HISTORY] if "training" in run.decisions.facts else []
    if run.settings["tensorboard"]["value"]:
        keep.append(TENSORBOARD)
    if run.interrupted:  # the state that --resume continues
        keep += [START, PLAN, CHECKPOINT, WHOLE, FOLDS]
    return keep

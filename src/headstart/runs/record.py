"""Takes the folder of a run, gives the `Run`: its figures, decisions and predictions.

The files, beside the classifier's own three: settings.json (each value with its origin), metrics.json
(figures and decisions), run.json (provenance: data, engine, time), split.jsonl (the part that each image
was used in), predictions.safetensors (the probabilities of every image that was measured on) and
history.jsonl (an object an epoch). `documents` says what each may hold.

Shape letters: N measured images, C classes.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save as save_arrays

from headstart.canvas import draw_curves
from headstart.errors import InputError
from headstart.features.engine import EngineChoice
from headstart.files import to_json_bytes
from headstart.metrics import ClassFigures, Estimate
from headstart.problem import PROBLEMS, SINGLE_LABEL
from headstart.runs.classifier import Classifier, read_card
from headstart.runs.documents import (
    Measured,
    Members,
    MetricsDocument,
    ProvenanceDocument,
    list_rows,
    locate_data,
    name_data,
    read_document,
    read_history,
    read_measured,
    read_members,
    read_settings,
    to_json,
)
from headstart.runs.folder import (
    MEMBERS,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    SETTINGS,
    replace_run,
)
from headstart.runs.showing import (
    check_one_label,
    confuse,
    frame_measured,
    plot_measured,
    plot_wrong,
    show_measured,
)
from headstart.runs.sources import find_images, restore_settings
from headstart.training.decisions import Decisions
from headstart.training.outputs import HISTORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Parts", "Run", "has_record", "save_run"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The large parts of a run, each read when first asked for."""

    classifier: Callable[[], Classifier]
    members: Callable[[], Members]
    measured: Callable[[], Measured | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training, as `fit` gives it and `Run.load` reads it back.

    Attributes:
        folder: of its files.
        strategy, backbone: by name.
        classes: C class names.
        names: readable names of the classes, in their order; () where the classes are readable.
        metrics: {name: Estimate}, named as in `metrics.measure`, or `measure_labels` where an image may have
            several labels; empty when nothing could be measured.
        per_class: {class: its figures}; empty likewise.
        measured_on: "val" or "cross-validation", or "" when nothing could be measured.
        images: {"train": n, "val": n, "unreadable": n}.
        settings: {name: {"value": …, "origin": "default" | "user" | "advised" | "measured"}}.
        decisions: the values of the settings that the user did not give, and their evidence.
        warnings: one line each, for people.
        history: an object an epoch, 0 the starting point; () where there are no epochs.
        data: absolute path of the folder, manifest or archive it was trained on, or of several archives;
            None for a `Dataset` in memory.
        root: absolute path of the folder that the image ids are relative to. A run that comes from
            anywhere may name any folder: ask the user before opening images there.
        computed: how many images' features were computed; the others' came from the store.
        engine: the engine that ran the frozen network, and why.
        seconds: wall-clock time.
        interrupted: whether Ctrl-C ended it early, with the best classifier so far.
        problem: the name of the kind of problem, a key of `PROBLEMS`.
    """

    folder: Path
    strategy: str
    backbone: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    metrics: dict[str, Estimate]
    per_class: dict[str, ClassFigures]
    measured_on: str
    images: dict[str, int]
    settings: dict[str, dict[str, Any]]
    decisions: Decisions
    warnings: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    data: Path | tuple[Path, ...] | None
    root: Path
    computed: int
    engine: EngineChoice
    seconds: float
    interrupted: bool
    parts: Parts = dataclasses.field(repr=False)
    problem: str = SINGLE_LABEL.name

    @property
    def recall(self) -> dict[str, Estimate]:
        """{class: the fraction of its images that were said to be of it}."""
        return {name: figures.recall for name, figures in self.per_class.items()}

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """What was chosen by the images that were measured on, so that the figures flatter a little."""
        facts, settled = self.decisions.facts, self.decisions.settled
        training = facts.get("training")
        if not self.metrics or "folds" in facts:  # each fold chose without its own images
            chosen = {}
        elif self.measured_on == "val":
            epochs = training if isinstance(training, dict) else {}
            monitor = self.settings.get("monitor", {}).get("value")
            chosen = {
                "the best epoch": bool(epochs) and monitor != "last",
                "the share of the trained weights": epochs.get("wise_ft") is not None,
                "the training in the place of a probe": self.is_refitted(),
            }
        else:
            origins = {name: decision.origin for name, decision in settled.items()}
            chosen = {
                "the cut points": origins.get("cut") == "measured",
                "the penalty": origins.get("penalty") == "measured",
            }
        return tuple(name for name, is_chosen in chosen.items() if is_chosen)

    def is_refitted(self) -> bool:
        """Whether it was trained on the validation images too, after they were measured on."""
        return "refit" in self.decisions.facts

    def __repr__(self) -> str:
        name, first = next(iter(self.metrics.items()), ("", None))
        figure = (
            "nothing measured" if first is None else f"{name.replace('_', ' ')} {first.value:.3f}"
        )
        return (
            f"Run({str(self.folder)!r}, {self.strategy} on {self.backbone}, "
            f"{len(self.classes):,} classes, {figure})"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        name = f"{self.strategy} on {self.backbone}" if self.backbone else self.strategy
        counts = ", ".join(f"{n:,} {part}" for part, n in self.images.items() if n)
        lines = [f"{len(self.classes):,} classes, {counts} images, {self.seconds:.1f} s"]
        measured, confusion = None, None
        with contextlib.suppress(InputError):  # the figures can be shown all the same
            measured = self.measured
            confusion = confuse(measured, self.problem)
        if self.measured_on:
            how = {"val": "on", "cross-validation": "by cross-validation on"}[self.measured_on]
            part = {"val": "validation", "cross-validation": "training"}[self.measured_on]
            count = "" if measured is None else f"{len(measured):,} "
            lines.append(f"measured {how} {count}{part} images, 95 % intervals")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(f"saved to {self.folder}")
        return show_measured(name, lines, self.metrics, self.per_class, self.problem, confusion)

    def plot_confusion(self) -> "Figure":
        """Draw the confusion matrix, as a matplotlib figure.

        Raises:
            InputError: nothing was measured, or what was is damaged.
            UsageError: an image may have several labels.
        """
        return plot_measured(self._need_measured("plot_confusion"), self.problem)

    def plot_curves(self) -> "Figure":
        """Draw losses and accuracies by epoch, as a matplotlib figure.

        Raises:
            InputError: there were no epochs: a head that is fitted at once has none.
        """
        if not self.history:
            raise InputError(
                f"{self.folder}: has no epochs to plot; {self.strategy} is fitted at once"
            )
        training = self.decisions.facts.get("training")
        best = training.get("best_epoch") if isinstance(training, dict) else None
        return draw_curves(self.history, best if isinstance(best, int) else None)

    def plot_mistakes(self, most: int = 16) -> "Figure":
        """Draw the images that it was most wrong on, as a matplotlib figure.

        They are read again where the run found them, and drawn only if their bytes are those that were
        measured. A run that comes from anywhere may name any folder.

        Raises:
            InputError: nothing was measured, nothing was wrong, or the images are gone.
            UsageError: an image may have several labels, or `most` is less than 1.
        """
        measured = self._need_measured("plot_mistakes")
        check_one_label(self.problem, "plot_mistakes")
        images = find_images(measured, self.data, self.root, restore_settings(self.settings))
        digests = dict(zip(self.members.ids, self.members.sha256, strict=True))
        return plot_wrong(measured, images, digests, most)

    def to_frame(self) -> "DataFrame":
        """Give a table with a row for each measured image, as `frame_measured` makes it.

        Raises:
            UsageError: pandas is not installed.
            InputError: what was measured is damaged.
        """
        return frame_measured(self.measured, self.per_class, self.problem)

    def _need_measured(self, what: str) -> Measured:
        measured = self.measured
        if measured is None or len(measured) == 0:
            raise InputError(
                f"{self.folder}: nothing was measured; evaluate it on labelled images, and {what} of that"
            )
        return measured

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The trained classifier.

        Raises:
            InputError: as `Classifier.load` says.
        """
        return self.parts.classifier()

    @functools.cached_property
    def members(self) -> Members:
        """The images that were used; empty where the folder does not list them.

        Raises:
            InputError: split.jsonl is damaged.
        """
        return self.parts.members()

    @functools.cached_property
    def measured(self) -> Measured | None:
        """The probabilities of every image that was measured on; None when nothing could be measured.

        Raises:
            InputError: predictions.safetensors or split.jsonl is missing or damaged.
        """
        return self.parts.measured()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> "Run":
        """Read a run back; its classifier, images and probabilities only when asked for.

        Args:
            folder: of a run.
            cache_dir: as in `Classifier.load`, for its classifier.

        Raises:
            InputError: missing, incomplete, damaged, or written by a newer headstart.
        """
        path = Path(folder)
        card = read_card(path, reads=None)
        classes = tuple(card.classes)
        members = functools.cache(functools.partial(read_members, path))
        metrics = read_document(path / METRICS, MetricsDocument)
        settings = read_settings(path / SETTINGS)
        # Ids of images in other folders begin with "..", and only then.
        values = {name: settings.get(name, {}).get("value") for name in ("allow_outside", "val")}
        outside = values["allow_outside"] is True or isinstance(values["val"], str)

        def measured() -> Measured | None:
            if not metrics.measured_on:
                return None
            problem = PROBLEMS[card.problem]
            return read_measured(path, classes, metrics.measured_on, members(), outside, problem)

        return _make_run(
            path,
            (card.strategy, card.backbone, card.problem, classes, tuple(card.names)),
            metrics,
            settings,
            read_document(path / PROVENANCE, ProvenanceDocument),
            read_history(path / HISTORY),
            Parts(lambda: Classifier.load(path, cache_dir=cache_dir), members, measured),
        )


def has_record(folder: Path) -> bool:
    """Whether a folder holds more of a run than its classifier."""
    return any((folder / name).exists() for name in (METRICS, SETTINGS, PROVENANCE, MEMBERS))


def save_run(run: Run, *, keep: Collection[str], model: Mapping[str, bytes]) -> Run:
    """Write a run to its folder; it replaces a run that is there.

    Args:
        keep: names of the files of its training that belong to the run.
        model: {name: content} of what was trained, and its card.

    Returns:
        The run, its figures and decisions as they will be read back.

    Raises:
        OSError: out of disk or permission; the run that was there is untouched.
    """
    members, measured = run.members, run.measured
    metrics = {
        "measured_on": run.measured_on,
        "metrics": run.metrics,
        "per_class": run.per_class,
        "images": run.images,
        "decisions": run.decisions.to_json(),
        "warnings": run.warnings,
    }
    provenance = {
        "data": name_data(run.data),
        "root": str(run.root),
        "engine": dataclasses.asdict(run.engine),
        "computed": run.computed,
        "seconds": run.seconds,
        "interrupted": run.interrupted,
    }
    documents = {SETTINGS: run.settings, METRICS: metrics, PROVENANCE: provenance}
    files = {name: to_json_bytes(to_json(value)) for name, value in documents.items()}
    files[MEMBERS] = "".join(json.dumps(row) + "\n" for row in list_rows(members)).encode()
    if measured is not None:
        place = {image_id: row for row, image_id in enumerate(members.ids)}
        arrays = {
            "probabilities": np.ascontiguousarray(measured.probabilities, dtype=np.float32),
            "labels": np.ascontiguousarray(measured.labels),
            "rows": np.array([place[i] for i in measured.ids], dtype=np.int64),
        }
        files[PREDICTIONS] = save_arrays(arrays)
    replace_run(run.folder, {**files, **model}, keep=keep)
    return _make_run(
        run.folder,
        (run.strategy, run.backbone, run.problem, run.classes, run.names),
        MetricsDocument.model_validate(json.loads(files[METRICS])),
        json.loads(files[SETTINGS]),
        ProvenanceDocument.model_validate(json.loads(files[PROVENANCE])),
        read_history(run.folder / HISTORY),
        Parts(lambda: run.classifier, lambda: members, lambda: measured),
    )


def _make_run(
    folder: Path,
    card: tuple[str, str, str, tuple[str, ...], tuple[str, ...]],
    metrics: MetricsDocument,
    settings: dict[str, dict[str, Any]],
    provenance: ProvenanceDocument,
    history: tuple[dict[str, Any], ...],
    parts: Parts,
) -> Run:
    strategy, backbone, problem, classes, names = card
    where = folder / METRICS
    if set(metrics.images) != {"train", "val", "unreadable"}:
        raise InputError(f"{where}: damaged: field 'images' lacks a part; fit again")
    if bool(metrics.metrics) != bool(metrics.measured_on):
        raise InputError(
            f"{where}: damaged: field 'metrics' is not what 'measured_on' says; fit again"
        )
    field, per_class = metrics.read_classes()
    if tuple(per_class) != (classes if metrics.metrics else ()):
        raise InputError(
            f"{where}: damaged: field '{field}' is not of the run's classes; fit again"
        )
    try:
        decisions = Decisions.from_json(metrics.decisions)
    except ValueError as exc:
        raise InputError(f"{where}: damaged: field 'decisions': {exc}; fit again") from exc
    return Run(
        folder=folder,
        strategy=strategy,
        backbone=backbone,
        classes=classes,
        names=names,
        metrics={name: figure.read() for name, figure in metrics.metrics.items()},
        per_class=per_class,
        measured_on=metrics.measured_on,
        images={str(name): count for name, count in metrics.images.items()},
        settings=settings,
        decisions=decisions,
        warnings=tuple(metrics.warnings),
        history=history,
        data=locate_data(provenance.data),
        root=Path(provenance.root),
        computed=provenance.computed,
        engine=EngineChoice(**provenance.engine.model_dump()),
        seconds=provenance.seconds,
        interrupted=provenance.interrupted,
        parts=parts,
        problem=problem,
    )

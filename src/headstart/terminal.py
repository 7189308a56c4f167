"""What people see: reports, tables and progress on the terminal, JSON and CSV cells for programs.

Place in the flow: before `cli`, which decides what is shown. Results go to stdout, messages and
progress to stderr. Text that came from files is escaped before a terminal sees it.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from headstart.errors import printable

if TYPE_CHECKING:
    from headstart.datasets import Dataset
    from headstart.engines import EngineChoice
    from headstart.features import Progress as Told
    from headstart.fit import Evaluation, Run
    from headstart.images import Scan
    from headstart.metrics import Estimate

__all__ = [
    "State",
    "csv_cell",
    "err",
    "note",
    "out",
    "print_json",
    "show_epoch",
    "show_evaluation",
    "show_metrics",
    "show_progress",
    "show_run",
    "show_scan",
    "warn",
    "wide",
]


class State:
    """What the options common to all commands decided."""

    quiet = False
    verbose = False
    json = False


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled; rich would exit with 1


out = _Console(highlight=False, soft_wrap=False)
err = _Console(stderr=True, highlight=False)
# For long tables: a line a row however narrow the terminal, so that a row can be searched for.
wide = _Console(highlight=False, soft_wrap=True, width=1000)


def show_scan(dataset: "Dataset", scan: "Scan") -> None:
    """The report before any work, on stderr."""
    if State.quiet or State.json:
        return
    classes = len(dataset.classes)
    low, middle, high = zip(scan.width_px, scan.height_px, strict=True)
    note(
        f"{scan.images:,} images in {classes} classes at {printable(str(dataset.root))}, "
        f"{low[0]} x {low[1]} to {high[0]} x {high[1]} px, median {middle[0]} x {middle[1]}"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    splits = [s for s in ("all", "train", "val", "test") if s in scan.counts]
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    shown = dataset.classes if classes <= 12 else dataset.classes[:10]
    for name in shown:
        table.add_row(Text(printable(name)), *(f"{scan.counts[s].get(name, 0):,}" for s in splits))
    if len(shown) < classes:
        rest = [sum(v for k, v in scan.counts[s].items() if k not in shown) for s in splits]
        table.add_row(f"… {classes - len(shown)} more", *(f"{n:,}" for n in rest))
    err.print(table)
    if dataset.ignored:
        passed = ", ".join(f"{n} {printable(kind)}" for kind, n in sorted(dataset.ignored.items()))
        note(f"passed over, not images: {passed}")
    if scan.unreadable:
        first = "; ".join(f"{printable(i)}: {printable(e)}" for i, e in scan.unreadable[:3])
        more = f"; and {len(scan.unreadable) - 3} more" if len(scan.unreadable) > 3 else ""
        warn(f"{len(scan.unreadable)} unreadable: {first}{more}")


def show_run(run: "Run") -> None:
    """The outcome of fit."""
    for warning in run.warnings:
        warn(warning)
    images = run.images
    if run.metrics:
        chosen = ", by which the best epoch was chosen too" if "training" in run.evidence else ""
        how = {
            "val": f"on {images['val']:,} validation images{chosen}",
            "cross-validation": f"by cross-validation on {images['train']:,} training images",
        }[run.measured_on]
        out.print(Text(f"measured {how}, 95 % intervals", style="dim"))
        show_metrics(run.metrics)
    if State.verbose:
        table = Table("setting", "value", "origin", box=None, pad_edge=False, header_style="dim")
        for name, entry in run.settings.items():
            table.add_row(name, Text(printable(str(entry["value"]))), entry["origin"])
        err.print(table)
    out.print(
        Text(
            f"{run.classifier.strategy} on {printable(run.classifier.backbone.name)}"
            f"{_decisions(run)}, {images['train']:,} training images, {run.seconds:.1f} s"
        )
    )
    out.print(Text(_where_from(run.computed, run.engine), style="dim"), soft_wrap=True)
    out.print(Text(f"saved to {printable(str(run.folder))}"), soft_wrap=True)


def _decisions(run: "Run") -> str:
    """What was decided on the way, in a few words."""
    settings = run.settings
    words = []
    if settings["cut"]["value"] not in (None, "last"):
        words.append(f"cut {settings['cut']['value']} ({settings['cut']['origin']})")
    training = run.evidence.get("training")
    if training is not None:
        words.append(f"epoch {training['best_epoch']} of {training['epochs']} kept")
    elif settings["penalty"]["value"] is not None:
        penalty = settings["penalty"]
        words.append(f"penalty {penalty['value']:g} ({penalty['origin']})")
    saved = run.evidence.get("saved")
    if saved is not None:
        whole, shallow = saved["whole"], saved["shallow"]
        words.append(
            f"{shallow['megabytes']:g} of {whole['megabytes']:g} MB, "
            f"{shallow['images_per_s'] / whole['images_per_s']:.1f} times as fast"
        )
    return "".join(f", {printable(w)}" for w in words)


def show_epoch(entry: dict[str, Any]) -> None:
    """A line an epoch on stderr."""
    parts = [f"epoch {entry['epoch']:>3}" if entry["epoch"] else "start    "]
    for name in ("train", "val"):
        if f"{name}_loss" in entry:
            loss, accuracy = entry[f"{name}_loss"], entry[f"{name}_accuracy"]
            parts.append(f"{name} loss {loss:.3f} accuracy {accuracy:.3f}")
    if "images_per_s" in entry:
        parts.append(f"{entry['images_per_s']:,.0f} images/s")
    note("  ".join(parts))


def _where_from(computed: int, engine: "EngineChoice") -> str:
    if computed == 0:
        return "features from the store"
    return f"features of {computed:,} images computed with {engine} ({engine.reason})"


def show_evaluation(result: "Evaluation") -> None:
    """The outcome of evaluate."""
    for warning in result.warnings:
        warn(warning)
    for image, reason in result.bad[:5]:
        warn(f"unreadable: {image}: {reason}")
    where = "all images" if result.split == "all" else f"the split {result.split}"
    out.print(Text(f"{result.images['evaluated']:,} images, {where}, 95 % intervals", style="dim"))
    show_metrics(result.metrics)
    confused = [
        (int(n), result.classes[i], result.classes[j])
        for i, row in enumerate(result.confusion)
        for j, n in enumerate(row)
        if i != j and n > 0
    ]
    if State.verbose:
        note(_where_from(result.computed, result.engine))
    for n, true, predicted in sorted(confused, reverse=True)[:5]:
        out.print(Text(f"  {n} x {printable(true)} taken for {printable(predicted)}"))


def show_metrics(metrics: "dict[str, Estimate]") -> None:
    """Figures with intervals; of many classes the five with the lowest recall."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    recalls = {n: e for n, e in metrics.items() if n.startswith("recall ")}
    shown = {n: e for n, e in metrics.items() if n not in recalls}
    known = {n: e for n, e in recalls.items() if e.value == e.value}
    lowest = sorted(known, key=lambda n: known[n].value)[: 10 if len(known) <= 10 else 5]
    shown.update({n: known[n] for n in known if n in lowest})
    for name, e in shown.items():
        label = name if name in recalls else name.replace("_", " ")
        style = "bold" if name == "accuracy" else ""
        table.add_row(
            Text(printable(label), style=style),
            Text(f"{e.value:.3f}", style=style),
            "" if e.low != e.low else f"{e.low:.3f} to {e.high:.3f}",
        )
    out.print(table)
    if len(lowest) < len(known):
        out.print(Text(f"  the 5 lowest recalls of {len(known)} classes", style="dim"))


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, and that is one line of valid UTF-8."""
    text = printable(text)
    return "'" + text if text[:1] in tuple("=+-@") else text


def print_json(value: dict[str, Any]) -> None:
    from headstart.fit import to_json

    # ASCII escapes carry file names that are not valid UTF-8 and cannot steer a terminal.
    sys.stdout.write(json.dumps(to_json(value)) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text(text))


def warn(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text.assemble(("warning: ", "yellow"), printable(text)), soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="dim")


@contextlib.contextmanager
def show_progress() -> Iterator["Told"]:
    """A bar on stderr, or nothing where that is no terminal or is not wanted."""
    if State.quiet or not err.is_terminal:
        yield lambda stage, done, total: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        # Else rich sends what is written to stdout to the bar's console, which is stderr.
        redirect_stdout=out.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done, total=total)
        if done >= total:
            bar.update(tasks[stage], visible=False)

    with bar:
        yield show

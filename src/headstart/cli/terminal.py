"""Takes results, shows them: reports, tables and progress on a terminal, JSON and CSV for programs.

Results go to stdout, messages and progress to stderr. Text that came from files is escaped before a
terminal sees it.
"""

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.table
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress as RichProgress
from rich.progress import ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import Task as RichTask
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from headstart.errors import printable
from headstart.training.settings import READING

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset
    from headstart.data.scan import Scan
    from headstart.features.engine import EngineChoice
    from headstart.metrics import ClassFigures, Estimate
    from headstart.parallel import Progress
    from headstart.runs.auditing import Audit
    from headstart.runs.evaluation import Evaluation
    from headstart.runs.record import Run
    from headstart.training.advice import Advice, Candidate
    from headstart.training.task import Strategy

__all__ = [
    "State",
    "Table",
    "count",
    "err",
    "note",
    "option_words",
    "out",
    "print_json",
    "show_advice",
    "show_audit",
    "show_epoch",
    "show_evaluation",
    "show_followed",
    "show_metrics",
    "show_next",
    "show_progress",
    "show_run",
    "show_scan",
    "warn",
]


class State:
    """The options that all commands have in common."""

    quiet = False
    verbose = False
    json = False


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled; rich would exit with 1


# No line is broken: a terminal does that, and what reads a file or a pipe wants lines whole.
out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


class Table(rich.table.Table):
    """Columns with a line a row however narrow the terminal, so that a row can be searched for."""

    def __init__(self, *headers: str) -> None:
        super().__init__(*headers, box=None, pad_edge=False, header_style="dim")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = options.update(width=100_000, no_wrap=True, overflow="ignore")
        segments = (s for s in super().__rich_console__(console, whole) if isinstance(s, Segment))
        for words in Segment.split_lines(segments):
            while words and not words[-1].text.strip():  # a terminal would wrap what pads the last
                words.pop()
            if words:
                words[-1] = Segment(words[-1].text.rstrip(), words[-1].style)
            yield from words
            yield Segment.line()


def show_scan(dataset: "Dataset", scan: "Scan") -> None:
    """Show the report before any work, on stderr."""
    if State.quiet or State.json:
        return
    classes = len(dataset.classes)
    low, middle, high = zip(scan.width_px, scan.height_px, strict=True)
    sizes = f", {low[0]} x {low[1]} to {high[0]} x {high[1]} px, median {middle[0]} x {middle[1]}"
    note(
        f"{scan.images:,} images in {classes} classes at {printable(dataset.name)}"
        f"{sizes if scan.probed else ''}"
    )
    table = Table()
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
        from headstart.features.reading import tell_bad_images

        told = printable(tell_bad_images(scan.unreadable))
        warn(f"{len(scan.unreadable)} unreadable: {told}")


def show_run(run: "Run") -> None:
    """Show the outcome of fit."""
    for warning in run.warnings:
        warn(warning)
    images = run.images
    if run.metrics:
        chosen = ""
        if run.is_refitted():
            chosen = ", which were trained on too after that"
        elif run.history and run.settings["monitor"]["value"] != "last":
            chosen = ", by which the best epoch was chosen too"
        how = {
            "val": f"on {images['val']:,} validation images{chosen}",
            "cross-validation": f"by cross-validation on {images['train']:,} training images",
        }[run.measured_on]
        out.print(Text(f"measured {how}, 95 % intervals", style="dim"))
        show_metrics(run.metrics, run.per_class, run.problem)
    trained = images["train"] + (images["val"] if run.is_refitted() else 0)
    if State.verbose:
        table = Table("setting", "value", "origin")
        for name, entry in run.settings.items():
            table.add_row(name, Text(printable(str(entry["value"]))), entry["origin"])
        err.print(table)
    out.print(
        Text(
            f"{run.strategy} on {printable(run.backbone or _name_features(run))}"
            f"{_decisions(run)}, {trained:,} training images, {run.seconds:.1f} s"
        )
    )
    reads_features = _strategy_of(run).reads == "features"
    where = _where_from(run.computed, run.engine)
    if run.backbone:
        out.print(Text(where if reads_features else f"trained on {run.engine.device}", style="dim"))
    out.print(Text(f"saved to {printable(str(run.folder))}"))


def _name_features(run: "Run") -> str:
    """Name the file of features that a run without a network was trained on."""
    file = run.data[0] if isinstance(run.data, tuple) else run.data
    return f"the features of {file.name}" if file is not None else "features"


def _decisions(run: "Run") -> str:
    """Describe the decisions in a few words."""
    settings = run.settings
    words = []
    if "cut" in settings and settings["cut"]["value"] not in (None, "last"):
        words.append(f"cut {settings['cut']['value']} ({settings['cut']['origin']})")
    training = run.decisions.facts.get("training")
    if training is not None:
        best, epochs = training["best_epoch"], training["epochs"]
        words.append(
            f"epoch {best} of {epochs} kept" if best else "no epoch was better than the start"
        )
    elif settings["penalty"]["value"] is not None:
        penalty = settings["penalty"]
        words.append(f"penalty {penalty['value']:.3g} ({penalty['origin']})")
    saved = run.decisions.facts.get("saved")
    if saved is not None:
        whole, shallow = saved["whole"], saved["shallow"]
        words.append(
            f"{shallow['megabytes']:g} of {whole['megabytes']:g} MB, "
            f"{shallow['images_per_s'] / whole['images_per_s']:.1f} times as fast"
        )
    return "".join(f", {printable(w)}" for w in words)


def show_advice(advice: "Advice", data: list[str], options: dict[str, Any]) -> None:
    """Show what is advised, its evidence and the alternatives."""
    from headstart.training.advice import say_time

    case, chosen = advice.case, advice.chosen
    number = f"case {case.number}: " if case.number else ""
    out.print(Text(f"{number}{case.words}", style="bold"))
    for line in case.evidence:
        out.print(Text(f"  {printable(line)}"))
    for name, candidate in advice.networks:
        out.print(Text(f"  {printable(name)}: {_expected(candidate)} by {candidate.name}"))
    network = f" on {printable(advice.backbone)}" if advice.networks else ""
    out.print(Text(f"\nadvice: {printable(chosen.name)}{network}", style="bold green"))
    seconds = say_time(chosen.bill.seconds)
    out.print(Text(f"  {_expected(chosen)}, {seconds}: {printable(chosen.reason)}"))
    if advice.others:
        out.print(
            Text(
                f"  the probability that no other way in that time is clearly better: {advice.sure:.2f}"
            )
        )
    for line in advice.changes:
        out.print(Text(f"  {line}"))
    table = Table("", "what", "expected", "95 % interval", "time", "memory", "disk", "")
    sentences = ("", *advice.sentences)
    for candidate, sentence in zip((chosen, *advice.others), sentences, strict=True):
        bill = candidate.bill
        table.add_row(
            Text("*" if candidate is chosen else ""),
            Text(printable(candidate.name)),
            "" if math.isnan(candidate.accuracy) else f"{candidate.accuracy:.3f}",
            f"{candidate.low:.3f} to {candidate.high:.3f}",
            say_time(bill.seconds),
            f"{bill.memory_mb / 1000:.1f} GB",
            f"{bill.disk_mb / 1000:.1f} GB" if bill.disk_mb else "",
            Text(sentence),
        )
    out.print()
    out.print(table)
    _show_depths(advice)
    words = ["headstart", "fit", *data]
    if advice.networks:
        options = {**options, "backbone": advice.backbone}
    words += option_words(options)
    note("next:")
    note(f"  {printable(shlex.join(words))}  # does what is advised")


def option_words(options: dict[str, Any]) -> list[str]:
    """Give options as they are written on the command line."""
    words = []
    for name, value in options.items():
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        words += [flag, *([] if isinstance(value, bool) else [str(value)])]
    return words


# So many findings of a kind are shown; all are in the JSON and the CSV.
SHOWN = 5


def show_audit(audit: "Audit") -> None:
    """Show what is wrong with a data set: the first findings of each kind."""
    for warning in audit.warnings:
        warn(warning)
    if audit.probe is not None:
        e = audit.probe.accuracy
        out.print(
            Text(
                f"labels judged by a probe at {printable(', '.join(audit.probe.cuts))} that is right on "
                f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f}) of the images it has not seen",
                style="dim",
            )
        )
    copies = [(f"{len(images)} images", *images) for images in audit.duplicates]
    leaks = [
        (f"{leak.similarity:.3f}", " and ".join(leak.splits), *leak.images) for leak in audit.leaks
    ]
    conflicts = []
    for conflict in audit.conflicts:
        one_each = dict(zip(conflict.labels[::-1], conflict.images[::-1], strict=True))
        named = (f"{one_each[label]} ({label})" for label in dict.fromkeys(conflict.labels))
        conflicts.append((f"{len(conflict.images)} images", *named))
    likely = sum(error.likely for error in audit.label_errors)
    half = f"of the first {likely:,} at least half are wrong" if likely else "none is likely wrong"
    _show_findings(
        f"labels to look at, the least probable first ({half})",
        [
            (f"{e.score:.3f}", e.image, f"{e.label}, rather {e.suggested}")
            for e in audit.label_errors
        ],
    )
    _show_findings("the same picture under several classes", conflicts)
    _show_findings("the same picture in two splits", leaks)
    for held in audit.held:
        out.print(
            Text(
                f"  a probe is right on {held.accuracy.value:.3f} of {held.split}, and on "
                f"{held.without.value:.3f} without those {held.leaked:,}"
            )
        )
    _show_findings("the same picture more than once", copies)
    _show_findings(
        "images that belong together",
        [
            (
                f"by {g.name}",
                f"{g.groups:,} groups",
                f"a probe {g.together:.2f} instead of {g.apart:.2f}",
            )
            for g in audit.groups
        ],
    )
    _show_findings(
        "images unlike all others",
        [(f"{o.score:.1f}", o.image, o.label) for o in audit.outliers],
    )
    _show_findings("odd files", [(f.problem, f.image, f.evidence) for f in audit.files])
    _show_findings(
        "odd classes", [(c.problem, c.name, f"{c.images:,}", c.evidence) for c in audit.classes]
    )
    if not any(audit.counts().values()):
        out.print(Text("nothing found", style="bold green"))


def _show_findings(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    out.print(Text(f"{title}: {len(rows):,}", style="bold"))
    table = Table()
    table.show_header = False
    for _ in range(max(map(len, rows[:SHOWN]))):
        table.add_column()
    for row in rows[:SHOWN]:
        cells = (
            row if len(row) <= SHOWN else (*row[: SHOWN - 1], f"… {len(row) - SHOWN + 1:,} more")
        )
        table.add_row(*(Text(f"  {printable(cell)}") for cell in cells))
    out.print(table)
    if len(rows) > SHOWN:
        out.print(Text(f"  … {len(rows) - SHOWN:,} more", style="dim"))


def show_followed(advice: "Advice") -> None:
    """Show on stderr what fit follows, and why, in a few lines."""
    from headstart.training.advice import MATTERS, say_time

    case, chosen = advice.case, advice.chosen
    if case.number:
        note(f"case {case.number}: {case.words}")
    for name, candidate in advice.networks:
        note(f"  {printable(name)}: {_expected(candidate)} by {printable(candidate.name)}")
    network = f" on {printable(advice.backbone)}" if advice.networks else ""
    note(
        f"following the advice: {printable(chosen.name)}{network}, {_expected(chosen)}, "
        f"{say_time(chosen.bill.seconds)} of the {say_time(advice.budget_s)} that are left"
    )
    better = [c for c in advice.others if c.accuracy > chosen.accuracy + MATTERS]
    if better:
        note(
            f"  with more time: {printable(better[0].name)}, {_expected(better[0])}, "
            f"{say_time(better[0].bill.seconds)}; --budget says how much there is"
        )


def _expected(candidate: "Candidate") -> str:
    if math.isnan(candidate.accuracy):
        return "no accuracy can be expected"
    return (
        f"accuracy {candidate.accuracy:.3f} ({candidate.low:.3f} to {candidate.high:.3f}) expected"
    )


def _show_depths(advice: "Advice") -> None:
    """Show the accuracy of a probe at every cut point as bars, and with fewer images."""
    if not advice.facts.depths:
        return
    table = Table("a probe on the features at", "accuracy", "")
    for depth in advice.facts.singles:
        bar = "█" * round(BAR_WIDTH * depth.accuracy)
        shown = f"{depth.accuracy:.3f} ± {1.96 * depth.error:.3f}"
        table.add_row(Text(printable(depth.cut)), shown, Text(bar, style="blue"))
    out.print()
    out.print(table)
    if advice.facts.curve:
        points = ", ".join(f"{p.accuracy:.3f} with {p.images:,}" for p in advice.facts.curve)
        out.print(Text(f"learning curve on the last features: {points} images"))


def show_epoch(entry: dict[str, Any]) -> None:
    """Show a line an epoch on stderr."""
    parts = [f"epoch {entry['epoch']:>3}" if entry["epoch"] else "start    "]
    for name in ("train", "val"):
        if f"{name}_loss" in entry:
            text = f"{name} loss {entry[f'{name}_loss']:.3f}"
            if f"{name}_log_loss" in entry:
                text += f" log loss {entry[f'{name}_log_loss']:.3f}"
            parts.append(f"{text} accuracy {entry[f'{name}_accuracy']:.3f}")
    if "images_per_s" in entry:
        parts.append(f"{entry['images_per_s']:,.0f} images/s")
    note("  ".join(parts))


def _where_from(computed: int, engine: "EngineChoice") -> str:
    if computed == 0:
        return "features from the store"
    return f"features of {computed:,} images computed with {engine} ({engine.reason})"


def show_evaluation(result: "Evaluation") -> None:
    """Show the outcome of evaluate."""
    for warning in result.warnings:
        warn(warning)
    for image, reason in result.unreadable[:5]:
        warn(f"unreadable: {image}: {reason}")
    where = "all images" if result.split == "all" else f"the split {result.split}"
    out.print(Text(f"{result.images['evaluated']:,} images, {where}, 95 % intervals", style="dim"))
    show_metrics(result.metrics, result.per_class, result.problem)
    if told := str(result.readings):
        out.print(Text(told, style="dim"))
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
    if result.sets is not None:
        sets = result.sets
        sizes = ", ".join(f"{n:,} of {size}" for size, n in list(sets.sizes.items())[:6])
        more = ", …" if len(sets.sizes) > 6 else ""
        out.print(
            Text(
                f"sets for a coverage of {sets.coverage:g}: {_with_interval(sets.covered)} have their class, "
                f"{sets.size:.2f} classes a set ({sizes}{more})"
            )
        )
    if result.novel is not None:
        out.print(Text(f"none of these: {_with_interval(result.novel)} of these images"))


def _with_interval(e: "Estimate") -> str:
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"


def show_metrics(
    metrics: "dict[str, Estimate]",
    per_class: "dict[str, ClassFigures]",
    problem: str,
) -> None:
    """Show the main figures with intervals; of many classes the five with the lowest recall, or average
    precision."""
    several = problem == MULTI_LABEL
    recall = {} if several else {name: figures.recall for name, figures in per_class.items()}
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    known = {n: e for n, e in recall.items() if e.value == e.value}
    lowest = sorted(known, key=lambda n: known[n].value)[: 10 if len(known) <= 10 else 5]
    shown = [(n.replace("_", " "), e) for n, e in metrics.items() if n not in IN_FULL]
    shown += [(f"recall {name}", e) for name, e in known.items() if name in lowest]
    for label, e in shown:
        style = "bold" if label in ("accuracy", "mean average precision") else ""
        table.add_row(
            Text(printable(label), style=style),
            Text(f"{e.value:.3f}", style=style),
            "" if e.low != e.low else f"{e.low:.3f} to {e.high:.3f}",
        )
    out.print(table)
    if len(lowest) < len(known):
        out.print(Text(f"  the 5 lowest recalls of {len(known)} classes", style="dim"))
    if several:
        _show_labels(per_class)


def _show_labels(labels: "dict[str, ClassFigures]") -> None:
    """Show a row for each label, of many those with the lowest average precision."""
    present = {n: f for n, f in labels.items() if f.images}
    lowest = sorted(present, key=lambda n: present[n].average_precision.value)
    shown = lowest[: len(lowest) if len(lowest) <= LABELS_SHOWN else LABELS_SHOWN // 2]
    table = Table("label", "images", "avg. precision", "95 % interval", "F1", "precision", "recall")
    table.add_column("from")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, f in present.items():
        if name in shown:
            area = f.average_precision
            figures = (f.f1.value, f.precision.value, f.recall.value)
            table.add_row(
                Text(printable(name)),
                f"{f.images:,}",
                f"{area.value:.3f}",
                f"{area.low:.3f} to {area.high:.3f}",
                *("" if math.isnan(value) else f"{value:.3f}" for value in figures),
                f"{f.threshold:.2f}",
            )
    out.print()
    out.print(table)
    if len(shown) < len(present):
        told = f"  the {len(shown)} lowest of {len(present)} labels"
        out.print(Text(told, style="dim"))
    absent = [n for n in labels if n not in present]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        out.print(
            Text(
                f"  not measured, since no image has it: {printable(absent[0])}{more}", style="dim"
            )
        )


# Figures that are in metrics.json, --json and the report alone.
IN_FULL = ("brier", "roc_auc", "average_precision")
MULTI_LABEL = "multi-label"  # a key of `problem.PROBLEMS`, which are imported late
BAR_WIDTH = 30
LABELS_SHOWN = 40
# Settings of a run that stay the same for the same data, whatever the strategy.
KEPT = (*READING, "group", "val", "per_class", "max_bad", "device", "workers", "cache_dir")
NETWORK = ("backbone", "weights", "input_px", "head")


def _strategy_of(run: "Run") -> "Strategy":
    from headstart.training.strategies.table import STRATEGIES

    return STRATEGIES[run.strategy]


def show_next(run: "Run", data: list[str], dataset: "Dataset") -> None:
    """Show the commands that make sense after fit, on stderr; no `data` are named after a resume."""
    strategy, folder = _strategy_of(run), str(run.folder)

    def given(*names: str) -> list[str]:
        settings = {name: run.settings.get(name, {}) for name in names}
        return option_words(
            {n: s["value"] for n, s in settings.items() if s.get("origin") == "user"}
        )

    steps = []
    if data and "test" in dataset.splits:
        words = ["evaluate", folder, *data, *given(*READING)]
        steps.append((words, "measures on the test split"))
    steps.append((["predict", folder, "PHOTOS"], "says what is in new images"))
    tried = "against_probe" in run.decisions.facts
    if data and strategy.better is not None and not tried:
        better, why = strategy.better
        network = () if strategy.random_weights else NETWORK
        words = ["fit", *data, "--strategy", better, *given(*KEPT, *network)]
        steps.append((words, why))
    lines = [printable(shlex.join(["headstart", *words])) for words, _ in steps]
    width = max(len(line) for line in lines)
    short = all(2 + width + 4 + len(why) <= 80 for _, why in steps)
    note("next:")
    for line, (_, why) in zip(lines, steps, strict=True):
        note(f"  {line:<{width}}  # {why}" if short else f"  # {why}:\n  {line}")


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun: 1 network, 2 networks."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def print_json(value: dict[str, Any]) -> None:
    from headstart.runs.record import to_json

    # ASCII escapes carry file names that are not valid UTF-8 and cannot steer a terminal.
    sys.stdout.write(json.dumps(to_json(value)) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text(text))


def warn(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text.assemble(("warning: ", "yellow"), printable(text)))


# Seconds between lines about progress where there is no terminal to show it on.
LINE_SECONDS = 60.0


@contextlib.contextmanager
def show_progress() -> Iterator["Progress"]:
    """Show the progress on one line of a terminal; elsewhere a line a minute, or none with --quiet."""
    if State.quiet or (State.json and not err.is_terminal):
        yield lambda stage, done, total: None
        return
    if not err.is_terminal:
        yield _LineAMinute()
        return
    bar = RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        _Bar(),
        _Figures(),
        console=err,
        transient=True,
        # Else rich sends what is written to stdout to the bar's console, which is stderr.
        redirect_stdout=out.is_terminal,
    )
    shown: list[object] = [None]

    def show(stage: str, done: int, total: int) -> None:
        if shown[0] == (stage, total):
            bar.update(bar.task_ids[0], completed=done)
            return
        shown[0] = (stage, total)
        for old in bar.task_ids:
            bar.remove_task(old)
        bar.add_task(stage, total=total or None, completed=done)
        bar.refresh()  # the next stage may keep the refreshing thread from running

    with bar:
        show("starting", 0, 0)
        yield show


class _Bar(ProgressColumn):
    """A bar where there is something to count."""

    def render(self, task: RichTask) -> RenderableType:
        if task.total is None:
            return Text()
        return ProgressBar(total=max(1, task.total), completed=task.completed, width=20)


class _Figures(ProgressColumn):
    """How much is done, how fast, and the time left; else the time since the stage began."""

    def render(self, task: RichTask) -> Text:
        if task.total is None:
            return Text(_minutes(task.elapsed or 0), style="dim")
        words = [f"{task.completed:,.0f} of {task.total:,.0f}"]
        # The first images come in a burst.
        if task.speed and not task.finished and (task.elapsed or 0) > 1:
            rate = f"{task.speed:,.0f}" if task.speed >= 10 else f"{task.speed:.1f}"
            words += [f"{rate}/s", f"{_minutes(task.time_remaining or 0)} left"]
        return Text("  ".join(words), style="dim")


class _LineAMinute:
    """The `Progress` where there is no terminal: one line a minute, and none for what takes less."""

    def __init__(self) -> None:
        self._began = self._printed = time.monotonic()
        self._stage, self._before = "", 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._before = stage, now, done
        if now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        rate = (done - self._before) / max(now - self._began, 1e-9)
        count = f": {done:,} of {total:,}" if total else ""
        note(stage + count + (f", {_minutes((total - done) / rate)} left" if rate > 0 else ""))


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

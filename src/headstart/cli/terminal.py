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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress as RichProgress
from rich.progress import ProgressColumn, SpinnerColumn
from rich.progress import Task as RichTask
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from headstart.cli.hints import list_hints
from headstart.cli.words import WIDTH, EpochLines, fold, say_class, shorten
from headstart.errors import printable
from headstart.training.settings import READING

if TYPE_CHECKING:
    from headstart.arrays import IntCC
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
    "epoch_printer",
    "err",
    "note",
    "option_words",
    "out",
    "print_json",
    "say",
    "show_advice",
    "show_advised",
    "show_audit",
    "show_evaluation",
    "show_followed",
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
    sizes = [
        f"{low[0]} x {low[1]} to {high[0]} x {high[1]} px",
        f"median {middle[0]} x {middle[1]}",
    ]
    if low == high:
        sizes = [f"all {low[0]} x {low[1]} px"]
    head = f"{scan.images:,} images in {classes} classes at {printable(dataset.name)}"
    _say_items("", [head, *(sizes if scan.probed else ())], err)
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
    from headstart.runs.remarks import tell_choices
    from headstart.runs.showing import confuse

    for warning in run.warnings:
        warn(warning)
    images = run.images
    if run.metrics:
        chosen = ""
        if run.is_refitted():
            chosen = ", which were trained on too after that"
        folds = run.decisions.facts.get("folds", {})
        within = f" in {folds['count']} folds" if folds else ""
        measured = sum(folds["images"]) if folds else images["train"]
        how = {
            "val": f"on {images['val']:,} validation images{chosen}",
            "cross-validation": f"by cross-validation{within} on {measured:,} training images",
        }[run.measured_on]
        say(f"measured {how}, 95 % intervals", style="dim")
        show_figures(run.metrics, run.per_class, run.problem)
        if flattery := tell_choices(run):
            say(flattery, style="dim")
        values = [value for value in folds.get("values", ()) if value is not None]
        if len(values) > 1:
            told = f"{folds['figure'].replace('_', ' ')} by fold {min(values):.3f} to {max(values):.3f}"
            spread = f"mean {folds['mean']:.3f}, standard deviation {folds['deviation']:.3f}"
            say(f"{told}, {spread}", style="dim")
        matrix = confuse(run.measured, run.problem)
        show_mistakes(run.metrics, run.per_class, run.problem, matrix)
    trained = images["train"] + (images["val"] if run.is_refitted() else 0)
    if State.verbose:
        table = Table("setting", "value", "origin")
        for name, entry in run.settings.items():
            table.add_row(name, Text(printable(str(entry["value"]))), entry["origin"])
        err.print(table)
    name = f"{run.strategy} on {printable(run.backbone or _name_features(run))}"
    figures = [f"{trained:,} training images", f"{run.seconds:.1f} s"]
    _say_items("", [name, *_decisions(run), *figures], out)
    reads_features = _strategy_of(run).reads == "features"
    where = _where_from(run.computed, run.engine)
    if run.backbone:
        say(where if reads_features else f"trained on {run.engine.device}", style="dim")
    out.print(Text(f"saved to {printable(str(run.folder))}"))


def _name_features(run: "Run") -> str:
    """Name the file of features that a run without a network was trained on."""
    file = run.data[0] if isinstance(run.data, tuple) else run.data
    return f"the features of {file.name}" if file is not None else "features"


def _decisions(run: "Run") -> list[str]:
    """Describe the decisions in a few words each."""
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
    return [printable(w) for w in words]


def show_advice(advice: "Advice") -> None:
    """Show what is advised, its evidence and the alternatives."""
    from headstart.training.advice import say_time

    case, chosen = advice.case, advice.chosen
    number = f"case {case.number}: " if case.number else ""
    out.print(Text(f"{number}{case.words}", style="bold"))
    for line in case.evidence:
        say(f"  {printable(line)}")
    for name, candidate in advice.networks:
        say(f"  {printable(name)}: {_expected(candidate)} by {candidate.name}")
    network = f" on {printable(advice.backbone)}" if advice.networks else ""
    out.print(Text(f"\nadvice: {printable(chosen.name)}{network}", style="bold green"))
    seconds = say_time(chosen.bill.seconds)
    say(f"  {_expected(chosen)}, {seconds}: {printable(chosen.reason)}")
    if advice.others:
        say(
            f"  the probability that no other way in that time is clearly better: {advice.sure:.2f}"
        )
    for line in advice.changes:
        say(f"  {line}")
    _show_candidates(advice)
    _show_depths(advice)


def show_advised(words: Sequence[str]) -> None:
    """Show the command that does what is advised, on stderr."""
    note("next:")
    note(f"  {printable(shlex.join(words))}  # does what is advised")


def _show_candidates(advice: "Advice") -> None:
    """Show a row for each way of training; why it was not chosen with --verbose."""
    from headstart.training.advice import say_time

    ways = (advice.chosen, *advice.others)
    has_disk = any(way.bill.disk_mb >= MATTERS_MB for way in ways)
    heads = ("", "what", "expected", "95 % interval", "time", "memory")
    table = Table(*heads, *(["disk"] if has_disk else []), *([""] if State.verbose else []))
    for way, sentence in zip(ways, ("", *advice.sentences), strict=True):
        bill = way.bill
        disk = f"{bill.disk_mb / 1000:.1f} GB"
        table.add_row(
            Text("*" if way is advice.chosen else ""),
            Text(printable(way.name)),
            "" if math.isnan(way.accuracy) else f"{way.accuracy:.3f}",
            f"{way.low:.3f} to {way.high:.3f}",
            say_time(bill.seconds),
            f"{bill.memory_mb / 1000:.1f} GB",
            *([disk] if has_disk else []),
            *([Text(sentence)] if State.verbose else []),
        )
    out.print()
    out.print(table)


def option_words(options: dict[str, Any]) -> list[str]:
    """Give options as they are written on the command line."""
    words = []
    for name, value in options.items():
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        words += [flag, *([] if isinstance(value, bool) else [str(value)])]
    return words


# Of a way of training that keeps less, the disk stands in the JSON and on the page alone.
MATTERS_MB = 1000
# So many findings of a kind are shown; all are in the JSON and the CSV.
SHOWN = 5


def show_audit(audit: "Audit") -> None:
    """Show what is wrong with a data set: the first findings of each kind."""
    for warning in audit.warnings:
        warn(warning)
    if audit.probe is not None:
        e = audit.probe.accuracy
        say(
            f"labels judged by a probe at {printable(', '.join(audit.probe.cuts))} that is right on "
            f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f}) of the images it has not seen",
            style="dim",
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
        say(
            f"  a probe is right on {held.accuracy.value:.3f} of {held.split}, and on "
            f"{held.without.value:.3f} without those {held.leaked:,}"
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
        _tell(f"  {printable(name)}: {_expected(candidate)} by {printable(candidate.name)}")
    network = f" on {printable(advice.backbone)}" if advice.networks else ""
    # Less than a second is none: looking at the images has taken all that was given.
    left = (
        f" of the {say_time(advice.budget_s)} that are left"
        if advice.budget_s >= 1
        else ", though no time is left"
    )
    _tell(
        f"following the advice: {printable(chosen.name)}{network}, {_expected(chosen)}, "
        f"{say_time(chosen.bill.seconds)}{left}"
    )
    better = [c for c in advice.others if c.accuracy > chosen.accuracy + MATTERS]
    if better:
        _tell(
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
        say(f"learning curve on the last features: {points} images")


def epoch_printer() -> Callable[[dict[str, Any]], None]:
    """Give what shows a line an epoch of one training, on stderr."""
    lines = EpochLines(err.encoding)
    return lambda entry: note(lines.write(entry))


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
    show_figures(result.metrics, result.per_class, result.problem)
    show_mistakes(result.metrics, result.per_class, result.problem, result.confusion)
    if told := str(result.readings):
        say(told, style="dim")
    if State.verbose:
        note(_where_from(result.computed, result.engine))
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
        out.print(Text(f"none of these: {_with_interval(result.novel)} of the images"))


def _with_interval(e: "Estimate") -> str:
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"


def show_figures(
    metrics: "dict[str, Estimate]",
    per_class: "dict[str, ClassFigures]",
    problem: str,
) -> None:
    """Show the main figures with intervals; those of every class with --verbose."""
    from headstart.metrics import IN_FULL

    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for number, (name, e) in enumerate(metrics.items()):
        if name not in IN_FULL:
            style = "bold" if number == 0 else ""
            table.add_row(
                Text(name.replace("_", " "), style=style),
                Text(f"{e.value:.3f}", style=style),
                "" if e.low != e.low else f"{e.low:.3f} to {e.high:.3f}",
            )
    out.print(table)
    if State.verbose or problem == MULTI_LABEL:
        _show_classes(per_class, problem)


def _show_classes(per_class: "dict[str, ClassFigures]", problem: str) -> None:
    """Show a row for each class; of many labels those with the lowest average precision, unless --verbose."""
    several = problem == MULTI_LABEL
    present = {n: f for n, f in per_class.items() if f.images or f.recall.value == f.recall.value}

    def area(name: str) -> "Estimate":
        return present[name].average_precision if several else present[name].recall

    shown = sorted(present, key=lambda n: area(n).value)
    if not State.verbose and len(shown) > LABELS_SHOWN:
        shown = shown[: LABELS_SHOWN // 2]
    table = Table(
        "label" if several else "class", "images", "avg. prec." if several else "recall",
        "95 % interval", "F1", "precision", "recall" if several else "avg. prec.",
    )  # fmt: skip
    if several:
        table.add_column("from")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, f in present.items():
        if name in shown:
            e = area(name)
            figures = (f.f1, f.precision, f.recall if several else f.average_precision)
            table.add_row(
                Text(printable(name)),
                f"{f.images:,}" if f.images else "",
                f"{e.value:.3f}",
                f"{e.low:.3f} to {e.high:.3f}",
                *("" if math.isnan(x.value) else f"{x.value:.3f}" for x in figures),
                *([f"{f.threshold:.2f}"] if several else []),
            )
    out.print()
    out.print(table)
    if len(shown) < len(present):
        say(f"  the {len(shown)} lowest of {len(present)}; --verbose shows all", style="dim")
    absent = [n for n in per_class if n not in present]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        say(f"  not measured, since no image has it: {printable(absent[0])}{more}", style="dim")


def show_mistakes(
    metrics: "dict[str, Estimate]",
    per_class: "dict[str, ClassFigures]",
    problem: str,
    confusion: "IntCC | None",
) -> None:
    """Show the weakest classes and the most frequent confusions, a few of each."""
    from headstart.mistakes import SHOWN, list_confusions, list_weak

    several = problem == MULTI_LABEL
    weak = list_weak(metrics, per_class, problem)
    items = []
    for name, figure, images, _ in weak:
        counts = f"{images:,}" if several else f"{figure.value * images:.0f} of {images:,}"
        text = f"{say_class(name, NAME_WIDTH)} {figure.value:.2f}"
        items.append(f"{text} ({counts})" if images else text)
    if items:
        head = "worst:" if weak[0].is_clear else "lowest, none clearly below the whole:"
        _say_items(head, items, out)
    if several or confusion is None:  # beside the diagonal are not images taken for others
        return
    names = tuple(per_class)
    pairs = [
        f"{pair.images:,} x {say_class(names[pair.true], NAME_WIDTH)} taken for "
        f"{say_class(names[pair.predicted], NAME_WIDTH)}"
        for pair in list_confusions(confusion)
    ]
    if pairs:
        _say_items("confused:", pairs[:SHOWN], out)


MULTI_LABEL = "multi-label"  # a key of `problem.PROBLEMS`, which are imported late
BAR_WIDTH = 30
LABELS_SHOWN = 40
NAME_WIDTH = 28  # of a class in a sentence: two of them and their words fit a line
# Settings of a run that stay the same for the same data, whatever the strategy.
KEPT = (*READING, "group", "val", "folds", "per_class", "max_bad", "device", "workers", "cache_dir")
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
    hints = list_hints(run)
    for hint in hints if data else ():
        if hint.changes:
            words = ["fit", *data, "--strategy", run.strategy]
            others = [name for name in run.settings if name not in ("strategy", *hint.changes)]
            steps.append(([*words, *given(*others), *option_words(hint.changes)], hint.why))
    lines = [printable(shlex.join(["headstart", *words])) for words, _ in steps]
    width = max(len(line) for line in lines)
    short = all(2 + width + 4 + len(why) <= 80 for _, why in steps)
    note("next:")
    for line, (_, why) in zip(lines, steps, strict=True):
        note(f"  {line:<{width}}  # {why}" if short else f"  # {why}:\n  {line}")
    for hint in hints:
        if not hint.changes:
            note(f"  {hint.why}")


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun: 1 network, 2 networks."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def print_json(value: dict[str, Any]) -> None:
    from headstart.runs.documents import to_json

    # ASCII escapes carry file names that are not valid UTF-8 and cannot steer a terminal.
    sys.stdout.write(json.dumps(to_json(value)) + "\n")
    sys.stdout.flush()


def say(text: str, style: str = "", console: _Console | None = None) -> None:
    """Show a sentence, on a terminal broken between words; a file gets lines whole."""
    shown = console or out
    if not shown.is_terminal:
        shown.print(Text(text, style=style))
        return
    words = text.lstrip(" ")
    indent = text[: len(text) - len(words)]
    for line in Text(words, style=style).wrap(shown, shown.width - len(indent)):
        line.rstrip()
        shown.print(Text.assemble(indent, line))


def _say_items(head: str, items: Sequence[str], console: _Console) -> None:
    """Show a list, on a terminal broken between its items."""
    for line in fold(head, items, max(WIDTH, console.width) if console.is_terminal else None):
        console.print(Text(line))


def _tell(text: str) -> None:
    """Show a sentence on stderr."""
    if not (State.quiet or State.json):
        say(text, console=err)


def note(text: str) -> None:
    """Show a line whole, on stderr: a command can be copied."""
    if not (State.quiet or State.json):
        err.print(Text(text))


def warn(text: str) -> None:
    if not (State.quiet or State.json):
        line = Text.assemble(("warning: ", "yellow"), printable(text))
        err.print(line, soft_wrap=not err.is_terminal)


# Stages that count images, by how their names end.
OF_IMAGES = ("images", "training", "validating", "data", "pictures")
EDGES, SHORTEST_BAR, LONGEST_BAR = 5, 4, 20  # of a line: the spinner and what is between columns
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
        _Spinner(),
        _Stage(table_column=Column(no_wrap=True)),
        _Bar(),
        _Figures(table_column=Column(no_wrap=True)),
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


class _Spinner(SpinnerColumn):
    """It turns until the next stage begins: at the end of a count there is work left."""

    def render(self, task: RichTask) -> RenderableType:
        return self.spinner.render(task.get_time())


class _Stage(ProgressColumn):
    """What is going on, without its middle where that leaves no room for the figures."""

    def render(self, task: RichTask) -> Text:
        return Text(shorten(task.description, err.width - EDGES - len(_tell_figures(task))))


class _Bar(ProgressColumn):
    """A bar where there is something to count, and room."""

    def render(self, task: RichTask) -> RenderableType:
        room = err.width - EDGES - 1 - cell_len(task.description) - len(_tell_figures(task))
        if task.total is None or room < SHORTEST_BAR:
            return Text()
        width = min(room, LONGEST_BAR)
        return ProgressBar(total=max(1, task.total), completed=task.completed, width=width)


class _Figures(ProgressColumn):
    """How much is done, how fast, and the time left; else the time since the stage began."""

    def render(self, task: RichTask) -> Text:
        return Text(_tell_figures(task), style="dim")


def _tell_figures(task: RichTask) -> str:
    if task.total is None:
        return _minutes(task.elapsed or 0)
    words = [f"{min(task.completed, task.total):,.0f} of {task.total:,.0f}"]
    # The first images come in a burst.
    if task.speed and not task.finished and (task.elapsed or 0) > 1:
        rate = f"{task.speed:,.0f}" if task.speed >= 10 else f"{task.speed:.1f}"
        of = " images" if task.description.endswith(OF_IMAGES) else ""
        words += [f"{rate}{of}/s", f"{_minutes(task.time_remaining or 0)} left"]
    elif (task.elapsed or 0) > 1:  # before the first is done, and what is left after the last
        words.append(_minutes(task.elapsed or 0))
    return "  ".join(words)


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

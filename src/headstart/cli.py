"""The command line: parses, calls one public function, prints.

Place in the flow: last. Results go to stdout, messages and progress to stderr. Text that came from
files is escaped before a terminal sees it. Nothing here imports torch before a command needs it.
"""

import contextlib
import csv
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
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

import headstart
from headstart.errors import HeadstartError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.classifier import Prediction
    from headstart.datasets import Dataset
    from headstart.features import Progress as Told
    from headstart.fit import Evaluation, Run
    from headstart.images import Scan
    from headstart.metrics import Estimate

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Train an image classifier from a folder of labelled images, by transfer learning.

A network trained on ImageNet is run once over your images; a new classifier is trained on what it saw, \
measured with 95 % intervals, and saved as a folder that timm loads too.

[bold]Start here[/bold]

headstart demo                             [dim]the whole path on real images[/dim]

headstart fit photos -o run                [dim]photos/ants/*.jpg, photos/bees/…[/dim]

headstart evaluate run photos --split val  [dim]accuracy with its interval[/dim]

headstart predict --model run new/*.jpg    [dim]what is in these?[/dim]
""",
)


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

# ---------------------------------------------------------------- options

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, one object a line.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, report or warnings; errors and results.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also show settings, and tracebacks of errors.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Threads that decode images; as many as CPUs by default.", min=1, max=256),
]
MaxBad = Annotated[
    float,
    typer.Option(
        help="Share of unreadable images allowed; one is always allowed.", min=0.0, max=1.0
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder that a manifest's paths are relative to; its own by default."),
]
Outside = Annotated[
    bool,
    typer.Option("--allow-outside", help="Let links and manifest paths lead out of the folder."),
]


class ClassWeights(StrEnum):
    """As `Settings.class_weights`."""

    auto = "auto"
    balanced = "balanced"
    none = "none"


# ---------------------------------------------------------------- commands


@app.command(name="fit")
def fit_command(
    context: typer.Context,
    data: Annotated[
        str,  # not Path, which takes an empty name for the current folder
        typer.Argument(help="Folder of class folders, or manifest (.csv, .tsv, .jsonl)."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the run to.")],
    strategy: Annotated[
        str | None, typer.Option(help="How to use the backbone: linear-probe.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Any classification network of timm; tf_efficientnet_lite0 is built in."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the backbone's weights (.safetensors, .pth).")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="What to measure on: a fraction of the training images (0.2), a folder or a "
            "manifest; 0 for cross-validation. By default the data's val folder, else 0."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Regular expression; images whose path has the same captured text stay on one "
            "side of a split: '([^/]+/track[0-9]+)_'."
        ),
    ] = None,
    penalty: Annotated[
        float | None,
        typer.Option(help="L2 penalty of the head; chosen by cross-validation by default."),
    ] = None,
    class_weights: Annotated[
        ClassWeights | None,
        typer.Option(help="Count every class alike, or every image; auto looks at the imbalance."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    root: Root = None,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    seed: Annotated[int, typer.Option(help="Of every random draw.", min=0)] = 0,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier and write it to a folder.

    The images are in a folder a class, with or without train, val and test above them, or named \
    by a manifest with the columns path and label, and optionally split and group.

    [bold]Examples[/bold]

    headstart fit photos -o run

    headstart fit photos -o run --val 0.2 --seed 1

    headstart fit photos.csv -o run --backbone resnet50
    """
    _set_state(quiet, verbose, as_json)
    given = {
        "strategy": strategy,
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "val": _fraction_or_path(val),
        "group": group,
        "root": str(root) if root else None,
        "penalty": penalty,
        "class_weights": class_weights.value if class_weights else None,
    }
    options = {k: v for k, v in given.items() if v is not None}
    for name in ("allow_outside", "max_bad", "seed", "device", "workers"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            options[name] = context.params[name]
    _fit(data, output, overwrite=overwrite, **options)


def _fit(data: str | Path, output: Path, **options: Any) -> None:
    with _progress() as progress:
        run = headstart.fit(data, output, progress=progress, report=show_scan, **options)
    if State.json:
        _print_json(
            {
                "run": str(run.folder),
                "strategy": run.classifier.strategy,
                "backbone": run.classifier.backbone.name,
                "metrics": run.metrics,
                "measured_on": run.measured_on,
                "images": run.images,
                "warnings": run.warnings,
                "seconds": round(run.seconds, 3),
            }
        )
    else:
        show_run(run)


@app.command(name="evaluate")
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str, typer.Argument(help="Labelled images: a folder or a manifest.")],
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; by default test, else val, else all."),
    ] = None,
    root: Root = None,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a trained classifier on labelled images, classes matched by name.

    [bold]Examples[/bold]

    headstart evaluate run photos --split test

    headstart evaluate run other-photos --json
    """
    _set_state(quiet, verbose, as_json)
    _evaluate(
        run,
        data,
        split=split,
        root=root,
        allow_outside=allow_outside,
        max_bad=max_bad,
        device=device,
        workers=workers,
    )


def _evaluate(run: Path, data: str | Path, **options: Any) -> None:
    with _progress() as progress:
        result = headstart.evaluate(run, data, progress=progress, **options)
    if State.json:
        _print_json(
            {
                "metrics": result.metrics,
                "classes": result.classes,
                "confusion": result.confusion,
                "counts": result.images,
                "split": result.split,
                "unreadable": [{"image": i, "error": e} for i, e in result.bad],
                "warnings": result.warnings,
            }
        )
    else:
        show_evaluation(result)


@app.command(name="predict")
def predict_command(
    images: Annotated[
        list[str], typer.Argument(help="Image files or folders, or - for names on stdin.")
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of a run.")],
    top: Annotated[int, typer.Option("--top", "-k", help="Classes to list.", min=1)] = 3,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in images that have no label.

    An unreadable image is a row with its reason.

    [bold]Examples[/bold]

    headstart predict --model run cat.jpg holiday/

    find . -name '*.png' | headstart predict --model run - --csv > labels.csv
    """
    _set_state(quiet, verbose, as_json)
    if as_json and as_csv:
        raise UsageError("--json and --csv are both given; choose one")
    show = _print_prediction if as_json else _csv_printer() if as_csv else None
    _predict(
        _read_names(images),
        model,
        show,
        max_bad,
        top=top,
        allow_outside=allow_outside,
        device=device,
        workers=workers,
    )


def _predict(
    images: list[str],
    model: Path,
    show: "Callable[[Prediction], None] | None",
    max_bad: float,
    **options: Any,
) -> None:
    """Print predictions as they come, or as a table at the end when `show` is None."""
    from headstart.features import check_bad_images

    found = []
    with _progress() as progress:
        for prediction in headstart.predict(model, images, progress=progress, **options):
            found.append((prediction.image, prediction.error))
            if show is None:
                if len(found) == 1:
                    table = Table("image", "label", "prob.", "next", box=None, pad_edge=False)
                _add_prediction(table, prediction)
            else:
                show(prediction)
    if show is None:
        out.print(table)
    check_bad_images([f for f in found if f[1]], len(found), max_bad)


def _add_prediction(table: Table, prediction: "Prediction") -> None:
    others = ", ".join(f"{printable(c)} {p:.3f}" for c, p in prediction.top[1:])
    table.add_row(
        Text(printable(prediction.image), overflow="fold"),
        Text(printable(prediction.label), style="bold"),
        "" if prediction.error else f"{prediction.probability:.3f}",
        Text(printable(prediction.error), style="red") if prediction.error else Text(others),
    )


def _print_prediction(prediction: "Prediction") -> None:
    _print_json(
        {
            "image": prediction.image,
            "label": prediction.label or None,
            "probability": prediction.probability,
            "top": prediction.top,
            "error": prediction.error or None,
        }
    )


def _csv_printer() -> "Callable[[Prediction], None]":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "label", "probability", "top", "error"])

    def show(prediction: "Prediction") -> None:
        top = "; ".join(f"{c} {p:.6f}" for c, p in prediction.top)
        probability = "" if prediction.error else f"{prediction.probability:.6f}"
        texts = [csv_cell(t) for t in (prediction.image, prediction.label, top, prediction.error)]
        writer.writerow([*texts[:2], probability, *texts[2:]])

    return show


@app.command(name="demo")
def demo_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the images and the run.")
    ] = Path("demo"),
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the whole path on real images that come with scikit-learn.

    Writes 1,797 handwritten digits as image files, trains on four fifths of them, evaluates on \
    the others and predicts some. Takes about a minute and needs no download.
    """
    _set_state(quiet, verbose, False)
    from headstart.demo import write_digits

    data, run = output / "digits", output / "run"
    count = write_digits(data)
    _note(f"wrote {count:,} handwritten digits (scikit-learn's) to {printable(str(data))}")
    options: dict[str, Any] = {"device": device, "workers": workers}
    some = [next((data / "test" / digit).glob("*.png")) for digit in ("3", "5", "8")]
    _show_command("fit", data, "-o", run)
    _fit(data, run, overwrite=True, **options)
    _show_command("evaluate", run, data, "--split", "test")
    _evaluate(run, data, split="test", **options)
    _show_command("predict", "--model", run, *some)
    _predict([str(s) for s in some], run, None, 0.0, top=3, **options)
    out.print()
    out.print(Text("Now with your own images, in a folder a class:", style="bold"))
    out.print("  headstart fit PHOTOS -o RUN            [dim]train[/dim]")
    out.print("  headstart evaluate RUN PHOTOS          [dim]measure[/dim]")
    out.print("  headstart predict --model RUN NEW/     [dim]use[/dim]")


def _show_command(*words: object) -> None:
    text = shlex.join(["headstart", *map(str, words)])
    out.print(Text(f"\n$ {printable(text)}", style="bold cyan"), soft_wrap=True)


# ---------------------------------------------------------------- what people see


def show_scan(dataset: "Dataset", scan: "Scan") -> None:
    """The report before any work, on stderr."""
    if State.quiet or State.json:
        return
    classes = len(dataset.classes)
    low, middle, high = zip(scan.width_px, scan.height_px, strict=True)
    _note(
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
        _note(f"passed over, not images: {passed}")
    if scan.unreadable:
        first = "; ".join(f"{printable(i)}: {printable(e)}" for i, e in scan.unreadable[:3])
        more = f"; and {len(scan.unreadable) - 3} more" if len(scan.unreadable) > 3 else ""
        _warn(f"{len(scan.unreadable)} unreadable: {first}{more}")


def show_run(run: "Run") -> None:
    """The outcome of fit."""
    for warning in run.warnings:
        _warn(warning)
    images = run.images
    if run.metrics:
        how = {
            "val": f"on {images['val']:,} validation images",
            "cross-validation": f"by cross-validation on {images['train']:,} training images",
        }[run.measured_on]
        out.print(Text(f"measured {how}, 95 % intervals", style="dim"))
        show_metrics(run.metrics)
    penalty = run.settings["penalty"]
    if State.verbose:
        table = Table("setting", "value", "origin", box=None, pad_edge=False, header_style="dim")
        for name, entry in run.settings.items():
            table.add_row(name, Text(printable(str(entry["value"]))), entry["origin"])
        err.print(table)
    out.print(
        Text(
            f"{run.classifier.strategy} on {run.classifier.backbone.name}, "
            f"penalty {penalty['value']:g} ({penalty['origin']}), "
            f"{images['train']:,} training images, {run.seconds:.1f} s"
        )
    )
    out.print(Text(f"saved to {printable(str(run.folder))}"), soft_wrap=True)


def show_evaluation(result: "Evaluation") -> None:
    """The outcome of evaluate."""
    for warning in result.warnings:
        _warn(warning)
    for image, reason in result.bad[:5]:
        _warn(f"unreadable: {image}: {reason}")
    where = "all images" if result.split == "all" else f"the split {result.split}"
    out.print(Text(f"{result.images['evaluated']:,} images, {where}, 95 % intervals", style="dim"))
    show_metrics(result.metrics)
    confused = [
        (int(n), result.classes[i], result.classes[j])
        for i, row in enumerate(result.confusion)
        for j, n in enumerate(row)
        if i != j and n > 0
    ]
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


def _print_json(value: dict[str, Any]) -> None:
    from headstart.fit import to_json

    # ASCII escapes carry file names that are not valid UTF-8 and cannot steer a terminal.
    sys.stdout.write(json.dumps(to_json(value)) + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text(text))


def _warn(text: str) -> None:
    if not (State.quiet or State.json):
        err.print(Text.assemble(("warning: ", "yellow"), printable(text)), soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="dim")


@contextlib.contextmanager
def _progress() -> Iterator["Told"]:
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


# ---------------------------------------------------------------- arguments


def _set_state(quiet: bool, verbose: bool, as_json: bool) -> None:
    if quiet and verbose:
        raise UsageError("--quiet and --verbose are both given; choose one")
    State.quiet, State.verbose, State.json = quiet, verbose, as_json


def _fraction_or_path(text: str | None) -> float | str | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _read_names(images: list[str]) -> list[str]:
    """Names as given, with those on stdin, one a line, in the place of -."""
    names: list[str] = []
    for image in images:
        if image == "-":
            raw = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
            # Not splitlines, which splits at characters that names may hold.
            lines = (line.removesuffix("\r") for line in raw.split("\n"))
            names += [line for line in lines if line]
        else:
            names.append(image)
    return names


# ---------------------------------------------------------------- the process


class _Terminated(BaseException):
    """SIGTERM, so that whatever is open is closed."""


def main() -> NoReturn:
    """Entry point: runs a command and ends with the exit code that DESIGN states for its outcome."""
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_terminate)
    code = 1
    try:
        code = _run()
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to start over")
        code = 130
    except _Terminated:
        code = 143
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    raise KeyboardInterrupt


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _run() -> int:
    try:
        # Not app(): typer turns an interruption and a broken pipe into codes of its own.
        command = typer.main.get_command(app)
        with command.make_context("headstart", sys.argv[1:] or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.TyperException as exc:
        hint = f"; see headstart {_command_given()}--help"
        message = printable(exc.format_message().rstrip("."))
        err.print(Text.assemble(("error: ", "bold red"), message, hint), soft_wrap=True)
        return exc.exit_code
    except typer.Exit as exc:
        return exc.exit_code
    except HeadstartError as exc:
        if State.verbose:
            err.print_exception()
        err.print(Text.assemble(("error: ", "bold red"), str(exc)), soft_wrap=True)
        return exc.exit_code
    except MemoryError:
        err.print("error: out of memory; close other programs or use fewer --workers")
        return 5
    return 0


def _command_given() -> str:
    names = {c.name for c in app.registered_commands}
    return next((f"{word} " for word in sys.argv[1:] if word in names), "")


def _show_version(value: bool) -> None:
    if value:
        out.print(f"headstart {headstart.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of the program itself."""

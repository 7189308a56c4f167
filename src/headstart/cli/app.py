"""The command line: parses, calls one public function, prints.

Nothing here imports torch before a command needs it.
"""

import contextlib
import functools
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.text import Text

import headstart
from headstart.cli.commands import (
    CacheDir,
    Device,
    Engine,
    Json,
    MaxBad,
    Outside,
    Precision,
    Quiet,
    Rehash,
    Root,
    Verbose,
    Workers,
    backbones_command,
    begin_command,
    cache_app,
    extract_command,
    given_options,
    layers_command,
)
from headstart.cli.terminal import (
    PRINTERS,
    State,
    err,
    note,
    out,
    print_json,
    show_epoch,
    show_evaluation,
    show_next,
    show_progress,
    show_run,
    show_scan,
)
from headstart.errors import HeadstartError, InputError, UsageError, printable
from headstart.process import find_shortage, give_up_output, leave, run_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.cli.terminal import PredictionPrinter
    from headstart.data.dataset import Dataset
    from headstart.data.scan import Scan
    from headstart.runs.classifier import Classifier
    from headstart.runs.record import Run

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

headstart predict run new/*.jpg            [dim]what is in these?[/dim]
""",
)


class ClassWeights(StrEnum):
    """As `Settings.class_weights`."""

    auto = "auto"
    balanced = "balanced"
    none = "none"


def _option(help: str, panel: str, *names: str, **bounds: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **bounds)


STRATEGY, TRAINING = "Strategy", "Training by gradient (each strategy has its own values)"


@app.command(name="fit")
def fit_command(
    context: typer.Context,
    data: Annotated[
        str | None,  # not Path, which takes an empty name for the current folder
        typer.Argument(help="Folder of class folders, or manifest (.csv, .tsv, .jsonl)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write the run to; runs/NAME-1, -2, … by default."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the interrupted training in this folder; needs no DATA."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    strategy: Annotated[
        str | None,
        _option(
            "How to use the backbone: linear-probe (the default), shallow-probe, partial-fine-tune, "
            "fine-tune or scratch.",
            STRATEGY,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        _option("A network; tf_efficientnet_lite0 is built in. See headstart backbones.", STRATEGY),
    ] = None,
    weights: Annotated[
        Path | None, _option("File with its weights (.safetensors, .pth).", STRATEGY)
    ] = None,
    input_px: Annotated[
        int | None, _option("Height and width of what it sees; its own by default.", STRATEGY)
    ] = None,
    cut: Annotated[
        str | None,
        _option(
            "Cut point: where the head reads (linear-probe: last, all, auto, or names with commas; "
            "shallow-probe: auto or one) or the training begins (partial-fine-tune: auto or one).",
            STRATEGY,
        ),
    ] = None,
    freeze_until: Annotated[
        str | None,
        _option(
            "For partial-fine-tune: freeze everything before this layer, a name or index of "
            "headstart layers.",
            STRATEGY,
        ),
    ] = None,
    head: Annotated[
        str | None,
        _option("linear, or hidden layers and dropouts of an MLP: 1024, d0.5-480-d0.5.", STRATEGY),
    ] = None,
    penalty: Annotated[
        float | None,
        _option("L2 penalty of a linear head; chosen by cross-validation by default.", STRATEGY),
    ] = None,
    class_weights: Annotated[
        ClassWeights | None,
        _option("Count every class alike, or every image; auto looks at the imbalance.", STRATEGY),
    ] = None,
    val: Annotated[
        str | None,
        _option(
            "What to measure on: a fraction of the training images (0.2), a folder or a manifest; 0 "
            "for none. By default the data's val folder; else none for a linear head, which is "
            "measured by cross-validation, and 0.2 for what is trained by gradient.",
            "Data",
        ),
    ] = None,
    group: Annotated[
        str | None,
        _option(
            "Regular expression; images whose path has the same captured text stay on one side of "
            "a split: '([^/]+/[^/]+)_[^/]*$'.",
            "Data",
        ),
    ] = None,
    root: Root = None,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    augment: Annotated[
        str | None, _option("Views of the images: none, light, medium or strong.", TRAINING)
    ] = None,
    flip: Annotated[
        str | None, _option("Mirror some views: yes, no, or auto by a measurement.", TRAINING)
    ] = None,
    views: Annotated[
        int | None, _option("Views an image that partial-fine-tune keeps on disk.", TRAINING)
    ] = None,
    cached: Annotated[
        bool,
        _option(
            "Whether partial-fine-tune keeps activations on disk, or computes them every time.",
            TRAINING,
            "--cached/--no-cached",
        ),
    ] = True,
    batchnorm: Annotated[
        str | None,
        _option("Keep BatchNorm's statistics (frozen) or let them move (adapt).", TRAINING),
    ] = None,
    minutes: Annotated[
        float | None, _option("That the training may take; decides the cut.", TRAINING)
    ] = None,
    epochs: Annotated[int | None, _option("Passes over the images.", TRAINING)] = None,
    batch: Annotated[int | None, _option("Images a step.", TRAINING)] = None,
    lr: Annotated[float | None, _option("Highest learning rate.", TRAINING)] = None,
    layer_decay: Annotated[
        float | None, _option("Learning rate of a stage relative to the next above.", TRAINING)
    ] = None,
    schedule: Annotated[str | None, _option("cosine, one-cycle or constant.", TRAINING)] = None,
    warmup: Annotated[float | None, _option("Share of the steps.", TRAINING)] = None,
    optimizer: Annotated[str | None, _option("adamw, adam, amsgrad or sgd.", TRAINING)] = None,
    weight_decay: Annotated[float | None, _option("Not on biases and norms.", TRAINING)] = None,
    label_smoothing: Annotated[float | None, _option("From 0 to 1.", TRAINING)] = None,
    mixup: Annotated[float | None, _option("Alpha of mixup; 0 for none.", TRAINING)] = None,
    cutmix: Annotated[float | None, _option("Alpha of cutmix; 0 for none.", TRAINING)] = None,
    clip: Annotated[float | None, _option("Largest norm of the gradient.", TRAINING)] = None,
    ema: Annotated[
        float | None, _option("Decay a step of averaged weights; 0 for none.", TRAINING)
    ] = None,
    wise_ft: Annotated[
        bool,
        _option("Average with the starting point as validation says.", TRAINING, "--wise-ft"),
    ] = False,
    monitor: Annotated[
        str | None, _option("What the best epoch is by: loss or accuracy.", TRAINING)
    ] = None,
    min_delta: Annotated[float | None, _option("What counts as an improvement.", TRAINING)] = None,
    patience: Annotated[
        int | None, _option("Stop after so many epochs without one; 0 for never.", TRAINING)
    ] = None,
    checkpoint_s: Annotated[float | None, _option("Seconds between checkpoints.", TRAINING)] = None,
    train_precision: Annotated[
        str | None, _option("fp32, bf16, or auto by a short measurement.", TRAINING)
    ] = None,
    tensorboard: Annotated[
        bool, _option("Also write TensorBoard events.", TRAINING, "--tensorboard")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every random draw.", min=0)] = 0,
    engine: Engine = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
    cache_dir: CacheDir = None,
    rehash: Rehash = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier and write it to a folder.

    The images are in a folder a class, with or without train, val and test
    above them, or named by a manifest with the columns path and label, and
    optionally split and group. Without -o, the run goes to runs/NAME-1, with
    the data's name, then to runs/NAME-2, and so on.

    [bold]Examples[/bold]

    headstart fit photos

    headstart fit photos -o tuned --strategy partial-fine-tune

    headstart fit photos.csv -o run --backbone resnet50 --head 1024 --val 0.1 --patience 3

    headstart fit --resume tuned
    """
    from headstart.training.settings import FIELDS

    begin_command(quiet, verbose, as_json)
    if resume is not None and output is not None:
        raise UsageError("--resume and --output are both given; --resume names the folder")
    if resume is None and data is None:
        raise UsageError("Missing argument 'data'; see headstart fit --help")
    if overwrite and output is None and resume is None:
        raise UsageError("--overwrite goes with -o; without, every run has a new folder")
    options = given_options(context, FIELDS)
    if "val" in options:
        options["val"] = _fraction_or_path(val)
    if class_weights is not None:
        options["class_weights"] = class_weights.value
    given = output if resume is None else resume
    with _new_folder(str(data)) if given is None else contextlib.nullcontext(given) as folder:
        dataset, run = _fit(data, folder, overwrite=overwrite, resume=resume is not None, **options)
    if dataset is not None:
        show_next(run, data, dataset)


@contextlib.contextmanager
def _new_folder(data: str) -> Iterator[Path]:
    """runs/NAME-1, or the next number that is free, made at once so that no other run takes it.

    Beside the data where `runs` would lie in them, as a class would.
    """
    source = Path(os.path.realpath(data))  # which takes a link to itself, too
    name = re.sub(r"[^\w.-]+", "-", source.name if source.is_dir() else source.stem)
    name = name.strip(".-")[:60] or "run"
    runs = Path("runs")
    if source.is_dir() and Path(os.path.realpath(runs)).is_relative_to(source):
        runs = source.parent / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = runs / f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    try:
        yield folder
    finally:
        for empty in (folder, runs):
            with contextlib.suppress(OSError):  # it is not empty
                empty.rmdir()


def _fit(data: str | Path | None, output: Path, **options: Any) -> "tuple[Dataset | None, Run]":
    """Fit and show; the data set as it was read, where people are told of it."""
    resume = f"headstart fit --resume {printable(shlex.quote(str(output)))} goes on"
    read: list[Dataset] = []

    def report(dataset: "Dataset", scan: "Scan") -> None:
        read.append(dataset)
        show_scan(dataset, scan)

    try:
        with show_progress() as progress:
            run = headstart.fit(
                data,
                output,
                progress=progress,
                report=None if State.quiet or State.json else report,
                on_epoch=show_epoch,
                **options,
            )
    except KeyboardInterrupt:
        from headstart.runs.folder import find_training
        from headstart.training.outputs import START

        if not (find_training(output) / START).exists():
            raise
        err.print(Text(f"interrupted; {resume}"))
        leave(130)
    if State.json:
        print_json(
            {
                "run": str(run.folder),
                "strategy": run.strategy,
                "backbone": run.backbone,
                "metrics": run.metrics,
                "recall": run.recall,
                "measured_on": run.measured_on,
                "images": run.images,
                "computed": run.computed,
                "engine": str(run.engine),
                "interrupted": run.interrupted,
                "warnings": run.warnings,
                "seconds": round(run.seconds, 3),
            }
        )
    else:
        show_run(run)
    if run.interrupted:
        err.print(Text(f"interrupted; the best model so far is kept. {resume}"))
        raise typer.Exit(130)
    return (read[0] if read else None), run


@app.command(name="evaluate")
def evaluate_command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str, typer.Argument(help="Labelled images: a folder or a manifest.")],
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; by default test, else val, else all."),
    ] = None,
    unknown_classes: Annotated[
        str,
        typer.Option(
            help="What becomes of images of classes that the model does not know: refuse to go on, "
            "count them as wrong, or skip them."
        ),
    ] = "refuse",
    root: Root = None,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    engine: Engine = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
    cache_dir: CacheDir = None,
    rehash: Rehash = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a trained classifier on labelled images, classes matched by name.

    [bold]Examples[/bold]

    headstart evaluate run photos --split test

    headstart evaluate run other-photos --json

    headstart evaluate run other-photos --unknown-classes wrong
    """
    begin_command(quiet, verbose, as_json)
    _evaluate(run, data, split=split, unknown_classes=unknown_classes, **given_options(context))


def _evaluate(run: Path, data: str | Path, **options: Any) -> None:
    with show_progress() as progress:
        result = headstart.evaluate(run, data, progress=progress, **options)
    if State.json:
        print_json(
            {
                "metrics": result.metrics,
                "recall": result.recall,
                "classes": result.classes,
                "confusion": result.confusion,
                "images": result.images,
                "split": result.split,
                "unknown": result.unknown,
                "unreadable": [{"image": i, "error": e} for i, e in result.unreadable],
                "warnings": result.warnings,
            }
        )
    else:
        show_evaluation(result)


@app.command(name="predict")
def predict_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN IMAGES",
            help="The folder of a run, or pretrained:NETWORK; then image files and folders, or - for "
            "names on stdin, one a line.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The run; all that is named besides are images then."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the weights of pretrained:NETWORK.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", help="Classes to list.", min=1)] = 3,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    engine: Engine = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the network's arithmetic: fp32 (exact), bf16, fp16 or auto.")
    ] = "fp32",
    device: Device = "auto",
    workers: Workers = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in images that have no label.

    The table marks the doubtful ones with a question mark (probability below
    a half, or the next class more than a third as probable) and ends with a
    count a class. An unreadable image is a row with its reason. A network as
    it was published, without any training of yours, names what it sees in
    ImageNet's classes.

    [bold]Examples[/bold]

    headstart predict run cat.jpg holiday/

    find . -name '*.png' | headstart predict run - --csv > labels.csv

    headstart predict pretrained:tf_efficientnet_lite0 cat.jpg
    """
    begin_command(quiet, verbose, as_json)
    if as_json and as_csv:
        raise UsageError("--json and --csv are both given; choose one")
    run, images = _name_model(words, model)
    options = {
        "allow_outside": allow_outside,
        "engine": engine,
        "precision": precision,
        "device": device,
        "workers": workers,
        "cache_dir": cache_dir,
    }
    names = _read_names(images)
    printer = PRINTERS["json" if as_json else "csv" if as_csv else "table"](top)
    load = functools.partial(_load_model, run, weights, cache_dir)
    _predict(names, load, printer, max_bad, top=printer.top, **options)


def _name_model(words: list[str], model: str | None) -> tuple[str, list[str]]:
    """(the run, the images): the first word is the run where --model names none."""
    from headstart.runs.classifier import CARD, PRETRAINED

    if model is not None:
        return model, words
    first, *images = words
    usage = "headstart predict RUN IMAGES… names the run first, or --model RUN does"
    if not first.startswith(PRETRAINED) and not (Path(first) / CARD).exists():
        what = "not a run of headstart" if os.path.exists(first) else "no such run"
        raise InputError(f"{first}: {what}; {usage}")
    if not images:
        raise UsageError(f"no images are named after the run {first}; {usage}")
    return first, images


def _load_model(model: str, weights: Path | None, cache_dir: Path | None) -> "str | Classifier":
    from headstart.runs.classifier import PRETRAINED, pretrained_classifier

    if model.startswith(PRETRAINED):
        name = model.removeprefix(PRETRAINED)
        return pretrained_classifier(name, weights=weights, cache_dir=cache_dir)
    if weights:
        raise UsageError(f"--weights goes with {PRETRAINED}NETWORK; a run has its weights")
    return model


def _predict(
    images: list[str],
    load: "Callable[[], str | Path | Classifier]",
    printer: "PredictionPrinter",
    max_bad: float,
    **options: Any,
) -> None:
    from headstart.features.reading import check_bad_images

    found = []
    with show_progress() as progress:
        progress("loading the network", 0, 0)
        model = load()
        for prediction in headstart.predict(model, images, progress=progress, **options):
            found.append((prediction.image, prediction.error))
            printer.add(prediction)
    printer.close()
    check_bad_images([f for f in found if f[1]], len(found), max_bad)


app.command(name="extract")(extract_command)
app.command(name="backbones")(backbones_command)
app.command(name="layers")(layers_command)
app.add_typer(cache_app, name="cache")


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

    Writes 1,797 handwritten digits as image files, trains on four fifths of
    them, evaluates on the others and predicts some. Takes about a minute and
    needs no download.
    """
    begin_command(quiet, verbose, False)
    from headstart.cli.demo import write_digits

    data, run = output / "digits", output / "run"
    count = write_digits(data)
    note(f"wrote {count:,} handwritten digits (scikit-learn's) to {printable(str(data))}")
    options: dict[str, Any] = {"device": device, "workers": workers}
    some = [next((data / "test" / digit).glob("*.png")) for digit in ("3", "5", "8")]
    _show_command("fit", data, "-o", run)
    _fit(data, run, overwrite=True, **options)
    _show_command("evaluate", run, data, "--split", "test")
    _evaluate(run, data, split="test", **options)
    _show_command("predict", run, *some)
    printer = PRINTERS["table"](3)
    _predict([str(s) for s in some], lambda: run, printer, 0.0, top=printer.top, **options)
    out.print()
    out.print(Text("Now with your own images, in a folder a class:", style="bold"))
    out.print("  headstart fit PHOTOS -o RUN      [dim]train[/dim]")
    out.print("  headstart evaluate RUN PHOTOS    [dim]measure[/dim]")
    out.print("  headstart predict RUN NEW/       [dim]use[/dim]")


def _show_command(*words: object) -> None:
    text = shlex.join(["headstart", *map(str, words)])
    out.print(Text(f"\n$ {printable(text)}", style="bold cyan"))


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
            try:
                raw = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
            except OSError as exc:  # opened for writing, say
                raise InputError(f"standard input: cannot be read: {exc.strerror}") from exc
            # Not splitlines, which splits at characters that names may hold.
            lines = (line.removesuffix("\r") for line in raw.split("\n"))
            names += [line for line in lines if line]
        else:
            names.append(image)
    return names


def main() -> NoReturn:
    """Entry point: runs a command and ends with the exit code that README states for its outcome."""
    run_process(_run)


def _run() -> int:
    try:
        # Not app(): typer turns an interruption and a broken pipe into codes of its own.
        command = typer.main.get_command(app)
        try:
            with command.make_context("headstart", sys.argv[1:] or ["--help"]) as context:
                command.invoke(context)
        finally:
            sys.stdout.flush()  # what cannot be written must not come out at exit
    except typer.TyperException as exc:
        hint = f"; see headstart {_command_given()}--help"
        return _fail(exc.exit_code, printable(exc.format_message().rstrip(".")) + hint)
    except typer.Exit as exc:
        return exc.exit_code
    except HeadstartError as exc:
        return _fail(exc.exit_code, str(exc))
    except BrokenPipeError:
        raise
    except Exception as exc:
        if shortage := find_shortage(exc):
            return _fail(5, shortage)
        if not isinstance(exc, OSError):
            raise
        give_up_output()
        what = f"{exc.filename}: " if exc.filename else "output: "
        return _fail(5, printable(f"{what}{exc.strerror or exc}"))
    return 0


def _fail(code: int, message: str) -> int:
    """Say why on one line; the traceback of the error being handled only with --verbose."""
    if State.verbose:
        err.print_exception()
    err.print(Text.assemble(("error: ", "bold red"), message))
    return code


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

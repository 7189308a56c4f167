"""The commands that work on images: each parses, calls one public function, and prints.

Nothing here imports torch before a command needs it.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

import headstart
from headstart.cli.options import flag_of, takes
from headstart.cli.printers import PRINTERS
from headstart.cli.reporting import (
    DATA_HELP,
    NO_PAGE,
    PAGE,
    RUNTIME,
    TALKS,
    choose_page,
    find_runs,
    write_beside,
)
from headstart.cli.terminal import (
    State,
    count,
    epoch_printer,
    err,
    note,
    option_words,
    out,
    print_json,
    show_advice,
    show_advised,
    show_audit,
    show_evaluation,
    show_followed,
    show_next,
    show_progress,
    show_run,
    show_scan,
)
from headstart.errors import InputError, UsageError, printable
from headstart.process import leave
from headstart.training.settings import FIELDS, READING

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.cli.printers import PredictionPrinter
    from headstart.data.dataset import Dataset
    from headstart.data.scan import Scan
    from headstart.runs.auditing import Audit
    from headstart.runs.classifier import Classifier
    from headstart.runs.record import Run
    from headstart.training.advice import Advice

__all__ = [
    "DATA",
    "MAX_BAD",
    "advise_command",
    "audit_command",
    "choose_looking_s",
    "demo_command",
    "evaluate_command",
    "fit_command",
    "predict_command",
]

DATA = tuple(n for n, field in FIELDS.items() if field.part == "data")
MAX_BAD = FIELDS["max_bad"].info.default
DATA_PANEL = FIELDS["val"].option.panel


@takes(FIELDS, talks=TALKS)
def fit_command(
    data: Annotated[
        list[str] | None,  # not Path, which takes an empty name for the current folder
        typer.Argument(help=DATA_HELP),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the run; runs/NAME-1, … by default."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the training interrupted there.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Train a head on this file of bottleneck features (.p, .npz) instead of images.",
            hidden=True,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Measure on this file of bottleneck features, with --features.",
            hidden=True,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    no_page: Annotated[
        bool, typer.Option("--no-report", help="Write no report.html.", hidden=True)
    ] = False,
    **options: Any,
) -> None:
    """Train a classifier and write it, with a report, to a folder.

    \b
    [bold]Examples[/bold]
    headstart fit photos
    headstart fit photos -o tuned --strategy partial-fine-tune
    headstart fit --resume tuned
    """
    if resume is not None and output is not None:
        raise UsageError("--resume and --output are both given; --resume names the folder")
    if validation is not None and features is None:
        raise UsageError("--validation goes with --features; images are measured on by --val")
    if features is not None:
        if data or resume is not None:
            raise UsageError(
                "--features takes the place of images, and is not resumed; leave them out"
            )
        _fit_features(features, output, validation=validation, overwrite=overwrite, **options)
        return
    if resume is None and not data:
        raise UsageError("Missing argument 'data'; see headstart fit --help")
    if overwrite and output is None and resume is None:
        raise UsageError("--overwrite goes with -o; without, every run has a new folder")
    given = output if resume is None else resume
    words = data or []
    with _new_folder(words) if given is None else contextlib.nullcontext(given) as folder:
        dataset, run = _fit(
            words or None,
            folder,
            overwrite=overwrite,
            resume=resume is not None,
            no_page=no_page,
            **options,
        )
    if dataset is not None:
        show_next(run, words, dataset)


def _fit_features(features: Path, output: Path | None, *, overwrite: bool, **options: Any) -> None:
    if overwrite and output is None:
        raise UsageError("--overwrite goes with -o; without, every run has a new folder")
    place = contextlib.nullcontext(output) if output else _new_folder([str(features)])
    with place as folder, show_progress() as progress:
        run = headstart.fit_features(
            features,
            folder,
            overwrite=overwrite,
            progress=progress,
            on_epoch=epoch_printer(),
            **options,
        )
    if State.json:
        print_json(_to_json(run))
    else:
        show_run(run)
    if run.interrupted:
        err.print(Text("interrupted; the best head so far is kept"))
        raise typer.Exit(130)


@contextlib.contextmanager
def _new_folder(data: list[str]) -> Iterator[Path]:
    """runs/NAME-1, or the next number that is free, made at once so that no other run takes it."""
    runs, name = find_runs(data)
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


def _fit(
    data: list[str] | str | Path | None, output: Path, *, no_page: bool = False, **options: Any
) -> "tuple[Dataset | None, Run]":
    """Fit, report and show; the data set as it was read, where people are told of it."""
    resume = f"headstart fit --resume {printable(shlex.quote(str(output)))} goes on"
    read: list[Dataset] = []

    def report(dataset: "Dataset", found: "Scan | Advice") -> None:
        from headstart.data.scan import Scan

        read[:] = [dataset]
        if isinstance(found, Scan):
            show_scan(dataset, found)
        else:
            show_followed(found)

    try:
        with show_progress() as progress:
            run = headstart.fit(
                data,
                output,
                progress=progress,
                report=None if State.quiet or State.json else report,
                on_epoch=epoch_printer(),
                **options,
            )
    except KeyboardInterrupt:
        from headstart.runs.folder import find_training
        from headstart.training.outputs import START

        if not (find_training(output) / START).exists():
            raise
        err.print(Text(f"interrupted; {resume}"))
        leave(130)
    if not State.json:
        show_run(run)
    written = None if no_page or run.interrupted else _report(run, options)
    if State.json:
        print_json({**_to_json(run), "report": written and str(written)})
    if run.interrupted:
        err.print(Text(f"interrupted; the best model so far is kept. {resume}"))
        raise typer.Exit(130)
    return (read[0] if read else None), run


def _report(run: "Run", options: dict[str, Any]) -> Path | None:
    """Write the report of a new run, where there is something to report; its place."""
    if not run.measured_on:
        return None
    own = {n: v for n, v in options.items() if n in (*READING, *RUNTIME) and n != "rehash"}
    make = functools.partial(headstart.report, run, looking_s=choose_looking_s(run), **own)
    return write_beside(make, ["report", str(run.folder)], "the run is saved")


def choose_looking_s(run: "Run") -> float:
    """Seconds for where it looks: a twentieth of the run's, a second at least and three at most."""
    return min(3.0, max(1.1, 0.05 * run.seconds))


def _to_json(run: "Run") -> dict[str, Any]:
    facts = run.decisions.facts
    return {
        "run": str(run.folder),
        "strategy": run.strategy,
        "backbone": run.backbone,
        "metrics": run.metrics,
        "per_class": run.per_class,
        "measured_on": run.measured_on,
        **({"folds": facts["folds"]} if "folds" in facts else {}),
        "chosen_by": run.chosen_by,
        "images": run.images,
        "computed": run.computed,
        "engine": str(run.engine),
        "interrupted": run.interrupted,
        "warnings": run.warnings,
        "seconds": round(run.seconds, 3),
    }


@takes(
    ("budget", "backbone", "weights", "input_px", "class_weights", "seed", *DATA, *RUNTIME),
    talks=TALKS,
)
def advise_command(
    data: Annotated[list[str], typer.Argument(help=DATA_HELP)],
    backbones: Annotated[
        str | None,
        typer.Option(help="Choose among these networks too: names with commas between them."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Also write advice.json and its pictures to this folder."
        ),
    ] = None,
    page: PAGE = None,
    no_page: NO_PAGE = False,
    **options: Any,
) -> None:
    """Say how best to train on these images, what that will bring and cost, and why.

    Probes on features of at most 2,000 images tell how like the network's own
    training data they are and what more images would bring; the machine is
    measured too. Nothing is trained. headstart fit follows the advice. The
    report is runs/NAME-advice.html, or in the folder that -o names.

    \b
    [bold]Examples[/bold]
    headstart advise photos
    headstart advise photos --budget 20m -o advice
    headstart advise photos --backbones tf_efficientnet_lite0,resnet50
    """
    names = [name.strip() for name in backbones.split(",")] if backbones else []
    if output is not None:
        from headstart.files import check_writable

        check_writable(output, advice="choose another folder")
    place = choose_page(
        page, no_page, lambda: output / "advice.html" if output else _name_page(data, "advice")
    )
    with show_progress() as progress:
        advice = headstart.advise(
            data,
            backbones=names,
            progress=progress,
            report=None if State.quiet or State.json else show_scan,
            **options,
        )
        files = []
        if output is not None:
            from headstart.publish.charts import write_advice

            progress("drawing", 0, 0)
            files = write_advice(advice, output)
    if State.json:
        print_json(advice.to_json())
    else:
        show_advice(advice)
        for file in files:
            note(f"written: {printable(str(file))}")
    again = ["advise", *data, *option_words(options), "--report", "advice.html"]
    if advice.networks:
        options = {**options, "backbone": advice.backbone}
    words = ["headstart", "fit", *data, *option_words(options)]
    if place is not None:
        from headstart.publish.advice_page import write_advice_page

        make = functools.partial(write_advice_page, advice, place, data=data, command=words)
        write_beside(make, again, "the advice is above")
    show_advised(words)


def _name_page(data: list[str], kind: str) -> Path:
    runs, name = find_runs(data)
    return runs / f"{name}-{kind}.html"


@takes(
    ("backbone", "weights", "input_px", "seed", "group", *READING, *RUNTIME),
    talks=TALKS,
)
def audit_command(
    data: Annotated[list[str], typer.Argument(help=DATA_HELP)],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Also write a CSV to act on; with --apply, the manifest."
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--apply",
            help="Make a manifest by this CSV, whose column action says drop, relabel or keep.",
        ),
    ] = None,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            help="Also write a sheet of thumbnails of each kind of finding to this folder."
        ),
    ] = None,
    page: PAGE = None,
    no_page: NO_PAGE = False,
    **options: Any,
) -> None:
    """Say what is wrong with labelled images, before anyone trusts a figure.

    Lists labels that are likely wrong, the same picture twice, in two splits
    or under two classes, images unlike all others, odd and unreadable files,
    and classes that are small or that the background gives away. To act on
    it, fill in the column action of the CSV and apply it. The report, with
    the pictures, is runs/NAME-audit.html.

    \b
    [bold]Examples[/bold]
    headstart audit photos
    headstart audit photos -o problems.csv
    headstart audit photos --apply problems.csv -o mended.csv
    """
    from headstart.runs.corrections import check_new_file, write_corrections
    from headstart.runs.thumbnails import check_new_folder, write_thumbnails

    if corrections is not None:
        if thumbnails is not None:
            raise UsageError("--thumbnails has no effect with --apply; leave it out")
        if page is not None or no_page:
            raise UsageError("--report and --no-report have no effect with --apply; leave them out")
        _apply(data, corrections, output, options)
        return
    if output is not None:
        check_new_file(output, (".csv",))
    if thumbnails is not None:
        check_new_folder(thumbnails)
    place, sheets = choose_page(page, no_page, lambda: _name_page(data, "audit")), list[Path]()
    with show_progress() as progress:
        found = headstart.audit(
            data,
            progress=progress,
            report=None if State.quiet or State.json else show_scan,
            **options,
        )
        if output is not None:
            write_corrections(found, output)
        if thumbnails is not None:
            pixels = options.get("max_pixels", FIELDS["max_pixels"].info.default)
            sheets = write_thumbnails(found, thumbnails, max_pixels=pixels)
    if State.json:
        print_json(found.to_json())
    else:
        show_audit(found)
    for file in (*sheets, *([output] if output else [])):
        note(f"written: {printable(str(file))}")
    if output is not None and found.dataset.reader is None:
        reading = option_words({n: options[n] for n in ("group", *READING) if n in options})
        words = ["headstart", "audit", *data, "--apply", str(output), "-o", "mended.csv", *reading]
        note(f"fill in its column action, then:\n  {printable(shlex.join(words))}")
    if place is not None:
        _write_audit(found, place, ["audit", *data, *option_words(options)])


def _write_audit(found: "Audit", place: Path, again: list[str]) -> None:
    """Write the page of an audit, by the words that made it."""
    from headstart.publish.audit_page import write_audit_page

    write = functools.partial(write_audit_page, found, place, command=["headstart", *again])
    write_beside(write, [*again, "--report", "audit.html"], "the findings are above")


def _apply(data: list[str], table: Path, output: Path | None, options: dict[str, Any]) -> None:
    from headstart.runs.corrections import apply_corrections

    if output is None:
        raise UsageError("--apply needs the manifest to write; add -o mended.csv")
    reading = {n: options.pop(n) for n in ("group", *READING) if n in options}
    if options:
        raise UsageError(f"{flag_of(next(iter(options)))} has no effect with --apply")
    done = apply_corrections(data, table, output, **reading)
    if State.json:
        print_json({**dataclasses.asdict(done), "root": done.root and str(done.root)})
        return
    out.print(
        Text(
            f"{count(done.images, 'image')} in {printable(str(output))}: {done.dropped:,} dropped, "
            f"{done.relabelled:,} relabelled"
        )
    )
    words = ["headstart", "fit", str(output)]
    words += ["--root", str(done.root)] if done.root else []
    note("next:")
    note(f"  {printable(shlex.join(words))}")


@takes((*READING, "max_bad", *RUNTIME), talks=TALKS)
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[list[str], typer.Argument(help=DATA_HELP)],
    split: Annotated[
        str | None,
        typer.Option(
            help="Take the images of train, val, test or all; by default test, else val, else all."
        ),
    ] = None,
    unknown_classes: Annotated[
        str,
        typer.Option(
            help="Where the model does not know an image's class, refuse to go on, count the image as "
            "wrong, or skip it."
        ),
    ] = "refuse",
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also measure prediction sets that are to have this coverage, such as 0.9."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Measure a trained classifier on labelled images, classes matched by name.

    [bold]Examples[/bold]

    headstart evaluate run photos --split test

    headstart evaluate run other-photos --json

    headstart evaluate run other-photos --unknown-classes wrong
    """
    asked = {"split": split, "unknown_classes": unknown_classes, "coverage": coverage}
    _evaluate(run, data, **asked, **options)


def _evaluate(run: Path, data: list[str] | Path, **options: Any) -> None:
    with show_progress() as progress:
        result = headstart.evaluate(run, data, progress=progress, **options)
    if State.json:
        print_json(
            {
                "metrics": result.metrics,
                "per_class": result.per_class,
                "classes": result.classes,
                "confusion": result.confusion,
                "images": result.images,
                "split": result.split,
                "times_measured": result.readings.times,
                "unknown": result.unknown,
                **({"sets": dataclasses.asdict(result.sets)} if result.sets else {}),
                **({"none_of_these": result.novel} if result.novel else {}),
                "unreadable": [{"image": i, "error": e} for i, e in result.unreadable],
                "warnings": result.warnings,
            }
        )
    else:
        show_evaluation(result)


@takes(
    ("allow_outside", "max_bad", "engine", "precision", "device", "workers", "cache_dir"),
    talks=TALKS,
    precision="fp32",
)
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
    top: Annotated[int, typer.Option("--top", "-k", help="List this many classes.", min=1)] = 3,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also give each image a set of classes; this share of images has theirs in it, such as 0.9."
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
    max_bad: float = MAX_BAD,
    **options: Any,
) -> None:
    """Say what is in images that have no label.

    The table marks the doubtful ones with a question mark (probability below
    a half, or the next class more than a third as probable) and ends with a
    count a class. An image unlike all that the classifier learned from is
    called none of these. An unreadable image is a row with its reason. A
    network as it was published, without any training of yours, names what it
    sees in ImageNet's classes.

    [bold]Examples[/bold]

    headstart predict run cat.jpg holiday/

    find . -name '*.png' | headstart predict run - --csv > labels.csv

    headstart predict pretrained:tf_efficientnet_lite0 cat.jpg
    """
    if State.json and as_csv:
        raise UsageError("--json and --csv are both given; choose one")
    run, images = _name_model(words, model)
    names = _read_names(images)
    printer = PRINTERS["json" if State.json else "csv" if as_csv else "table"](top, coverage)
    load = functools.partial(_load_model, run, weights, options.get("cache_dir"))
    _predict(names, load, printer, max_bad, top=printer.top, coverage=coverage, **options)


def _name_model(words: list[str], model: str | None) -> tuple[str, list[str]]:
    """(the run, the images): the first word is the run where --model names none."""
    from headstart.runs.classifier import CARD, PRETRAINED

    if model is not None:
        return model, words
    first, *images = words
    usage = "headstart predict RUN IMAGES… names the run first, or --model RUN does"
    if not first.startswith(PRETRAINED) and not os.path.exists(Path(first) / CARD):
        what = "not a run of headstart" if os.path.exists(first) else "no such run"
        raise InputError(f"{first}: {what}; {usage}")
    if not images:
        raise UsageError(f"no images are named after the run {first}; {usage}")
    return first, images


def _load_model(model: str, weights: Path | None, cache_dir: str | None) -> "str | Classifier":
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


@takes(("device", "workers"), talks=("quiet", "verbose"))
def demo_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the images and the run.")
    ] = Path("demo"),
    **options: Any,
) -> None:
    """Show the whole path on real images that come with scikit-learn.

    Writes 1,797 handwritten digits as image files, trains on four fifths of
    them, evaluates on the others and predicts some. Takes about a minute and
    needs no download.
    """
    from headstart.cli.demo import write_digits

    data, run = output / "digits", output / "run"
    written = write_digits(data)
    note(f"wrote {written:,} handwritten digits (scikit-learn's) to {printable(str(data))}")
    some = [next((data / "test" / digit).glob("*.png")) for digit in ("3", "5", "8")]
    _show_command("fit", data, "-o", run, "--strategy", "linear-probe")
    _fit(data, run, overwrite=True, strategy="linear-probe", **options)
    _show_command("evaluate", run, data, "--split", "test")
    _evaluate(run, data, split="test", **options)
    _show_command("predict", run, *some)
    printer = PRINTERS["table"](3, None)
    _predict([str(s) for s in some], lambda: run, printer, 0.0, top=printer.top, **options)
    out.print()
    out.print(Text("Now with your own images, in a folder a class:", style="bold"))
    out.print("  headstart fit PHOTOS -o RUN      [dim]train[/dim]")
    out.print("  headstart evaluate RUN PHOTOS    [dim]measure[/dim]")
    out.print("  headstart predict RUN NEW/       [dim]use[/dim]")


def _show_command(*words: object) -> None:
    text = shlex.join(["headstart", *map(str, words)])
    out.print(Text(f"\n$ {printable(text)}", style="bold cyan"))

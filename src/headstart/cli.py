"""The command line: parses, calls one public function, prints.

Place in the flow: last. Nothing here imports torch before a command needs it.
"""

import contextlib
import csv
import io
import os
import shlex
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table
from rich.text import Text

import headstart
from headstart.errors import HeadstartError, UsageError, printable
from headstart.terminal import (
    State,
    csv_cell,
    err,
    note,
    out,
    print_json,
    show_evaluation,
    show_progress,
    show_run,
    show_scan,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.backbones import Backbone
    from headstart.classifier import Prediction
    from headstart.datasets import Dataset

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
    typer.Option(help="Threads; one more than CPUs by default. Changes no number.", min=1, max=256),
]
MaxBad = Annotated[
    float,
    typer.Option(
        help="Share of unreadable images allowed; one is always allowed.", min=0.0, max=1.0
    ),
]
Engine = Annotated[str, typer.Option(help="What runs the frozen network: auto, openvino or torch.")]
Precision = Annotated[
    str, typer.Option(help="Of its arithmetic: auto, fp32 (exact), bf16 or fp16.")
]
CacheDir = Annotated[
    Path | None, typer.Option(help="Place of the feature store; HEADSTART_CACHE_DIR names it too.")
]
Rehash = Annotated[
    bool, typer.Option("--rehash", help="Read every file again, whatever its size and times say.")
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
        "penalty": penalty,
        "class_weights": class_weights.value if class_weights else None,
    }
    options = {k: v for k, v in given.items() if v is not None}
    _fit(data, output, overwrite=overwrite, **options, **_given(context))


def _fit(data: str | Path, output: Path, **options: Any) -> None:
    with show_progress() as progress:
        report = None if State.quiet or State.json else show_scan
        run = headstart.fit(data, output, progress=progress, report=report, **options)
    if State.json:
        print_json(
            {
                "run": str(run.folder),
                "strategy": run.classifier.strategy,
                "backbone": run.classifier.backbone.name,
                "metrics": run.metrics,
                "measured_on": run.measured_on,
                "images": run.images,
                "computed": run.computed,
                "engine": str(run.engine),
                "warnings": run.warnings,
                "seconds": round(run.seconds, 3),
            }
        )
    else:
        show_run(run)


@app.command(name="evaluate")
def evaluate_command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str, typer.Argument(help="Labelled images: a folder or a manifest.")],
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; by default test, else val, else all."),
    ] = None,
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
    """
    _set_state(quiet, verbose, as_json)
    _evaluate(run, data, split=split, **_given(context))


def _evaluate(run: Path, data: str | Path, **options: Any) -> None:
    with show_progress() as progress:
        result = headstart.evaluate(run, data, progress=progress, **options)
    if State.json:
        print_json(
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
    engine: Engine = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the network's arithmetic: fp32 (exact), bf16, fp16 or auto.")
    ] = "fp32",
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
    options = {
        "allow_outside": allow_outside,
        "engine": engine,
        "precision": precision,
        "device": device,
        "workers": workers,
    }
    _predict(_read_names(images), model, show, max_bad, top=top, **options)


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
    with show_progress() as progress:
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
    print_json(
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


@app.command(name="extract")
def extract_command(
    context: typer.Context,
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, or manifest (.csv, .tsv, .jsonl).")
    ],
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="A network of timm; repeat it for several."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the backbone's weights (.safetensors, .pth).")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Also write features, ids and labels to a .parquet or .npz file."),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Keep the unpooled activations at this cut point instead."),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Views an image of the activations; 1 is plain.", min=1)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the activations: bfloat16 or float16.")
    ] = None,
    root: Root = None,
    allow_outside: Outside = False,
    max_bad: MaxBad = 0.001,
    seed: Annotated[int, typer.Option(help="Of the augmented views.", min=0)] = 0,
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
    """Run images through a frozen network once and keep what it gives.

    Everything else starts from the kept features: an image is never run twice, however often it \
    is moved, renamed or used in another data set. An interrupted run goes on where it stopped.

    [bold]Examples[/bold]

    headstart extract photos

    headstart extract photos --export features.parquet

    headstart extract photos --activations blocks.5 --views 4
    """
    _set_state(quiet, verbose, as_json)
    names = backbone or ["tf_efficientnet_lite0"]
    if len(names) > 1 and (weights or export or activations):
        raise UsageError("--weights, --export and --activations go with one --backbone")
    if activations is None and (views or dtype or "seed" in _given(context)):
        raise UsageError("--views, --dtype and --seed go with --activations CUT")
    if activations and (export or rehash):
        raise UsageError("--export and --rehash do not go with --activations")
    options = _given(context)
    reading = {n: options.pop(n) for n in ("root", "allow_outside") if n in options}
    limit = options.pop("max_bad", max_bad)
    dataset = headstart.load_dataset(data, **reading)
    if not (State.quiet or State.json):
        show_scan(dataset, headstart.scan_images(dataset))
    for name in names:
        network = headstart.load_backbone(name, weights=weights, cache_dir=cache_dir)
        with show_progress() as progress:
            if activations:
                _extract_activations(
                    dataset, network, activations, limit, views or 1, dtype or "bfloat16",
                    progress=progress, **options,
                )  # fmt: skip
            else:
                _extract(dataset, network, limit, export, progress=progress, **options)


def _extract(
    dataset: "Dataset", network: "Backbone", max_bad: float, export: Path | None, **options: Any
) -> None:
    from headstart.features import check_bad_images

    started = time.perf_counter()
    features = headstart.extract(dataset, network, **options)
    warnings = [*dataset.warnings, *features.warnings]
    for warning in warnings:
        warn(warning)
    if export is not None:
        headstart.export_features(features, dataset, export)
    result = {
        "backbone": network.name,
        "engine": str(features.engine),
        "images": len(dataset),
        "computed": features.computed,
        "unreadable": [{"image": i, "error": e} for i, e in features.bad()],
        "cuts": {c.name: c.channels for c in network.cuts},
        "export": str(export) if export else None,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - started, 3),
    }
    _show_extraction(result, features.engine.reason, len(features.bad()))
    check_bad_images(features.bad(), len(dataset), max_bad)


def _extract_activations(
    dataset: "Dataset",
    network: "Backbone",
    cut: str,
    max_bad: float,
    views: int,
    dtype: str,
    **options: Any,
) -> None:
    from headstart.activations import activations_bytes
    from headstart.features import check_bad_images

    started = time.perf_counter()
    size = activations_bytes(dataset, network, cut, views)
    note(f"activations at {cut}, {views} views an image: {size / 1e6:,.1f} MB in all")
    found = headstart.extract_activations(
        dataset, network, cut, views=views, dtype=dtype, **options
    )
    warnings = [*dataset.warnings, *found.warnings]
    for warning in warnings:
        warn(warning)
    bad = [(i, e) for i, e in zip(found.ids, found.errors, strict=True) if e]
    result = {
        "backbone": network.name,
        "engine": str(found.engine),
        "images": len(dataset),
        "computed": found.computed,
        "unreadable": [{"image": i, "error": e} for i, e in bad],
        "cuts": {cut: found.shape},
        "views": views,
        "dtype": dtype,
        "bytes": size,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - started, 3),
    }
    _show_extraction(result, found.engine.reason, len(bad))
    check_bad_images(bad, len(dataset), max_bad)


def _show_extraction(result: dict[str, Any], reason: str, bad: int) -> None:
    if State.json:
        print_json(result)
        return
    for entry in result["unreadable"][:5]:
        warn(f"unreadable: {entry['image']}: {entry['error']}")
    what = "activations" if "views" in result else "images"
    out.print(
        Text(
            f"{result['images']:,} images through {result['backbone']}: {result['computed']:,} "
            f"{what} computed in {result['seconds']:.1f} s, the others from the store"
            + (f"; {bad} unreadable" if bad else "")
        )
    )
    out.print(Text(f"engine {result['engine']} ({reason})", style="dim"))


cache_app = typer.Typer(
    rich_markup_mode="rich",
    help="""Look after the feature store.

[bold]Examples[/bold]

headstart cache list

headstart cache prune --older-than-days 90 --max-mb 5000
""",
)
app.add_typer(cache_app, name="cache")


@cache_app.command(name="path")
def cache_path(cache_dir: CacheDir = None) -> None:
    """Print where the feature store is."""
    sys.stdout.write(f"{printable(str(_cache(cache_dir)))}\n")


@cache_app.command(name="list")
def cache_list(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """List what the feature store holds, the last used first."""
    from headstart.store import list_stores

    stores = list_stores(_cache(cache_dir))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("backbone", "what", "engine", "rows", "MB", "last used"):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left")
    for info in stores:
        key, engine = info.key, info.key.get("engine") or {}
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used_s))
        kept = (
            "features" if key.get("pooling") == "mean" else f"at {', '.join(key.get('cuts', []))}"
        )
        if as_json:
            print_json(
                {
                    "name": info.name,
                    "key": key,
                    "rows": info.rows,
                    "bytes": info.size_bytes,
                    "used": used,
                }
            )
        runs = f"{engine.get('library', '')} {engine.get('precision', '')}"
        cells = (str(key.get("backbone", "unknown")), kept, runs)
        numbers = (f"{info.rows:,}", f"{info.size_bytes / 1e6:,.1f}", used)
        table.add_row(*(Text(printable(c)) for c in cells), *numbers)
    if not as_json:
        out.print(table if stores else Text(f"nothing yet at {printable(str(_cache(cache_dir)))}"))


@cache_app.command(name="size")
def cache_size(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Print how much disk the cache takes, compiled networks included."""
    folder = _cache(cache_dir)
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a writer at work renames its files
            size += path.stat().st_size if path.is_file() else 0
    if as_json:
        print_json({"path": str(folder), "bytes": size})
    else:
        out.print(Text(f"{size / 1e6:,.1f} MB at {printable(str(folder))}"), soft_wrap=True)


@cache_app.command(name="verify")
def cache_verify(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Check every checksum; damaged shards are moved away and computed again when needed."""
    from headstart.store import verify

    rows, problems = verify(_cache(cache_dir))
    if as_json:
        print_json({"rows": rows, "problems": problems})
    else:
        for problem in problems:
            warn(problem)
        out.print(Text(f"{rows:,} rows are sound, {len(problems)} shards were damaged"))
    if problems:
        raise typer.Exit(6)


@cache_app.command(name="prune")
def cache_prune(
    older_than_days: Annotated[
        float | None, typer.Option(help="Remove what was not used for this many days.", min=0)
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(help="Remove the least used features until they take no more.", min=0),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Remove only what this network gave; alone, all of it.")
    ] = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Remove features by age, size or backbone, and the remains of interrupted runs."""
    from headstart.store import prune

    if older_than_days is None and max_mb is None and backbone is None:
        raise UsageError("say what to remove: --older-than-days, --max-mb or --backbone")
    removed, freed = prune(
        _cache(cache_dir),
        unused_days=older_than_days,
        max_bytes=None if max_mb is None else int(max_mb * 1e6),
        backbone=backbone,
    )
    if as_json:
        print_json({"removed": removed, "bytes": freed})
    else:
        out.print(Text(f"removed {removed} sets of features, {freed / 1e6:,.1f} MB"))


def _cache(given: Path | None) -> Path:
    from headstart.store import default_cache_dir

    return given or default_cache_dir()


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
    note(f"wrote {count:,} handwritten digits (scikit-learn's) to {printable(str(data))}")
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


# ---------------------------------------------------------------- arguments

# Options that several commands have and that are fields of `Settings` of the same name.
COMMON = "root allow_outside max_bad seed engine precision device workers cache_dir rehash".split()


def _given(context: typer.Context) -> dict[str, Any]:
    """Those of the common options that were given, so that a run can tell them from defaults."""
    given = {}
    for name in COMMON:
        source = context.get_parameter_source(name)
        if name in context.params and source is not None and source.name != "DEFAULT":
            value = context.params[name]
            given[name] = str(value) if isinstance(value, Path) else value
    return given


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file or a pipe gets UTF-8, as documented; a terminal keeps its own encoding.
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_terminate)
    code = 1
    try:
        code = _run()
    except KeyboardInterrupt:
        kept = "; what was computed is kept: run the same command again to go on"
        err.print("interrupted" + ("" if _command_given() == "predict " else kept))
        _leave(130)
    except _Terminated:
        _leave(143)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End now that everything is committed, without waiting for a network that is being compiled."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    except BrokenPipeError:
        raise
    except OSError as exc:
        if State.verbose:
            err.print_exception()
        what = f"{exc.filename}: " if exc.filename else "output: "
        message = printable(f"{what}{exc.strerror or exc}")
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        with contextlib.suppress(OSError):  # what is buffered cannot be written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 5
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

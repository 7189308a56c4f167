"""Commands that look at the feature store and at networks, and the options that all commands share.

Nothing here imports torch before a command needs it.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

import headstart
from headstart.cli.terminal import (
    State,
    Table,
    count,
    note,
    out,
    print_json,
    show_progress,
    show_scan,
    warn,
)
from headstart.errors import UsageError, printable
from headstart.process import check_address_space

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset
    from headstart.networks.backbones import Backbone

__all__ = [
    "CacheDir",
    "Device",
    "Engine",
    "Json",
    "MaxBad",
    "Outside",
    "Precision",
    "Quiet",
    "Rehash",
    "Root",
    "Verbose",
    "Workers",
    "backbones_command",
    "begin_command",
    "cache_app",
    "extract_command",
    "given_options",
    "layers_command",
]

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

# Options that several commands have and that are fields of `Settings` of the same name.
COMMON = "root allow_outside max_bad seed engine precision device workers cache_dir rehash".split()


def given_options(context: typer.Context, names: Iterable[str] = COMMON) -> dict[str, Any]:
    """Those of the options that were given, so that a run can tell them from defaults."""
    given = {}
    for name in names:
        source = context.get_parameter_source(name)
        if name in context.params and source is not None and source.name != "DEFAULT":
            value = context.params[name]
            given[name] = str(value) if isinstance(value, Path) else value
    return given


def begin_command(quiet: bool, verbose: bool, as_json: bool) -> None:
    """Keep what the options common to all commands decide, and see that the libraries can be loaded."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose are both given; choose one")
    State.quiet, State.verbose, State.json = quiet, verbose, as_json
    check_address_space()


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
        typer.Option(
            help="Also write features, ids and labels to an .npz file, or a .parquet one, which needs "
            "pip install 'headstart[parquet]'."
        ),
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

    Everything else starts from the kept features: an image is never run twice,
    however often it is moved, renamed or used in another data set. An
    interrupted run goes on where it stopped.

    [bold]Examples[/bold]

    headstart extract photos

    headstart extract photos --export features.npz

    headstart extract photos --activations blocks.5 --views 4
    """
    from headstart.features.runtime import Runtime, make_runtime
    from headstart.files import check_cache

    begin_command(quiet, verbose, as_json)
    names = backbone or ["tf_efficientnet_lite0"]
    if len(names) > 1 and (weights or export or activations):
        raise UsageError("--weights, --export and --activations go with one --backbone")
    if activations is None and (views or dtype or "seed" in given_options(context)):
        raise UsageError("--views, --dtype and --seed go with --activations CUT")
    if activations and export:
        raise UsageError("--export does not go with --activations")
    if export is not None:
        from headstart.features.tables import check_export

        check_export(export)
    options = given_options(context)
    reading = {n: options.pop(n) for n in ("root", "allow_outside") if n in options}
    limit = options.pop("max_bad", max_bad)
    runtime = make_runtime(**{n: options.pop(n) for n in Runtime.model_fields if n in options})
    check_cache(cache_dir)
    with show_progress() as progress:
        progress("listing images", 0, 0)
        dataset = headstart.load_dataset(data, **reading)
        progress("loading the network", 0, 0)
        load = functools.partial(headstart.load_backbone, weights=weights, cache_dir=cache_dir)
        networks = [load(name) for name in names]
        if activations:
            networks[0].cut(activations)
        if not (State.quiet or State.json):
            progress("reading the images' headers", 0, 0)
            show_scan(dataset, headstart.scan_images(dataset))
        for network in networks:
            if activations:
                _extract_activations(
                    dataset, network, activations, limit, views or 1, dtype or "bfloat16",
                    runtime=runtime, progress=progress, **options,
                )  # fmt: skip
            else:
                _extract(dataset, network, limit, export, runtime=runtime, progress=progress)


def _extract(
    dataset: "Dataset", network: "Backbone", max_bad: float, export: Path | None, **options: Any
) -> None:
    from headstart.features.reading import check_bad_images

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
        "unreadable": [{"image": i, "error": e} for i, e in features.unreadable()],
        "cuts": {c.name: c.channels for c in network.cuts},
        "export": str(export) if export else None,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - started, 3),
    }
    _show_extraction(result, features.engine.reason, len(features.unreadable()))
    check_bad_images(features.unreadable(), len(dataset), max_bad)


def _extract_activations(
    dataset: "Dataset",
    network: "Backbone",
    cut: str,
    max_bad: float,
    views: int,
    dtype: str,
    **options: Any,
) -> None:
    from headstart.features.activations import activations_bytes
    from headstart.features.reading import check_bad_images

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
    if result.get("export"):
        count = f"{result['images']:,} images, features at {len(result['cuts'])} cut points"
        out.print(Text(f"wrote {printable(result['export'])}: {count}"))


def backbones_command(
    pattern: Annotated[
        str,
        typer.Argument(help="Part of a name, or one with * and ?; with a dot, also of the tag."),
    ] = "",
    library: Annotated[
        str | None, typer.Option(help="Only those of timm, torchvision or headstart.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Only those whose weights are on this machine.")
    ] = False,
    max_params: Annotated[
        float | None,
        typer.Option(help="Only those with at most so many million parameters.", min=0),
    ] = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """List the networks there are, with their size, licence and where their weights are.

    Parameters are counted in lists of at most 30, and for --max-params, which
    takes minutes for all networks the first time: name a pattern.

    [bold]Examples[/bold]

    headstart backbones resnet50

    headstart backbones 'mobilenet*' --max-params 5

    headstart backbones --local --json
    """
    from headstart.networks.catalogue import COUNTED, list_backbones

    begin_command(False, False, as_json)
    with show_progress() as progress:
        found = list_backbones(
            pattern,
            library=library,
            local=local,
            max_parameters=None if max_params is None else max_params * 1e6,
            cache_dir=cache_dir,
            progress=progress,
        )
    if as_json:
        for info in found:
            print_json(dataclasses.asdict(info))
        return
    table = Table()
    for column in ("name", "library", "million", "px", "licence", "weights"):
        table.add_column(column, justify="right" if column in ("million", "px") else "left")
    for info in found:
        size = "" if info.parameters is None else f"{info.parameters / 1e6:.2f}"
        table.add_row(
            info.name, info.library, size, str(info.input_px[0]), Text(info.licence), info.weights
        )
    out.print(table if found else Text(f"no network fits '{printable(pattern)}'"))
    note(count(len(found), "network"))
    if any(info.parameters is None for info in found):
        note(f"parameters are counted in lists of at most {COUNTED}; name a pattern")


def layers_command(
    name: Annotated[str, typer.Argument(help="A network, as --backbone takes it.")],
    freeze_until: Annotated[
        str | None, typer.Option(help="Name or index of a layer; those before it are frozen.")
    ] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Height and width of the images, if not the network's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the layers of a network and where it can be cut; needs no weights.

    A cut point is the place before the layer in whose row it stands.

    [bold]Examples[/bold]

    headstart layers mobilenet

    headstart layers vgg16 --freeze-until features.21

    headstart layers inception_v3 --input-px 139
    """
    from headstart.networks.catalogue import list_layers

    begin_command(False, False, as_json)
    layers, told = list_layers(name, input_px=input_px, freeze_until=freeze_until)
    if as_json:
        for layer in layers:
            print_json(dataclasses.asdict(layer))
        return
    if told:
        warn(told)
    table = Table()
    for column in ("", "layer", "type", "output", "parameters", "trained", "cut point"):
        if column != "trained" or freeze_until is not None:
            table.add_column(column, justify="right" if column in ("", "parameters") else "left")
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        cells = [str(layer.index), layer.name, layer.kind, shape, f"{layer.parameters:,}"]
        if freeze_until is not None:
            cells.append("yes" if layer.trainable else "frozen")
        table.add_row(*map(Text, cells), Text(layer.cut, style="bold"))
    out.print(table)
    total = sum(layer.parameters for layer in layers)
    trained = sum(layer.parameters for layer in layers if layer.trainable)
    out.print(Text(f"{total:,} parameters" + (f", {trained:,} trained" if trained < total else "")))


cache_app = typer.Typer(
    rich_markup_mode="rich",
    help="""Look after the feature store.

[bold]Examples[/bold]

headstart cache list

headstart cache prune --older-than-days 90 --max-mb 5000
""",
)


@cache_app.command(name="path")
def cache_path(cache_dir: CacheDir = None) -> None:
    """Print where the feature store is."""
    sys.stdout.write(f"{printable(str(_cache(cache_dir)))}\n")


@cache_app.command(name="list")
def cache_list(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """List what the cache holds: features, and what is kept of networks; of each the last used first."""
    from headstart.features.cache import list_networks, list_stores

    stores = [*list_stores(_cache(cache_dir)), *list_networks(_cache(cache_dir))]
    table = Table()
    for name in ("backbone", "what", "engine", "rows", "MB", "last used"):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left")
    for info in stores:
        key, engine = info.key, info.key.get("engine") or {}
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used_s))
        kept = "network"
        if info.rows or "cuts" in key:
            whole = key.get("pooling") == "mean"
            kept = "features" if whole else f"at {', '.join(key.get('cuts', []))}"
        if as_json:
            print_json(
                {
                    "name": info.name,
                    "what": kept,
                    "key": key,
                    "rows": info.rows,
                    "bytes": info.size_bytes,
                    "used": used,
                }
            )
        runs = f"{engine.get('library', '')} {engine.get('precision', '')}"
        cells = (str(key.get("backbone", "unknown")), kept, runs)
        numbers = (f"{info.rows:,}" if info.rows else "", f"{info.size_bytes / 1e6:,.1f}", used)
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
        out.print(Text(f"{size / 1e6:,.1f} MB at {printable(str(folder))}"))


@cache_app.command(name="verify")
def cache_verify(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Check every checksum; damaged shards are moved away and computed again when needed."""
    from headstart.features.cache import verify

    rows, problems = verify(_cache(cache_dir))
    if as_json:
        print_json({"rows": rows, "problems": problems})
    else:
        for problem in problems:
            warn(problem)
        damaged = count(len(problems), "damaged shard")
        out.print(Text(f"{count(rows, 'sound row')}, {damaged}"))
    if problems:
        raise typer.Exit(6)


@cache_app.command(name="prune")
def cache_prune(
    older_than_days: Annotated[
        float | None, typer.Option(help="Remove what was not used for this many days.", min=0)
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(help="Remove the least used until the rest takes no more.", min=0),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Remove only what this network gave; alone, all of it.")
    ] = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Remove features and kept networks by age, size or backbone, and remains of interrupted runs."""
    from headstart.features.cache import prune

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
        out.print(Text(f"removed {count(removed, 'entry', 'entries')}, {freed / 1e6:,.1f} MB"))


def _cache(given: Path | None) -> Path:
    from headstart.files import default_cache_dir

    return given or default_cache_dir()

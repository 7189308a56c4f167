"""The command that runs images through a frozen network and keeps what it gives.

Nothing here imports torch before the command needs it.
"""

import functools
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

import headstart
from headstart.cli.commands import DATA, MAX_BAD
from headstart.cli.options import flag_of, takes
from headstart.cli.reporting import DATA_HELP, RUNTIME, TALKS
from headstart.cli.terminal import (
    State,
    count,
    note,
    out,
    print_json,
    say,
    show_progress,
    show_scan,
    warn,
)
from headstart.errors import UsageError, printable
from headstart.training.settings import FIELDS, READING

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.data.dataset import Dataset
    from headstart.data.views import Views
    from headstart.networks.backbones import Backbone

__all__ = ["extract_command"]


@takes(("weights", "input_px", "cut", "seed", *DATA, *RUNTIME), talks=TALKS)
def extract_command(
    data: Annotated[list[str], typer.Argument(help=DATA_HELP)],
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="A network, as headstart backbones lists them; repeat it for several."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write features, ids and labels to an .npz file, or a .parquet one, which needs "
            "pip install 'headstart\\[parquet]'."
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Keep the unpooled activations at this cut point instead."),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(help="Keep activations of this many views of an image; 1 is plain.", min=1),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Keep activations as bfloat16 or float16.")
    ] = None,
    bottleneck: Annotated[
        Path | None,
        typer.Option(
            help="Write bottleneck features of the training and validation images to this folder, as "
            "pickles for fit --features; --cut, --val and --group go with it."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Run images through a frozen network once and keep what it gives.

    Everything else starts from the kept features: an image is never run twice,
    however often it is moved, renamed or used in another data set. An
    interrupted run goes on where it stopped.

    [bold]Examples[/bold]

    headstart extract photos

    headstart extract photos --export features.npz

    headstart extract photos --activations blocks.5 --views 4

    headstart extract photos --bottleneck files --per-class 100
    """
    names = backbone or [FIELDS["backbone"].info.default]
    if len(names) > 1 and (export or activations or "weights" in options):
        raise UsageError("--weights, --export and --activations go with one --backbone")
    if bottleneck is not None:
        if any(x is not None for x in (export, activations, views, dtype)):
            raise UsageError("--bottleneck excludes --export, --activations, --views and --dtype")
        for name in names:
            _extract_bottleneck(data, bottleneck, backbone=name, **options)
        return
    for name in ("cut", "val", "group"):
        if name in options:
            raise UsageError(f"{flag_of(name)} goes with --bottleneck FOLDER")
    if activations is None and (views is not None or dtype is not None):
        raise UsageError("--views and --dtype go with --activations CUT")
    if activations is None and "seed" in options and "per_class" not in options:
        raise UsageError("--seed goes with --activations CUT, --bottleneck or --per-class")
    if activations is not None and export is not None:
        raise UsageError("--export does not go with --activations")
    keep: Callable[..., None] = functools.partial(_extract, export=export)
    if export is not None:
        from headstart.features.tables import check_export

        check_export(export)
    if activations is not None:
        drawn = headstart.Views(views or 1, seed=options.get("seed", 0))
        keep = functools.partial(
            _extract_activations, cut=activations, views=drawn, dtype=dtype or "bfloat16"
        )
    _keep_features(data, names, keep, cut=activations, **options)


def _keep_features(
    data: list[str],
    names: list[str],
    keep: "Callable[..., None]",
    *,
    cut: str | None,
    max_bad: float = MAX_BAD,
    **options: Any,
) -> None:
    """Load the data and the networks, of which the first must have the cut point, and extract with each."""
    from headstart.features.runtime import make_runtime
    from headstart.files import check_cache
    from headstart.runs.sampling import draw_per_class

    runtime = make_runtime(**{n: options.pop(n) for n in RUNTIME if n in options})
    check_cache(runtime.cache_dir)
    with show_progress() as progress:
        progress("listing images", 0, 0)
        reading = {n: options[n] for n in READING if n in options}
        dataset = headstart.load_dataset(data, **reading)
        dataset = draw_per_class(dataset, options.get("per_class"), options.get("seed", 0))
        progress("loading the network", 0, 0)
        given = {n: options[n] for n in ("weights", "input_px") if n in options}
        networks = [
            headstart.load_backbone(name, cache_dir=runtime.cache_dir, **given) for name in names
        ]
        if cut is not None:
            networks[0].cut(cut)
        if not (State.quiet or State.json):
            progress("reading the images' headers", 0, 0)
            show_scan(dataset, headstart.scan_images(dataset, max_pixels=runtime.max_pixels))
        for network in networks:
            keep(dataset, network, max_bad, runtime=runtime, progress=progress)


def _extract_bottleneck(data: list[str], folder: Path, **options: Any) -> None:
    started = time.perf_counter()
    with show_progress() as progress:
        found = headstart.extract_bottleneck(
            data,
            folder,
            progress=progress,
            report=None if State.quiet or State.json else show_scan,
            **options,
        )
    seconds = round(time.perf_counter() - started, 3)
    if State.json:
        files = {n: str(getattr(found, n)) for n in ("train", "validation", "class_names")}
        print_json(
            {**vars(found), **files, "engine": str(found.engine), "seconds": seconds},
        )
        return
    for warning in found.warnings:
        warn(warning)
    images = found.images
    say(
        f"{images['train'] + images['val']:,} images through {printable(found.backbone)}: "
        f"{found.computed:,} computed in {seconds:.1f} s, the others from the store"
    )
    out.print(Text(f"engine {found.engine} ({found.engine.reason})", style="dim"))
    for split, file in (("train", found.train), ("val", found.validation)):
        held = f"{images[split]:,} images, {found.width:,} features at {printable(found.cut)}"
        out.print(Text(f"wrote {printable(str(file))}: {held}"))
    out.print(Text(f"wrote {printable(str(found.class_names))}: the names of the classes"))
    words = ["headstart", "fit", "--features", str(found.train), "--validation"]
    words += [str(found.validation), "--class-names", str(found.class_names)]
    note("next:")
    note(f"  {printable(shlex.join(words))}")


def _extract(
    dataset: "Dataset", network: "Backbone", max_bad: float, *, export: Path | None, **options: Any
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
    max_bad: float,
    *,
    cut: str,
    views: "Views",
    **options: Any,
) -> None:
    from headstart.features.activations import activations_bytes
    from headstart.features.reading import check_bad_images

    started = time.perf_counter()
    size = activations_bytes(dataset, network, cut, views.count)
    number = count(views.count, "view")
    note(f"activations at {cut}, {number} an image: {size / 1e6:,.1f} MB in all")
    found = headstart.extract_activations(dataset, network, cut, views=views, **options)
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
        "views": found.views,
        "dtype": found.dtype,
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
        held = f"{result['images']:,} images, features at {len(result['cuts'])} cut points"
        out.print(Text(f"wrote {printable(result['export'])}: {held}"))

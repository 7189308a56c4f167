"""Commands that list what there is: networks, their layers, known data sets, and what the cache holds.

Nothing here imports torch before a command needs it.
"""

import contextlib
import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import headstart
from headstart.cli.options import SettingsCommand, takes
from headstart.cli.terminal import (
    State,
    Table,
    count,
    note,
    out,
    print_json,
    show_progress,
    warn,
)
from headstart.errors import UsageError, printable

__all__ = ["backbones_command", "cache_app", "download_command", "layers_command"]


@takes(["cache_dir"], talks=["json"])
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
    cache_dir: str | None = None,
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

    with show_progress() as progress:
        found = list_backbones(
            pattern,
            library=library,
            local=local,
            max_parameters=None if max_params is None else max_params * 1e6,
            cache_dir=cache_dir,
            progress=progress,
        )
    if State.json:
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
        note(f"parameters are counted in lists of at most {COUNTED}; name a narrower pattern")


@takes(talks=["json", "quiet"])
def download_command(
    name: Annotated[
        str | None, typer.Argument(help="A known data set; without, all are listed.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files; the cache's by default.")
    ] = None,
) -> None:
    """Download a data set that is known by name, or list those that are.

    Checked by its published checksum. What was cut is continued by the same
    command. Where it is in the cache, its name is enough: headstart fit mnist.

    [bold]Examples[/bold]

    headstart download

    headstart download mnist
    """
    if name is None:
        if to is not None:
            raise UsageError("--to has no effect without the name of a data set")
        _list_known()
        return
    with show_progress() as progress:
        path = headstart.download(name, to, progress=progress)
    if State.json:
        print_json({"name": name, "path": str(path)})
        return
    out.print(Text(printable(str(path))))
    words = ["headstart", "fit", name if to is None else str(path)]
    note(f"next:\n  {printable(shlex.join(words))}")


def _list_known() -> None:
    from headstart.data.known import KNOWN, find_downloaded

    table = Table()
    for column in ("name", "MB", "images of", "licence", "here", "source"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for name, known in KNOWN.items():
        path = find_downloaded(name)
        if State.json:
            facts = dataclasses.asdict(known)
            print_json({"name": name, **facts, "path": None if path is None else str(path)})
            continue
        here = "no" if path is None else "yes"
        table.add_row(
            name, f"{known.size / 1e6:,.1f}", known.title, known.licence, here, known.source
        )
    if not State.json:
        out.print(table)


@takes(talks=["json"])
def layers_command(
    name: Annotated[str, typer.Argument(help="A network, as --backbone takes it.")],
    freeze_until: Annotated[
        str | None, typer.Option(help="Name or index of a layer; those before it are frozen.")
    ] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Height and width of the images, if not the network's own.")
    ] = None,
) -> None:
    """List the layers of a network and where it can be cut; needs no weights.

    A cut point is the place before the layer in whose row it stands.

    [bold]Examples[/bold]

    headstart layers mobilenet

    headstart layers vgg16 --freeze-until features.21

    headstart layers inception_v3 --input-px 139
    """
    from headstart.networks.catalogue import list_layers

    layers, told = list_layers(name, input_px=input_px, freeze_until=freeze_until)
    if State.json:
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


@cache_app.command(name="path", cls=SettingsCommand)
@takes(["cache_dir"])
def cache_path(cache_dir: str | None = None) -> None:
    """Print where the feature store is."""
    sys.stdout.write(f"{printable(str(_cache(cache_dir)))}\n")


@cache_app.command(name="list", cls=SettingsCommand)
@takes(["cache_dir"], talks=["json"])
def cache_list(cache_dir: str | None = None) -> None:
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
        if State.json:
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
    if not State.json:
        out.print(table if stores else Text(f"nothing yet at {printable(str(_cache(cache_dir)))}"))


@cache_app.command(name="size", cls=SettingsCommand)
@takes(["cache_dir"], talks=["json"])
def cache_size(cache_dir: str | None = None) -> None:
    """Print how much disk the cache takes, compiled networks included."""
    folder = _cache(cache_dir)
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a writer at work renames its files
            size += path.stat().st_size if path.is_file() else 0
    if State.json:
        print_json({"path": str(folder), "bytes": size})
    else:
        out.print(Text(f"{size / 1e6:,.1f} MB at {printable(str(folder))}"))


@cache_app.command(name="verify", cls=SettingsCommand)
@takes(["cache_dir"], talks=["json"])
def cache_verify(cache_dir: str | None = None) -> None:
    """Check every checksum; damaged shards are moved away and computed again when needed."""
    from headstart.features.cache import verify

    rows, problems = verify(_cache(cache_dir))
    if State.json:
        print_json({"rows": rows, "problems": problems})
    else:
        for problem in problems:
            warn(problem)
        damaged = count(len(problems), "damaged shard")
        out.print(Text(f"{count(rows, 'sound row')}, {damaged}"))
    if problems:
        raise typer.Exit(6)


@cache_app.command(name="prune", cls=SettingsCommand)
@takes(["cache_dir"], talks=["json"])
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
    cache_dir: str | None = None,
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
    if State.json:
        print_json({"removed": removed, "bytes": freed})
    else:
        out.print(Text(f"removed {count(removed, 'entry', 'entries')}, {freed / 1e6:,.1f} MB"))


def _cache(given: str | None) -> Path:
    from headstart.files import default_cache_dir

    return default_cache_dir() if given is None else Path(given)

"""The command that compares: runs that are there, or ways of training, of which it trains what is missing.

Nothing here imports torch before the command needs it.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

import headstart
from headstart.cli.options import takes
from headstart.cli.reporting import NO_PAGE, choose_page, write_beside
from headstart.cli.terminal import (
    State,
    Table,
    note,
    option_words,
    out,
    print_json,
    say,
    show_progress,
    warn,
)
from headstart.errors import UsageError, printable
from headstart.training.settings import FIELDS

if TYPE_CHECKING:
    from headstart.runs.comparison import Comparison

__all__ = ["compare_command"]

# So many pairs are shown; of more, those with the best contender. All are in the JSON and the CSV.
PAIRS_SHOWN = 15


@takes([n for n in FIELDS if n != "strategy"], talks=("json", "quiet", "verbose"))
def compare_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS | DATA",
            help="Folders of runs; or a folder, archives, table or arrays of images to train on.",
        ),
    ],
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Train in these ways: names with commas between them, each with settings of its own, as in "
            "fine-tune:batchnorm=adapt:lr=1e-4. Default: linear-probe,partial-fine-tune."
        ),
    ] = None,
    backbones: Annotated[
        str | None, typer.Option(help="Train these networks: names with commas between them.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train each with this many seeds, 3 by default.", min=1)
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Measure on these labelled images, or on a fraction that is held out (0.2) where the "
            "data have no test split."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for pictures, tables and what is trained; comparisons/NAME by default.",
        ),
    ] = None,
    no_page: NO_PAGE = False,
    **options: Any,
) -> None:
    """Compare ways of training, or runs, on the same test images.

    Says which can be told apart and how many more images would tell, with
    intervals, McNemar's test and Holm's correction, and what each costs. Of
    data, trains what is missing; the same command goes on after an
    interruption. Several seeds count what a seed changes. The report is
    comparison.html in that folder, or beside the first of the runs.

    \b
    [bold]Examples[/bold]
    headstart compare run-a run-b --test photos
    headstart compare photos --strategies linear-probe,fine-tune --seeds 3
    headstart compare photos --backbones resnet50,vgg16 -o comparison
    """
    asked = {"strategies": strategies, "backbones": backbones, "seeds": seeds, "test": test}
    asked |= {"output": output} | options
    again = ["compare", *words, *option_words({n: v for n, v in asked.items() if v is not None})]
    with show_progress() as progress:
        from headstart.publish.comparisons import write_comparison
        from headstart.runs.comparing import is_run

        has_runs = any(map(is_run, words))
        output = _choose_folder(words, output, has_runs=has_runs)
        place = choose_page(
            None, no_page, lambda: output / "comparison.html" if output else _name_page(words)
        )
        found = headstart.compare(
            words,
            None if has_runs else output,
            strategies=_split(strategies),
            backbones=_split(backbones),
            seeds=seeds,
            test=_read_number(test),
            progress=progress,
            **options,
        )
        files = []
        if output is not None:
            progress("drawing", 0, 0)
            files = write_comparison(found, output)
    _finish(found, files, again, place)


def _finish(found: "Comparison", files: list[Path], again: list[str], place: Path | None) -> None:
    """Show what was found, say what was written, and write the page; `again` are the command's words."""
    if State.json:
        print_json(found.to_json())
    else:
        _show(found)
    for file in files:
        note(f"written: {printable(str(file))}")
    if place is not None:
        make = functools.partial(headstart.report, found, output=place)
        write_beside(make, again, "the comparison is above")


def _name_page(runs: list[str]) -> Path:
    from headstart.publish.reporting import name_page

    return name_page(runs)


def _choose_folder(words: list[str], output: Path | None, *, has_runs: bool) -> Path | None:
    """Find out before any work whether the folder can be had; of data it is the same for the same data."""
    if output is None:
        name = Path(os.path.realpath(words[0])).stem or "data"
        return None if has_runs else Path("comparisons") / name
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: a file of this name exists; choose another folder")
    if has_runs:
        from headstart.files import check_writable

        check_writable(output, advice="choose another folder")
    return output


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _read_number(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _show(found: "Comparison") -> None:
    """Show who is how good at what price, then the differences, then what follows."""
    for warning in found.warnings:
        warn(warning)
    groups = f" in {found.units:,} groups" if found.units < found.images else ""
    say(f"{found.images:,} images of {found.part}{groups}, 95 % intervals", style="dim")
    # What is seldom asked for stands in the JSON and in contenders.csv.
    has_seeds = State.verbose or any(len(c.runs) > 1 for c in found.contenders)
    heads = ["rank", "", *(["seeds"] if has_seeds else []), "accuracy", "95 % interval"]
    heads += [*(["log loss"] if State.verbose else []), "min", "MB", "images/s"]
    table = Table(*heads)
    for name, column in zip(heads, table.columns, strict=True):
        column.justify = "left" if name in ("", "95 % interval") else "right"
    for c in found.contenders:
        e = c.accuracy
        table.add_row(
            str(c.rank),
            Text(printable(c.name), style="bold" if c.rank == 1 else ""),
            *([str(len(c.runs))] if has_seeds else []),
            f"{e.value:.3f}",
            f"{e.low:.3f} to {e.high:.3f}",
            *([f"{c.log_loss:.3f}"] if State.verbose else []),
            f"{c.minutes:.{1 if c.minutes >= 1 else 2}f}",
            f"{c.megabytes:.1f}",
            f"{c.images_per_s:,.0f}{' *' if c.undominated else '  '}",
        )
    out.print(table)
    say(
        "* no other is as good in accuracy, time, size and speed (of one thread) alike", style="dim"
    )
    _show_pairs(found)
    out.print()
    say(printable(found.conclude()), style="bold green")


def _show_pairs(found: "Comparison") -> None:
    """Show the differences, and what each says."""
    best = found.contenders[0].name
    shown = [p for p in found.pairs if len(found.pairs) <= PAIRS_SHOWN or p.first == best]
    for pair in shown:
        d = pair.contrast.difference
        p = "p < 0.001" if pair.adjusted < 0.001 else f"p {pair.adjusted:.3f}"
        out.print()
        say(f"{printable(pair.first)} against {printable(pair.second)}")
        say(f"  {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f}), {p} by Holm's correction")
        say(f"  {printable(pair.verdict)}")
    if len(shown) < len(found.pairs):
        more = len(found.pairs) - len(shown)
        say(f"{more:,} more pairs are in the JSON and in pairs.csv", style="dim")

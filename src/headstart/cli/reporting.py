"""The command that writes a report, and how other commands write theirs beside their own work.

Nothing here imports torch before the command needs it.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.style import Style
from rich.text import Text

import headstart
from headstart.cli.options import takes
from headstart.cli.terminal import State, count, err, out, print_json, show_progress, warn
from headstart.errors import HeadstartError, one_line, printable
from headstart.process import find_shortage, leave
from headstart.training.settings import FIELDS, READING

if TYPE_CHECKING:
    from headstart.publish.pages import Report

__all__ = ["DATA_HELP", "RUNTIME", "TALKS", "report_command", "show_page", "write_beside"]

TALKS = ("json", "quiet", "verbose")
DATA_HELP = "Folder, archives, table or arrays of images."
RUNTIME = tuple(n for n, field in FIELDS.items() if field.part == "runtime")


@takes((*READING, "max_bad", *RUNTIME), talks=TALKS)
def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Images to evaluate it on; by default, what the run measured."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The page; report.html in the run's folder by default."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the data: train, val, test or all, as in evaluate.")
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write each chart as an SVG file.")
    ] = False,
    **options: Any,
) -> None:
    """Write what a run found as one page to read, share and print.

    The page says in plain words how good the classifier is, and shows the
    pictures behind each kind of mistake, where it looks, what it was trained
    on and why it was trained so. It needs no network and no other file. The
    same figures are written beside it as CSV and JSON.

    \b
    [bold]Examples[/bold]
    headstart report run
    headstart report run photos --split test -o test.html
    """
    with show_progress() as progress:
        written = headstart.report(
            run, data or None, output, split=split, figures=figures, progress=progress, **options
        )
    if State.json:
        print_json(
            {
                "page": str(written.page),
                "files": [str(file) for file in written.files],
                "pictures": written.pictures,
                "warnings": written.warnings,
            }
        )
        return
    for warning in written.warnings:
        warn(warning)
    shown = count(written.pictures, "picture")
    out.print(Text(f"{printable(str(written.page))}: {shown}, and the figures as CSV and JSON"))


def write_beside(make: "Callable[..., Report]", again: list[str], kept: str) -> Path | None:
    """Write the report of what a command has done, and say where it is; never fail what was done.

    Args:
        make: writes it, called with `progress`.
        again: the command's words that write it later.
        kept: what is there already, in words.

    Returns:
        The page; None where it could not be written.
    """
    later = printable(shlex.join(["headstart", *again]))
    try:
        with show_progress() as progress:
            written = make(progress=progress)
    except KeyboardInterrupt:
        err.print(Text(f"interrupted; {kept}. {later} writes its report"))
        leave(130)
    except Exception as exc:
        if State.verbose:
            err.print_exception()
        told = str(exc) if isinstance(exc, HeadstartError) else find_shortage(exc) or one_line(exc)
        warn(f"no report was written: {printable(told)}; {kept}. {later} writes it")
        return None
    show_page(written.page)
    return written.page


def show_page(page: Path) -> None:
    """Say where a report is, as a link where the terminal knows links."""
    if not State.json:
        link = Style(link=page.resolve().as_uri())
        out.print(Text.assemble("report: ", (printable(str(page)), link)))

"""The command that writes a report, and how other commands write theirs beside their own work.

Nothing here imports torch before the command needs it.
"""

import itertools
import os
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
from headstart.errors import HeadstartError, UsageError, one_line, printable
from headstart.process import find_shortage, leave
from headstart.training.settings import FIELDS, READING

if TYPE_CHECKING:
    from headstart.publish.pages import Report

__all__ = [
    "DATA_HELP",
    "NO_PAGE",
    "PAGE",
    "RUNTIME",
    "TALKS",
    "choose_page",
    "find_runs",
    "report_command",
    "write_beside",
]

TALKS = ("json", "quiet", "verbose")
DATA_HELP = "Folder, archives, table or arrays of images."
NO_PAGE = Annotated[bool, typer.Option("--no-report", help="Write no report.")]
PAGE = Annotated[
    Path | None, typer.Option("--report", help="Write the report there, a file that ends in .html.")
]
RUNTIME = tuple(n for n, field in FIELDS.items() if field.part == "runtime")


@takes((*READING, "max_bad", *RUNTIME), talks=TALKS)
def report_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN… [DATA]",
            help="Folders of runs; then images to measure them on, by default what they measured.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The page; by default report.html in the run's folder, or beside several runs.",
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
    """Write what a run found as one page to read, share and print; of several, how they compare.

    The page says in plain words how good the classifier is, and shows the
    pictures behind each kind of mistake, where it looks, what it was trained
    on and why it was trained so. It needs no network and no other file. The
    same figures are written beside it as CSV and JSON.

    \b
    [bold]Examples[/bold]
    headstart report run
    headstart report run photos --split test -o test.html
    headstart report run-1 run-2 run-3
    """
    from headstart.runs.comparing import is_run

    runs = list(itertools.takewhile(is_run, words)) or words[:1]
    with show_progress() as progress:
        written = headstart.report(
            runs if len(runs) > 1 else runs[0],
            words[len(runs) :] or None,
            output,
            split=split,
            figures=figures,
            progress=progress,
            **options,
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
    shown = f": {count(written.pictures, 'picture')}" if written.pictures else ""
    out.print(Text(f"{printable(str(written.page))}{shown}; its figures are beside it"))


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
        text = f"no report was written: {printable(told)}; {kept}. {later} writes it"
        err.print(Text.assemble(("warning: ", "yellow"), text))
        return None
    _show_page(written.page)
    return written.page


def _show_page(page: Path) -> None:
    """Say where a report is, as a link where the terminal knows links."""
    if not State.json:
        link = Style(link=page.resolve().as_uri())
        out.print(Text.assemble("report: ", (printable(str(page)), link)))


def find_runs(data: list[str]) -> tuple[Path, str]:
    """Find where runs and reports on data go, and what they are called: runs/NAME.

    Beside the data where `runs` would lie in them, as a class would. Several archives give their names.
    """
    from headstart.runs.sources import name_files

    source, name = Path(os.path.realpath(data[0])), name_files(data)
    runs = Path("runs")
    if source.is_dir() and Path(os.path.realpath(runs)).is_relative_to(source):
        runs = source.parent / "runs"
    return runs, name


def choose_page(page: Path | None, no_page: bool, default: Callable[[], Path]) -> Path | None:
    """Choose where a command's report goes: where it was said, else its default; None for no report.

    Before any work, so that a name that cannot be is told at once. What programs read comes without a
    report, unless one was asked for.
    """
    if page is not None:
        if no_page:
            raise UsageError("--report and --no-report are both given; choose one")
        from headstart.publish.pages import check_page

        return check_page(page)
    return None if no_page or State.json else default()

"""Takes what was found, gives it as one page that needs nothing else, with its figures beside it.

What each kind of result is written as stands here; how, in the file of its page.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.errors import UsageError
from headstart.parallel import Progress, no_progress
from headstart.publish.advice_page import write_advice_page
from headstart.publish.audit_page import write_audit_page
from headstart.publish.comparison_page import write_comparison_page
from headstart.publish.pages import Report, check_page
from headstart.publish.run_page import write_run_page
from headstart.runs.auditing import Audit
from headstart.runs.comparing import compare
from headstart.runs.comparison import Comparison
from headstart.runs.record import Run
from headstart.runs.sources import Data
from headstart.training.advice import Advice

__all__ = ["Report", "name_page", "report"]

LONGEST = 80  # letters of a page's name
Place = str | os.PathLike[str]


def report(
    what: Run | Place | Sequence[Run | Place] | Comparison | Advice | Audit,
    data: Data | None = None,
    output: Place | None = None,
    *,
    split: str | None = None,
    figures: bool = False,
    looking_s: float = math.inf,
    progress: Progress = no_progress,
    **options: Any,
) -> Report:
    """Write what was found as a page that opens anywhere, with its figures as CSV and JSON beside it.

    Args:
        what: a `Run` or its folder; several, which are compared; or a `Comparison`, an `Advice` or an
            `Audit`.
        data: labelled images to measure runs on and to report that; by default what they measured.
        output: the page, which ends in .html. By default report.html in the folder of a run, and beside
            the first of several runs a page with their names; else it must be given. It, and the files
            beside it whose names begin like its own, replace those of an earlier report.
        split: of `data`, as in `evaluate`; of a single run.
        figures: also write each chart as an SVG file.
        looking_s: about so many seconds may go into finding where a classifier looks, which takes the
            most of a report's time; fewer pictures are looked at then.
        progress: called with how far the work is.
        **options: of a run, those fields of `Settings` that concern reading and extraction; of several,
            as in `compare`.

    Raises:
        UsageError: an option is wrong, or has no effect.
        InputError: a run is damaged or has measured nothing, the data cannot be used, or the runs cannot
            be compared.
        ResourceError: out of disk, memory or permission.
    """
    place = None if output is None else check_page(output)
    if isinstance(what, Run | str | os.PathLike):
        progress("loading the run", 0, 0)
        run = what if isinstance(what, Run) else Run.load(what, cache_dir=options.get("cache_dir"))
        return write_run_page(
            run,
            data,
            place or check_page(run.folder / "report.html"),
            split=split,
            figures=figures,
            looking_s=looking_s,
            progress=progress,
            **options,
        )
    if split is not None:
        raise UsageError("split goes with a single run; leave it out")
    if not isinstance(what, Comparison | Advice | Audit):
        if not isinstance(what, list | tuple) or not what:
            raise UsageError(
                "report takes a run, a list of runs, a Comparison, an Advice or an Audit, got "
                f"{type(what).__name__}"
            )
        page = place or check_page(name_page(what))
        found = compare(what, test=data, progress=progress, **options)
        return write_comparison_page(found, page, figures=figures, progress=progress)
    if data is not None or options:
        name = next(iter(options), "data")
        raise UsageError(f"{name} has no effect on what was measured already; leave it out")
    if place is None:
        raise UsageError("output is missing; name the page, as in report.html")
    if isinstance(what, Comparison):
        return write_comparison_page(what, place, figures=figures, progress=progress)
    if isinstance(what, Advice):
        return write_advice_page(what, place, figures=figures, progress=progress)
    return write_audit_page(what, place, progress=progress)


def name_page(runs: Sequence[Run | Place]) -> Path:
    """Name the page of several runs after them, beside the first."""
    folders = [Path(run.folder if isinstance(run, Run) else run).absolute() for run in runs]
    names = [folder.name for folder in folders]
    name = "-and-".join(names)
    if len(name) > LONGEST:
        name = f"{names[0][:LONGEST]}-and-{len(names) - 1}-more"
    return Path(os.path.relpath(folders[0].parent)) / f"{name}.html"

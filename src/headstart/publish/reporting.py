"""Takes what was found, gives it as one page that needs nothing else, with its figures beside it.

What each kind of result is written as stands here; how, in the file of its page.
"""

import math
import os
from typing import Any

from headstart.parallel import Progress, no_progress
from headstart.publish.pages import Report, check_page
from headstart.publish.run_page import write_run_page
from headstart.runs.record import Run
from headstart.runs.sources import Data

__all__ = ["Report", "report"]


def report(
    run: Run | str | os.PathLike[str],
    data: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    figures: bool = False,
    looking_s: float = math.inf,
    progress: Progress = no_progress,
    **options: Any,
) -> Report:
    """Write the report of a run: a page that opens anywhere, and its figures as CSV and JSON beside it.

    Args:
        run: a `Run`, or its folder.
        data: labelled images to evaluate it on and to report that; by default what the run measured.
        output: the page, which ends in .html; report.html in the run's folder by default. It, and the
            files beside it whose names begin like its own, replace those of an earlier report.
        split: of `data`, as in `evaluate`.
        figures: also write each chart as an SVG file.
        looking_s: about so many seconds may go into finding where the classifier looks, which takes the
            most of a report's time; fewer pictures are looked at then.
        progress: called with how far the work is.
        **options: those fields of `Settings` that concern reading and extraction.

    Raises:
        UsageError: an option is wrong, or has no effect.
        InputError: the run is damaged or has measured nothing, or the data cannot be used.
        ResourceError: out of disk, memory or permission.
    """
    if output is not None:
        check_page(output)
    progress("loading the run", 0, 0)
    read = run if isinstance(run, Run) else Run.load(run, cache_dir=options.get("cache_dir"))
    page = check_page(read.folder / "report.html" if output is None else output)
    return write_run_page(
        read,
        data,
        page,
        split=split,
        figures=figures,
        looking_s=looking_s,
        progress=progress,
        **options,
    )

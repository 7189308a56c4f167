"""Takes what a page shows, gives its files: one HTML file that needs nothing else, JSON and CSV beside it.

Every word that came from outside is text: Jinja2 escapes it, what could reorder or hide words is spelled out
(`errors.printable`), and a page's content policy lets nothing run or load but its own two blocks, by their
hashes.
"""

import base64
import csv
import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from headstart.errors import UsageError, csv_cell, printable
from headstart.files import to_json_bytes, translate_errors, write_atomically
from headstart.publish.drawings import Chart, to_file
from headstart.publish.report_words import say_metric, shorten

__all__ = ["Report", "check_page", "to_csv", "to_json_file", "write_page"]

ENDS = (".html", ".htm")


@dataclasses.dataclass(frozen=True)
class Report:
    """A report, as written.

    Attributes:
        page: the HTML file.
        files: all files, the page first.
        pictures: how many images it shows.
        warnings: one line each, for people: what is missing in it, and why.
    """

    page: Path
    files: tuple[Path, ...]
    pictures: int
    warnings: tuple[str, ...]


def check_page(page: str | os.PathLike[str]) -> Path:
    """Give the place of a page, before any work.

    Raises:
        UsageError: no page can be there; says how to name it.
    """
    path = Path(page)
    if path.suffix.lower() not in ENDS:
        raise UsageError(f"{path}: a report is an HTML file; name it so, as in report.html")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file, as in report.html")
    return path


def write_page(
    page: Path,
    template: str,
    content: Mapping[str, Any],
    *,
    tables: Mapping[str, bytes],
    charts: Iterable[Chart] = (),
    pictures: int = 0,
    missing: Sequence[str] = (),
) -> Report:
    """Write a page and the files beside it, whose names begin like its own; they replace earlier ones.

    Args:
        page: as `check_page` gives it.
        template: its name, of `templates`.
        content: what the template shows.
        tables: {end of the file's name: content} of the files beside it.
        charts: to be files of their own too.
        pictures, missing: of the `Report`.

    Raises:
        ResourceError: out of disk or permission.
    """
    files = {page.name: _render(template, content)}
    files |= {f"{page.stem}{end}": text for end, text in tables.items()}
    files |= {f"{page.stem}-{chart.name}.svg": to_file(chart) for chart in charts}
    with translate_errors(page.parent, advice="choose another file with -o"):
        page.parent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(page.parent / name, text)
    return Report(page, tuple(page.parent / name for name in files), pictures, tuple(missing))


@functools.cache
def _load() -> tuple[Environment, dict[str, str]]:
    """The templates, and the blocks that stand in every page: its style and its script."""
    folder = importlib.resources.files("headstart.publish") / "templates"
    blocks = {n: (folder / f"report.{n}").read_text(encoding="utf-8") for n in ("css", "js")}
    environment = Environment(
        loader=PackageLoader("headstart.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_to_text,
    )
    return environment, blocks


def _render(template: str, content: Mapping[str, Any]) -> bytes:
    environment, blocks = _load()
    page = environment.get_template(template).render(
        content,
        css=Markup(blocks["css"]),
        js=Markup(blocks["js"]),
        hashes={name: _hash(text) for name, text in blocks.items()},
        say_metric=say_metric,
        shorten=shorten,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return page.encode()


def _to_text(value: Any) -> Any:
    """Whatever the template shows, as words that nothing hides in."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_json_file(value: Any) -> bytes:
    """Write figures as JSON, which has no NaN."""
    return to_json_bytes(_to_finite(value))


def _to_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _to_finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Write cells as CSV that no spreadsheet takes for formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()

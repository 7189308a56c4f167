"""Takes a CSV, TSV, JSONL or Parquet file, gives its rows in batches; the caller says which columns.

Rows come in batches since a table may have millions. Of a Parquet file only the columns that are
wanted are read.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.data.parquet import list_parquet_columns, read_parquet
from headstart.errors import InputError
from headstart.files import read_bounded

if TYPE_CHECKING:
    from _csv import Reader

__all__ = [
    "CLASS_COLUMN",
    "LABEL",
    "TABLE_SUFFIXES",
    "Batch",
    "Chooser",
    "list_columns",
    "read_batches",
    "read_separated",
    "read_text",
]

BATCH_ROWS = 2**14
# What is wanted of a table: the column of the labels, or "class: cat", that of the label cat.
LABEL, CLASS_COLUMN = "label", "class: "
MAX_TEXT_BYTES = 2**29  # of rows of 100 bytes, five millions
HEAD_CHARS = 2**16
SEPARATORS = ",;\t"

# Where a header stands and the names in it -> {what is wanted: name of its column}.
Chooser = Callable[[str, list[str]], dict[str, str]]


class Batch(NamedTuple):
    """Some rows of a table.

    Attributes:
        place: what comes before a number in messages: "m.csv, line ".
        numbers: of the line that each row ends on, or of the row; from 1.
        cells: {what was wanted: one cell a row}, None where a row has none.
    """

    place: str
    numbers: list[int]
    cells: dict[str, list[Any]]

    def where(self, row: int) -> str:
        """Say where a row stands."""
        return f"{self.place}{self.numbers[row]}"


def read_batches(path: Path, choose: Chooser) -> Iterator[Batch]:
    """Read the wanted columns, at most `BATCH_ROWS` rows at a time.

    Args:
        path: of one of the `TABLE_SUFFIXES`.
        choose: called once for a header, in JSONL once for each set of keys; may raise.

    Raises:
        InputError: it cannot be read, is not what its suffix says, or names a column twice.
        UsageError: Parquet, and pyarrow is not installed.
    """
    return _READERS[path.suffix.lower()](path, choose)


def list_columns(path: Path) -> list[str]:
    """List the names of a table's columns, of JSONL those of the first row; [] where it has no row.

    Raises:
        InputError, UsageError: as `read_batches` does.
    """
    found: list[str] = []

    def look(where: str, names: list[str]) -> dict[str, str]:
        found.extend(names if not found else ())
        return {}

    next(read_batches(path, look), None)
    return found


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a mark.

    Raises:
        InputError: missing, too large, unreadable, or in another encoding.
    """
    excess = f"larger than {MAX_TEXT_BYTES >> 20} MiB; write it as Parquet"
    data = read_bounded(path, MAX_TEXT_BYTES, excess)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not {encoding} text at byte {exc.start}; save as UTF-8") from exc


def read_separated(text: str, separator: str = "") -> "Reader":
    """Read the rows of a CSV, as Python's csv does; damaged ones raise csv.Error.

    Args:
        text: all of it.
        separator: what stands between cells; by default what the header has most of, since programs write
            semicolons where a comma is decimal.
    """
    if not separator:
        header = re.split(r"[\r\n]", text[:HEAD_CHARS].lstrip(), maxsplit=1)[0]
        separator = max(SEPARATORS, key=header.count)
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def _refuse_twice(path: Path, names: list[str]) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise InputError(f"{path}: the header names a column twice: {names[:8]}; rename one")


def _read_csv(path: Path, choose: Chooser) -> Iterator[Batch]:
    return _read_rows(path, read_separated(read_text(path)), choose)


def _read_tsv(path: Path, choose: Chooser) -> Iterator[Batch]:
    return _read_rows(path, read_separated(read_text(path), "\t"), choose)


def _read_rows(path: Path, reader: "Reader", choose: Chooser) -> Iterator[Batch]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if "".join(row).strip():
                    yield reader.line_num, row
        except csv.Error as exc:
            raise InputError(
                f"{path}, line {reader.line_num}: {exc}; check the quotes there and before"
            ) from exc

    found = rows()
    number, first = next(found, (0, []))
    if not number:
        raise InputError(f"{path}: empty; the first line must name the columns path and label")
    names = [cell.strip() for cell in first]
    _refuse_twice(path, names)
    places = {
        column: names.index(name)
        for column, name in choose(f"{path}, line {number}", names).items()
    }
    while batch := list(itertools.islice(found, BATCH_ROWS)):
        for number, row in batch:
            if len(row) != len(names):
                raise InputError(
                    f"{path}, line {number}: {len(row)} cells where the header has {len(names)}; quote "
                    "cells that contain the separator"
                )
        cells = {column: [row[place] for _, row in batch] for column, place in places.items()}
        yield Batch(f"{path}, line ", [number for number, _ in batch], cells)


def _read_jsonl(path: Path, choose: Chooser) -> Iterator[Batch]:
    """Every row may have keys of its own."""
    chosen: dict[tuple[str, ...], dict[str, str]] = {}
    lines = iter(enumerate(read_text(path).split("\n"), 1))
    while some := list(itertools.islice(lines, BATCH_ROWS)):
        numbers, rows = [], []
        for number, line in some:
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = _read_object(where, line)
            keys = tuple(row)
            if keys not in chosen:
                chosen[keys] = choose(where, list(keys))
            numbers.append(number)
            rows.append({column: row[name] for column, name in chosen[keys].items()})
        columns = {column for names in chosen.values() for column in names}
        if numbers:
            cells = {column: [row.get(column) for row in rows] for column in columns}
            yield Batch(f"{path}, line ", numbers, cells)


def _read_object(where: str, line: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def pair(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError(f"a name stands twice: {[name for name, _ in pairs][:8]}")
        return row

    try:
        row = json.loads(line, parse_constant=refuse, object_pairs_hook=pair)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{where}: not JSON: {exc}; write an object a line") from exc
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with path and label, one a line")
    return row


def _read_parquet(path: Path, choose: Chooser) -> Iterator[Batch]:
    names = list_parquet_columns(path)
    _refuse_twice(path, names)
    chosen = choose(f"{path}", names)
    if not chosen:
        return
    lists = [name for wanted, name in chosen.items() if wanted == LABEL]
    flags = [name for wanted, name in chosen.items() if wanted.startswith(CLASS_COLUMN)]
    number, names = 0, list(chosen.values())
    for columns in read_parquet(path, names, BATCH_ROWS, lists=lists, flags=flags):
        count = len(columns[0])
        cells = dict(zip(chosen, columns, strict=True))
        yield Batch(f"{path}, row ", list(range(number + 1, number + count + 1)), cells)
        number += count


_READERS: dict[str, Callable[[Path, Chooser], Iterator[Batch]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
TABLE_SUFFIXES = frozenset(_READERS)

"""Takes a CSV, TSV or JSONL manifest, gives a `Dataset`; paths are resolved under the manifest's root."""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart.choices import nearest
from headstart.data.dataset import SPLIT_NAMES, Dataset, Row, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.errors import InputError

__all__ = ["MANIFEST"]

COLUMNS = {
    "path": ("path", "image", "file_name", "filename", "file", "filepath"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset"),
    "group": ("group", "group_id"),
}


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not {encoding} text at byte {exc.start}; save as UTF-8") from exc


def _read_delimited(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                if len({name.lower() for name in header}) < len(header):
                    raise InputError(f"{path}: the header names a column twice: {header}")
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the header has "
                    f"{len(header)}; quote cells that contain the separator"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as exc:
        raise InputError(f"{path}, line {reader.line_num}: {exc}") from exc
    if header is None:
        raise InputError(f"{path}: empty; the first line must name the columns path and label")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=refuse)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path}, line {number}: not JSON: {exc}") from exc
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object with path and label")
        yield number, row


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}


def _recognises(path: Path) -> bool:
    return path.suffix.lower() in _READERS and path.is_file()


def _load(path: Path, options: LoadOptions) -> Dataset:
    root = path.parent if options.root is None else options.root
    if not root.is_dir():
        raise InputError(f"{root}: the root of the manifest's paths is not a folder")
    resolve = _Resolver(root, options.allow_outside)
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    repeated = 0
    columns: dict[str, str] = {}
    for number, cells in _READERS[path.suffix.lower()](path):
        where = f"{path}, line {number}"
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            columns = _find_columns(where, list(cells))
        elif not columns:
            columns = _find_columns(f"{path}, line 1", list(cells))
        row = _read_row(where, {column: cells[name] for column, name in columns.items()}, resolve)
        if row.id not in rows:
            rows[row.id], lines[row.id] = row, number
        elif rows[row.id] == row:
            repeated += 1
        else:
            raise InputError(
                f"{where}: '{cells[columns['path']]}' stands already at line {lines[row.id]} with "
                "another label, split or group"
            )
    if not rows:
        raise InputError(f"{path}: no rows; each image needs a row with its path and label")
    warnings = (
        (f"{repeated} repeated row{'s' if repeated > 1 else ''} counted once",) if repeated else ()
    )
    return dataset_of_rows(root, rows.values(), warnings=warnings)


MANIFEST = Form(
    name="manifest",
    looks="a .csv, .tsv or .jsonl manifest",
    uses=frozenset({"root", "group", "allow_outside"}),
    recognises=_recognises,
    load=_load,
)


def _read_row(where: str, cells: Mapping[str, Any], resolve: Callable[[str, str], str]) -> Row:
    """The row of one line: cells by column -> what they say, checked."""
    text = cells["path"]
    if not isinstance(text, str) or not text:
        raise InputError(f"{where}: the path is missing")
    image_id = resolve(where, text)
    label = _cell(where, "label", cells["label"])
    if not label:
        raise InputError(f"{where}: the image '{text}' has no label; remove the row or fill it")
    split = _cell(where, "split", cells.get("split")).lower()
    if split and split not in SPLIT_NAMES:
        raise InputError(
            f"{where}: split '{split}' is unknown{nearest(split, SPLIT_NAMES)}; "
            "use train, val or test"
        )
    group = _cell(where, "group", cells.get("group"))
    return Row(image_id, (label,), SPLIT_NAMES.get(split, ""), group)


def _find_columns(where: str, given: list[str]) -> dict[str, str]:
    lower = {str(name).strip().lower(): name for name in given}
    found = {}
    for column, aliases in COLUMNS.items():
        match = [lower[a] for a in aliases if a in lower]
        if match:
            found[column] = match[0]
        elif column in ("path", "label"):
            near = nearest(column, lower)
            raise InputError(
                f"{where}: no column '{column}'{near}; found {', '.join(map(repr, given[:8]))}. "
                "The columns path and label are needed, split and group may follow"
            )
    return found


def _cell(where: str, column: str, value: Any) -> str:
    """A label, split or group as text in Unicode form NFC."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: the {column} must be text or a whole number, got {value!r}")
    return unicodedata.normalize("NFC", _text(where, column, str(value)).strip())


def _text(where: str, column: str, value: str) -> str:
    """The value, unless it holds half a surrogate pair, which no file name or report can."""
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: the {column} {value!a} is not valid Unicode")
    return value


class _Resolver:
    """Manifest path -> image id below the root, refusing what leads out of it."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.allow_outside = allow_outside
        self.inside: dict[str, bool] = {}  # folder -> its real path lies below the root

    def __call__(self, where: str, text: str) -> str:
        if "\0" in text:
            raise InputError(f"{where}: the path contains a NUL character")
        text = _text(where, "path", text)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise InputError(f"{where}: '{text}' is an address; download the images first")
        outside = (
            text.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:", text) is not None
            or ".." in re.split(r"[/\\]", text)
        )
        if outside and not self.allow_outside:
            raise InputError(
                f"{where}: '{text}' leads outside of {self.root}; use paths relative to it, "
                "another --root, or --allow-outside"
            )
        image_id = os.path.normpath(text)
        if not self.allow_outside and not self._is_inside(image_id):
            raise InputError(
                f"{where}: '{text}' is a link that leads outside of {self.root}; "
                "allow it with --allow-outside"
            )
        return image_id.replace(os.sep, "/")

    def _is_inside(self, image_id: str) -> bool:
        try:
            return self._lies_inside(image_id)
        except OSError:  # a name that is too long: no such file, so a bad image and no way out
            return True

    def _lies_inside(self, image_id: str) -> bool:
        folder = os.path.dirname(image_id)
        if folder not in self.inside:
            real = Path(os.path.realpath(self.root / folder))
            self.inside[folder] = real.is_relative_to(self.real_root)
        path = self.root / image_id
        if self.inside[folder] and path.is_symlink():
            return Path(os.path.realpath(path)).is_relative_to(self.real_root)
        return self.inside[folder]

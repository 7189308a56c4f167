"""Takes a file with the names of numbered classes, gives the data set whose classes have these names.

The file is a table of two columns, number and name (signnames.csv); a text file or a JSON list with one
name for each number from 0 on; or a JSON object {number: name}.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from headstart.data.dataset import Dataset, clean_name
from headstart.data.tables import TABLE_SUFFIXES, read_batches, read_text
from headstart.errors import InputError

__all__ = ["name_classes", "read_class_names"]

MAX_NAMES = 100_000
MAX_NAME_CHARS = 200
SHOWN = 4
# Folders may be called 00042.
NUMBER = re.compile(r"[0-9]{1,18}")
LINE_END = re.compile(
    r"\r\n|\r|\n"
)  # not splitlines, which splits at characters that names may hold


def name_classes(dataset: Dataset, path: Path) -> Dataset:
    """Call the classes of a data set, which are numbers, by their names; they stay in their order.

    Raises:
        InputError: a class is no number, or has no name, or the file cannot be read.
    """
    names = read_class_names(path)
    numbers: dict[int, str] = {}
    for name in dataset.classes:
        if not NUMBER.fullmatch(name):
            raise InputError(
                f"{dataset.name}: class '{name}' is no number, and {path} names classes by number; leave "
                "--class-names out"
            )
        if (other := numbers.setdefault(int(name), name)) != name:
            raise InputError(
                f"{dataset.name}: classes '{other}' and '{name}' are the same number; merge them"
            )
    missing = [name for number, name in numbers.items() if number not in names]
    if missing:
        more = f", nor have {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{path}: class '{missing[0]}' has no name there{more}; add a line for it")
    unused = [f"'{name}'" for number, name in names.items() if number not in numbers]
    warnings = dataset.warnings
    if unused:
        more = ", …" if len(unused) > SHOWN else ""
        said = f"{len(unused)} class{'es' if len(unused) > 1 else ''} of {path.name}"
        warnings = (*warnings, f"{said} without images: {', '.join(unused[:SHOWN])}{more}")
    classes = tuple(names[number] for number in numbers)
    return dataclasses.replace(dataset, classes=classes, warnings=warnings)


def read_class_names(path: Path) -> dict[int, str]:
    """Read {number: name}.

    Raises:
        InputError: the file cannot be read, has another form, or gives a number or a name twice.
        UsageError: Parquet, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        pairs = _read_json(path)
    elif suffix in TABLE_SUFFIXES:
        pairs = _read_table(path)
    else:
        text = read_text(path).rstrip()
        pairs = enumerate(LINE_END.split(text) if text else [])
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for number, text in pairs:
        name = clean_name(f"{path}: the name of class {number}", text)
        if not name or len(name) > MAX_NAME_CHARS:
            raise InputError(
                f"{path}: the name of class {number} must have 1 to {MAX_NAME_CHARS} characters, got "
                f"{name[:40]!a}"
            )
        if number in names:
            raise InputError(
                f"{path}: class {number} has two names: '{names[number]}' and '{name}'"
            )
        if name in numbers:
            raise InputError(
                f"{path}: classes {numbers[name]} and {number} are both called '{name}'"
            )
        names[number], numbers[name] = name, number
        if len(names) > MAX_NAMES:
            raise InputError(f"{path}: more than {MAX_NAMES:,} names; give a file with one a class")
    if not names:
        raise InputError(f"{path}: no names; give one a line, or columns of numbers and names")
    return names


def _read_table(path: Path) -> Iterable[tuple[int, str]]:
    def choose(where: str, given: list[str]) -> dict[str, str]:
        if len(given) != 2:
            raise InputError(
                f"{where}: {len(given)} columns, and two are needed: the number of a class and its name"
            )
        if NUMBER.fullmatch(given[0]):
            raise InputError(
                f"{where}: must name the two columns, as in ClassId,SignName, and is a class already"
            )
        return dict(zip(("number", "name"), given, strict=True))

    for batch in read_batches(path, choose):
        for row, (number, name) in enumerate(
            zip(batch.cells["number"], batch.cells["name"], strict=True)
        ):
            if not isinstance(name, str):
                raise InputError(f"{batch.where(row)}: the name must be text, got {name!a:.80}")
            yield _read_number(batch.where(row), number), name


def _read_json(path: Path) -> Iterable[tuple[int, str]]:
    def pair(pairs: list[tuple[str, object]]) -> list[tuple[str, object]]:
        return pairs  # so that a number that stands twice is seen

    try:
        value = json.loads(read_text(path), object_pairs_hook=pair)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not JSON") from exc
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of names, or an object {{number: name}}")
    for place, item in enumerate(value):
        number, name = item if isinstance(item, tuple) else (place, item)
        if not isinstance(name, str):
            raise InputError(f"{path}: the name of class {number} must be text, got {name!a:.80}")
        yield _read_number(str(path), number), name


def _read_number(where: str, value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not NUMBER.fullmatch(text):
        raise InputError(
            f"{where}: the number of a class must be a whole number from 0 on, got {text!a:.80}"
        )
    return int(text)

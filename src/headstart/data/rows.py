"""Takes tables that list images, gives the rows of a `Dataset`: what their columns and cells say."""

import os
import re
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from headstart.choices import nearest
from headstart.data.dataset import SPLIT_NAMES, Row, clean_name
from headstart.data.form import LoadOptions
from headstart.data.label_cells import Cell, LabelCells, list_class_columns
from headstart.data.paths import Resolver
from headstart.data.tables import CLASS_COLUMN, Batch, read_batches
from headstart.errors import InputError

__all__ = ["Listing", "find_columns", "find_label", "list_texts", "read_cells", "tell_guesses"]

PLURALS = ("labels", "tags", "findinglabels")  # taken only where some image has several, or none
# What columns are called. The first name of each is the documented one; the next ones are usual and are told
# when they are taken; the last are taken where there is no better. Compared as `_fold` gives them.
# A "fold" is no split: it has numbers, of which none says what is measured on.
COLUMNS = {
    "path": (
        ("path",),
        tuple(
            "file filename filepath fname image imagefile imagename imagepath img imgfile imgname "
            "imgpath photo picture".split()
        ),
        tuple("id imageid imgid fileid".split()),
    ),
    "label": (
        ("label",),
        tuple(
            "labelname labelid class classname classid classlabel category categoryname categoryid "
            "target species cls y".split()
        ),
        PLURALS,
    ),
    "split": (("split",), ("set", "subset")),
    "group": (("group",), tuple("groupid patient patientid subject subjectid".split())),
}
# The columns that are needed, and the options that name them.
OPTIONS = {"path": "--path-column", "label": "--label-column"}
SHOWN = 8
MAX_GUESSES = 3  # that are told; every row of a JSONL file may have columns of its own


class Listing:
    """The rows of one table or of several, below one root.

    Attributes:
        rows: {image id: its row}, in the order of the tables; `finish` gives them with their labels.
    """

    def __init__(self, root: Path, options: LoadOptions) -> None:
        self.rows: dict[str, Row] = {}
        self._root, self._options = root, options
        self._resolve = Resolver(root, options.allow_outside)
        self._labels = LabelCells(options)
        self._repeated = 0
        self._guesses: dict[str, None] = {}  # an ordered set
        self._numbers = array("q")  # of the line of each row
        self._places: list[tuple[int, str]] = []  # the first row of each table, and where it stands

    @property
    def warnings(self) -> tuple[str, ...]:
        """What columns were taken for, where that is a guess, and rows that were counted once."""
        plural = "s" if self._repeated > 1 else ""
        repeated = (f"{self._repeated} repeated row{plural} counted once",)
        return (*self._guesses, *self._labels.warnings, *(repeated if self._repeated else ()))

    def finish(self) -> list[Row]:
        """Give all rows, with cells split that hold several labels.

        Raises:
            InputError: as `LabelCells.finish` says.
        """
        return self._labels.finish(self.rows.values())

    def find(self, name: str) -> Path:
        """Give the place of a file below the root.

        Raises:
            InputError: it is a link that leads out.
        """
        try:
            self._resolve.check(name)
        except InputError as exc:
            raise InputError(f"{self._root}: {exc}") from exc
        return self._root / name

    def add(
        self,
        path: Path,
        *,
        prefix: str = "",
        split: str = "",
        read: Callable[[Row], Row] = lambda row: row,
    ) -> None:
        """Add the rows of a table.

        Args:
            path: of the table.
            prefix: the folder below the root, with its slash, that paths are relative to.
            split: of rows that name none.
            read: makes of a row what it stands for.

        Raises:
            InputError: the table cannot be read, lacks a column, or a cell says nothing that is known; or an
                image has two labels, splits or groups.
        """

        def choose(where: str, given: list[str]) -> dict[str, str]:
            found = find_columns(where, given, self._options)
            told = tell_guesses(found, self._options)
            if self._options.label_column is None:
                missing = _say_missing(where, "label", given)
                if list_class_columns(found):
                    self._labels.missing = missing
                if _fold(found.get("label", "")) in PLURALS:
                    self._labels.missing_single = missing
            if told and len(self._guesses) < MAX_GUESSES:
                self._guesses[told] = None
            return found

        cells: dict[tuple[Any, ...], tuple[tuple[str, ...], str, str]] = {}
        for batch in read_batches(path, choose):
            if not self._places or self._places[-1][1] != batch.place:
                self._places.append((len(self.rows), batch.place))
            paths, splits, groups = (list_texts(batch, c) for c in ("path", "split", "group"))
            keys = zip(self._labels.list_cells(batch), splits, groups, strict=True)
            for number, (text, key) in enumerate(zip(paths, keys, strict=True)):
                try:
                    image_id = self._find_image(prefix, text)
                    if key not in cells:  # most recur
                        cells[key] = read_cells(self._labels, text, *key)
                    labels, own, group = cells[key]
                    if not (labels or isinstance(key[0], tuple)):
                        self._labels.remember_blank(batch.where(number), text)
                    row = read(Row(image_id, labels, own or split, group))
                except InputError as exc:
                    raise InputError(f"{batch.where(number)}: {exc}") from exc
                self._add_row(batch, number, row, text)

    def _find_image(self, prefix: str, text: str | None) -> str:
        if not text:
            raise InputError("the path is missing")
        return self._resolve(os.path.join(prefix, text) if prefix else text)

    def _add_row(self, batch: Batch, number: int, row: Row, text: str | None) -> None:
        first = self.rows.setdefault(row.id, row)
        if first is row:
            self._numbers.append(batch.numbers[number])
        elif first == row:
            self._repeated += 1
        else:
            at = list(self.rows).index(row.id)
            place = next(place for start, place in reversed(self._places) if start <= at)
            if place == batch.place:
                place = place.rpartition(", ")[2]
            raise InputError(
                f"{batch.where(number)}: '{text}' stands already at {place}{self._numbers[at]} with "
                "another label, split or group; keep one"
            )


def find_columns(where: str, given: list[str], options: LoadOptions) -> dict[str, str]:
    """Find which columns say what: {"path", "label", and perhaps "split" and "group": name}.

    Those that options name; else by their usual names, in whatever case.

    Args:
        where: the table stands, for messages.
        given: the names of its columns.

    Raises:
        InputError: there is no column for the path or the label, or two are as likely as each other.
    """
    found = {
        column: _find_asked(where, column, name, given)
        for column, name in _list_asked(options, given).items()
    }
    named: dict[str, list[str]] = {}
    for name in given:
        if name not in found.values():
            named.setdefault(_fold(name), []).append(name)
    is_several = options.label_column is not None and "label" not in found
    for column, ranks in COLUMNS.items():
        if column in found or (column == "label" and is_several):
            continue
        # An own pattern of groups goes before a column that may be one.
        for aliases in ranks[:1] if column == "group" and options.group is not None else ranks:
            match = [name for alias in aliases for name in named.get(alias, ())]
            if len(match) > 1:
                raise InputError(
                    f"{where}: the columns '{match[0]}' and '{match[1]}' may both be the {column}; "
                    + (f"choose one with {OPTIONS[column]}" if column in OPTIONS else "rename one")
                )
            if match:
                found[column] = match[0]
                break
        if column not in found and column in OPTIONS and column != "label":
            raise InputError(_say_missing(where, column, given))
    several: dict[str, str] = {}
    if "label" not in found:
        several = _find_class_columns(where, given, set(found.values()), options)
    return {column: found[column] for column in COLUMNS if column in found} | several


def _say_missing(where: str, column: str, given: list[str]) -> str:
    return (
        f"{where}: no column '{column}'{nearest(column, given)}; found {_show(given)}. The "
        f"columns path and label are needed, split and group may follow; {OPTIONS[column]} names "
        "one that is called otherwise"
    )


def _find_class_columns(
    where: str, given: list[str], taken: set[str], options: LoadOptions
) -> dict[str, str]:
    """Find the columns of which each is one label: those that are named, else all that are left."""
    if options.label_column is not None:
        asked = [name.strip() for name in options.label_column.split(",")]
        names = [_find_asked(where, "label", name, given) for name in asked if name]
    else:
        names = [name for name in given if name not in taken]
        if len(names) < 2:
            raise InputError(_say_missing(where, "label", given))
    return {CLASS_COLUMN + name: name for name in names}


def find_label(fields: Mapping[str, object]) -> object:
    """Give the value of the field that is most likely the label, by its name; None where none is."""
    folded = {_fold(name): value for name, value in fields.items()}
    return next(
        (folded[name] for names in COLUMNS["label"] for name in names if name in folded), None
    )


def _find_asked(where: str, column: str, name: str, given: list[str]) -> str:
    if name in given:
        return name
    alike = [other for other in given if _fold(other) == _fold(name)]
    if len(alike) == 1:
        return alike[0]
    raise InputError(
        f"{where}: no column '{name}'{nearest(name, given)}, which {OPTIONS[column]} names; found "
        f"{_show(given)}"
    )


def _list_asked(options: LoadOptions, given: list[str]) -> dict[str, str]:
    """{column: the one name that an option gives it}; a name with commas may be several."""
    asked = {"path": options.path_column, "label": options.label_column}
    several = options.label_column or ""
    if "," in several and several not in given:
        asked["label"] = None
    return {column: name for column, name in asked.items() if name is not None}


def _fold(name: str) -> str:
    """A column's name without what people write in many ways: Class_Id, class-id, ClassId."""
    return re.sub(r"[\s_.-]+", "", name).casefold()


def _show(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN]))


def tell_guesses(found: Mapping[str, str], options: LoadOptions) -> str:
    """Say which columns are taken for what, where neither an option nor their name says so; "" for none."""
    asked = _list_asked(options, [*found.values()])
    several = list_class_columns(found)
    guesses = {
        column: name
        for column, name in found.items()
        if column not in (*asked, *several) and _fold(name) not in COLUMNS[column][0]
    }
    parts = [f"the {column} from '{name}'" for column, name in guesses.items()]
    options_of = [OPTIONS[column] for column in guesses if column in OPTIONS]
    if several and options.label_column is None:
        ends = f"'{found[several[0]]}' to '{found[several[-1]]}'"
        parts.append(f"the labels from {len(several)} columns, {ends}")
        options_of.append(OPTIONS["label"])
    if not parts:
        return ""
    told = ", ".join(parts)
    advice = f"; {' and '.join(options_of)} can name others" if options_of else ""
    return f"columns by their usual names: {told}{advice}"


def list_texts(batch: Batch, column: str) -> list[str | None]:
    """List the cells of a column as text, None where there is none; whole numbers are written out.

    Raises:
        InputError: a cell is something else.
    """
    values = batch.cells.get(column)
    if values is None:
        return [None] * len(batch.numbers)
    if set(map(type, values)) <= {str, NoneType}:
        return values
    texts = []
    for number, value in enumerate(values):
        if type(value) is int:
            value = str(value)
        elif value is not None and not isinstance(value, str):
            raise InputError(
                f"{batch.where(number)}: the {column} must be text or a whole number, got {value!r}"
            )
        texts.append(value)
    return texts


def read_cells(
    labels: LabelCells, text: str | None, label: Cell, split: str | None, group: str | None
) -> tuple[tuple[str, ...], str, str]:
    """Read what cells say of an image, which is called `text`: its labels, split and group.

    Raises:
        InputError: a label that is none, or a split that is not known.
    """
    names = labels.read(text, label)
    part = _clean("split", split).lower()
    if part and part not in SPLIT_NAMES:
        raise InputError(
            f"split '{part}' is unknown{nearest(part, SPLIT_NAMES)}; use train, val or test, or call the "
            "column something else where it is no split"
        )
    return names, SPLIT_NAMES.get(part, ""), _clean("group", group)


def _clean(column: str, value: str | None) -> str:
    """A split or group."""
    return "" if value is None else clean_name(f"the {column}", value)

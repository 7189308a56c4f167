"""Takes the cells of a table that say which labels images have, gives their names; there may be several.

A cell has one label; or a list of them, in JSON and Parquet; or several with a separator between them. Or
every label has a column of its own, of 1 and 0, or of 1 and -1.

A name may have a separator in it. So without a word of the user's a `|` or `;` separates only where some
part stands at different places of different cells, as `cow` does in `barn|cow` and `cow|dog`; the parts of
names such as `plants|trees` do not. A comma never does.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headstart.data.dataset import Row, clean_name
from headstart.data.form import LoadOptions
from headstart.data.tables import CLASS_COLUMN, LABEL, Batch
from headstart.errors import InputError, UsageError

__all__ = ["Cell", "LabelCells", "find_separator", "list_class_columns"]

SEPARATORS = ("|", ";")
MAX_LABELS = 10_000  # of an image
MAX_ALL_LABELS = 2**26  # of all images
MAX_SEPARATOR_CHARS = 8

# What a cell of such a column may hold: the numbers, and how programs write them.
FLAGS: Mapping[Any, int] = {
    **{flag: int(float(flag)) for flag in ("0", "1", "-1", "0.0", "1.0", "-1.0", 0, 1, -1)},
    "true": 1,
    "false": 0,
    "True": 1,
    "False": 0,
    "TRUE": 1,
    "FALSE": 0,
}

# Labels of an image as a cell has them: text that may be several, or names; None where there is no cell.
Cell = str | tuple[str, ...] | None


def list_class_columns(found: Iterable[str]) -> list[str]:
    """List those of the wanted columns that say whether an image has one label."""
    return [wanted for wanted in found if wanted.startswith(CLASS_COLUMN)]


def find_separator(texts: Iterable[str]) -> str | None:
    """Find what separates several labels in the cells of a column; None where nothing surely does."""
    whole = list(texts)
    for separator in SEPARATORS:
        places: dict[str, int] = {}
        for text in whole:
            for place, part in enumerate(_split(text, separator)):
                if places.setdefault(part, place) != place:
                    return separator
    return None


def _split(text: str, separator: str) -> list[str]:
    if text.count(separator) >= MAX_LABELS:
        raise InputError(
            f"the label {text[:40]!a}… is of more than {MAX_LABELS:,} with '{separator}' between them; "
            "is that the column of labels?"
        )
    parts = (part.strip() for part in text.split(separator))
    return list(dict.fromkeys(part for part in parts if part))


class LabelCells:
    """The labels of the rows of one table or of several.

    Attributes:
        missing: what is wrong where columns were taken for labels without being so; "" where they were named.
        missing_single: what is wrong where a column that is called labels has one each; likewise.
    """

    def __init__(self, options: LoadOptions) -> None:
        separator = options.label_separator
        if separator is not None and (
            (not separator.strip() and separator != " ") or len(separator) > MAX_SEPARATOR_CHARS
        ):
            raise UsageError(
                f"label_separator must be 1 to {MAX_SEPARATOR_CHARS} characters, such as | or ;, got "
                f"{separator!a:.40}"
            )
        self.missing = self.missing_single = ""
        self._options = options
        self._listed = False  # whether some cell is a list, or columns are of 0 and 1
        self._no: set[int] = set()  # what says that a label is not there
        self._blank = ""  # what is wrong with the first row without a label
        self._told: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was taken for what."""
        return tuple(self._told)

    def list_cells(self, batch: Batch) -> list[Cell]:
        """List the labels of each row of a batch; whole numbers are written out.

        Raises:
            InputError: a cell is something else.
        """
        columns = list_class_columns(batch.cells)
        if columns and LABEL not in batch.cells:
            return self._read_columns(batch, columns)
        values = batch.cells.get(LABEL)
        if values is None:
            return [None] * len(batch.numbers)
        return [self._read_cell(batch, number, value) for number, value in enumerate(values)]

    def _read_cell(self, batch: Batch, number: int, value: Any) -> Cell:
        if value is None or isinstance(value, str):
            return value
        if type(value) is int:
            return str(value)
        if isinstance(value, list | tuple) and len(value) <= MAX_LABELS:
            self._listed = True
            names = [str(name) if type(name) is int else name for name in value]
            if all(isinstance(name, str) for name in names):
                return tuple(names)
        raise InputError(
            f"{batch.where(number)}: the label must be text or a whole number, or a list of these, got "
            f"{ascii(value)[:80]}"
        )

    def _read_columns(self, batch: Batch, columns: Sequence[str]) -> list[Cell]:
        self._listed = True
        found: list[list[str]] = [[] for _ in batch.numbers]
        for column in columns:
            name = column.removeprefix(CLASS_COLUMN)
            for number, value in enumerate(batch.cells[column]):
                flag = FLAGS.get(value) if isinstance(value, str | int | float) else None
                if flag is None:
                    if self.missing:
                        raise InputError(self.missing)
                    raise InputError(
                        f"{batch.where(number)}: the column '{name}' must say 1 or 0 (or 1 or -1) for each "
                        f"image, got {ascii(value)[:40]}; leave it out, or the row"
                    )
                if flag == 1:
                    found[number].append(name)
                else:
                    self._no.add(flag)
        return [tuple(names) for names in found]

    def read(self, text: str | None, cell: Cell) -> tuple[str, ...]:
        """Give the names in a cell of the image `text`; one name where it may turn out to be several.

        Raises:
            InputError: a name is no name, or there is none where every image has one.
        """
        if isinstance(cell, tuple):
            names = tuple(dict.fromkeys(clean_name("the label", name) for name in cell))
            if "" in names:
                raise InputError(f"the image '{text}' has a label without a name; remove it")
            return names
        name = "" if cell is None else clean_name("the label", cell)
        if name:
            return (name,)
        blank = f"the image '{text}' has no label; remove the row or fill it"
        if self._options.multi_label is False:
            raise InputError(blank)
        return ()

    def remember_blank(self, where: str, text: str | None) -> None:
        """Remember a row without a label, which is wrong where every image turns out to have one."""
        self._blank = self._blank or (
            f"{where}: the image '{text}' has no label; remove the row or fill it"
        )

    def finish(self, rows: Iterable[Row]) -> list[Row]:
        """Give the rows, with cells split that hold several labels.

        Raises:
            InputError: an image has no label where the others have one each; or it cannot be told what
                says that an image has a label.
        """
        rows = list(rows)
        if len(self._no) > 1:
            raise InputError(
                "the columns of labels have 1, 0 and -1, so it is not clear what means no; write 1 and 0"
            )
        cells = {row.labels[0] for row in rows if row.labels}
        separator = self._find_separator(cells)
        if separator is not None:
            names: dict[str, str] = {}  # each is kept once
            split = {
                text: tuple(names.setdefault(name, name) for name in _split(text, separator))
                for text in cells
            }
            if sum(map(len, split.values())) > MAX_ALL_LABELS:
                raise InputError(f"more than {MAX_ALL_LABELS:,} labels; leave rows out")
            rows = [r._replace(labels=split[r.labels[0]]) if r.labels else r for r in rows]
        empty = sum(row.labels == () for row in rows)
        is_single = all(row.labels is None or len(row.labels) < 2 for row in rows)
        if is_single and not self._options.multi_label:
            if self.missing_single and not self._listed:
                raise InputError(self.missing_single)
            if self._blank:
                raise InputError(self._blank)
        if self._blank:
            images = (
                "1 image has no label, and counts"
                if empty == 1
                else (f"{empty:,} images have no label, and count")
            )
            self._told.append(f"{images} as having none of them")
        return rows

    def _find_separator(self, texts: set[str]) -> str | None:
        options = self._options
        if options.multi_label is False or self._listed:
            return None
        if options.label_separator is not None:
            return options.label_separator
        if options.multi_label:
            return next((s for s in SEPARATORS if any(s in text for text in texts)), None)
        separator = find_separator(texts)
        if separator is not None:
            self._told.append(
                f"labels have '{separator}' between them, several an image; --no-multi-label takes them whole"
            )
            return separator
        whole = min((t for t in texts for s in SEPARATORS if len(_split(t, s)) > 1), default="")
        if whole:
            self._told.append(
                f"'{whole}' is taken for the name of one class; where it is several labels, --multi-label "
                "says so, and --no-multi-label that it is not"
            )
        return None

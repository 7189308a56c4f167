"""Takes a Parquet file, gives columns of text and whole numbers, or of lists of these, in batches of rows.

A small file can ask for any amount of memory: a page can inflate a thousandfold, and one long text stand
for a million rows. So the sizes that the header of every page states, which are what pyarrow allocates,
are added up before anything is inflated, and texts are counted before they are repeated.
"""

import contextlib
import importlib.util
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from headstart.errors import InputError, ResourceError, UsageError, one_line

__all__ = ["check_pyarrow", "list_parquet_columns", "read_parquet"]

MAX_ROWS = 20_000_000
MAX_CHUNK_BYTES = 2**29  # of one column in a row group: five millions of 100 bytes
MAX_BATCH_BYTES = 2**28
MAX_BATCH_VALUES = 2**21  # in the lists of a batch
LIST_BYTES = 16  # that a value in a list takes, beside what it is
MAX_PAGES = 100_000
MAX_FOOTER_BYTES = 2**21
MAX_HEADER_BYTES = 2**16
MAX_NESTING = 16
THRIFT = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**20}


def check_pyarrow() -> None:
    """Find out whether Parquet can be read.

    Raises:
        UsageError: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow: pip install 'headstart[parquet]', or save the table as CSV"
        )


def list_parquet_columns(path: Path) -> list[str]:
    """List the names of a file's columns.

    Raises:
        InputError: it is no Parquet file.
        UsageError: pyarrow is not installed.
    """
    check_pyarrow()
    with _translate(path):
        return list(_open(path).schema_arrow.names)


def read_parquet(
    path: Path,
    names: list[str],
    rows: int,
    *,
    lists: Collection[str] = (),
    flags: Collection[str] = (),
) -> Iterator[list[list[Any]]]:
    """Read columns in batches of at most `rows`; a cell is a str, an int or None.

    Args:
        lists: names of columns of which a cell may be a list of these, too.
        flags: names of columns of which a cell may be a bool, too.

    Raises:
        InputError: a column is of another type, the file is damaged, or it would take too much memory.
    """
    check_pyarrow()
    with _translate(path):
        plain = _open(path)
        schema = plain.schema_arrow
        kinds = {name: _kind_of(schema.field(name), name in lists) for name in names}
        texts = {n for n, kind in kinds.items() if _check_type(path, n, kind, n in flags)}
        if plain.metadata.num_rows > MAX_ROWS:
            raise InputError(f"{path}: more than {MAX_ROWS:,} rows; split the file")
        leaves = _bound_pages(path, names)
        dictionaries = [leaf for leaf, name in leaves.items() if name in texts]
        file = _open(path, read_dictionary=dictionaries)
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            yield [_list_cells(path, name, batch.column(name)) for name in names]


@contextlib.contextmanager
def _translate(path: Path) -> Iterator[None]:
    """What pyarrow raises, as one line."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as exc:
        raise ResourceError(f"{path}: out of memory while reading") from exc
    except Exception as exc:  # ValueError, OSError, KeyError, TypeError, NotImplementedError…
        raise InputError(f"{path}: no readable Parquet: {one_line(exc)}") from exc


def _open(path: Path, **options: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(str(path), page_checksum_verification=True, **THRIFT, **options)


def _kind_of(field: Any, may_be_list: bool) -> Any:
    """The type of a column, or of what is in its lists."""
    from pyarrow import types

    kind = field.type
    if may_be_list and (types.is_list(kind) or types.is_large_list(kind)):
        kind = kind.value_type
    return kind.value_type if types.is_dictionary(kind) else kind


def _check_type(path: Path, name: str, kind: Any, may_be_flag: bool) -> bool:
    """Whether a column is text; refuses what is neither that nor whole numbers."""
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return True
    if types.is_integer(kind) or types.is_null(kind) or (may_be_flag and types.is_boolean(kind)):
        return False
    advice = ""
    if types.is_struct(kind) and {"bytes", "path"} <= {child.name for child in kind}:
        advice = "; images inside of Parquet are read by datasets, whose Dataset load_dataset takes"
    raise InputError(
        f"{path}: the column '{name}' must be text or whole numbers, and is {one_line(kind)}"
        f"{advice or '; save it as one of these'}"
    )


def _list_cells(path: Path, name: str, column: Any) -> list[Any]:
    from pyarrow import compute, types

    if types.is_list(column.type) or types.is_large_list(column.type):
        values = column.flatten()
        if len(values) > MAX_BATCH_VALUES:
            raise InputError(f"{path}: the column '{name}' holds lists that are too long")
        cells = iter(_list_cells(path, name, values))
        lengths = compute.list_value_length(column).to_pylist()
        return [None if n is None else [next(cells) for _ in range(n)] for n in lengths]
    if not types.is_dictionary(column.type):
        return list(column.to_pylist())
    if types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type):
        lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
        if (compute.sum(lengths).as_py() or 0) > MAX_BATCH_BYTES:
            raise InputError(f"{path}: the column '{name}' holds texts that are too long")
    return list(column.dictionary_decode().to_pylist())


def _bound_pages(path: Path, names: list[str]) -> dict[str, str]:
    """Refuse a file whose pages would inflate to too much; {path of a column in the file: its name}."""
    leaves: dict[str, str] = {}
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for group in _read_footer(file, size)[ROW_GROUPS]:
            for chunk in group[COLUMNS]:
                told = chunk[META_DATA]
                parts = [part.decode(errors="replace") for part in told[PATH_IN_SCHEMA]]
                name = parts[0]
                if name in names:
                    leaves[".".join(parts)] = name
                if name in names and told[VALUES] > 0:
                    start = min(told[DATA_PAGE], told.get(DICTIONARY_PAGE, told[DATA_PAGE]))
                    end = min(start + told[COMPRESSED_BYTES], size)
                    inflated = _sum_pages(file, start, end, LIST_BYTES if len(parts) > 1 else 0)
                    if inflated > MAX_CHUNK_BYTES:
                        raise InputError(
                            f"{path}: the column '{name}' would take {inflated >> 20} MiB at once; write "
                            "smaller row groups"
                        )
    return leaves


# Not through pyarrow's objects of metadata: what they raise on some damaged files ends the process (seen with
# 26.0). The fields, by their numbers in https://github.com/apache/parquet-format/blob/master/src/main/thrift/.
ROW_GROUPS, COLUMNS, META_DATA = 4, 1, 3
PATH_IN_SCHEMA, VALUES, COMPRESSED_BYTES, DATA_PAGE, DICTIONARY_PAGE = 3, 5, 7, 9, 11
PAGE_INFLATED_BYTES, PAGE_BYTES, PAGE_KINDS, PAGE_VALUES = 2, 3, (5, 8), 1


def _read_footer(file: BinaryIO, size: int) -> dict[int, Any]:
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    if length > min(MAX_FOOTER_BYTES, size):
        raise ValueError(f"a footer of {length:,} bytes")
    file.seek(max(0, size - 8 - length))
    return _Compact(file.read(length)).read_struct()


def _sum_pages(file: BinaryIO, start: int, end: int, value_bytes: int) -> int:
    """What the pages of a column take, in bytes, as their headers say, and so many for each value."""
    total = 0
    for _ in range(MAX_PAGES):
        if start >= end:
            return total
        file.seek(start)
        reader = _Compact(file.read(MAX_HEADER_BYTES))
        header = reader.read_struct()
        if min(header[PAGE_INFLATED_BYTES], header[PAGE_BYTES]) < 0:
            raise ValueError("a page of less than no bytes")
        total += header[PAGE_INFLATED_BYTES]
        for kind in PAGE_KINDS:
            total += value_bytes * max(0, header.get(kind, {}).get(PAGE_VALUES, 0))
        start += reader.at + header[PAGE_BYTES]
    raise ValueError(f"a column of more than {MAX_PAGES:,} pages")


class _Compact:
    """Structs in Thrift's compact protocol, as Parquet's footer and page headers are.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    _TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (
        1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12,
    )  # fmt: skip

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """Give {number of the field: value}; a value is a bool, int, bytes, list or dict.

        Raises:
            ValueError: it is damaged.
        """
        values: dict[int, Any] = {}
        field = 0
        while (head := self._take(1)[0]) != 0:
            step, kind = head >> 4, head & 15
            field = field + step if step else self._integer()
            is_bool = kind in (self._TRUE, self._FALSE)
            values[field] = kind == self._TRUE if is_bool else self._read(kind, depth)
        return values

    def _read(self, kind: int, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise ValueError("nested too deeply")
        if kind in self._INTEGERS:
            return self._integer()
        if kind == self._BINARY:
            return self._take(self._varint())
        if kind == self._STRUCT:
            return self.read_struct(depth + 1)
        if kind in self._LISTS:
            head = self._take(1)[0]
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._read(head & 15, depth + 1) for _ in range(count)]
        if kind in (self._TRUE, self._FALSE, self._BYTE):
            return self._take(1)[0]
        if kind == self._DOUBLE:
            return self._take(8)
        raise ValueError("a field of an unknown type")

    def _take(self, count: int) -> bytes:
        taken = self._data[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("cut off")
        self.at += count
        return taken

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number that is too large")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

"""Takes a Parquet file, gives columns of text and whole numbers in batches of rows.

A small file can ask for any amount of memory: a page can inflate a thousandfold, and one long text stand
for a million rows. So the sizes that the header of every page states, which are what pyarrow allocates,
are added up before anything is inflated, and texts are counted before they are repeated.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from headstart.errors import InputError, ResourceError, UsageError, one_line

__all__ = ["check_pyarrow", "list_parquet_columns", "read_parquet"]

MAX_ROWS = 20_000_000
MAX_CHUNK_BYTES = 2**29  # of one column in a row group: five millions of 100 bytes
MAX_BATCH_BYTES = 2**28
MAX_PAGES = 100_000
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


def read_parquet(path: Path, names: list[str], rows: int) -> Iterator[list[list[Any]]]:
    """Read columns in batches of at most `rows`; a cell is a str, an int or None.

    Raises:
        InputError: a column is of another type, the file is damaged, or it would take too much memory.
    """
    check_pyarrow()
    with _translate(path):
        plain = _open(path)
        schema = plain.schema_arrow
        texts = [name for name in names if _check_type(path, schema.field(name))]
        if plain.metadata.num_rows > MAX_ROWS:
            raise InputError(f"{path}: more than {MAX_ROWS:,} rows; split the file")
        _bound_pages(path, plain.metadata, names)
        file = _open(path, read_dictionary=texts)
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


def _check_type(path: Path, field: Any) -> bool:
    """Whether a column is text; refuses what is neither that nor whole numbers."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_string(kind) or types.is_large_string(kind):
        return True
    if types.is_integer(kind) or types.is_null(kind):
        return False
    advice = ""
    if types.is_struct(kind) and {"bytes", "path"} <= {child.name for child in kind}:
        advice = "; images inside of Parquet are read by datasets, whose Dataset load_dataset takes"
    raise InputError(
        f"{path}: the column '{field.name}' must be text or whole numbers, and is {one_line(kind)}{advice}"
    )


def _list_cells(path: Path, name: str, column: Any) -> list[Any]:
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return list(column.to_pylist())
    if types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type):
        lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
        if (compute.sum(lengths).as_py() or 0) > MAX_BATCH_BYTES:
            raise InputError(f"{path}: the column '{name}' holds texts that are too long")
    return list(column.dictionary_decode().to_pylist())


def _bound_pages(path: Path, metadata: Any, names: list[str]) -> None:
    """Refuse a file whose pages would inflate to too much."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for index in range(row_group.num_columns):
                chunk = row_group.column(index)
                if chunk.path_in_schema in names:
                    offsets = (chunk.data_page_offset, chunk.dictionary_page_offset)
                    start = min(offset for offset in offsets if offset is not None)
                    end = min(start + chunk.total_compressed_size, size)
                    inflated = _sum_pages(path, file, max(start, 0), end)
                    if inflated > MAX_CHUNK_BYTES:
                        raise InputError(
                            f"{path}: the column '{chunk.path_in_schema}' would take "
                            f"{inflated >> 20} MiB; write it in smaller row groups"
                        )


def _sum_pages(path: Path, file: BinaryIO, start: int, end: int) -> int:
    total = 0
    for _ in range(MAX_PAGES):
        if start >= end:
            return total
        file.seek(start)
        header = _Compact(file.read(MAX_HEADER_BYTES))
        sizes = header.read_numbers()
        inflated, packed = sizes.get(2, -1), sizes.get(3, -1)
        if inflated < 0 or packed < 0:
            raise InputError(f"{path}: no readable Parquet: a page without a size")
        total += inflated
        start += header.at + packed
    raise InputError(f"{path}: a column of more than {MAX_PAGES:,} pages; write larger ones")


class _Compact:
    """A struct in Thrift's compact protocol, as page headers are.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    _BOOLEANS, _INTEGERS, _BINARY, _STRUCT = (1, 2), (4, 5, 6), 8, 12

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def read_numbers(self) -> dict[int, int]:
        """Give {field: value} of the fields that are whole numbers, and go over the others.

        Raises:
            ValueError: it is damaged.
        """
        return self._read_struct(0)

    def _read_struct(self, depth: int) -> dict[int, int]:
        numbers, field = {}, 0
        if depth > MAX_NESTING:
            raise ValueError("a page header is nested too deeply")
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            field = field + step if step else self._integer()
            if kind in self._INTEGERS:
                numbers[field] = self._integer()
            elif kind == self._BINARY:
                length = self._varint()
                self.at += length
            elif kind == self._STRUCT:
                self._read_struct(depth + 1)
            elif kind not in self._BOOLEANS:  # whose value is their kind
                raise ValueError("a page header has a field that none has")
        return numbers

    def _byte(self) -> int:
        if not self.at < len(self._data):
            raise ValueError("a page header is cut off")
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page header has a number that is too large")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

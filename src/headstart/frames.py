"""Takes columns, gives a pandas DataFrame; pandas is an extra, imported when it is asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["make_frame"]


def make_frame(columns: Mapping[str, Sequence[Any]]) -> "DataFrame":
    """Make a table of columns of equal length.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as exc:
        raise UsageError("to_frame needs pandas: pip install 'headstart[frames]'") from exc
    return pandas.DataFrame({_make_text(n): _make_column(values) for n, values in columns.items()})


def _make_column(values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values
    return [_make_text(value) for value in values]


def _make_text(value: Any) -> Any:
    """Escape what names of files may have and no text may: bytes that are no UTF-8."""
    if isinstance(value, tuple):
        return tuple(map(_make_text, value))
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value

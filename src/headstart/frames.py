"""Takes columns, gives a pandas DataFrame; pandas is an extra, imported when it is asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    return pandas.DataFrame(dict(columns))

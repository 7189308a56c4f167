"""Tables of images and what they stand beside, the rows that they make, and the one line of an error."""

import pyarrow
import pytest
from pyarrow import parquet

from headstart.data.loading import load_dataset
from headstart.errors import HeadstartError


def rows(dataset):
    """{id: class}, with / split and @ group where there are any."""
    columns = zip(dataset.ids, dataset.label_names(), dataset.splits, dataset.groups, strict=True)
    return {i: c + (s and f" / {s}") + (g and f" @ {g}") for i, c, s, g in columns}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refused(source, **options):
    """The one line of the error."""
    with pytest.raises(HeadstartError) as caught:
        load_dataset(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def plant_numbers(root, *names):
    for name in names:
        write(root / name / "1.png", "x")
    return root


def save(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path

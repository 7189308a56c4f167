"""Parquet is read as CSV is, whatever its pages claim."""

import random
import sys

import numpy as np
import pyarrow
import pytest
from table_files import refused, rows, save, write

import headstart
import headstart.data.parquet
from headstart.data.loading import load_dataset
from headstart.errors import HeadstartError, InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


CSV = "path,label,split,group\na/1.png,7,train,p\na/2.png,é,val,\nb/1.png,7,,q\n"


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("more", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_parquet_is_read_as_csv_is(compression, more, tmp_path):
    cells = [line.split(",") for line in CSV.split()]
    columns = {name: [row[n] for row in cells[1:]] for n, name in enumerate(cells[0])}
    extra = {"score": [0.5, 1.5, 2.5], "box": [[1, 2], [3], []]}
    path = save(tmp_path / "m.parquet", columns | extra, compression=compression, **more)
    expected = load_dataset(write(tmp_path / "m.csv", CSV))
    assert rows(load_dataset(path)) == rows(expected)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pyarrow.array([3, 10], pyarrow.int64()), ("3", "10")),
        (pyarrow.array([3, 10], pyarrow.uint8()), ("3", "10")),
        (pyarrow.array(["x", "y"], pyarrow.large_string()), ("x", "y")),
        (pyarrow.array(["x", "y"]).dictionary_encode(), ("x", "y")),
        (pyarrow.DictionaryArray.from_arrays(pyarrow.array([1, 0], pyarrow.int8()), ["y", "x"]), ("x", "y")),
    ],
)  # fmt: skip
def test_labels_of_a_parquet(label, expected, tmp_path):
    path = save(tmp_path / "m.parquet", {"path": ["a.png", "b.png"], "label": label})
    assert tuple(load_dataset(path).label_names()) == expected


def test_batches_of_a_parquet_are_in_order(tmp_path):
    count = 40_000
    names = [f"{n:05}.png" for n in range(count)]
    labels = [str(n % 10) for n in range(count)]
    path = save(tmp_path / "m.parquet", {"label": labels, "path": names}, row_group_size=30_000)
    dataset = load_dataset(path)
    assert list(dataset.ids) == names
    assert list(dataset.label_names()) == labels
    labels[-1] = ""
    save(path, {"label": labels, "path": names})
    assert "row 40000: the image '39999.png' has no label" in refused(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [["a"]], "label": ["x"]}, "the column 'path' must be text or whole numbers, and is list"),
        ({"path": ["a"], "label": [0.5]}, "the column 'label' must be text or whole numbers, and is double"),
        ({"path": ["a"], "label": [True]}, "the column 'label' must be text or whole numbers, and is bool"),
        ({"path": [b"a"], "label": ["x"]}, "the column 'path' must be text or whole numbers, and is binary"),
        ({"path": ["a"], "label": [{"x": 1}]}, "and is struct<x: int64>"),
        ({"image": [{"bytes": b"", "path": "a"}], "label": [1]}, "images inside of Parquet are read by"),
        ({"path": [None], "label": ["x"]}, "row 1: the path is missing"),
        ({"path": ["a"], "label": [None]}, "row 1: the image 'a' has no label"),
        ({"path": ["../a"], "label": ["x"]}, "row 1: '../a' leads outside of"),
        ({"path": ["a"], "Path": ["b"], "label": ["x"]}, "the header names a column twice"),
        ({"path": ["a"]}, "no column 'label'"),
        ({name: pyarrow.array([], pyarrow.string()) for name in ("path", "label")}, "no rows"),
    ],
)  # fmt: skip
def test_bad_parquet(columns, message, tmp_path):
    assert message in refused(save(tmp_path / "m.parquet", columns))


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" * 3, b"path,label\n", b"PAR1\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_parquet(data, tmp_path):
    assert "no readable Parquet: " in refused(write(tmp_path / "m.parquet", data))


def test_damaged_parquet_is_one_line(tmp_path):
    columns = {"path": [f"{n}.png" for n in range(300)], "label": [str(n % 7) for n in range(300)]}
    path = save(tmp_path / "m.parquet", columns, row_group_size=120, compression="zstd")
    whole, draw = path.read_bytes(), random.Random(0)
    outcomes, lines = set(), set()
    for _ in range(300):
        data = bytearray(whole)
        del data[draw.choice([len(data), draw.randrange(len(data))]) :]
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            outcomes.add(len(load_dataset(path)))
        except HeadstartError as exc:
            outcomes.add(type(exc))
            lines.add(str(exc).count("\n"))
    assert outcomes >= {300, InputError}
    assert lines == {0}


def test_a_text_that_stands_for_many_rows_takes_no_memory(tmp_path):
    texts = pyarrow.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["a" * 100_000])
    path = save(tmp_path / "m.parquet", {"path": texts, "label": ["x"] * 20_000})
    assert path.stat().st_size < 500_000
    assert "the column 'path' holds texts that are too long" in refused(path)


def test_pages_that_inflate_are_not_read(tmp_path, monkeypatch):
    names = [f"{n:07}" * 20 for n in range(20_000)]
    columns = {"path": names, "label": ["x"] * 20_000, "other": names}
    path = save(tmp_path / "m.parquet", columns, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(headstart.data.parquet, "MAX_CHUNK_BYTES", 2**21)
    assert path.stat().st_size < 2**21
    assert "the column 'path' would take 2 MiB at once; write smaller row groups" in refused(path)
    save(path, columns, compression="zstd", row_group_size=5000)
    assert len(load_dataset(path)) == 20_000
    monkeypatch.setattr(headstart.data.parquet, "MAX_ROWS", 1000)
    assert "more than 1,000 rows; split the file" in refused(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "m.parquet", {"path": ["a"], "label": ["x"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = "Parquet needs pyarrow: pip install 'headstart[parquet]', or save the table as CSV"
    assert refused(path) == message

"""Files with the names of numbered classes, in every form, and wrong ones."""

import contextlib
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import plant_numbers, refused, rows, write

from headstart.data.class_names import read_class_names
from headstart.data.loading import load_dataset
from headstart.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


SIGNS = "ClassId,SignName\n0,Speed limit (20km/h)\n1,Speed limit (30km/h)\n2,Stop\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("signnames.csv", SIGNS),
        ("signnames.csv", "\ufeff" + SIGNS.replace(",", ";").replace("\n", "\r\n")),
        ("names.tsv", SIGNS.replace(",", "\t")),
        ("names.txt", "Speed limit (20km/h)\nSpeed limit (30km/h)\r\nStop\n\n"),
        ("names", "Speed limit (20km/h)\nSpeed limit (30km/h)\nStop"),
        ("names.json", '["Speed limit (20km/h)", "Speed limit (30km/h)", "Stop"]'),
        ("names.json", '{"2": "Stop", "0": "Speed limit (20km/h)", "1": "Speed limit (30km/h)"}'),
        ("names.jsonl", '{"n": 2, "s": "Stop"}\n{"n": 0, "s": "Speed limit (20km/h)"}\n'),
    ],
)
def test_classes_get_their_names(name, text, tmp_path):
    data = plant_numbers(tmp_path / "data", "00000", "00002")
    dataset = load_dataset(data, class_names=write(tmp_path / name, text))
    assert dataset.classes == ("Speed limit (20km/h)", "Stop")
    assert rows(dataset) == {"00000/1.png": "Speed limit (20km/h)", "00002/1.png": "Stop"}
    unused = f"1 class of {name} without images: 'Speed limit (30km/h)'"
    assert dataset.warnings == ((unused,) if "30km" in text else ())


def test_named_classes_stay_in_the_order_of_their_numbers(tmp_path):
    names = write(tmp_path / "names.txt", "\n".join(f"{chr(122 - n)}" for n in range(12)))
    data = plant_numbers(tmp_path / "data", *map(str, range(12)))
    assert "".join(load_dataset(data, class_names=names).classes) == "zyxwvutsrqpo"
    table = write(tmp_path / "m.csv", "path,label\na,10\nb,2\n")
    assert rows(load_dataset(table, class_names=names)) == {"a": "p", "b": "x"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.csv", "ClassId,SignName\n0,a\n", "n.csv: class '00002' has no name there; add a line for it"),
        ("n.csv", "ClassId,SignName\n0,a\n2,a\n", "n.csv: classes 0 and 2 are both called 'a'"),
        ("n.csv", "ClassId,SignName\n0,a\n0,b\n", "n.csv: class 0 has two names: 'a' and 'b'"),
        ("n.csv", "ClassId,SignName\nx,a\n", "line 2: the number of a class must be a whole number from 0"),
        ("n.csv", "ClassId,SignName\n-1,a\n", "line 2: the number of a class must be a whole number from 0"),
        ("n.csv", "ClassId,SignName\n0,\n", "the name of class 0 must have 1 to 200 characters, got ''"),
        ("n.csv", "a,b,c\n0,a,b\n", "line 1: 3 columns, and two are needed: the number of a class and"),
        ("n.csv", "0,a\n2,b\n", "line 1: must name the two columns, as in ClassId,SignName, and is a cla"),
        ("n.csv", "", "n.csv: empty; the first line must name the columns"),
        ("n.txt", "", "n.txt: no names; give one a line"),
        ("n.txt", "a\n\nb\n", "the name of class 1 must have 1 to 200 characters, got ''"),
        ("n.txt", "a" * 201, "the name of class 0 must have 1 to 200 characters"),
        ("n.txt", b"caf\xe9", "n.txt: not utf-8-sig text at byte 3"),
        ("n.json", "[" * 100_000, "n.json: not JSON"),
        ("n.json", "3", "n.json: expected a list of names, or an object {number: name}"),
        ("n.json", "[3]", "the name of class 0 must be text, got 3"),
        ("n.json", '{"0": "a", "0": "b"}', "n.json: class 0 has two names: 'a' and 'b'"),
        ("n.json", '{"a": "0"}', "the number of a class must be a whole number from 0 on, got 'a'"),
        ("n.json", '["\\ud800"]', "the name of class 0 '\\ud800' is not valid Unicode"),
        ("none.csv", None, "none.csv: missing, or not a regular file"),
    ],
)  # fmt: skip
def test_bad_class_names(name, text, message, tmp_path):
    data = plant_numbers(tmp_path / "data", "00000", "00002")
    path = tmp_path / name if text is None else write(tmp_path / name, text)
    assert message in refused(data, class_names=path)


def test_classes_that_are_no_numbers_are_not_named(tmp_path):
    names = write(tmp_path / "names.txt", "a\nb\nc\n")
    data = plant_numbers(tmp_path / "one", "cat", "1")
    assert "class 'cat' is no number, and" in refused(data, class_names=names)
    data = plant_numbers(tmp_path / "two", "1", "01")
    assert "classes '01' and '1' are the same number; merge them" in refused(
        data, class_names=names
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 10**9), st.text(min_size=1, max_size=30), max_size=20))
def test_names_of_classes_round_trip(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "names.json"
    path.write_text(json.dumps(names))
    found = {}
    with contextlib.suppress(InputError):
        found = read_class_names(path)
    assert found.keys() in (names.keys(), {}.keys())
    if all(map(str.isalnum, names.values())) and len(set(map(str.casefold, names.values()))) == len(
        names
    ):
        assert len(found) == len(names)

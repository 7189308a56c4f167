"""How often the images of others were measured with a run is counted in its folder, come what may."""

import json
import multiprocessing
import os
import shutil

import pytest

import headstart
from headstart.runs.readings import MAX_BYTES, list_readings, note_reading

FILE = "evaluations.jsonl"


@pytest.fixture
def copy(tiny_run, tmp_path):
    """The folder of a run that nothing was measured with."""
    folder = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    (folder / FILE).unlink(missing_ok=True)
    return folder


def note(folder, images="ab", value=0.5, split="test"):
    return note_reading(folder, split, list(images), "accuracy", value)


def test_images_of_the_run_are_not_counted_and_others_are(copy, photos, plant, tmp_path):
    assert headstart.evaluate(copy, photos, split="train", device="cpu").readings.times == 0
    assert not (copy / FILE).exists()
    first = headstart.evaluate(copy, photos, device="cpu")
    assert (first.split, first.readings.times, str(first.readings)) == ("test", 1, "")
    [noted] = list_readings(copy)
    assert (noted.split, noted.images, noted.figure) == ("test", 9, "accuracy")
    assert noted.value == first.metrics["accuracy"].value
    renamed = shutil.copytree(photos / "test", tmp_path / "renamed")
    for path in renamed.rglob("*.png"):
        path.rename(path.with_stem(f"new-{path.stem}"))
    assert headstart.evaluate(copy, renamed, device="cpu").readings.times == 2
    others = plant(tmp_path / "others", {"plain": 2, "blobs": 2}, first=90)
    assert headstart.evaluate(copy, others, device="cpu").readings.times == 1


def test_the_second_occasion_is_told(copy, photos, cli):
    command = ("evaluate", copy, photos, "--device", "cpu")
    for times in (1, 2):  # repeated with nothing in between
        code, out, err = cli(*command)
        assert (code, "measured" in out, err) == (0, False, ""), times
    note(copy)
    code, out, _ = cli(*command)
    assert "these images were measured 3 times with this run; each choice" in " ".join(out.split())
    code, out, _ = cli(*command, "--json")
    assert json.loads(out)["times_measured"] == 4


def test_an_evaluation_repeated_with_none_in_between_is_one_occasion(tmp_path):
    found = [
        note(tmp_path, *case)
        for case in (("ab",), ("ab",), ("ba",), ("ab", 0.6), ("c",), ("ab", 0.6))
    ]
    assert [(r.times, r.occasions) for r in found] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (1, 1),
        (5, 3),
    ]


def test_a_new_run_starts_from_none(copy, loose, tiny):
    note(copy)
    headstart.fit(loose, copy, overwrite=True, **tiny)
    assert not (copy / FILE).exists()
    assert note(copy).times == 1


def test_what_is_not_a_line_is_not_counted(tmp_path):
    note(tmp_path)
    good = (tmp_path / FILE).read_bytes()
    changed = json.loads(good)
    bad = [
        b"",
        b"{",
        b"[]",
        b"\xff\n",
        b"1e999\n",
        b"[" * 5000,
        json.dumps(changed | {"images": -1}).encode() + b"\n",
        json.dumps(changed | {"more": 1}).encode() + b"\n",
        json.dumps(changed | {"split": "\x1b[2J"}).encode() + b"\n",
        json.dumps(changed | {"value": float("nan")}).encode() + b"\n",
        good[:40],  # torn, without an end
    ]
    for line in bad:
        (tmp_path / FILE).write_bytes(good + line)
        assert len(list_readings(tmp_path)) == 1
        assert note(tmp_path).times == 2
        assert (tmp_path / FILE).read_bytes().startswith(good + line)


@pytest.mark.parametrize("kind", ["folder", "link", "second name", "pipe", "huge"])
def test_what_is_no_plain_file_is_not_touched(kind, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_text("mine")
    path = folder / FILE
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "second name":
        os.link(other, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(MAX_BYTES)
    readings = note(folder)
    assert (readings.times, readings.occasions) == (0, 0)
    assert readings.problem.startswith(f"{path}: cannot be written (")
    assert "\n" not in readings.problem
    assert list_readings(folder) == ()
    assert other.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_a_warning(copy, photos):
    (copy / FILE).mkdir()
    result = headstart.evaluate(copy, photos, device="cpu")
    assert result.readings.times == 0
    assert any("make the folder writable to count" in warning for warning in result.warnings)
    assert note(copy / "nowhere").problem.startswith(
        f"{copy / 'nowhere' / FILE}: cannot be written"
    )


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    note(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
    assert "the disk is full" in note(tmp_path).problem
    monkeypatch.undo()
    assert note(tmp_path).times == 2


def note_often(folder, name):
    for number in range(50):
        note(folder, name, number / 100)


def test_evaluations_at_once_do_not_mix_their_lines(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=note_often, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list_readings(tmp_path)) == 150
    # A line that is being written looks torn to another process, which then begins with an empty one.
    assert len(list(filter(None, (tmp_path / FILE).read_bytes().split(b"\n")))) == 150


def test_what_was_chosen_on_what_is_measured_is_told(loose, network, tmp_path, cli):
    options = [word for name, value in network.items() for word in (f"--{name}", value)]
    short = ("--epochs", 2, "--head", 8, "--val", 0.25, "--strategy", "linear-probe")
    told = {
        "best": (
            short,
            "the best epoch was chosen by the same images, which flatters a little; fit",
        ),
        "last": ((*short, "--monitor", "last"), ""),
        "probe": (("--strategy", "linear-probe"), "the penalty was chosen by the same folds"),
        "held": (("--strategy", "linear-probe", "--val", 0.25), ""),
        "given": (("--strategy", "linear-probe", "--penalty", 1), ""),
    }
    for name, (given, expected) in told.items():
        code, out, err = cli("fit", loose, "-o", tmp_path / name, *options, *given)
        assert code == 0, err
        words = " ".join(out.split())
        assert (expected in words) if expected else ("flatters" not in words), name
        run = headstart.Run.load(tmp_path / name)
        assert bool(run.chosen_by) == bool(expected), name

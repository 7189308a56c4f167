"""Whatever ends the replacement of a run, its folder holds the old one or the new one, whole."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

import headstart
import headstart.runs.fitting
from headstart import Classifier, InputError, ResourceError
from headstart.runs.folder import (
    NEXT,
    check_folder,
    clear_training,
    find_training,
    recover,
    replace_run,
)

WRITES = ("written", "synced", "renamed", "done")
OLD = {n: b"old " + n.encode() for n in ("model.safetensors", "settings.json", "split.jsonl")}
NEW = {n: b"new " + n.encode() for n in ("model.safetensors", "config.json", "split.jsonl")}
CARDS = {kind: json.dumps({"status": "complete", "kind": kind}).encode() for kind in ("old", "new")}
MINE = {"notes.txt": b"mine"}  # none of a run's: stays

# Each of these replacements has 5 writes (4 files and the record) and 13 moves.
POINTS = [f"file-{w}{how}@{n}" for n in range(1, 6) for w in WRITES for how in ("", ":enospc")]
POINTS += [f"moved{how}@{n}" for n in range(1, 14) for how in ("", ":enospc")]
# What is left of the training is cleared away last, the record after it.
POINTS += [f"cleared{how}@{n}" for n in (1, 2) for how in ("", ":enospc")]


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read(folder):
    """The files of a run, without what other tests may have added to one that they share."""
    return {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.is_file() and p.name != "evaluations.jsonl"
    }


def fork(work):
    """How a child process that does the work ended: its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except ResourceError:
            os._exit(5)
        except OSError as exc:
            os._exit(5 if exc.errno == errno.ENOSPC else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("point", POINTS)
def test_the_old_run_or_the_new_one(point, tmp_path, monkeypatch):
    old = {**OLD, "headstart.json": CARDS["old"], "history.jsonl": b"of the old one"}
    new = {**NEW, "headstart.json": CARDS["new"]}
    write(tmp_path / "run", {**old, **MINE})
    write(tmp_path / "run" / NEXT, {"start.json": b"{}", "plan.json": b"{}"})
    with monkeypatch.context() as patch:
        patch.setenv("HEADSTART_FAIL_AT", point)
        ended = fork(lambda: replace_run(tmp_path / "run", new, keep=("plan.json",)))
    assert ended == (5 if "enospc" in point else -signal.SIGKILL)
    recover(tmp_path / "run")
    committed = point.startswith(("moved", "cleared")) or (
        point.endswith("@5") and point.startswith(("file-renamed", "file-done"))
    )
    if committed:
        assert read(tmp_path / "run") == {**new, **MINE, "plan.json": b"{}"}
        assert not (tmp_path / "run" / NEXT).exists()
    else:
        assert read(tmp_path / "run") == {**old, **MINE}
        assert find_training(tmp_path / "run").name == NEXT  # which --resume goes on from
    assert check_folder(tmp_path / "run", overwrite=True)


def test_a_full_disk_leaves_nothing_of_the_new_run(tmp_path, monkeypatch):
    write(tmp_path, {**OLD, "headstart.json": CARDS["old"]})
    monkeypatch.setenv("HEADSTART_FAIL_AT", "file-written:enospc@3")
    with pytest.raises(OSError, match="No space left"):
        replace_run(tmp_path, NEW)
    assert read(tmp_path) == {**OLD, "headstart.json": CARDS["old"]}
    assert not (tmp_path / NEXT).exists()


def test_a_folder_of_events_is_replaced_whole(tmp_path):
    write(tmp_path, {**OLD, "headstart.json": CARDS["old"]})
    write(tmp_path / "tensorboard", {"old": b"1"})
    write(tmp_path / NEXT / "tensorboard", {"new": b"2"})
    replace_run(tmp_path, {**NEW, "headstart.json": CARDS["new"]}, keep=["tensorboard"])
    assert read(tmp_path / "tensorboard") == {"new": b"2"}


def test_a_link_in_the_place_of_the_new_run_is_taken_away(tmp_path):
    other = {"start.json": b"{}", "history.jsonl": b"theirs"}
    write(tmp_path / "other", other)
    write(tmp_path / "run", {**OLD, "headstart.json": CARDS["old"]})
    (tmp_path / "run" / NEXT).symlink_to(tmp_path / "other")
    assert find_training(tmp_path / "run") == tmp_path / "run"
    clear_training(tmp_path / "run" / NEXT)
    (tmp_path / "run" / NEXT).symlink_to(tmp_path / "other")
    replace_run(tmp_path / "run", {**NEW, "headstart.json": CARDS["new"]})
    assert read(tmp_path / "other") == other
    assert read(tmp_path / "run") == {**NEW, "headstart.json": CARDS["new"]}


def test_a_record_from_anywhere_moves_and_removes_nothing_else(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write(
        elsewhere, {"commit.json": b'{"names": ["model.safetensors"]}', "model.safetensors": b"x"}
    )
    write(tmp_path / "run", {**OLD, "headstart.json": CARDS["old"]})
    (tmp_path / "run" / NEXT).symlink_to(elsewhere)
    recover(tmp_path / "run")
    assert len(read(elsewhere)) == 2
    (tmp_path / "run" / NEXT).unlink()
    write(tmp_path / "run" / NEXT, {"commit.json": b'{"names": ["../elsewhere/x", 3, null]}'})
    write(tmp_path / "run", MINE)
    recover(tmp_path / "run")
    assert len(read(elsewhere)) == 2
    assert read(tmp_path / "run") == MINE
    for damaged in (b"", b"[]", b'{"names": 1}', b"\xff"):
        write(tmp_path / "run" / NEXT, {"commit.json": damaged})
        with pytest.raises(InputError, match=r"commit\.json"):
            recover(tmp_path / "run")


# ---------------------------------------------------------------- whole trainings

# Forks before anything has threads; each child trains over the run and dies on its way.
TRAINER = """if True:
    import json, os, sys
    import headstart, headstart.runs.fitting, headstart.training.loop
    data, points, options = json.loads(sys.argv[1])
    for folder, point in points:
        child = os.fork()
        if child == 0:
            os.environ["HEADSTART_FAIL_AT"] = point
            try:
                headstart.fit(data, folder, overwrite=True, **options)
            except headstart.ResourceError as exc:
                print(exc, file=sys.stderr)
                os._exit(5)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def train(data, points, options):
    command = [sys.executable, "-c", TRAINER, json.dumps([str(data), points, options])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return [int(line) for line in done.stdout.split()], done.stderr


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepare(run, tmp_path, points):
    """A copy of a run for each fail point."""
    places = [(tmp_path / str(number), point) for number, point in enumerate(points)]
    for place, _ in places:
        write(place, read(run.folder))
    return places


def test_an_overwriting_fit_that_dies_leaves_a_whole_run(loose, tiny, tiny_run, tmp_path):
    writes = [f"file-{WRITES[n % 4]}" for n in range(20)]
    points = [f"{w}{':enospc' * (n % 3 == 0)}@{n + 1}" for n, w in enumerate(writes)]
    points += ["moved@1", "moved:enospc@3", "moved@7", "moved@13"]
    places = prepare(tiny_run, tmp_path, ["", *points])
    options = {**tiny, "seed": 9, "penalty": 1.0}
    ended, errors = train(loose, [(str(f), p) for f, p in places], options)
    old, new = read(tiny_run.folder), contents(places[0][0])
    assert (old["model.safetensors"] == new["model.safetensors"]) is False
    assert ended[0] == 0
    kept = []
    for (folder, point), code in zip(places[1:], ended[1:], strict=True):
        assert code in (0, 5, -signal.SIGKILL)
        found = Classifier.load(folder)
        kept.append(found.seed)
        wanted = new if found.seed == 9 else old
        assert code or found.seed == 9
        differing = {n for n in wanted if wanted[n] != contents(folder).get(n)}
        assert differing <= {"metrics.json", "run.json"}, point
        headstart.fit(loose, folder, overwrite=True, **options)
        assert contents(folder).keys() == new.keys()
    assert kept.count(0) >= 4
    assert kept[-4:] == [9] * 4
    assert "No space left on device" in errors


def test_a_training_over_a_run_goes_on_and_leaves_the_run_until_it_ends(
    loose, tiny, tiny_run, tmp_path
):
    options = {**tiny, "strategy": "fine-tune", "epochs": 3, "batch": 8, "checkpoint_s": 0.0,
               "augment": "none", "train_precision": "fp32", "precision": "fp32"}  # fmt: skip
    (whole, _), (folder, _) = prepare(tiny_run, tmp_path, ["", "checkpoint-done@5"])
    ended, _ = train(loose, [(str(whole), ""), (str(folder), "checkpoint-done@5")], options)
    assert ended == [0, -signal.SIGKILL]
    before = read(tiny_run.folder)
    assert read(folder) == before
    with pytest.raises(headstart.UsageError, match="or --resume, which goes on with the training"):
        headstart.fit(loose, folder, **options)
    run = headstart.fit(None, folder, resume=True)
    assert (run.folder / "history.jsonl").read_text().count("\n") == 4
    assert Classifier.load(folder).strategy == "fine-tune"
    new, expected = contents(folder), contents(whole)
    assert new.keys() == expected.keys() == {*before, "history.jsonl"}
    assert new["model.safetensors"] == expected["model.safetensors"]
    assert not (folder / NEXT).exists()


STOPPED = """if True:
    import json, signal, sys
    import headstart
    data, folder, options = json.loads(sys.argv[1])

    def stop(entry):
        if entry["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    run = headstart.fit(data, folder, overwrite=True, on_epoch=stop, **options)
    print(run.interrupted)
"""


def test_ctrl_c_over_a_run_keeps_the_best_and_goes_on(loose, tiny, tiny_run, tmp_path):
    ((folder, _),) = prepare(tiny_run, tmp_path, [""])
    options = {**tiny, "strategy": "fine-tune", "epochs": 3, "batch": 8, "augment": "none"}
    words = json.dumps([str(loose), str(folder), options])
    command = [sys.executable, "-c", STOPPED, words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "True\n"
    kept = {"start.json", "checkpoint.safetensors", "history.jsonl"}
    assert contents(folder).keys() == {*read(tiny_run.folder), *kept}
    assert Classifier.load(folder).strategy == "fine-tune"
    run = headstart.fit(None, folder, resume=True)
    assert not run.interrupted
    assert contents(folder).keys() == {*read(tiny_run.folder), "history.jsonl"}

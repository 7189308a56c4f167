"""The process: streams that are closed or full, signals at any moment, and too little memory or threads."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import headstart
from headstart.process import find_shortage

COMMAND = [sys.executable, "-m", "headstart"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, limits of memory")


def shell(line, *arguments):
    """(exit code, stdout, stderr) of the command with a shell's redirections and limits."""
    script = f'"$0" -m headstart "${{@}}" {line}' if "@" not in line else line
    command = ["bash", "-c", script, sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    return done.returncode, done.stdout, done.stderr


def only_error(err):
    """The one line there is."""
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------- streams


@POSIX
def test_a_closed_input_is_an_empty_one(tiny_run):
    code, out, err = shell("<&-", "predict", tiny_run.folder, "-")
    assert (code, out) == (3, "")
    assert "no images given" in only_error(err)
    code, out, err = shell("0>/dev/null", "predict", tiny_run.folder, "-")
    assert (code, out) == (3, "")
    assert "standard input: cannot be read: Bad file descriptor" in only_error(err)


@POSIX
@pytest.mark.parametrize("form", [["--csv"], []])
def test_results_for_a_closed_output_are_an_error(form, tiny_run, photos):
    code, _, err = shell(">&-", "predict", tiny_run.folder, photos / "test/plain", *form)
    assert code == 5
    assert only_error(err) == "error: output: Bad file descriptor"


@POSIX
@pytest.mark.parametrize("line", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(line, tmp_path):
    assert shell(line, "evaluate", tmp_path / "nowhere", tmp_path) == (3, "", "")


@POSIX
def test_no_file_takes_the_place_of_a_closed_stream(photos, tiny, tmp_path):
    words = [word for name, value in tiny.items() for word in (f"--{name}", value)]
    code, _, err = shell("<&- >&- 2>&-", "fit", photos, "-o", tmp_path / "run", *words)
    assert (code, err) == (5, "")  # the figures could not be printed
    assert headstart.Classifier.load(tmp_path / "run").classes == ("blobs", "plain", "stripes")
    assert json.loads((tmp_path / "run/metrics.json").read_text())["images"]["train"] == 24


@LINUX
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_messages_that_cannot_be_written_end_no_work(
    unbuffered, tiny_run, photos, plant, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code, out, _ = shell("2>/dev/full", "predict", tmp_path / "nowhere", "x.png")
    assert (code, out) == (3, "")
    # A warning, that these images were trained on, and figures after it.
    arguments = ["evaluate", tiny_run.folder, photos, "--split", "train", "--device", "cpu"]
    code, out, _ = shell("2>/dev/full", *arguments)
    assert code == 0
    assert "accuracy" in out


@LINUX
def test_a_full_output_is_told_beside_another_error(tiny_run, photos, tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"")
    code, _, err = shell(">/dev/full", "predict", tiny_run.folder, tmp_path, "--csv")
    assert code == 5
    assert only_error(err) == "error: output: No space left on device"


# ---------------------------------------------------------------- signals

# A signal arrives while a module is being imported.
AMIDST = """
import signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(Finder)
            signal.raise_signal({number})
sys.meta_path.insert(0, Finder)
sys.argv = ["headstart", *{arguments!r}]
from headstart.__main__ import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process of Windows at once")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("module", ["headstart.cli.app", "numpy", "torch"])
def test_a_signal_in_an_import_ends_quietly(module, number, code, loose, tmp_path):
    arguments = ["fit", str(loose), "-o", str(tmp_path / "run"), "--backbone", "test_vit"]
    arguments += ["--strategy", "scratch", "--cache-dir", str(tmp_path / "cache")]
    script = AMIDST.format(module=module, number=int(number), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == code
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("interrupted")]
    assert len(lines) == (code == 130)
    assert "Traceback" not in done.stderr


def test_the_package_is_a_command():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, f"headstart {headstart.__version__}\n")


# ---------------------------------------------------------------- memory and threads


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] can't allocate memory"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory"),
        (OSError("libgomp.so.1: failed to map segment from shared object"), "out of memory"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (OSError(11, "Resource temporarily unavailable"), "no more threads"),
        (OSError(28, "No space left on device"), ""),
        (RuntimeError("size mismatch"), ""),
        (ImportError("No module named 'x'"), ""),
        (ValueError("out of memory"), ""),
    ],
    ids=repr,
)
def test_a_shortage_is_told_from_a_bug(error, words):
    found = find_shortage(error)
    assert found.startswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize("command", ["fit", "evaluate", "predict", "extract"])
@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "out of memory"), (RuntimeError("can't start new thread"), "no more threads")],
)
def test_a_shortage_ends_every_command_with_five(
    command, error, words, cli, tiny_run, photos, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(headstart, command, refuse)
    arguments = {
        "fit": [photos, "-o", tmp_path / "run"],
        "evaluate": [tiny_run.folder, photos],
        "predict": [tiny_run.folder, photos],
        "extract": [photos, "--quiet"],
    }
    code, out, err = cli(command, *arguments[command])
    assert (code, out) == (5, "")
    assert words in only_error(err)


def test_threads_that_cannot_start_end_with_five(cli, loose, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "_start_new_thread", refuse)
    code, out, err = cli("extract", loose, "--cache-dir", tmp_path / "cache")
    assert (code, out) == (5, "")
    assert "no more threads can be started" in only_error(err)


@LINUX
@pytest.mark.parametrize("megabytes", [200, 400, 600, 1000])
def test_a_limit_of_memory_ends_with_five(megabytes, loose, tmp_path):
    line = f'ulimit -v {megabytes * 1024}; "$0" -m headstart "${{@}}"'
    code, out, err = shell(line, "extract", loose, "--cache-dir", tmp_path / "cache", "--quiet")
    assert (code, out) == (5, "")
    assert f"limited to {megabytes} MiB, and at least 1024 MiB are needed" in only_error(err)


def test_a_process_short_of_memory_waits_for_no_thread():
    code = """
import sys, threading, time
import headstart.cli.app
from headstart import __main__
def run():
    threading.Thread(target=time.sleep, args=(300,)).start()
    sys.exit(5)
headstart.cli.app.main = run
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (5, b"")


# Threads that die of a lack of memory before they tell that they live.
STILLBORN = """
import threading
import headstart.process
def run():
    def die(thread):
        raise MemoryError
    threading.Thread._bootstrap = die
    threading.Thread(target=print).start()
headstart.process.START_LIMIT_S = 0.2
headstart.process.run_process(run)
"""


def test_a_thread_that_dies_at_birth_is_not_waited_for():
    command = [sys.executable, "-c", STILLBORN]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines()[-1].startswith("error: out of memory")

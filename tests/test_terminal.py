"""What people see: what is going on, tables that break no line, doubtful predictions, the next steps."""

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.cells import cell_len

import headstart
from headstart.cli import printers, terminal
from headstart.cli.printers import is_doubtful
from headstart.cli.terminal import show_progress
from headstart.metrics import ClassFigures, Estimate
from headstart.runs.prediction import Prediction

COMMAND = [sys.executable, "-m", "headstart"]


def options(tiny):
    return [word for name, value in tiny.items() for word in (f"--{name}", value)]


def in_terminal(*arguments, columns=80, **environment):
    """(exit code, what an own terminal of so many columns got, what stdout got)."""
    pty = pytest.importorskip("pty")
    reader, child = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child, env=env)
    os.close(child)
    parts = []
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # how Linux tells the end of a terminal
            break
        if not part:
            break
        parts.append(part)
    out, _ = process.communicate(timeout=300)
    os.close(reader)
    return process.returncode, b"".join(parts).decode(), out.decode()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def stages(text):
    """What was going on, in order, each once."""
    found = re.findall(r"[\u2800-\u28ff] ([a-zA-Z][a-zA-Z', ]*[a-zA-Z]) ", plain(text))
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- what is going on


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_shows_every_phase_on_one_line(photos, tiny, tmp_path):
    words = ["--epochs", "2", "--flip", "yes", "--json", "--cache-dir", tmp_path / "cache"]
    words += options({**tiny, "strategy": "fine-tune"})
    code, err, out = in_terminal("fit", photos, "-o", tmp_path / "run", *words)
    assert code == 0
    assert json.loads(out)["run"] == str(tmp_path / "run")  # and nothing else
    found = stages(err)
    expected = [
        "starting", "listing images", "loading the network", "preparing the network",
        "training the head", "loading PyTorch", "measuring where the training starts", "training",
        "validating", "measuring", "writing the run",
    ]  # fmt: skip
    assert [stage for stage in found if stage in expected] == expected
    shown = [line for line in re.split(r"[\r\n]+", plain(err)) if line.strip()]
    assert max(map(len, shown)) < 80
    seen = 2 * json.loads(out)["images"]["train"]  # the bar is that of both epochs
    assert re.search(rf"training \S+ \d+ of {seen}\b", plain(err))
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l")  # the cursor is back


def test_no_bar_where_there_is_no_terminal(cli, loose, tiny, tmp_path, monkeypatch):
    arguments = ["extract", loose, "--cache-dir", tmp_path / "cache", "--device", "cpu"]
    arguments += ["--backbone", "test_vit", "--weights", tiny["weights"]]
    code, out, err = cli(*arguments)
    assert code == 0
    assert "\x1b" not in out + err
    assert "reading images" not in err  # it took less than a minute
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    code, out, err = cli(*arguments, "--rehash")
    assert "loading the network" in err.splitlines()
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "other"))
    code, out, err = cli(*arguments[:2], *arguments[4:])
    assert "preparing the network" in err.splitlines()
    assert re.search(r"^reading images: 24 of 24, 0:00 left$", err, re.MULTILINE)
    assert "reading images" not in out
    for form in ("--quiet", "--json"):
        assert cli(*arguments, form)[2] == ""


def test_the_rate_is_that_of_what_is_done_now(monkeypatch):
    """Not of the 90,000 that the store had; and a stage without a count shows none."""
    screen = terminal._Console(file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True)
    monkeypatch.setattr(terminal, "err", screen)
    with show_progress() as progress:
        progress("loading", 0, 0)
        for done in (90_000, 90_005, 90_010):
            progress("reading", done, 100_000)
            time.sleep(0.6)
        time.sleep(0.2)
    text = plain(screen.file.getvalue())
    assert "90,010 of 100,000" in text
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d.,]+)/s", text)]
    assert rates
    assert max(rates) < 20
    assert re.search(r"loading +0:00", text)
    assert not re.search(r"loading [^\r]*(left|of)", text)


def test_figures_come_before_the_bar_and_the_bar_before_the_stage(monkeypatch):
    """In 80 columns, whatever the name of the stage; a stage at its end still moves."""
    screen = terminal._Console(file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True)
    monkeypatch.setattr(terminal, "err", screen)
    long = f"run 3 of 6, 12 min left: {'n' * 60}, seed 2: reading images"
    with show_progress() as progress:
        for done in range(0, 60, 10):
            progress(long, 1_000_000 + done, 2_000_000)
            time.sleep(0.3)
        progress("cross-validation", 15, 15)
        time.sleep(1.4)
    lines = [line for line in re.split(r"[\r\n]+", plain(screen.file.getvalue())) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"\d images/s  [\d:]+ left$", line) for line in lines)
    assert re.match(r"[\u2800-\u28ff] cross-validation \S+ 15 of 15  0:01", lines[-1])


# ---------------------------------------------------------------- what was measured


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns."""
    console = terminal._Console(file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True)
    monkeypatch.setattr(terminal, "out", console)
    return console


def test_the_worst_classes_and_confusions_fit_whatever_their_names(screen):
    low, none = Estimate(0.2, 0.1, 0.4), Estimate(math.nan, math.nan, math.nan)
    names = ("a" * 90, "\x1b[31mred" * 9, "\u202e" * 40, "[bold]b[/bold]", "漢" * 60)
    per_class = {n: ClassFigures(10, none, low, none, none, none) for n in names}
    metrics = {"accuracy": Estimate(0.8, 0.7, 0.9)}
    confusion = np.full((5, 5), 3) + 1_000 * np.eye(5, dtype=int, k=1)
    terminal.show_mistakes(metrics, per_class, "single-label", confusion)
    lines = screen.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    text = " ".join(line.strip() for line in lines)
    assert text.startswith("worst: aaa")
    assert text.count("0.20 (2 of 10)") == 3
    assert text.count("1,003 x ") == 3
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_every_class_is_shown_if_asked_for(cli, tiny_run, photos):
    code, out, _ = cli("evaluate", tiny_run.folder, photos, "--split", "test")
    assert code == 0
    assert "avg. prec." not in out
    code, out, _ = cli("evaluate", tiny_run.folder, photos, "--split", "test", "--verbose")
    rows = [line.split()[0] for line in out.split("avg. prec.")[1].splitlines()[1:4]]
    assert rows == list(tiny_run.classes)


# ---------------------------------------------------------------- predictions


def predicted(image, *shares, error=""):
    top = tuple((f"class {i}", p) for i, p in enumerate(shares))
    first = top[0] if top else ("", float("nan"))
    return Prediction(image, *first, top, error)


@pytest.mark.parametrize(
    ("shares", "doubtful"),
    [((0.76, 0.24), 0), ((0.74, 0.26), 1), ((0.6, 0.19), 0), ((0.6, 0.21), 1), ((0.49, 0.01), 1),
     ((1.0,), 0)],
)  # fmt: skip
def test_what_is_doubtful(shares, doubtful):
    assert is_doubtful(predicted("x", *shares)) == doubtful


def test_a_table_of_predictions_marks_and_counts(cli, tiny_run, monkeypatch):
    long = "folder/" + "n" * 200 + " and more.png"
    found = [
        predicted("a.png", 0.9, 0.1),
        predicted("b.png", 0.6, 0.4),
        predicted(long, 0.9, 0.1),
        predicted("bad.png", error="empty file, " + "x" * 100),
    ]
    asked = []

    def predict(model, images, *, progress, top, **options):
        asked.append(top)
        return iter(found)

    monkeypatch.setattr(headstart, "predict", predict)
    code, out, _ = cli("predict", tiny_run.folder, "x", "--max-bad", "0.5", "--top", "1")
    assert (code, asked) == (0, [2])
    lines = out.splitlines()
    assert lines[:5] == [line.rstrip() for line in lines[:5]]
    assert [line.split()[0] for line in lines[1:5]] == [
        "a.png",
        "b.png",
        long.split()[0],
        "bad.png",
    ]
    assert re.fullmatch(r"a\.png +class 0 +0\.900", lines[1])
    assert re.fullmatch(r"b\.png +class 0 +0\.600 +\?", lines[2])
    assert lines[3].startswith(long)
    assert lines[4].endswith("x" * 100)
    assert re.fullmatch(r"class 0 +3 +1", lines[7])
    assert re.fullmatch(r"unreadable +1", lines[8])
    assert lines[9].startswith("? doubtful: probability below a half")
    assert len(lines) == 10
    for form in ("--json", "--csv"):
        assert "doubtful" not in cli("predict", tiny_run.folder, "x", form, "--max-bad", "0.5")[1]
    assert asked[1:] == [3, 3]


def test_long_names_of_images_lose_their_middle_on_a_terminal_alone(screen, monkeypatch):
    monkeypatch.setattr(printers, "out", screen)
    table = printers.PRINTERS["table"](2, None)
    names = ["short.png", f"folder/{'漢' * 50}/last.png"]
    for name in names:
        table.add(predicted(name, 0.9, 0.1))
    table.add(predicted("bad.png", error="empty file, " + "x" * 100))
    table.close()
    rows = plain(screen.file.getvalue()).splitlines()
    assert max(cell_len(row) for row in rows[:3]) <= 80
    assert re.match(r"short\.png +class 0  0\.900 +class 1 0\.100$", rows[1])
    assert re.match(r"folder/漢+…漢+/last\.png +class 0  0\.900", rows[2])
    assert rows[3].endswith("x" * 100)


def test_sentences_keep_their_indent_on_a_terminal(screen):
    terminal.say("  " + "word " * 30)
    lines = screen.file.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("  word") and len(line) <= 80 for line in lines)
    assert lines == [line.rstrip() for line in lines]


def test_one_prediction_is_not_counted(cli, tiny_run, photos):
    code, out, _ = cli("predict", tiny_run.folder, photos / "test/plain/50.png", "--device", "cpu")
    assert code == 0
    assert "images" not in out
    assert len(out.splitlines()) in (2, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_lines_are_whole_in_a_narrow_terminal(loose, tmp_path):
    code, err, _ = in_terminal("evaluate", tmp_path / ("n" * 90), loose, columns=40)
    assert code == 3
    assert "n" * 90 + ": no such run" in plain(err)


# ---------------------------------------------------------------- next steps


def test_fit_ends_with_what_may_come_next(cli, photos, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").symlink_to(photos)
    code, out, err = cli("fit", "my photos", "-o", "a run", "--val", "0.3", *options(tiny))
    assert code == 0
    commands = [
        shlex.split(line, comments=True) for line in err.splitlines() if "  headstart" in line
    ]
    assert "headstart" not in out
    assert out.endswith("saved to a run\nreport: a run/report.html\n")
    evaluate, predict, fit = (words[1:] for words in commands)
    assert evaluate == ["evaluate", "a run", "my photos"]
    assert predict == ["predict", "a run", "PHOTOS"]
    assert fit[:4] == ["fit", "my photos", "--strategy", "partial-fine-tune"]
    network = options({name: tiny[name] for name in ("backbone", "weights")})
    assert fit[4:] == ["--val", "0.3", "--device", "cpu", *network]
    code, out, _ = cli(*evaluate, "--json")
    assert (code, json.loads(out)["split"]) == (0, "test")
    for form in ("--quiet", "--json"):
        assert "next" not in cli("fit", photos, "-o", f"run{form}", form, *options(tiny))[2]


def test_scratch_says_where_it_was_trained(cli, loose, tmp_path):
    words = ["--strategy", "scratch", "--backbone", "lenet5", "--epochs", "1", "--device", "cpu"]
    code, out, err = cli("fit", loose, "-o", tmp_path / "run", *words, "--lr", "1e-12")
    assert code == 0
    assert "trained on cpu" in out
    assert "store" not in out
    assert "no epoch was better than the start" in out or "epoch 1 of 1 kept" in out
    assert "--strategy partial-fine-tune" in err
    assert "lenet5" not in err  # it has no pre-trained weights
    assert not math.isnan(headstart.evaluate(tmp_path / "run", loose).metrics["accuracy"].value)

"""The command: exit codes, what goes to which stream, and text that cannot steer a terminal."""

import csv
import errno
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer

import headstart
from headstart.cli.app import app
from headstart.cli.options import flag_of
from headstart.errors import UsageError
from headstart.training.settings import FIELDS

COMMAND = [sys.executable, "-m", "headstart"]
ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
NAMES = sorted(typer.main.get_command(app).commands)


def options(tiny):
    return [word for name, value in tiny.items() for word in (f"--{name}", value)]


def one_line(err):
    """The single line of an error, which comes last."""
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in err
    assert not ESCAPE.search(err)
    return lines[-1]


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name, cli):
    code, out, err = cli(name, "--help")
    assert (code, err) == (0, "")
    assert "Usage: " in out
    assert "Examples" in out or name == "demo"
    command = typer.main.get_command(app).commands[name]
    if any(parameter.name == "help_all" for parameter in command.params):
        code, out, err = cli(name, "--help-all")
        assert (code, err) == (0, "")
    words = re.sub(r"[\s│]+", " ", out)
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, parameter.name
            assert max(parameter.opts, key=len) in words


def test_help_of_fit_is_one_screen_and_all_of_it_is_asked_for():
    """What a newcomer needs fits 40 lines of 80 columns; the others stand under their headings."""
    run = functools.partial(subprocess.run, capture_output=True, encoding="utf-8", check=True)
    environment = {**os.environ, "COLUMNS": "80"}
    some, every = (
        run([*COMMAND, "fit", word], env=environment).stdout for word in ("--help", "--help-all")
    )
    assert len(some.rstrip().splitlines()) <= 40
    assert "--val" in some
    assert "--help-all" in some
    assert "--label-smoothing" not in some
    for name, setting in FIELDS.items():
        assert flag_of(name).split("/")[0] in every
        assert setting.option.panel in every


def test_every_setting_is_an_option_of_fit_and_comes_whole_to_the_library(
    cli, monkeypatch, tmp_path
):
    """As it was given, and nothing that was not."""
    given = {
        "val": "0.2", "epochs": "3", "lr": "0.1", "strategy": "fine-tune", "wise_ft": None,
        "cached": None, "workers": "2", "max_pixels": "1000", "head": "8", "seed": "7",
    }  # fmt: skip
    taken = []

    def fit(data, out, **options):
        names = ("overwrite", "resume", "progress", "report", "on_epoch")
        taken.append({k: v for k, v in options.items() if k not in names})
        raise UsageError("far enough")

    monkeypatch.setattr(headstart, "fit", fit)
    words = [
        word
        for name, value in given.items()
        for word in ((flag_of(name).split("/")[-1],) if value is None else (flag_of(name), value))
    ]
    assert cli("fit", "photos", "-o", tmp_path / "run", *words)[0] == 2
    assert taken == [
        {"val": 0.2, "epochs": 3, "lr": 0.1, "strategy": "fine-tune", "wise_ft": True,
         "cached": False, "workers": 2, "max_pixels": 1000, "head": "8", "seed": 7}
    ]  # fmt: skip
    assert cli("fit", "photos", "-o", tmp_path / "run", "--val", "held-out")[0] == 2
    assert taken[1] == {"val": "held-out"}


def test_the_program_explains_itself(cli):
    for arguments in (["--help"], []):
        code, out, err = cli(*arguments)
        assert (code, err) == (0, "")
        assert set(NAMES) <= set(out.split())
        assert "headstart demo" in out
    assert cli("--version")[:2] == (0, f"headstart {headstart.__version__}\n")


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fti"], 2, "No such command 'fti'.*; see headstart --help"),
        (["fit"], 2, "(?i)Missing argument 'data'; see headstart fit --help"),
        (["fit", "{photos}", "--overwrite"], 2, "--overwrite goes with -o"),
        (["fit", "{photos}", "-o", "{out}", "--sed", "1"], 2, "No such option: --sed.*--seed"),
        (["fit", "{photos}", "-o", "{out}", "--seed", "x"], 2, "'--seed'.*valid integer"),
        (
            ["fit", "{photos}", "-o", "{out}", "--seed", "-1"],
            2,
            "seed must be a whole number of at",
        ),
        (["fit", "{photos}", "-o", "{out}", "--workers", "0"], 2, "workers must be a whole number"),
        (["fit", "{photos}", "-o", "{out}", "--max-bad", "2"], 2, "max_bad must be a number of at"),
        (
            ["fit", "{photos}", "-o", "{out}", "--penalty", "-1"],
            2,
            "penalty must be a number above 0, got -1",
        ),
        (["fit", "{photos}", "-o", "{out}", "--val", "2"], 2, "val"),
        (
            ["fit", "{photos}", "-o", "{out}", "--class-weights", "x"],
            2,
            "class_weights must be auto, balanced or none, got x",
        ),
        (["predict", "{run}", "x.png", "--max-bad", "2"], 2, "max_bad must be a number of at"),
        (["fit", "{photos}", "-o", "{out}", "--strategy", "x"], 2, "strategy 'x' is unknown"),
        (["fit", "{photos}", "-o", "{out}", "--device", "x"], 2, "device 'x' is unknown"),
        (["fit", "{photos}", "-o", "{out}", "--backbone", "resnet5O"], 2, "nearest: resnet50"),
        (["fit", "{photos}", "-o", "{out}", "-q", "-v"], 2, "--quiet and --verbose"),
        (["fit", "{photos}", "-o", "{run}"], 2, "holds a run already; .* --overwrite"),
        (["fit", "nowhere", "-o", "{out}"], 3, "nowhere: no such file or folder"),
        (["fit", "", "-o", "{out}"], 3, "empty name"),
        (["fit", "{photos}/train/plain", "-o", "{out}"], 3, "no images in class folders"),
        (["fit", "{photos}", "-o", "{out}", "--weights", "x.pth"], 3, "x.pth: no such weights"),
        (["evaluate", "nowhere", "{photos}"], 3, "nowhere: no such run"),
        (["evaluate", "{run}", "nowhere"], 3, "nowhere: no such file or folder"),
        (["evaluate", "{run}", "{photos}", "--split", "tset"], 2, r"'tset'.*nearest: test"),
        (["evaluate", "{photos}", "{photos}"], 3, "not a run of headstart"),
        (["predict", "x.png"], 3, "x.png: no such run; headstart predict RUN IMAGES"),
        (["predict", "{photos}", "{run}"], 3, "photos: not a run of headstart; headstart predict"),
        (["predict", "-"], 3, "-: no such run; headstart predict RUN IMAGES"),
        (["predict", "{run}"], 2, "no images are named after the run"),
        (["predict", "--model", "{run}"], 2, "Missing argument"),
        (["predict", "pretrained:lenet5", "x.png"], 3, "no pre-trained weights of lenet5"),
        (
            ["extract", "nowhere", "--export", "x.csv"],
            2,
            "'.csv' is unknown; known: .parquet, .npz",
        ),
        (
            ["extract", "nowhere", "--export", "no/x.npz"],
            5,
            "x.npz: cannot be written: no such folder",
        ),
        (["predict", "--model", "nowhere", "x.png"], 3, "nowhere: no such run"),
        (["predict", "--model", "{run}", "--top", "0", "x.png"], 2, "'--top'"),
        (["predict", "--model", "{run}", "--json", "--csv", "x.png"], 2, "choose one"),
        (["predict", "-m", "pretrained:lenet5", "x.png"], 3, "no pre-trained weights of lenet5"),
        (["predict", "-m", "pretrained:resnet5O", "x.png"], 2, "nearest: resnet50"),
        (
            ["predict", "-m", "{run}", "--weights", "x", "x.png"],
            2,
            "--weights goes with pretrained:NETWORK",
        ),
        (["layers", "resnet5O"], 2, "nearest: resnet50"),
        (["layers", "lenet5", "--freeze-until", "conv9"], 2, "layer 'conv9'.*nearest: conv"),
        (["layers", "lenet5", "--input-px", "64"], 2, "sees 32 x 32 pixels only"),
        (["backbones", "--library", "tim"], 2, "library 'tim' is unknown"),
        (["predict", "--model", "{run}", "{empty}"], 3, "no images in this folder"),
    ],
    ids=lambda v: " ".join(v).replace("{", "").replace("}", "") if isinstance(v, list) else "",
)
def test_an_error_is_one_line(
    arguments, code, message, cli, photos, tiny_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"photos": photos, "run": tiny_run.folder}
    places |= {"out": tmp_path / "out", "empty": tmp_path / "empty"}
    found, out, err = cli(*(a.format(**places) for a in arguments))
    assert (found, out) == (code, "")
    assert re.search(message, one_line(err))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_parquet_is_refused_before_any_work_where_its_package_is_missing(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = cli("extract", "nowhere", "--export", "features.parquet")
    assert (code, out) == (2, "")
    assert r"pip install 'headstart[parquet]'" in one_line(err)


def test_an_export_is_told(cli, loose, tiny, tmp_path):
    words = ["--backbone", "test_vit", "--weights", tiny["weights"], "--device", "cpu"]
    code, out, _ = cli("extract", loose, "--export", tmp_path / "x.npz", *words)
    assert code == 0
    assert re.search(rf"wrote {tmp_path}/x.npz: 24 images, features at \d+ cut points", out)
    assert len(np.load(tmp_path / "x.npz")["id"]) == 24
    assert "wrote" not in cli("extract", loose, *words)[1]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["cache", "prune", "--dry"], "; see headstart cache prune --help"),
        (["cache"], "; see headstart cache --help"),
        (["fit", "--dry"], "; see headstart fit --help"),
    ],
    ids=" ".join,
)
def test_errors_of_usage_point_to_the_help_of_their_command(words, hint, cli):
    code, _, err = cli(*words)
    assert (code, hint in err) == (2, True)


def test_help_shows_switches_without_values_and_extras_whole(cli):
    for command in ("fit", "extract"):
        _, text, _ = cli(command, "--help-all")
        assert "bool" not in text
    assert "headstart[parquet]" in "".join(text.split())


def test_extract_lists_images_by_its_own_limit(loose, tiny, cli):
    words = ["--backbone", tiny["backbone"], "--weights", tiny["weights"], "--max-pixels", 80]
    code, _, err = cli("extract", loose, *words)
    assert code == 4
    assert "24 unreadable" in err
    assert " px" not in err


def test_the_run_is_the_first_word_or_the_model(cli, tiny_run, photos):
    image = photos / "test/plain/50.png"
    rows = [
        cli("predict", *words, "--json", "--device", "cpu")
        for words in ([tiny_run.folder, image], ["--model", tiny_run.folder, image])
    ]
    assert rows[0] == rows[1]
    assert json.loads(rows[0][1])["image"] == str(image)
    # With --model, a run is a folder of images like any other.
    words = ["-m", tiny_run.folder, tiny_run.folder, image, "--json", "--max-bad", "1"]
    found = [json.loads(line)["image"] for line in cli("predict", *words)[1].splitlines()]
    assert found[-1] == str(image)
    assert str(tiny_run.folder / "model.safetensors") in found


def test_a_link_to_itself_is_no_data(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    code, out, err = cli("fit", "loop")
    assert (code, out) == (3, "")
    assert "loop: no such file or folder" in one_line(err)


def test_a_run_gets_a_folder_of_its_own(cli, loose, photos, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My photos (2)!").symlink_to(loose)
    arguments = ["fit", "My photos (2)!", *options(tiny), "--json"]
    folders = [json.loads(cli(*arguments)[1])["run"] for _ in range(2)]
    assert folders == [str(Path("runs/loose-1")), str(Path("runs/loose-2"))]
    assert headstart.Classifier.load(folders[1]).classes == ("blobs", "plain", "stripes")
    (tmp_path / "runs/photos-1").mkdir()  # another fit has just begun
    assert "saved to runs/photos-2" in cli("fit", photos, *options(tiny))[1]
    rows = "\n".join(f"{path},{path.parent.name}" for path in sorted(loose.rglob("*.png")))
    (tmp_path / "a b&c.csv").write_text(f"path,label\n{rows}\n")
    code, out, err = cli("fit", "a b&c.csv", "--allow-outside", *options(tiny))
    assert code == 0, err
    assert "saved to runs/a-b-c-1" in out


def test_a_manifest_is_told_of_by_its_own_name(cli, loose, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(loose)
    manifest = tmp_path / "list.csv"
    rows = [f"{kind}/{n:02}.png,{kind}" for kind in ("blobs", "plain") for n in range(8)]
    manifest.write_text("\n".join(["path,label", *rows]))
    network = {name: value for name, value in tiny.items() if name != "strategy"}
    code, _, err = cli("extract", manifest, "--root", ".", *options(network))
    assert code == 0, err
    assert f"16 images in 2 classes at {manifest}, " in err
    manifest.write_text("\n".join(["path,label", *rows[:8]]))
    arguments = ["fit", manifest, "-o", tmp_path / "run", "--root", ".", *options(tiny)]
    code, _, err = cli(*arguments)
    assert (code, one_line(err)) == (
        3,
        f"error: {manifest}: at least two classes are needed, found 'blobs'; each class is a folder, or "
        "a label in the manifest",
    )


def test_one_group_for_all_is_refused_from_wherever_it_comes(cli, loose, tiny, tmp_path):
    whole = (
        "puts all 16 images into one group, 'g', so none could be held out; have it tell films, "
        "patients or objects apart"
    )
    rows = [f"{kind}/{n:02}.png,{kind}" for kind in ("blobs", "plain") for n in range(8)]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["path,label,group", *(f"{row},g" for row in rows)]))
    network = {name: value for name, value in tiny.items() if name != "strategy"}
    arguments = ["-o", tmp_path / "run", "--root", loose, *options(tiny)]
    code, _, err = cli("fit", manifest, *arguments)
    assert (code, one_line(err)) == (3, f"error: {manifest}: the column group {whole}")
    assert cli("extract", manifest, "--root", loose, *options(network), "-q")[0] == 0
    manifest.write_text("\n".join(["path,label", *rows]))
    code, _, err = cli("fit", manifest, *arguments, "--group", "(.)$")
    assert (code, one_line(err)) == (2, f"error: group '(.)$' {whole}")


def test_the_one_image_that_is_named_is_spoken_of_as_one(cli, tiny_run, tmp_path):
    code, _, err = cli("predict", tiny_run.folder, tmp_path / "no.jpg", "--device", "cpu")
    assert (code, one_line(err)) == (
        4,
        f"error: the one image is unreadable ({tmp_path / 'no.jpg'}: no such file or directory). "
        "Check its name, or mend or replace it",
    )


def test_a_folder_for_the_run_is_not_in_the_data_nor_left_by_an_error(
    cli, loose, tiny, tmp_path, monkeypatch
):
    data = shutil.copytree(loose, tmp_path / "data")
    monkeypatch.chdir(data / "plain")
    code, out, err = cli("fit", "..", *options(tiny), "--penalty", "-1")
    assert code == 2
    assert sorted(os.listdir(tmp_path)) == ["data"]
    code, out, err = cli("fit", "..", *options(tiny))
    assert code == 0, err
    assert f"saved to {tmp_path / 'runs/data-1'}" in out
    assert sorted(os.listdir(data)) == ["blobs", "plain", "stripes"]


def test_the_command_that_has_no_pipe_says_so(cli, monkeypatch, tiny_run):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, out, err = cli("predict", "--model", tiny_run.folder, "-")
    assert (code, out) == (3, "")
    assert "no images given" in one_line(err)


def test_bad_images_end_with_four_and_a_full_disk_with_five(
    cli, loose, tiny, tiny_run, tmp_path, monkeypatch
):
    data = shutil.copytree(loose, tmp_path / "data")
    for n in range(3):
        (data / f"plain/0{n}.png").write_bytes(b"")
    code, out, err = cli("fit", data, "-o", tmp_path / "run", "-q", *options(tiny))
    assert (code, out) == (4, "")
    assert "3 of 24 images" in one_line(err)
    code, out, err = cli("predict", "-m", tiny_run.folder, data, "--json", "--device", "cpu")
    assert code == 4
    assert len(out.splitlines()) == 24
    assert "3 of 24 images" in one_line(err)
    code, _, err = cli("evaluate", tiny_run.folder, data, "--max-bad", "0.2", "--device", "cpu")
    assert code == 0
    assert "warning: unreadable: plain/00.png: empty file" in err

    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    code, out, err = cli("fit", loose, "-o", tmp_path / "full", "-q", *options(tiny))
    assert (code, out) == (5, "")
    assert "No space left on device" in one_line(err)


def test_no_memory_ends_with_five(cli, photos, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(headstart, "fit", refuse)
    code, out, err = cli("fit", photos, "-o", tmp_path / "run", "-q")
    assert (code, out) == (5, "")
    assert "out of memory" in one_line(err)


def test_verbose_adds_the_traceback(cli):
    code, out, err = cli("evaluate", "nowhere", "nowhere", "-v")
    assert (code, out) == (3, "")
    assert "Traceback" in err
    assert err.rstrip().splitlines()[-1].startswith("error: nowhere: no such run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_fit_soon(number, code, photos, tmp_path):
    for n in range(3000):
        for kind in ("plain", "blobs"):
            link = tmp_path / f"data/{kind}/{n}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(photos / f"train/{kind}/00.png", link)
    command = [*COMMAND, "fit", tmp_path / "data", "-o", tmp_path / "run", "--device", "cpu"]
    command += ["--strategy", "linear-probe"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run/headstart.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert time.monotonic() - sent < 5
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert ("interrupted" in err) == (code == 130)
    assert json.loads((tmp_path / "run/headstart.json").read_text())["status"] == "incomplete"


SLOW_ENGINE = """
import time
import headstart.cli.app, headstart.features.extraction
headstart.features.extraction.make_engine = lambda *a, **k: time.sleep(300)
headstart.cli.app.main()
"""


def test_an_interrupt_does_not_wait_for_a_network_being_compiled(loose, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "cache"))
    command = [sys.executable, "-c", SLOW_ENGINE, "extract", str(loose)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("cache/features/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    assert "run the same command again" in err


# ---------------------------------------------------------------- results


def test_json_goes_to_stdout_beside_a_progress_bar(photos, tiny_run):
    """A terminal on stderr and a file on stdout, as in `headstart predict --json > out.jsonl`."""
    pty = pytest.importorskip("pty")
    reader, terminal = pty.openpty()
    command = [*COMMAND, "predict", "--model", tiny_run.folder, photos / "test", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    os.close(reader)
    assert [json.loads(line)["error"] for line in done.stdout.splitlines()] == [None] * 9


def test_fit_prints_json_last(cli, photos, tiny, tmp_path):
    arguments = ["fit", photos, "-o", tmp_path / "run", *options(tiny)]
    code, out, err = cli(*arguments, "--json")
    found = json.loads(out.splitlines()[-1])
    assert (code, err) == (0, "")
    assert found["run"] == str(tmp_path / "run")
    assert (found["strategy"], found["backbone"]) == ("linear-probe", "test_vit")
    assert set(found["metrics"]["accuracy"]) == {"value", "low", "high"}
    assert found["seconds"] > 0
    assert found["measured_on"] == "cross-validation"
    code, out, err = cli(*arguments, "--overwrite", "--seed", "4", "--val", "0.3")
    assert code == 0
    assert "accuracy" in out
    assert f"saved to {tmp_path / 'run'}" in out
    assert "33 images in 3 classes" in err
    assert not ESCAPE.search(out + err)
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["seed"] == {"value": 4, "origin": "user"}
    assert settings["max_bad"] == {"value": 0.001, "origin": "default"}
    code, out, err = cli(*arguments, "--overwrite", "--quiet")
    assert (code, err) == (0, "")
    assert "accuracy" in out
    code, out, err = cli(*arguments, "--overwrite", "--verbose")
    assert code == 0
    assert re.search(r"penalty +\S+ +measured", err)


def test_evaluate(cli, tiny_run, photos):
    arguments = ["evaluate", tiny_run.folder, photos, "--device", "cpu"]
    code, out, err = cli(*arguments, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {"metrics", "classes", "confusion", "images"} <= set(found)
    assert found["classes"] == ["blobs", "plain", "stripes"]
    assert sum(map(sum, found["confusion"])) == found["images"]["evaluated"] == 9
    assert found["metrics"]["accuracy"]["low"] <= found["metrics"]["accuracy"]["value"]
    code, out, err = cli(*arguments)
    assert (code, err) == (0, "")
    assert "9 images, the split test, 95 % intervals" in out
    assert re.search(r"accuracy +[01]\.\d{3} +0\.\d{3} to 1\.000", out)
    code, out, err = cli(*arguments, "--split", "train", "--json")
    assert "were trained on" in json.loads(out)["warnings"][0]
    code, out, err = cli(*arguments, "--split", "train")
    assert "warning: 24 of these 24 images were trained on" in err
    assert cli(*arguments, "--split", "train", "--quiet")[2] == ""


def test_figures_that_are_not_defined_are_null(cli, tiny_run, plant, tmp_path):
    data = plant(tmp_path / "data", {"plain": 1})
    code, out, _ = cli("evaluate", tiny_run.folder, data, "--json", "--device", "cpu")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert code == 0
    blobs = found["per_class"]["blobs"]
    assert (blobs["images"], blobs["threshold"]) == (0, None)
    assert blobs["recall"] == blobs["roc_auc"] == {"value": None, "low": None, "high": None}


def test_predict_prints_an_object_a_line(cli, tiny_run, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    names = [photos / "test/plain/50.png", tmp_path / "bad.png", photos / "test/blobs"]
    code, out, err = cli("predict", "-m", tiny_run.folder, "--json", "-k", "2", *names)
    assert (code, err) == (0, "")
    rows = [
        json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in out.splitlines()
    ]
    names_of = {"image", "label", "probability", "top", "error", "known", "novelty"}
    assert all(set(row) == names_of for row in rows)
    assert [row["image"] for row in rows[:2]] == [str(n) for n in names[:2]]
    assert len(rows) == 5
    good, bad = rows[:2]
    assert good["top"][0] == [good["label"], good["probability"]]
    assert (len(good["top"]), good["error"]) == (2, None)
    assert bad == {**bad, "label": None, "probability": None, "top": [], "error": "empty file"}
    assert (bad["known"], bad["novelty"]) == (None, None)
    code, out, err = cli("predict", "-m", tiny_run.folder, *names)
    assert (code, err) == (0, "")
    assert "empty file" in out
    assert out.count("blobs") >= 3


def test_csv_reads_back(cli, tiny_run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "a, 'b' \"c\".png", "tab\t.png", "gone.png"]
    for name in names[:-1]:
        shutil.copy(photos / "test/plain/50.png", name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    code, out, err = cli("predict", "-m", tiny_run.folder, "-", "--csv", "--device", "cpu")
    assert (code, err) == (0, "")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["image", "label", "probability", "top", "error", "known", "novelty"]
    assert [row[0].lstrip("'").replace(r"\t", "\t") for row in rows] == names
    assert all(not cell.startswith(tuple("=+-@\t\r")) for row in rows for cell in row)
    for row in rows[:-1]:
        assert row[1] == "plain"
        assert row[3].startswith(f"plain {row[2]}; ")
        assert 1 / 3 <= float(row[2]) <= 1
    assert rows[-1][1:] == ["", "", "", "no such file or directory", "", ""]


ODD = ["line\nbreak", "\x1b[31mred", "[bold]b", "[red", "bidi\u202egnp", "bell\a\x9b1m"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that other systems do not allow")
@pytest.mark.parametrize("form", ["--csv", "--json", "--quiet"])
def test_odd_names_cannot_steer_a_terminal(form, cli, tiny_run, photos, tmp_path):
    names = [*ODD, os.fsdecode(b"not\xffutf8")]
    for name in names:
        shutil.copy(photos / "test/plain/50.png", tmp_path / name)
    code, out, err = cli(
        "predict", "-m", tiny_run.folder, tmp_path, form, "--top", "1", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert not ESCAPE.search(out)
    text = "".join(out.split())
    for start in ("line\\n", "\\", "[bold]b", "[red", "bidi\\u202e", "bell\\", "not\\udcff"):
        assert start in text
    if form == "--json":
        given = {json.loads(line)["image"] for line in out.splitlines()}
        assert given == {str(tmp_path / name) for name in names}


@pytest.mark.skipif(sys.platform != "linux", reason="names that other systems do not allow")
def test_odd_classes_cannot_steer_a_terminal(cli, loose, tiny, tmp_path):
    for old, new in zip(("blobs", "plain", "stripes"), (*ODD[1:3], "not\udcff"), strict=True):
        shutil.copytree(loose / old, tmp_path / "data" / new)
        (tmp_path / "data" / new / "\x1b[2Jbad.png").write_bytes(b"")
    run = tmp_path / "run\x1b[2J"
    code, out, err = cli(
        "fit", tmp_path / "data", "-o", run, "-v", "--max-bad", "0.5", *options(tiny)
    )
    assert code == 0, err
    assert not ESCAPE.search(out + err)
    assert r"\x1b[31mred" in err
    for extra in (["-v"], ["--json"]):
        code, out, err = cli(
            "evaluate", run, tmp_path / "data", "--max-bad", "0.5", "--device", "cpu", *extra
        )
        assert code == 0, err
        assert not ESCAPE.search(out + err)
        assert "[bold]b" in out
    code, out, err = cli("evaluate", run, tmp_path / "\x1b[2Jnowhere")
    assert r"\x1b[2Jnowhere: no such" in one_line(err)


@pytest.mark.skipif(sys.platform != "linux", reason="names that other systems do not allow")
def test_names_on_stdin_are_one_a_line(cli, tiny_run, photos, tmp_path, monkeypatch):
    names = ["a\u2028b.png", "a\x0cb.png", "a\x85b.png", " c .png", os.fsdecode(b"\xff.png")]
    for name in names:
        shutil.copy(photos / "test/plain/50.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = os.fsencode("\n".join([*names, "", "gone.png", ""]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    first = photos / "test/plain/51.png"
    code, out, _ = cli("predict", "-m", tiny_run.folder, "--json", first, "-", "--max-bad", "0.3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == [str(first), *names, "gone.png"]
    assert [bool(row["error"]) for row in rows] == [False] * 6 + [True]
    assert code == 0


# ---------------------------------------------------------------- networks


def test_backbones_are_listed(cli, tmp_path):
    code, out, err = cli("backbones", "lenet5", "--cache-dir", tmp_path)
    assert code == 0
    assert re.search(r"^lenet5 +headstart +0\.06 +32 +none +none", out, re.MULTILINE)
    assert err == "1 network\n"
    code, out, err = cli("backbones", "lenet5", "--json", "--cache-dir", tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "name": "lenet5", "library": "headstart", "parameters": 62006, "input_px": [32, 32],
        "licence": "none", "weights": "none",
    }  # fmt: skip
    code, out, err = cli("backbones", "resnet", "--cache-dir", tmp_path)
    assert "counted in lists of at most 30" in err
    assert cli("backbones", "nothing like this")[1] == "no network fits 'nothing like this'\n"


def test_layers_are_listed(cli):
    code, out, err = cli("layers", "lenet5")
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[1].split() == "0 conv1 Conv2d 6 x 28 x 28 456".split()
    assert rows[4].split() == "3 conv2 Conv2d 16 x 10 x 10 2,416 conv2".split()
    assert rows[-1] == "62,006 parameters"
    code, out, err = cli("layers", "resnet18", "--freeze-until", "layer2.0.conv2")
    assert "warning: the network cannot be cut before 'layer2.0.conv2'; " in err
    assert re.search(r" layer1\.1\.conv2 .* frozen", out)
    assert re.search(r" layer2\.0\.conv1 .* yes +layer2 *\n", out)
    assert out.splitlines()[-1] == "11,689,512 parameters, 11,532,008 trained"
    code, out, err = cli("layers", "lenet5", "--json", "--freeze-until", "7")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert next(row["name"] for row in found if row["trainable"]) == "fc1"


def test_a_published_network_names_what_it_sees(cli):
    package = importlib.util.find_spec("foolbox").submodule_search_locations[0]
    image = f"{package}/data/imagenet_01_559.jpg"
    arguments = ["predict", "-m", "pretrained:tf_efficientnet_lite0", image, "--device", "cpu"]
    code, out, err = cli(*arguments, "--json", "-k", "2")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["synset"], found["name"]) == ("n03376595", "folding chair")
    assert found["label"] == found["top"][0][0] == "n03376595"
    assert found["probability"] == found["top"][0][1] > 0.9
    assert len(found["names"]) == len(found["top"]) == 2
    for form in ([], ["--csv"]):
        code, out, err = cli(*arguments, *form)
        assert (code, err) == (0, "")
        assert "folding chair (n03376595)" in re.sub(r"\s+", " ", out) or "(n03376595)" in out
    (found,) = headstart.predict("pretrained:tf_efficientnet_lite0", [image], top=1)
    assert (found.label, found.names) == ("n03376595", ("folding chair",))


# ---------------------------------------------------------------- terminals and pipes


def test_a_closed_pipe_ends_quietly(tiny_run, photos):
    processes = []
    for form in (["--csv"], ["--json"], []):
        read, write = os.pipe()
        os.close(read)
        command = [*COMMAND, "predict", "-m", tiny_run.folder, photos / "test", *form]
        processes.append(subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True))
        os.close(write)
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert err == ""
        assert process.returncode in (0, 141)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_colour_is_for_terminals_that_want_it(tmp_path):
    import pty

    def last_line(**environment):
        parent, child = pty.openpty()
        command = [*COMMAND, "predict", "-m", "x", "--json", "--csv", "y"]
        env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        env |= {"TERM": "xterm-256color", **environment}
        process = subprocess.Popen(command, stderr=child, stdout=child, env=env, cwd=tmp_path)
        assert process.wait(timeout=300) == 2
        os.close(child)
        text = os.read(parent, 10_000).decode()
        os.close(parent)
        return text

    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
    assert colour.search(last_line())
    plain = last_line(NO_COLOR="1")
    assert not colour.search(plain)
    assert "choose one" in plain
    assert "\x1b" not in last_line(TERM="dumb")

"""The README keeps its word: its commands run, its Python runs, and it names every command."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

import headstart
from headstart.cli import app
from headstart.demo import write_digits

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^    (headstart (?:fit|evaluate|predict|extract|cache|backbones|layers).*)$",
    README,
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the README's file names exist: photos with few images a class."""
    folder = tmp_path_factory.mktemp("readme")
    write_digits(folder / "all")
    for digit in "01":
        for split, source in (("train", "train"), ("val", "test")):
            target = folder / "photos" / split / digit
            target.mkdir(parents=True)
            for image in sorted((folder / "all" / source / digit).iterdir())[:8]:
                image.rename(target / image.name)
    (folder / "new-photos").mkdir()
    one = next((folder / "all" / "test" / "2").iterdir())
    (folder / "new-photos" / "two.png").write_bytes(one.read_bytes())
    (folder / "one.jpg").write_bytes(one.read_bytes())
    return folder


def test_commands_run_in_order(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert len(COMMANDS) >= 3
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] == "fit" and Path("run").exists():
            continue
        app(words, standalone_mode=False)
        assert capsys.readouterr().out, command


def test_python_runs(place, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(place / "new-photos")
    # The first example holds a part out, so its photos have no splits.
    for digit in "01":
        images = (place / "all" / "train" / digit).iterdir()
        os.makedirs(f"photos/{digit}")
        for image in sorted(images)[:12]:
            Path(f"photos/{digit}/{image.name}").write_bytes(image.read_bytes())
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "Estimate(value=" in capsys.readouterr().out


def test_names_every_command_and_function():
    for command in app.registered_commands:
        assert f"headstart {command.name}" in README or f"scripts/{command.name}" in README
    assert "headstart cache" in README
    for name in ("fit", "evaluate", "predict", "extract", "extract_activations"):
        assert f"headstart.{name}(" in README
        assert getattr(headstart, name).__doc__


def test_options_in_the_readme_exist():
    commands = list(typer.main.get_command(app).commands.values())
    commands += [c for group in commands for c in getattr(group, "commands", {}).values()]
    known = {option for c in commands for p in c.params for option in p.opts}
    given = set(re.findall(r"`(--[a-z][a-z-]+)", README))
    assert given
    assert given <= known

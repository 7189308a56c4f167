"""The documents keep their word: commands run or are accepted, Python runs, tables are those of the code."""

import inspect
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

import headstart
from headstart.cli.app import app
from headstart.cli.demo import write_digits
from headstart.cli.options import help_of
from headstart.cli.reference import write_reference
from headstart.data.groups import capture_groups
from headstart.data.loading import FORMS
from headstart.errors import UsageError
from headstart.networks.architectures import find_network
from headstart.networks.catalogue import list_layers
from headstart.training.recipes import Recipe
from headstart.training.settings import AUTO, FIELDS, make_settings
from headstart.training.strategies.table import STRATEGIES, check_advisable, choose_strategy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def find_commands(text):
    names = "advise|audit|fit|evaluate|predict|extract|cache|backbones|layers"
    return re.findall(rf"^    (headstart (?:{names}).*)$", text, re.MULTILINE)


COMMANDS = find_commands(README)
FITS = [
    c
    for text in (README, GUIDE, DATA)
    for c in find_commands(text)
    if c.startswith("headstart fit")
]


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
    shutil.copytree(folder / "photos/val", folder / "other-photos")
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
    assert len(blocks) == 4
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
    for name in ("audit", "fit", "evaluate", "predict", "extract", "extract_activations"):
        assert f"headstart.{name}(" in README
        assert getattr(headstart, name).__doc__


@pytest.mark.parametrize("text", [README, GUIDE, DATA], ids=["README", "strategies", "data"])
def test_options_in_the_documents_exist(text):
    commands = list(typer.main.get_command(app).commands.values())
    commands += [c for group in commands for c in getattr(group, "commands", {}).values()]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    given = set(re.findall(r"`(--[a-z][a-z-]+)", text))
    assert given
    assert given <= known


@pytest.mark.parametrize("command", dict.fromkeys(FITS))
def test_a_fit_command_is_accepted(monkeypatch, command):
    """Its options are known, heeded by its strategy, and its network exists; nothing is trained."""
    taken = []

    def fit(data, out, *, overwrite, resume, progress, report, on_epoch, **options):
        settings = make_settings(options)
        (check_advisable if settings.strategy == AUTO else choose_strategy)(settings)
        taken.append((resume, settings))
        raise UsageError("far enough")

    monkeypatch.setattr(headstart, "fit", fit)
    with pytest.raises(UsageError, match="far enough"):
        app(shlex.split(command)[1:], standalone_mode=False)
    [(resume, settings)] = taken
    assert resume == ("--resume" in command)
    find_network(settings.backbone)
    size = settings.input_px
    names = set((settings.cut or "auto").split(",")) - {"last", "all", "auto"}
    if names or size or settings.freeze_until:
        where = {"input_px": size, "freeze_until": settings.freeze_until}
        layers, told = list_layers(settings.backbone, **where)
        assert names <= {layer.cut for layer in layers}
        assert not told


def test_the_other_commands_of_the_guide_are_accepted():
    group = typer.main.get_command(app)
    commands = [c for c in find_commands(GUIDE) if c not in FITS]
    assert commands
    for command in commands:
        words = shlex.split(command)[1:]
        context = group.commands[words[0]].make_context(words[0], words[1:])
        model = context.params.get("words", [context.params.get("name")])[0]
        if model is not None:  # evaluate takes a run alone
            find_network(model.removeprefix("pretrained:"))


def test_the_guide_names_every_strategy_and_option_of_training():
    for strategy in STRATEGIES:
        assert f"## {strategy}\n" in GUIDE
        assert f"| `{strategy}` |" in README
    for option in typer.main.get_command(app).commands["fit"].params:
        panel = getattr(option, "rich_help_panel", None) or ""
        if panel.startswith(("Strategy", "Training")) and option.name not in (
            "weights",
            "backbone",
        ):
            names = (*option.opts, *option.secondary_opts)
            assert any(f"`{name}" in GUIDE or f" {name} " in GUIDE for name in names), option.name


def test_the_table_of_recipes_is_that_of_the_code():
    """Values of every strategy, and a dash where the option is refused."""
    kinds = {"MLP head": {"strategy": "linear-probe", "head": "8"}}
    kinds |= {name: {"strategy": name} for name, s in STRATEGIES.items() if s.by_gradient}

    def cell(options, name):
        strategy = choose_strategy(make_settings(options))
        value = getattr(strategy.recipe, name)
        try:
            choose_strategy(make_settings({**options, name: value}))
        except UsageError as exc:
            if f"'{name}' has no effect on {strategy.name}" in str(exc):
                return "–"
            raise
        if isinstance(value, bool):
            return "yes" if value else "no"
        return value if isinstance(value, str) else f"{value:g}"

    wanted = {
        f"`--{name.replace('_', '-')}`": [cell(options, name) for options in kinds.values()]
        for name in Recipe.model_fields
    }
    section = GUIDE.split("## The recipe\n")[1].split("\n## ")[0]
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line
    ]
    assert rows[0][1:5] == list(kinds)
    assert {row[0]: row[1:5] for row in rows[2:]} == wanted


def test_the_page_of_settings_is_that_of_the_code():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == write_reference(), "python -m headstart.cli.reference > docs/settings.md"


def test_the_page_of_data_has_every_form():
    for name in FORMS:
        assert re.search(rf"^\| .*`{name}`.* \| .* \| `headstart.* \|$", DATA, re.MULTILINE), name


def test_help_is_told_in_sentences():
    for name in FIELDS:
        text = help_of(name)
        assert re.fullmatch(r"[A-Z][a-z]+ .*\.", text), name
        assert text.split()[0] not in ("Of", "Whether", "For", "That"), name


SOURCES = [
    README,
    GUIDE,
    inspect.getdoc(headstart.load_dataset),
    *(setting.option.help for setting in FIELDS.values()),
]
PATTERNS = sorted(
    {p for text in SOURCES for p in re.findall(r"['`](\([^'`\s]+_[^'`\s]*)['`]", text)}
)


@pytest.mark.parametrize("top", ["", "train/", "data/val/"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_documented_patterns_group_frames_and_not_classes(pattern, top):
    """The frames of a track are one group, also where names of classes have numbers and underscores."""
    tracks = {
        "100_kmh/00008": ["00008_00013.ppm", "00008_00019.ppm"],
        "100_kmh/00009": ["00009_00013.ppm"],
        "30_kmh/00008": ["00008_00013.ppm"],
        "stop-sign/track7": ["track7_1.jpg", "track7_22.jpg"],
        "stop-sign/my_dog": ["my_dog_1.jpg", "my_dog_2.jpg"],
        "grün/a b": ["a b_1.png"],
    }
    ids, wanted = [], []
    for track, names in tracks.items():
        ids += [f"{top}{track.split('/')[0]}/{name}" for name in names]
        wanted += [track] * len(names)
    assert capture_groups(pattern, ids) == tuple(wanted)


def test_every_documented_pattern_is_looked_at():
    text = "".join(SOURCES)
    assert len(re.findall(r"--group '", README + GUIDE)) >= 3
    assert set(re.findall(r"--group '([^']+)'", text)) <= set(PATTERNS)

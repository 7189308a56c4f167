"""The documents keep their word: commands and Python run or say why not, tables are those of the code.

A block of commands or of Python on a page is run, in the order of the page, in a folder where the names that
the pages use are small data. A comment before a block, `<!-- not run: REASON -->`, which readers do not see,
leaves it out; its commands are accepted all the same, and the reason is told as that of a skipped test.
"""

import dataclasses
import inspect
import json
import re
import runpy
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt
from PIL import Image

import headstart
from headstart.cli.app import app
from headstart.cli.demo import write_digits
from headstart.cli.options import help_of
from headstart.cli.reference import PAGES as REFERENCE
from headstart.data.groups import capture_groups
from headstart.data.loading import FORMS
from headstart.errors import UsageError
from headstart.networks.architectures import find_network
from headstart.networks.catalogue import list_layers
from headstart.training.recipes import Recipe
from headstart.training.settings import AUTO, FIELDS, make_settings
from headstart.training.strategies.table import STRATEGIES, check_advisable, choose_strategy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The pages of the site that are written by hand, and the page of PyPI.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if not {"decisions", "_build"} & set(path.parts) and path.stem not in ("changelog", *REFERENCE)
}
README = PAGES["README.md"]
GUIDE = PAGES["docs/strategies.md"]
DATA = PAGES["docs/data.md"]
LEFT_OUT = re.compile(r"<!-- not run: (\S.*\S) -->\s*")
# What begins a line of a block that somebody types; a `$` does where what is printed follows.
TYPED = re.compile(r"(headstart|python3?|pip|git|scripts/\w+) ")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        page, line: where it is.
        python: the program, "" where it is none.
        commands: what is typed, a line each; () where it is output.
        reason: why it is not run, "" where it is.
    """

    page: str
    line: int
    python: str
    commands: tuple[str, ...]
    reason: str


def read_blocks(page):
    """The blocks of a page that somebody may type, in order."""
    blocks, reason = [], ""
    for token in MarkdownIt("commonmark").enable("table").parse(PAGES[page]):
        if token.type == "html_block" and (found := LEFT_OUT.fullmatch(token.content)):
            reason = found[1]
            continue
        if token.type in ("fence", "code_block"):
            lines = token.content.splitlines()
            prompted = [line[2:] for line in lines if line.startswith("$ ")]
            commands = tuple(prompted or [line for line in lines if TYPED.match(line)])
            python = (
                token.content if token.info == "python" or lines[0].startswith("headstart.") else ""
            )
            if python or (commands and token.info in ("", "text")):
                place = (page, (token.map or [0])[0] + 1)
                blocks.append(Block(*place, python, () if python else commands, reason))
            else:
                assert not reason, f"{page}: nothing that could be run comes after {reason!r}"
        else:
            assert not reason, f"{page}: no block of code comes after {reason!r}"
        reason = ""
    return blocks


BLOCKS = {page: read_blocks(page) for page in PAGES}
EVERY_BLOCK = [block for blocks in BLOCKS.values() for block in blocks]
COMMANDS = [c for block in EVERY_BLOCK for c in block.commands if c.startswith("headstart ")]
COMMANDS += re.findall(r"^(headstart .*)$", REFERENCE["commands"](), re.MULTILINE)
COMMANDS = list(dict.fromkeys(c for c in COMMANDS if "[OPTIONS]" not in c))
FITS = [c for c in COMMANDS if c.startswith("headstart fit ") and "--features" not in c]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder in which the names that the pages use are data of a few small images."""
    folder = tmp_path_factory.mktemp("world")
    digits = folder / "all"
    write_digits(digits)

    def take(place, classes, split, count, name=str):
        for digit in classes:
            target = folder / place / name(digit)
            target.mkdir(parents=True)
            for number, image in enumerate(sorted((digits / split / str(digit)).iterdir())[:count]):
                # A track and a frame, as traffic signs have, for pages that look at them.
                shutil.copy(image, target / f"{number // 2:05}_{number % 2:05}.png")

    take("photos", range(2), "train", 12)
    take("other-photos", range(2), "test", 6)
    take("new-photos", [2], "test", 1, lambda _: "")
    shutil.copy(next((digits / "test" / "2").iterdir()), folder / "one.jpg")
    for name, splits in {
        "cifar10": ("train", "test"), "cifar10-100": ("train", "test"),
        "gtsrb-small": ("train", "test"), "hymenoptera": ("train", "val"),
        "digits": ("train", "test"), "cells": ("train", "test"),
    }.items():  # fmt: skip
        take(f"{name}/{splits[0]}", range(3), "train", 10)
        take(f"{name}/{splits[1]}", range(3), "test", 4)
    take("signs/train", range(3), "train", 10, lambda digit: f"{digit:05}")
    take("signs/test", range(3), "test", 4, lambda digit: f"{digit:05}")
    (folder / "signnames.csv").write_text("ClassId,SignName\n0,stop\n1,yield\n2,ahead\n")
    for name, digit in (("cats", 3), ("dogs", 4)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
            for image in sorted((digits / "train" / str(digit)).iterdir())[:12]:
                file.write(image, image.name)
    labels = ["path,label"]
    for number in range(24):
        own = [name for bit, name in enumerate(("haze", "road", "cloud")) if number >> bit & 1]
        shade = 60 * (number % 4)
        Image.new("RGB", (32, 32), (shade, 255 - shade, number * 9)).save(
            folder / f"{number:03}.png"
        )
        labels.append(f"{number:03}.png,{'|'.join(own)}")
    for name in ("labels.csv", "test.csv"):
        (folder / name).write_text("\n".join(labels) + "\n")
    shutil.rmtree(digits)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.reason for b in BLOCKS[p])])
def test_a_page_runs(page, world, tmp_path, monkeypatch, capsys):
    """In order, each command in this process; whatever is printed must be something."""
    place = tmp_path / "place"
    shutil.copytree(world, place)
    monkeypatch.chdir(place)
    names = {}  # that a page's programs have in common, as the cells of a notebook do
    for block in BLOCKS[page]:
        where = f"{page}:{block.line}"
        if block.reason:
            continue
        if block.python:
            exec(compile(block.python, where, "exec"), names)
        for command in block.commands:
            program, *words = shlex.split(command, comments=True)
            assert program == "headstart", f"{where}: say why {command!r} is not run"
            app(words, standalone_mode=False)
            assert capsys.readouterr().out, f"{where}: {command}"


@pytest.mark.parametrize(
    "block", [b for b in EVERY_BLOCK if b.reason], ids=lambda b: f"{b.page}:{b.line}"
)
def test_a_block_is_not_run(block):
    pytest.skip(block.reason)


def test_the_pages_are_read():
    """Blocks are found on the pages that begin, and more of all blocks are run than left out."""
    for page in ("README.md", "docs/start.md", "docs/from-python.md"):
        assert len([b for b in BLOCKS[page] if not b.reason]) >= 2
    run = sum(not block.reason for block in EVERY_BLOCK)
    assert run > len(EVERY_BLOCK) / 3, f"{run} of {len(EVERY_BLOCK)} blocks are run"


def test_readme_is_short_and_its_links_lead_somewhere():
    """On the repository host, which knows nothing of the site."""
    assert len(README.splitlines()) < 120
    assert README.count("![") == 1
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert (ROOT / link).is_file(), link


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = """<h2 id="here">a</h2> <a href="b.html#there">1</a> <a href="#here">2</a> <img src="{}">
    <a href="c.html">3</a> <a href="b.html#gone">4</a> <a href="https://example.org/">5</a>"""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.html").write_text(page.format("data:image/png;base64,"))
    (tmp_path / "b.html").write_text('<h2 id="there"><script src="//example.org/x.js"></script>')
    (tmp_path / "deep/c.html").write_text('<a href="../b.html">1</a> <a href="b.html">2</a>')
    (tmp_path / "s.css").write_text("@font-face { src: url('https://example.org/font'); }")
    assert runpy.run_path(str(DOCS / "check_links.py"))["find_faults"](tmp_path) == [
        "a.html: c.html leads nowhere",
        "a.html: b.html#gone has no such place",
        "b.html: loads //example.org/x.js",
        "deep/c.html: b.html leads nowhere",
        "s.css: loads from elsewhere",
    ]


@pytest.mark.slow
def test_the_demo_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    app(["demo"], standalone_mode=False)
    assert "Now with your own images" in capsys.readouterr().out


def test_every_command_and_name_is_documented():
    """Commands in README too; functions of everyday use are shown in use."""
    group = typer.main.get_command(app)
    page = REFERENCE["commands"]()
    for name, command in group.commands.items():
        assert f"`headstart {name}`" in README
        assert f"\n## headstart {name}\n" in page
        for own in getattr(command, "commands", {}):
            assert f"\n### headstart {name} {own}\n" in page
    directives = re.findall(
        r"^\.\. auto\w+:: headstart\.(\w+)$", PAGES["docs/api.md"], re.MULTILINE
    )
    assert sorted(directives) == sorted(headstart.__all__)
    shown = PAGES["docs/from-python.md"]
    for name in ("advise", "audit", "fit", "evaluate", "predict", "compare", "report", "extract"):
        assert f"headstart.{name}(" in shown
        assert getattr(headstart, name).__doc__
    assert "headstart.extract_activations(" in shown


def test_the_objects_of_json_are_described(cli, tiny, tiny_run, photos, tmp_path):
    options = [f"--{name}={value}" for name, value in tiny.items()]
    where = ["--device", "cpu"]
    for command, words in {
        "fit": [photos, "-o", tmp_path / "run", *options],
        "evaluate": [tiny_run.folder, photos, *where],
        "predict": [tiny_run.folder, photos / "test", *where],
        "extract": [photos, *options[1:]],
    }.items():
        code, out, err = cli(command, *words, "--json")
        assert code == 0, err
        [row] = re.findall(rf"^\| `{command}` \|(.*)\|$", PAGES["docs/outputs.md"], re.MULTILINE)
        told = set(re.findall(r"`(\w+)`", row))
        assert set(json.loads(out.splitlines()[-1])) <= told, command


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_documents_exist(page):
    known = {"--help", "--links", "--measure", "--details", "--scores"}  # of scripts and benchmarks
    for command in list_commands(typer.main.get_command(app)):
        known |= {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"`(--[a-z][a-z-]+)", PAGES[page])) <= known


def list_commands(group):
    for command in group.commands.values():
        yield command
        if hasattr(command, "commands"):
            yield from list_commands(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command):
    """Its options are known and of their type, and the network it names exists; nothing is run."""
    words = shlex.split(command.split(" | ")[0].split(" > ")[0], comments=True)[1:]
    group = typer.main.get_command(app)
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    params = group.make_context(group.name, words).params
    network = params.get("backbone")
    if "words" in params and str(params["words"][0]).startswith("pretrained:"):
        network = params["words"][0].removeprefix("pretrained:")
    if group.name == "layers":
        network = params["name"]
    for name in [network] if isinstance(network, str) else network or ():
        find_network(name)


@pytest.mark.parametrize("command", FITS)
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


def test_the_guide_names_every_strategy_and_option_of_training():
    for strategy in STRATEGIES:
        assert f"## {strategy}\n" in GUIDE
        assert f"| `{strategy}` |" in GUIDE
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


@pytest.mark.parametrize("name", REFERENCE)
def test_a_page_of_reference_is_that_of_the_code(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page == REFERENCE[name](), f"python -m headstart.cli.reference {name} > docs/{name}.md"


def test_the_page_of_data_has_every_form():
    for name in FORMS:
        assert re.search(rf"^\| .*`{name}`.* \| .* \| `headstart.* \|$", DATA, re.MULTILINE), name


def test_help_is_told_in_sentences():
    for name in FIELDS:
        text = help_of(name)
        assert re.fullmatch(r"[A-Z][a-z]+ .*\.", text), name
        assert text.split()[0] not in ("Of", "Whether", "For", "That"), name


SOURCES = [
    *PAGES.values(),
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
    assert len(re.findall(r"--group '", "".join(PAGES.values()))) >= 3
    assert set(re.findall(r"--group '([^']+)'", text)) <= set(PATTERNS)

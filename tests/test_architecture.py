"""Files import only from files above them, say what is public, and start quickly."""

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import headstart

ORDER = (
    "errors datasets images store architectures networks backbones engines features activations "
    "metrics logistic heads trainable sources finetune settings strategies advise classifier fit audit "
    "compare report export serve scale demo terminal commands cli __init__"
).split()
ROOT = Path(headstart.__file__).parent
FILES = {path.stem: path for path in ROOT.glob("*.py")}
FILES |= {path.parent.name: path for path in ROOT.glob("*/__init__.py")}
SLOW = ("torch", "timm", "torchvision", "sklearn", "scipy", "openvino")


def imported(tree):
    """Names of modules that are imported anywhere but under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_its_place():
    assert set(FILES) <= set(ORDER)


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_files_above_it(name):
    paths = [FILES[name]] if name == FILES[name].stem else FILES[name].parent.rglob("*.py")
    above = ORDER[: ORDER.index(name)]
    for path in paths:
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            package, _, rest = module.partition(".")
            if package != "headstart":
                continue
            if not rest:  # the package with its public names, which are imported when first used
                assert name in ("commands", "cli"), (
                    "only the command line works through the public names"
                )
            else:
                assert rest.split(".")[0] in (*above, name)


@pytest.mark.parametrize("name", FILES)
def test_public_names_are_listed_and_exist(name):
    module = importlib.import_module("headstart" if name == "__init__" else f"headstart.{name}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", headstart.__all__)
def test_public_names_are_documented(name):
    assert (getattr(headstart, name).__doc__ or "").strip()
    assert name in dir(headstart)


def test_an_unknown_name_is_missing():
    with pytest.raises(AttributeError, match="'headstart' has no attribute 'fti'"):
        headstart.fti


def run_python(code):
    """What is printed last."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.rstrip().rpartition("\n")[2]


@pytest.mark.parametrize(
    "code",
    [
        "import headstart",
        "import headstart, headstart.cli; sys.argv = ['headstart', '--help']\n"
        "try:\n    headstart.cli.main()\nexcept SystemExit as end:\n    assert not end.code",
    ],
    ids=["import", "help"],
)
def test_starting_imports_nothing_slow(code):
    code = f"import sys\n{code}\nprint([n for n in {SLOW} if n in sys.modules])"
    assert run_python(code) == "[]"


def test_help_is_quick():
    command = [sys.executable, "-c", "import headstart.cli; headstart.cli.main()", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2


def test_importing_the_file_fit_leaves_the_function_in_place():
    code = "import headstart, headstart.fit\nfrom headstart import fit\nimport headstart.metrics"
    assert run_python(f"{code}\nprint(callable(fit) and headstart.fit is fit)") == "True"

"""Files import only from files above them, say what is public, and start quickly."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}


def list_rooms():
    """(file, files that it may import from), in order; those that a * stands for do not see each other."""
    rooms = []
    for wing, words in headstart.ORDER.items():
        named = [f"{wing}.{word}".lstrip(".") for word in words.split()]
        others = {
            name
            for name in FILES
            if name.rpartition(".")[0] == wing and not name.endswith("__init__")
        }
        for place in named:
            above = [name for name, _ in rooms]
            alike = sorted(others.difference(named)) if place.endswith("*") else [place]
            rooms += [(name, above) for name in alike]
    return rooms


ABOVE = dict(list_rooms())
ROOMS = list(ABOVE)
# They say what is in a wing, and begin the program.
DOORS = ("__init__", "__main__", *(f"{wing}.__init__" for wing in headstart.ORDER if wing))
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
    assert sorted([*ROOMS, *DOORS]) == sorted(FILES)


@pytest.mark.parametrize("name", ROOMS)
def test_a_file_imports_only_from_files_above_it(name):
    for module in imported(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        package, _, rest = module.partition(".")
        if package != "headstart":
            continue
        if not any(rest == room or rest.startswith(f"{room}.") for room in ABOVE[name]):
            # The package's public names, which are imported when first used.
            assert name.startswith("cli."), f"{name} imports {module}"
            assert not rest or rest in headstart.__all__


@pytest.mark.parametrize("wing", [wing for wing in headstart.ORDER if wing])
def test_a_wing_says_what_it_holds_and_nothing_else(wing):
    tree = ast.parse(FILES[f"{wing}.__init__"].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("name", [*ROOMS, "__init__", "__main__"])
def test_public_names_are_listed_and_exist(name):
    module = importlib.import_module("headstart" if name == "__init__" else f"headstart.{name}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", headstart.__all__)
def test_public_names_are_documented(name):
    assert (getattr(headstart, name).__doc__ or "").strip()
    assert name in dir(headstart)


def measure_functions(path):
    """(name, lines, parameters with self) of every function in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            parameters += [p for p in (given.vararg, given.kwarg) if p is not None]
            yield node.name, node.end_lineno - node.lineno + 1, len(parameters)


@pytest.mark.parametrize("name", ROOMS)
def test_a_function_fits_on_a_page(name):
    """Lines from `def` on, docstring included; the training loop reads from top to bottom in one."""
    found = [f for f in measure_functions(FILES[name]) if f[0] != "train_network"]
    assert [f for f in found if f[1] > 80 or f[2] > 8] == []


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
        "import headstart, headstart.cli.app; sys.argv = ['headstart', '--help']\n"
        "try:\n    headstart.cli.app.main()\nexcept SystemExit as end:\n    assert not end.code",
    ],
    ids=["import", "help"],
)
def test_starting_imports_nothing_slow(code):
    code = f"import sys\n{code}\nprint([n for n in {SLOW} if n in sys.modules])"
    assert run_python(code) == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="no count of the processor's seconds")
def test_help_is_quick():
    import resource

    command = [sys.executable, "-c", "import headstart.cli.app; headstart.cli.app.main()", "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, timeout=300, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 2  # of a processor, whatever else it does


def test_a_module_and_a_function_have_names_of_their_own():
    code = "import headstart, headstart.runs.fitting\nfrom headstart import fit"
    same = "headstart.runs.fitting.fit is fit is headstart.fit"
    assert run_python(f"{code}\nprint(callable(fit) and {same})") == "True"

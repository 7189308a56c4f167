"""Runs every command of docs/lab.md in order, as it stands there, and prints its table of figures.

    python benchmarks/lab.py --data FOLDER                    # which holds cifar10-100 and gtsrb-small
    python benchmarks/lab.py --data FOLDER --networks tf_efficientnet_lite0,resnet50 --verbose

In a new folder with an empty cache. Every command is a process of its own; its seconds include the start of
Python. What a command prints is shown with --verbose.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from extract import describe

import headstart

HERE = Path(__file__).resolve().parents[1]
NETWORKS = ("tf_efficientnet_lite0", "vgg16", "inception_v3", "resnet50")
DATA = ("cifar10-100", "gtsrb-small")


def find_commands(networks: list[str]) -> list[list[str]]:
    """The words of the commands of the page that concern these networks, in order."""
    page = (HERE / "docs" / "lab.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^    ((?:headstart|python) .*)$", page.split("## The lab")[1], re.MULTILINE
    )
    return [shlex.split(line) for line in lines if any(name in line for name in networks)]


def run(words: list[str], place: Path, *, verbose: bool) -> float:
    """Run a command; give its seconds."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE / "src"),
        "HEADSTART_CACHE_DIR": str(place / "cache"),
    }
    start = [sys.executable, "-m", "headstart"] if words[0] == "headstart" else [sys.executable]
    began = time.perf_counter()
    done = subprocess.run(
        [*start, *words[1:]], cwd=place, env=environment, capture_output=True, text=True
    )
    if verbose or done.returncode:
        print(f"$ {shlex.join(words)}\n{done.stderr}{done.stdout}", flush=True)
    done.check_returncode()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    networks = arguments.networks.split(",")
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name in DATA:
            (place / name).symlink_to((arguments.data / name).resolve())
        seconds = {}
        for words in find_commands(networks):
            seconds[tuple(words)] = run(words, place, verbose=arguments.verbose)
        for network in networks:
            for data in DATA:
                rows.append(_describe(place, network, data, seconds))
    print(f"{describe()}\n")
    print(
        "| network | data | training + validation images | features | extract | head of 480 | linear head |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    print("\n".join(rows))


def _describe(place: Path, network: str, data: str, seconds: dict[tuple[str, ...], float]) -> str:
    """A row of the table."""

    def took(*parts: str) -> float:
        [found] = [s for words, s in seconds.items() if all(p in words for p in parts)]
        return found

    cells = [network if network == NETWORKS[0] else f"{network}, random weights", data]
    for kind in ("mlp", "linear"):
        result = headstart.Run.load(place / "heads" / f"{network}-{data}-{kind}")
        if kind == "mlp":
            width = headstart.load_head(result.folder)[0].width
            cells += [f"{result.images['train']:,} + {result.images['val']:,}", f"{width:,}"]
            cells += [f"{took(f'{data}/train', network):.0f} s"]
        e, s = result.metrics["accuracy"], took(f"heads/{network}-{data}-{kind}")
        cells += [f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f}), {s:.1f} s"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

"""The first commands on a machine: a linear probe with an empty cache, and the first prediction after it.

    python benchmarks/first.py photos                              # a folder of class folders
    python benchmarks/first.py photos --against ../before --rounds 3

`--against` names another checkout, which is measured in turn with this one in the same rounds; both are
run by this Python. Every measurement is a process of its own, start of Python included. "first image" is
when the first image has gone through the network; "predict" is of ten images; "warm" repeats a command
with the cache that the first one left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from extract import describe

HERE = Path(__file__).resolve().parents[1]

FIT = """
import sys, time
started = float(sys.argv[3])
import headstart
seen = []
def progress(stage, done, total):
    if stage in ("features", "reading images") and done > 0 and not seen:
        seen.append(time.time() - started)
options = {"strategy": "linear-probe", "overwrite": True, "progress": progress}
headstart.fit(sys.argv[1], sys.argv[2], **options)
print(seen[0] if seen else float("nan"))
"""

PREDICT = """
import sys
import headstart
print(len(list(headstart.predict(sys.argv[2], sys.argv[4:]))))
"""


def time_process(code: str, source: Path, cache: Path, *arguments: object) -> tuple[float, str]:
    """(seconds of the whole process, what it printed)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(source / "src"),
        "HEADSTART_CACHE_DIR": str(cache),
    }
    started = time.time()
    data, run, *images = map(str, arguments)
    done = subprocess.run(
        [sys.executable, "-c", code, data, run, str(started), *images],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return time.time() - started, done.stdout.strip()


def measure(source: Path, data: Path) -> dict[str, float]:
    """Seconds of each of the first commands, in a cache of its own."""
    images = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".ppm"))[:10]
    with tempfile.TemporaryDirectory() as folder:
        cache, run = Path(folder, "cache"), Path(folder, "run")
        fit, first = time_process(FIT, source, cache, data, run)
        predict, _ = time_process(PREDICT, source, cache, data, run, *images)
        again, _ = time_process(PREDICT, source, cache, data, run, *images)
        warm, _ = time_process(FIT, source, cache, data, run)
    return {
        "first image": float(first),
        "first fit": fit,
        "first predict": predict,
        "warm predict": again,
        "warm fit": warm,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--against", type=Path, help="Another checkout to measure beside this one.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sources = {"this": HERE} | ({"other": arguments.against} if arguments.against else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    for _ in range(arguments.rounds):
        for name, source in sources.items():
            found[name].append(measure(source.resolve(), arguments.data.resolve()))
            print(
                name, json.dumps({k: round(v, 2) for k, v in found[name][-1].items()}), flush=True
            )
    print(describe())
    print(f"{'seconds, median (min to max)':32s}" + "".join(f"{n:>24s}" for n in sources))
    for what in found["this"][0]:
        row = f"{what:32s}"
        for name in sources:
            values = [f[what] for f in found[name]]
            low, high = min(values), max(values)
            row += f"{f'{statistics.median(values):.2f} ({low:.2f} to {high:.2f})':>24s}"
        print(row)


if __name__ == "__main__":
    main()

"""How long a folder of many images takes to list, against `find`, and how much memory the list takes.

    python benchmarks/listing.py                        # 1,000 and 100,000 files, five rounds
    python benchmarks/listing.py --counts 1000,10000

Files lie in a hundred class folders and hold a byte each; none is opened. The command `find FOLDER -type f
-printf '%s %p'` tells the name and size of each. Seconds are those of the processor, since other work on the
machine lengthens those by the clock; rounds are interleaved, and ratios are of one round. Every measurement
of headstart runs in a process of its own and starts after the import.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = 100


def plant(folder: Path, count: int) -> Path:
    for label in range(CLASSES):
        (folder / f"class{label:02}").mkdir(parents=True)
    for number in range(count):
        (folder / f"class{number % CLASSES:02}" / f"{number:06}.jpg").write_bytes(b"x")
    return folder


def count_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def load(folder: str) -> None:
    """In a process of its own: processor seconds, and peak memory."""
    import headstart.data.loading

    before = count_seconds(resource.RUSAGE_SELF)
    dataset = headstart.data.loading.load_dataset(folder)
    seconds = count_seconds(resource.RUSAGE_SELF) - before
    assert len(dataset) == int(Path(folder).name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def run_find(folder: Path) -> float:
    before = count_seconds(resource.RUSAGE_CHILDREN)
    words = ["find", str(folder), "-type", "f", "-printf", "%s %p\n"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return count_seconds(resource.RUSAGE_CHILDREN) - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1000,100000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load")
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
        return
    print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores")
    print(f"{'files':>9}  {'find s':>7}  {'headstart s':>11}  ratio (min, median, max)  peak MB")
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in map(int, arguments.counts.split(",")):
            folder = plant(Path(temporary) / f"{count}", count)
            command = [sys.executable, __file__, "--load", str(folder)]
            found, own = [], []
            for _ in range(arguments.rounds):
                found.append(run_find(folder))
                done = subprocess.run(command, check=True, capture_output=True)
                own.append(json.loads(done.stdout))
            seconds = [one["seconds"] for one in own]
            ratios = sorted(s / f for s, f in zip(seconds, found, strict=True))
            told = ", ".join(f"{r:.2f}" for r in (ratios[0], statistics.median(ratios), ratios[-1]))
            peaks.append(max(one["peak_mb"] for one in own))
            print(
                f"{count:>9,}  {statistics.median(found):>7.3f}  {statistics.median(seconds):>11.3f}  "
                f"{told:24}  {peaks[-1]:.0f}"
            )
    print(f"the most files take {peaks[-1] - peaks[0]:.0f} MB more than the fewest")


if __name__ == "__main__":
    main()

"""How long a table of images takes to open, and how much memory, as CSV and as Parquet.

    python benchmarks/manifests.py                        # 1,000, 100,000 and 1,000,000 rows, three rounds
    python benchmarks/manifests.py --counts 1000,10000

Rows are of a thousand folders, a hundred classes and 20,000 groups; there are no images. Every measurement
runs in a process of its own and starts after the import. Processor time is beside the time by the clock,
since other work on the machine lengthens that alone.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
from pyarrow import parquet

COLUMNS = ("path", "label", "split", "group")


def plant(folder: Path, count: int) -> list[Path]:
    """The same rows as CSV and as Parquet."""
    rows = [
        (
            f"images/{n % 1000:03}/{n:07}.jpg",
            f"class {n % 100}",
            "train" if n % 5 else "val",
            f"{n % 20_000}",
        )
        for n in range(count)
    ]
    text = "\n".join(",".join(row) for row in (COLUMNS, *rows))
    paths = [folder / f"{count}.csv", folder / f"{count}.parquet"]
    paths[0].write_text(text)
    columns = zip(COLUMNS, zip(*rows, strict=True), strict=True)
    parquet.write_table(pyarrow.table({name: list(cells) for name, cells in columns}), paths[1])
    return paths


def load(path: str) -> None:
    """In a process of its own: seconds and peak memory."""
    import headstart.data.loading

    start, before = time.perf_counter(), time.process_time()
    dataset = headstart.data.loading.load_dataset(path)
    seconds, busy = time.perf_counter() - start, time.process_time() - before
    assert len(dataset) == int(Path(path).stem)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "busy": busy, "peak_mb": peak}))


def run(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--load", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load")
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
        return
    print(
        f"Python {platform.python_version()}, pyarrow {pyarrow.__version__}, {os.cpu_count()} cores"
    )
    print(f"{'rows':>9}  {'form':8}  {'seconds (min, median, max)':28}  {'processor':>9}  peak MB")
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, arguments.counts.split(",")):
            for path in plant(Path(folder), count):
                runs = sorted(
                    (run(path) for _ in range(arguments.rounds)), key=lambda r: r["seconds"]
                )
                seconds = ", ".join(f"{runs[i]['seconds']:.2f}" for i in (0, len(runs) // 2, -1))
                busy = min(r["busy"] for r in runs)
                peak = max(r["peak_mb"] for r in runs)
                print(f"{count:>9,}  {path.suffix:8}  {seconds:28}  {busy:>9.2f}  {peak:.0f}")


if __name__ == "__main__":
    main()

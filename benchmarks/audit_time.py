"""How long an audit takes once the features of the images are in the store, and how much memory.

    python benchmarks/audit_time.py                # 1,000 and 10,000 pictures of ten classes, three rounds
    python benchmarks/audit_time.py --counts 2000 --profile

Pictures are 64 x 64 noise over a pattern of their class, so that a probe is right about most; two in a
hundred have another's label, and one in a hundred is a copy. The built-in network sees them. Every run is
in a process of its own and starts after the import; seconds are those of the processor, of all threads,
since other work on the machine lengthens those by the clock.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
SIDE = 64


def plant(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        label = number % CLASSES
        waves = np.sin(2 * np.pi * (x * (1 + label % 5) + y * (label // 5) * 4 + rng.random()))
        coarse = rng.normal(0, 60, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        pixels = 128 + 35 * waves[..., None] + coarse + rng.normal(0, 20, (SIDE, SIDE, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        if rng.random() < 0.02:
            label = int(rng.integers(CLASSES))
        image.save(folder / f"class{label}" / f"{number:06}.jpg", quality=90)
        if rng.random() < 0.01:
            image.save(folder / f"class{label}" / f"{number:06}-copy.jpg", quality=70)


def run(folder: str, is_profiled: bool) -> None:
    """In a process of its own: seconds and peak memory."""
    import headstart

    audit = headstart.audit  # imported when first used
    profile = cProfile.Profile()
    clock, busy = time.perf_counter(), time.process_time()
    if is_profiled:
        profile.enable()
    options = {"cache_dir": str(Path(folder).parent / "cache"), "device": "cpu"}
    found = audit(folder, **options)
    profile.disable()
    seconds = {"busy": time.process_time() - busy, "clock": time.perf_counter() - clock}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"errors": len(found.label_errors), "copies": len(found.duplicates)}
    print(json.dumps({**seconds, "peak_mb": peak, **told}))
    if is_profiled:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    parser.add_argument("--run")
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.profile)
        return
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores")
    print(
        "|  images | store | processor s (min, median, max) | clock s | peak MB | errors | copies |"
    )
    print("|---:|---|---|---:|---:|---:|---:|")
    for count in map(int, arguments.counts.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            plant(Path(temporary) / "data", count)
            command = [sys.executable, __file__, "--run", f"{temporary}/data"]
            for store, rounds in (("empty", 1), ("full", arguments.rounds)):
                more = ["--profile"] if arguments.profile and store == "full" else []
                done = [
                    json.loads(
                        subprocess.run(command + more, check=True, stdout=subprocess.PIPE).stdout
                    )
                    for _ in range(rounds)
                ]
                busy = [one["busy"] for one in done]
                told = ", ".join(f"{f(busy):.1f}" for f in (min, statistics.median, max))
                peak = max(one["peak_mb"] for one in done)
                clock = statistics.median(one["clock"] for one in done)
                print(
                    f"| {count:,} | {store} | {told} | {clock:.1f} | {peak:,.0f} | "
                    f"{done[0]['errors']} | {done[0]['copies']} |"
                )


if __name__ == "__main__":
    main()

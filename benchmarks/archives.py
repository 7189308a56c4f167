"""How fast images are read from archives, against the same images in a folder.

    python benchmarks/archives.py                      # 2,000 generated 500 x 375 JPEGs, 3 rounds
    python benchmarks/archives.py --count 50000 --side 64 --backbone test_vit

Rounds are interleaved, so that a slow minute of the machine hits all forms alike; ratios are of one round.
Rates are by seconds of the processor, of all threads; beside them stand ratios by the clock, which other
work lengthens.

list        headstart.load_dataset
read        every image read and hashed, in the order of the data set, in as many threads as extraction has
random      the same in a random order
extract     headstart.extract with an empty store, on the built-in network or, with random weights, --backbone
"""

import argparse
import contextlib
import hashlib
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extract import describe, generate
from PIL import Image

import headstart
from headstart.parallel import count_threads

Pair = tuple[float, float]
BASE = 300  # pictures, of which all others are copies with another end

PACK = {
    "folder": None,
    "tar": "tar cf {out} -C {folder} .",
    "tar.gz": "tar czf {out} -C {folder} .",
    "tar.xz": "tar cf - -C {folder} . | xz -1 > {out}",
    "zip": "cd {folder} && zip -qr {out} .",
    "stored.zip": "cd {folder} && zip -qr0 {out} .",
}


def plant(folder: Path, count: int, side: int) -> None:
    """Generate pictures, made smaller to `side` pixels if that is not 0."""
    generate(folder, min(count, BASE))
    files = sorted(folder.glob("*/*"))
    for file in files if side else ():
        Image.open(file).resize((side, side)).save(file, quality=90)
    for number in range(len(files), count):
        data = files[number % len(files)].read_bytes()
        (folder / f"class{number % 4}" / f"{number:06}.jpg").write_bytes(data + b"%d" % number)


def read_all(dataset: headstart.Dataset, rows: list[int]) -> None:
    def work(part: list[int]) -> None:
        for row in part:
            hashlib.sha256(dataset.image(row).read()).digest()

    with ThreadPoolExecutor(count_threads(None)) as pool:
        list(pool.map(work, (rows[i : i + 32] for i in range(0, len(rows), 32))))


def measure(data: Path, backbone: headstart.Backbone | None, cache: Path) -> dict[str, Pair]:
    """(seconds of the processor, seconds by the clock) of each step."""
    times = {}

    @contextlib.contextmanager
    def timed(step: str) -> Iterator[None]:
        busy, clock = time.process_time(), time.perf_counter()
        yield
        times[step] = (time.process_time() - busy, time.perf_counter() - clock)

    with timed("list"):
        dataset = headstart.load_dataset(data)
    rows = list(range(len(dataset)))
    for name in ("read", "random"):
        with timed(name):
            read_all(dataset, rows)
        random.Random(0).shuffle(rows)
    if backbone is not None:
        shutil.rmtree(cache, ignore_errors=True)
        runtime = headstart.Runtime(cache_dir=str(cache), device="cpu")
        with timed("extract"):
            assert headstart.extract(dataset, backbone, runtime).computed == len(dataset)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", default=",".join(PACK))
    parser.add_argument("--side", type=int, default=0, help="of small images, in pixels")
    parser.add_argument("--backbone", default="")
    parser.add_argument("--no-extract", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        places = {"folder": Path(temporary) / "folder"}
        plant(places["folder"], arguments.count, arguments.side)
        for form in arguments.forms.split(","):
            if command := PACK[form]:
                places[form] = Path(temporary) / f"images.{form}"
                command = command.format(folder=places["folder"], out=places[form])
                subprocess.run(command, shell=True, check=True)
        backbone = None
        if not arguments.no_extract:
            named = (
                {"name": arguments.backbone, "random_weights": True} if arguments.backbone else {}
            )
            backbone = headstart.load_backbone(**named)
        if backbone is not None:
            headstart.start_engine(backbone)  # compiled once, and kept
        found: dict[str, list[dict[str, Pair]]] = {form: [] for form in places}
        for _ in range(arguments.rounds):
            for form, place in places.items():
                found[form].append(measure(place, backbone, Path(temporary) / "cache"))
        size = sum(f.stat().st_size for f in places["folder"].glob("*/*")) / 1e6
    print(f"{arguments.count:,} images, {size:,.0f} MB, {arguments.rounds} rounds; {describe()}\n")
    print(
        "| form | step | images/s min | median | max | of the folder's, median (range) | by the clock |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for form, rounds in found.items():
        for step in rounds[0]:
            rates = [arguments.count / times[step][0] for times in rounds]
            low, middle, high = min(rates), statistics.median(rates), max(rates)
            told = []
            for kind in range(2):
                pairs = zip(found["folder"], rounds, strict=True)
                ratios = [folder[step][kind] / times[step][kind] for folder, times in pairs]
                told.append(
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                )
            print(
                f"| {form} | {step} | {low:,.0f} | {middle:,.0f} | {high:,.0f} | {' | '.join(told)} |"
            )


if __name__ == "__main__":
    main()

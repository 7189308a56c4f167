"""How time and memory grow with the number of images, and what a warm store saves.

    python benchmarks/scale.py                      # 1,000, 5,000, 10,000 and 20,000 images
    python benchmarks/scale.py --counts 400,1000

The images are 500 x 375 JPEGs; 100 are generated and copied with a comment of their own, so that every
file is another image to the store. Every measurement runs in a process of its own. `extract` times start
after imports; `fit` times are of the whole command, start of Python included, with the network
compiled before.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from extract import describe, generate


def plant(folder: Path, originals: list[bytes], count: int) -> None:
    """`count` different files in four classes."""
    for number in range(count):
        place = folder / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        comment = f"{number:010}".encode()
        # A JPEG comment segment after the start marker: other bytes, same pixels.
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        data = originals[number % len(originals)]
        (place / f"{number:06}.jpg").write_bytes(data[:2] + segment + data[2:])


def extract(folder: str) -> None:
    """In a process of its own: seconds and peak memory of one extraction."""
    import headstart

    start = time.perf_counter()
    backbone = headstart.load_backbone()
    dataset = headstart.load_dataset(folder)
    features = headstart.extract(dataset, backbone)
    matrix = features.values["classifier"]
    seconds = time.perf_counter() - start
    assert matrix.shape == (len(dataset), 1280)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "computed": features.computed}))


def stream(folder: str) -> None:
    """As `extract`, without reading the matrix back: what the extraction itself takes."""
    import headstart

    start = time.perf_counter()
    features = headstart.extract(headstart.load_dataset(folder), headstart.load_backbone())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "computed": features.computed}))


def run(environment: dict[str, str], *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def time_fit(environment: dict[str, str], folder: Path, out: Path) -> float:
    code = "import headstart.cli.app; headstart.cli.app.main()"
    command = [sys.executable, "-c", code, "fit", str(folder), "-o", str(out)]
    command += ["--strategy", "linear-probe"]
    start = time.perf_counter()
    subprocess.run([*command, "--overwrite", "--quiet"], env=environment, check=True, stdout=-3)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1000,5000,10000,20000")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        {"extract": extract, "stream": stream}[arguments.measure[0]](arguments.measure[1])
        return
    print(describe())
    print()
    print("| images | cold s | images/s | peak MB | warm s | cold fit s | warm fit s | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    counts, seconds, peaks = [int(c) for c in arguments.counts.split(",")], [], []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        environment = {**os.environ, "HEADSTART_CACHE_DIR": str(place / "cache")}
        generate(place / "originals", 100)
        originals = [p.read_bytes() for p in sorted((place / "originals").rglob("*.jpg"))]
        plant(place / "first", originals, 8)
        run(environment, "--measure", "stream", str(place / "first"))  # compiles the network
        shutil.rmtree(place / "cache" / "features")
        for count in counts:
            folder = place / "images"
            plant(folder, originals, count)
            time.sleep(3)  # files just written are not trusted to stay as they are
            cold = run(environment, "--measure", "stream", str(folder))
            assert cold["computed"] == count
            warm = run(environment, "--measure", "extract", str(folder))
            assert warm["computed"] == 0
            shutil.rmtree(place / "cache" / "features")
            shutil.rmtree(place / "cache" / "files")
            cold_fit = time_fit(environment, folder, place / "run")
            warm_fit = time_fit(environment, folder, place / "run")
            seconds.append(cold["seconds"])
            peaks.append(cold["peak_mb"])
            print(
                f"| {count:,} | {cold['seconds']:.1f} | {count / cold['seconds']:.0f} | "
                f"{cold['peak_mb']:.0f} | {warm['seconds']:.2f} | {cold_fit:.1f} | {warm_fit:.1f} | "
                f"{cold_fit / warm_fit:.1f} |",
                flush=True,
            )
            shutil.rmtree(folder)
            shutil.rmtree(place / "cache" / "features")
            shutil.rmtree(place / "cache" / "files")
    if len(counts) > 2:
        slope, start = np.polyfit(counts, seconds, 1)
        away = np.abs(np.polyval([slope, start], counts) / seconds - 1).max()
        print()
        print(f"time = {start:.1f} s + {slope * 1000:.2f} ms an image, within {away:.0%}")
        print(f"peak memory grows by {peaks[-1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()

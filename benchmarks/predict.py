"""What a kept `Predictor` takes: the first answer, bytes one at a time, several askers, and a batch of 100.

    python benchmarks/predict.py                     # EfficientNet-Lite0 as it was published
    python benchmarks/predict.py run --engine torch  # a run of yours

Images are drawn JPEG files of 500 x 375 pixels, as photographs for the web are. "one call each" makes a
predictor for every image, as `headstart.predict` does; it is the rival. The cache is a new one, so the first
answer of all compiles the network, and the first answer again is that of a second process' predictor.
"""

import argparse
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from extract import describe
from PIL import Image

import headstart

HEIGHT, WIDTH, IMAGES = 375, 500, 100


def draw_images() -> list[bytes]:
    """JPEG files with shapes and noise, about 60 kB each."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    files = []
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        waves = [np.sin(x / rng.uniform(5, 60) + y / rng.uniform(5, 60)) for _ in range(3)]
        pixels = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 8, (HEIGHT, WIDTH, 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def time_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(model: str, runtime: headstart.Runtime, images: list[bytes]) -> dict[str, float]:
    """Seconds of the first answers, images a second of the others."""
    found = {}
    options = runtime.model_dump(exclude_unset=True)
    for name in ("first answer, s", "first answer again, s"):
        predictor = headstart.Predictor.load(model, runtime=runtime)
        found[name] = time_s(functools.partial(predictor.predict_proba, images[0]))
    with predictor:

        def ask(image: bytes) -> object:
            return next(predictor.predict(image))

        few = images[:40]
        found["one at a time, images/s"] = len(few) / time_s(lambda: [ask(i) for i in few])
        with ThreadPoolExecutor(4) as pool:
            seconds = time_s(lambda: list(pool.map(ask, few)))
        found["4 askers at once, images/s"] = len(few) / seconds
        seconds = time_s(lambda: predictor.predict_proba(images))
        found["a batch of 100, images/s"] = len(images) / seconds
    once = time_s(lambda: [list(headstart.predict(model, i, **options)) for i in images[:3]])
    found["one call each, images/s"] = 3 / once
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="pretrained:tf_efficientnet_lite0")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    images, rounds = draw_images(), []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            runtime = headstart.Runtime(
                engine=arguments.engine, workers=arguments.workers, cache_dir=cache
            )
            rounds.append(measure(arguments.model, runtime, images))
    print(describe())
    print(
        f"{arguments.model}, {HEIGHT} x {WIDTH} px, {sum(map(len, images)) / 1e5:.0f} kB an image"
    )
    print(f"{'':30s}{'median':>10s}{'min':>10s}{'max':>10s}")
    for name in rounds[0]:
        values = [found[name] for found in rounds]
        figures = (statistics.median(values), min(values), max(values))
        print(f"{name:30s}" + "".join(f"{v:10.2f}" for v in figures))


if __name__ == "__main__":
    main()

"""What a report takes and weighs: of many images and classes, and in a browser.

    python benchmarks/report.py                          # 10,000 images of 100 classes; 1,000 of 1,000
    python benchmarks/report.py --cases 2000:10,2000:1000
    python benchmarks/report.py --runs run1,run2         # runs of yours, on their own data
    python benchmarks/report.py --fits photos,digits     # what fit takes, and its report within it

The images are drawn JPEG files of 160 x 120 pixels in class folders; a run trained on a part of them is
evaluated once, which fills the feature store, and then reported. "opens" is the time to the load event in
Chromium, and what axe calls serious is counted, where Playwright and axe-playwright-python are installed.
"""

import argparse
import functools
import io
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from extract import describe
from PIL import Image

import headstart
from headstart.cli.commands import choose_looking_s

TRAINED = 2  # images a class


def plant(folder: Path, images: int, classes: int) -> None:
    """Draw `images` to test on, and a few a class to train on."""
    y, x = np.mgrid[:120, :160]
    for number in range(images + TRAINED * classes):
        label, part = number % classes, "train" if number < TRAINED * classes else "test"
        rng, own = np.random.default_rng(label), np.random.default_rng([1, number])
        waves = [np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(3)]
        pixels = 128 + 90 * np.stack(waves, axis=2) + own.normal(0, 60, (120, 160, 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        place = folder / part / f"class {label:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06}.jpg").write_bytes(file.getvalue())


def open_page(page: Path) -> str:
    """How long Chromium takes to load a page, and what axe finds in it."""
    try:
        from axe_playwright_python.sync_playwright import Axe
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "browser not measured"
    troubles: list[str] = []
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on("console", lambda message: troubles.append(message.text))
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        opened.goto("about:blank")
        began = time.perf_counter()
        opened.goto(page.as_uri())
        seconds = time.perf_counter() - began
        found = Axe().run(opened).response["violations"]
        browser.close()
    serious = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
    told = ", ".join([*serious, *troubles]) or "nothing serious"
    return f"opens in {seconds:.2f} s, {told}"


def tell(name: str, began: tuple[float, float], written: headstart.Report) -> None:
    """Seconds by the clock and of the processor: other programs that run meanwhile change the first alone."""
    seconds, of_processor = time.perf_counter() - began[0], time.process_time() - began[1]
    size = written.page.stat().st_size / 1e6
    print(
        f"{name}: {seconds:.1f} s ({of_processor:.1f} of the processor), {size:.2f} MB, "
        f"{written.pictures} pictures, {open_page(written.page)}",
        flush=True,
    )


def measure(images: int, classes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plant(root / "data", images, classes)
        fit = functools.partial(
            headstart.fit, root / "data", root / "run", cache_dir=root / "cache"
        )
        run = fit(strategy="linear-probe", group="none", penalty=1.0)
        headstart.evaluate(run, root / "data", split="test", cache_dir=root / "cache")
        began = time.perf_counter(), time.process_time()
        written = headstart.report(
            run, root / "data", root / "page.html", split="test", cache_dir=root / "cache"
        )
        tell(f"{images:,} images, {classes:,} classes", began, written)


def measure_fit(data: Path) -> None:
    """What a probe on features that are there takes, and the report as `headstart fit` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):  # the first fills the store
            began = time.perf_counter(), time.process_time()
            run = headstart.fit(data, Path(folder) / name, strategy="linear-probe")
            fitted = time.perf_counter(), time.process_time()
            headstart.report(run, looking_s=choose_looking_s(run))
            done = time.perf_counter(), time.process_time()
        print(
            f"{data.name}: fit {fitted[0] - began[0]:.1f} s ({fitted[1] - began[1]:.1f} of the processor), "
            f"its report {done[0] - fitted[0]:.1f} s ({done[1] - fitted[1]:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="10000:100,1000:1000")
    parser.add_argument("--runs", default="")
    parser.add_argument("--fits", default="")
    arguments = parser.parse_args()
    print(describe())
    for path in filter(None, arguments.runs.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter(), time.process_time()
            tell(path, began, headstart.report(path, None, Path(folder) / "page.html"))
    for path in filter(None, arguments.fits.split(",")):
        measure_fit(Path(path))
    for case in arguments.cases.split(",") if not (arguments.runs or arguments.fits) else ():
        measure(*(int(number) for number in case.split(":")))


if __name__ == "__main__":
    main()

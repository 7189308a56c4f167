"""How fast features are extracted, against the machine's limit and against what people write by hand.

    python benchmarks/extract.py                       # 600 generated 500 x 375 JPEGs, 3 rounds
    python benchmarks/extract.py --images FOLDER       # class folders of your own
    python benchmarks/extract.py --backbone resnet50 --random-weights

Every measurement runs in a process of its own, the rounds interleaved, so that a slow minute of the
machine hits all alike. What is timed starts after imports and the building or compiling of networks.

limit       1 / (1 / forward + 1 / decode): the best engine on prepared pixels, and decoding alone, each
            on all CPUs; what a pipeline could reach that wastes nothing
cold        headstart.extract with an empty store
warm        the same again: everything comes from the store
torch       a DataLoader with two workers, timm's transform, the network in eager PyTorch, fp32 or bf16
compile     the same with torch.compile in bf16, channels last
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("forward", "decode", "cold", "warm", "torch fp32", "torch bf16", "compile bf16")


def generate(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375 pixels with the spectrum of photographs (1 / f), quality 90."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(375), np.fft.fftfreq(500), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(x, y), 1 / 500) ** 1.1
    for number in range(count):
        place = folder / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        noise = np.fft.fft2(rng.standard_normal((3, 375, 500)))
        waves = np.fft.ifft2(noise * falloff).real
        waves += 0.7 * waves.mean(axis=0)
        waves = (waves - waves.mean()) / waves.std() * 55 + 120
        pixels = waves.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(place / f"{number:05}.jpg", quality=90)


def load(arguments: argparse.Namespace):
    import headstart

    if arguments.random_weights:
        import timm
        import torch

        from headstart.networks.backbones import wrap_network

        torch.manual_seed(0)
        network = timm.create_model(arguments.backbone)
        return wrap_network(network, name=arguments.backbone, weights="random")
    return headstart.load_backbone(arguments.backbone)


def measure(mode: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Images a second and peak resident memory of one mode, in this process."""
    import headstart
    from headstart.data.decoding import decode_and_prepare
    from headstart.parallel import count_cpus

    dataset = headstart.load_dataset(arguments.images)
    count = len(dataset)
    threads = count_cpus()
    if mode in ("forward", "cold", "warm"):
        backbone = load(arguments)
    if mode == "decode":
        preprocessing = load(arguments).preprocessing
        files = [dataset.image(i).read() for i in range(count)]
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            for _ in pool.map(lambda d: decode_and_prepare(d, preprocessing, exact=False), files):
                pass
            seconds = time.perf_counter() - start
    elif mode == "forward":
        engine, _ = headstart.start_engine(backbone)
        height, width = backbone.preprocessing.input_px
        shape = (engine.micro_batch, height, width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        batches = max(2, count // engine.micro_batch)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: engine.run(pixels), range(2 * threads)))
            start = time.perf_counter()
            for _ in pool.map(lambda _: engine.run(pixels), range(batches)):
                pass
            seconds = (time.perf_counter() - start) * count / (batches * engine.micro_batch)
    elif mode in ("cold", "warm"):
        cache = Path(os.environ["HEADSTART_CACHE_DIR"])
        extract = headstart.extract  # which imports it
        if mode == "cold":
            # Compile first: that is kept between processes and not what is measured here.
            headstart.start_engine(backbone)
            shutil.rmtree(cache / "features", ignore_errors=True)
            shutil.rmtree(cache / "files", ignore_errors=True)
        start = time.perf_counter()
        features = extract(dataset, backbone)
        matrix = features.values[backbone.cuts[-1].name]
        seconds = time.perf_counter() - start
        assert len(matrix) == count
        assert features.computed == (count if mode == "cold" else 0), features.computed
    else:
        seconds = plain_loop(mode, dataset, arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": count / seconds, "peak_mb": peak}


def plain_loop(mode: str, dataset, arguments: argparse.Namespace) -> float:
    """What a tutorial does: timm's network and transform, a DataLoader, a loop; seconds taken."""
    import timm
    import torch

    network = load(arguments).network.eval()
    network.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, i):
            return transform(Image.open(dataset.root / dataset.ids[i]).convert("RGB"))

    loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=2)
    precise = mode.endswith("fp32")
    if mode.startswith("compile"):
        network = torch.compile(network.to(memory_format=torch.channels_last))
    kind = torch.float32 if precise else torch.bfloat16

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", kind, enabled=not precise):
            if mode.startswith("compile"):
                batch = batch.to(memory_format=torch.channels_last)
            return network(batch)

    size = (32, *network.pretrained_cfg["input_size"])
    for _ in range(2):
        run(torch.zeros(size))
    if len(dataset) % 32:
        run(torch.zeros((len(dataset) % 32, *size[1:])))
    start = time.perf_counter()
    features = [run(batch) for batch in loader]
    torch.cat(features)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.images is None:
            arguments.images = Path(temporary) / "images"
            generate(arguments.images, arguments.count)
        environment = {**os.environ, "HEADSTART_CACHE_DIR": f"{temporary}/cache"}
        results: dict[str, list[dict[str, float]]] = {m: [] for m in arguments.modes.split(",")}
        for number in range(arguments.rounds + 1):
            for mode in results:
                command = [sys.executable, __file__, "--measure", mode, "--images"]
                command += [str(arguments.images), "--backbone", arguments.backbone]
                command += ["--random-weights"] if arguments.random_weights else []
                if number == 0 and mode not in ("cold", "forward"):
                    continue  # the first round only fills the caches of compiled networks
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{mode}: {done.stderr[-2000:]}")
                if number > 0:
                    results[mode].append(json.loads(done.stdout.splitlines()[-1]))
    report(results, arguments)


def describe(*names: str) -> str:
    """Versions, by default of what extraction uses, and the machine."""
    names = names or ("headstart", "torch", "timm", "openvino", "numpy", "pillow", "simplejpeg")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), cpu)
    return f"Python {platform.python_version()}, {versions}; {cpu}, {os.cpu_count()} CPUs"


def report(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    print(f"{arguments.backbone}, {arguments.rounds} rounds; {describe()}")
    print()
    print("| what | images/s min | median | max | peak MB |")
    print("|---|---:|---:|---:|---:|")
    rates = {}
    for mode, rounds in results.items():
        rate = [r["rate"] for r in rounds]
        rates[mode] = rate
        peak = max(r["peak_mb"] for r in rounds)
        middle = statistics.median(rate)
        print(f"| {mode} | {min(rate):,.0f} | {middle:,.0f} | {max(rate):,.0f} | {peak:,.0f} |")
    if {"forward", "decode"} <= set(rates):
        limit = [
            1 / (1 / f + 1 / d) for f, d in zip(rates["forward"], rates["decode"], strict=True)
        ]
        rates["limit"] = limit
        low, middle, high = min(limit), statistics.median(limit), max(limit)
        print(f"| limit | {low:,.0f} | {middle:,.0f} | {high:,.0f} | |")
    print()
    for other in ("limit", "forward", "torch fp32", "torch bf16", "compile bf16"):
        if other in rates and "cold" in rates:
            ratios = [c / o for c, o in zip(rates["cold"], rates[other], strict=True)]
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            print(f"cold / {other}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()

"""How fast networks are trained, against what people write by hand.

    python benchmarks/train.py                             # generated photographs, 3 rounds
    python benchmarks/train.py --photos ../shared/data/hymenoptera

Every measurement runs in a process of its own, the rounds interleaved, so that a slow minute of the
machine hits all alike. First the images a second of training alone, one epoch after one to warm up:

eager       a plain loop: DataLoader with two workers, the network in eager fp32 PyTorch, AdamW, all weights
fine-tune   headstart's loop, all weights from pixels
partial     headstart's loop, from a cut two thirds up the network on cached activations of 2 views

Then, with --photos (a folder with train and val), the seconds from the folder to a saved classifier and its
accuracy on val, starting with an empty store:

headstart   headstart fit, a linear probe; the network is compiled already, as it is after any first use
tutorial    a plain loop as in PyTorch's transfer learning tutorial: 5 epochs of all weights, SGD 1e-3 with
            momentum, horizontal flips and random crops, the network's own normalisation
fastai      vision_learner(...).fine_tune(3), where fastai is installed
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

import numpy as np
from extract import describe, generate
from PIL import Image

BACKBONE, CUT = "tf_efficientnet_lite0", "blocks.4"
STEPS = ("eager", "fine-tune", "partial")
WHOLE = ("headstart", "tutorial", "fastai")
BATCH = 32


def measure_steps(mode: str, folder: Path) -> dict[str, float]:
    """Images a second of the second epoch."""
    import headstart

    if mode == "eager":
        return {"rate": _eager_rate(folder)}
    history: list[dict[str, float]] = []
    strategy = "fine-tune" if mode == "fine-tune" else "partial-fine-tune"
    options = {} if mode == "fine-tune" else {"cut": CUT, "views": 2}
    with tempfile.TemporaryDirectory() as out:
        headstart.fit(
            folder, Path(out) / "run", strategy=strategy, epochs=3, val=0, flip="yes",
            batch=BATCH, on_epoch=history.append, **options,
        )  # fmt: skip
    return {"rate": max(h["images_per_s"] for h in history[2:])}


def _plain(folder: Path, *, train: bool):
    """(dataset, loader) as a tutorial makes them, with the network's own size and normalisation."""
    import timm
    import torch

    import headstart

    network = headstart.load_backbone(BACKBONE).network
    config = timm.data.resolve_model_data_config(network)
    extra = {"is_training": True, "auto_augment": None, "re_prob": 0} if train else {}
    transform = timm.data.create_transform(**config, **extra)
    dataset = headstart.load_dataset(folder)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, i):
            image = Image.open(dataset.root / dataset.ids[i]).convert("RGB")
            return transform(image), int(dataset.labels[i])

    loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=train, num_workers=2)
    return dataset, loader


def _network(classes: int):
    import headstart

    network = headstart.load_backbone(BACKBONE).network.requires_grad_(True)
    network.reset_classifier(classes)
    return network


def _eager_rate(folder: Path) -> float:
    import torch

    dataset, loader = _plain(folder, train=True)
    network = _network(len(dataset.classes)).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        for pixels, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(pixels), labels).backward()
            optimizer.step()
        rates.append(len(dataset) / (time.perf_counter() - began))
    return rates[-1]


def measure_whole(mode: str, folder: Path) -> dict[str, float]:
    """Seconds from the folder to a saved classifier, and its accuracy on val."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        if mode == "headstart":
            import headstart

            run = headstart.fit(folder, Path(out) / "run", strategy="linear-probe")
            accuracy = run.metrics["accuracy"].value
        elif mode == "tutorial":
            accuracy = _tutorial(folder, Path(out))
        else:
            accuracy = _fastai(folder, Path(out))
        return {"seconds": time.perf_counter() - began, "accuracy": accuracy}


def _tutorial(folder: Path, out: Path) -> float:
    import torch

    dataset, loader = _plain(folder / "train", train=True)
    _, check = _plain(folder / "val", train=False)
    network = _network(len(dataset.classes))
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    accuracy = 0.0
    for _ in range(5):
        network.train()
        for pixels, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(pixels), labels).backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            right = [(network(p).argmax(1) == y).float() for p, y in check]
        accuracy = max(accuracy, float(torch.cat(right).mean()))
    torch.save(network.state_dict(), out / "network.pth")
    return accuracy


def _fastai(folder: Path, out: Path) -> float:
    import timm
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        create_head,
        params,
    )
    from torch import nn

    import headstart

    backbone = headstart.load_backbone(BACKBONE)
    preprocessing = backbone.preprocessing
    loaders = ImageDataLoaders.from_folder(
        folder, valid="val", bs=BATCH, num_workers=2, item_tfms=Resize(256),
        batch_tfms=[
            *aug_transforms(size=preprocessing.input_px[0]),
            Normalize.from_stats(preprocessing.mean, preprocessing.std),
        ],
    )  # fmt: skip
    # What vision_learner makes, with weights that need no download: the network up to its pooling,
    # fastai's head, and the body frozen at first.
    body = timm.create_model(BACKBONE, num_classes=0, global_pool="")
    state = backbone.network.state_dict()
    body.load_state_dict({k: v for k, v in state.items() if not k.startswith("classifier")})
    model = nn.Sequential(body, create_head(backbone.cuts[-1].channels, loaders.c))
    learner = Learner(
        loaders, model, metrics=accuracy, splitter=lambda m: [params(m[0]), params(m[1])]
    )
    learner.fine_tune(3)
    learner.path = out  # not export, which cannot pickle a network of timm here
    learner.save("network")
    return float(learner.validate()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder with train and val")
    parser.add_argument("--count", type=int, default=256, help="generated images to train on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", default=",".join((*STEPS, *WHOLE)))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, folder = arguments.measure
        measure = measure_steps if mode in STEPS else measure_whole
        print(json.dumps(measure(mode, Path(folder))))
        return
    modes = arguments.modes.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary) / "images", arguments.count)
        results: dict[str, list[dict[str, float]]] = {}
        for number in range(arguments.rounds):
            for mode in modes:
                whole = mode in WHOLE
                if whole and (arguments.photos is None or (number and mode != "headstart")):
                    continue  # a rival takes minutes, which vary less than the ratio
                cache = Path(temporary) / "cache"
                if mode == "headstart" and number == 0:
                    _run(mode, arguments.photos, cache)  # compiles the network
                if mode == "headstart":
                    for part in ("features", "files"):
                        subprocess.run(["rm", "-rf", str(cache / part)], check=True)
                folder = arguments.photos if whole else Path(temporary) / "images"
                found = _run(mode, folder, cache)
                if found is not None:
                    results.setdefault(mode, []).append(found)
    report(results, arguments)


def _run(mode: str, folder: Path, cache: Path) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--measure", mode, str(folder)]
    environment = {**os.environ, "HEADSTART_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{mode} is left out: {reason}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_s": time.perf_counter() - began}


def report(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    print(f"{BACKBONE}, batches of {BATCH}, {arguments.rounds} rounds; {describe()}")
    steps = {m: [r["rate"] for r in results[m]] for m in STEPS if m in results}
    if steps:
        print("\n| training | images/s min | median | max |\n|---|---:|---:|---:|")
        for mode, rate in steps.items():
            name = f"partial from {CUT}" if mode == "partial" else mode
            print(f"| {name} | {min(rate):.1f} | {statistics.median(rate):.1f} | {max(rate):.1f} |")
        print()
        for one, other in (("fine-tune", "eager"), ("partial", "fine-tune"), ("partial", "eager")):
            if one in steps and other in steps:
                ratios = [a / b for a, b in zip(steps[one], steps[other], strict=True)]
                low, high = min(ratios), max(ratios)
                middle = statistics.median(ratios)
                print(f"{one} / {other}: {middle:.2f} ({low:.2f} to {high:.2f})")
    whole = {m: results[m] for m in WHOLE if m in results}
    if whole:
        print(
            "\n| folder to classifier | seconds (whole process) | accuracy on val |\n|---|---:|---:|"
        )
        for mode, rounds in whole.items():
            seconds = statistics.median(r["process_s"] for r in rounds)
            accuracy = np.mean([r["accuracy"] for r in rounds])
            print(f"| {mode} | {seconds:.1f} | {accuracy:.3f} |")
        print()
        for mode in whole:
            if mode != "headstart" and "headstart" in whole:
                ratio = whole[mode][0]["process_s"] / statistics.median(
                    r["process_s"] for r in whole["headstart"]
                )
                print(f"{mode} / headstart: {ratio:.1f}")


if __name__ == "__main__":
    main()

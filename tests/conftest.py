"""Shared fixtures: generated pictures of three classes, runs fitted on them, and the command line.

What a session fixture wrote is read only; a test that changes a run works on a copy.
"""

import os
import signal
import sys

# PyTorch's threads sleep while they wait: where other processes want the cores, waiting that spins
# makes a training take many times as long. Read when the library is loaded; processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import headstart.cli.app
from headstart.networks.building import build_network

KINDS = ("blobs", "plain", "stripes")


@pytest.fixture(scope="session", autouse=True)
def _apart(tmp_path_factory):
    """No test downloads anything or touches the user's cache; a subprocess inherits the variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HEADSTART_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(autouse=True)
def _handlers():
    """No test meets the signal handlers that another left: one of them may end the whole process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def paint():
    """A function (kind, number) -> uint8 (40, 48, 3): a picture with noise of its own."""
    y, x = np.mgrid[:40, :48]
    colours = {
        "blobs": (np.sin(x / 4) * np.sin(y / 4) > 0.2)[..., None] * np.array([200, 90, 20]),
        "plain": np.full((40, 48, 1), 70) * np.ones(3),
        "stripes": (x // 3 % 2)[..., None] * np.full(3, 220),
    }

    def picture(kind, number):
        rng = np.random.default_rng([KINDS.index(kind), number])
        return np.clip(colours[kind] + rng.normal(20, 25, (40, 48, 3)), 0, 255).astype(np.uint8)

    return picture


@pytest.fixture(scope="session")
def plant(paint):
    """A function (folder, {"train/blobs": 3, …}, first=0) that writes pictures and gives the folder."""

    def write(folder, counts, first=0):
        for place, count in counts.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            for number in range(first, first + count):
                picture = paint(place.rsplit("/", 1)[-1], number)
                Image.fromarray(picture).save(folder / place / f"{number:02}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def photos(plant, tmp_path_factory):
    """train with 8 and test with 3 pictures of each of three classes."""
    root = plant(tmp_path_factory.mktemp("data") / "photos", {f"train/{k}": 8 for k in KINDS})
    return plant(root, {f"test/{k}": 3 for k in KINDS}, first=50)


@pytest.fixture(scope="session")
def loose(plant, tmp_path_factory):
    """8 pictures of each of three classes without a split."""
    return plant(tmp_path_factory.mktemp("data") / "loose", dict.fromkeys(KINDS, 8))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Options of `fit`: a probe on a network of seeded random weights that sees 1,000 images a second."""
    file = tmp_path_factory.mktemp("weights") / "test_vit.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_network("test_vit", 5).state_dict(), file)
    network = {"backbone": "test_vit", "weights": str(file), "device": "cpu"}
    return {"strategy": "linear-probe", **network}


@pytest.fixture(scope="session")
def network(tiny):
    """The options of `tiny` that leave the strategy to the advice."""
    return {n: v for n, v in tiny.items() if n != "strategy"}


@pytest.fixture(scope="session")
def advice(loose, network):
    """The advice on `loose` with five minutes."""
    return headstart.advise(loose, budget="5m", **network)


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    """A run of the built-in backbone."""
    folder = tmp_path_factory.mktemp("run") / "lite0"
    return headstart.fit(photos, folder, strategy="linear-probe", device="cpu")


@pytest.fixture(scope="session")
def tiny_run(photos, tiny, tmp_path_factory):
    """A run of the random network."""
    return headstart.fit(photos, tmp_path_factory.mktemp("run") / "tiny", **tiny)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path_factory):
    """A function (*arguments) -> (exit code, stdout, stderr) of the command in this process.

    It begins in an empty folder, where the pages go that commands write unasked.
    """
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        # It would go on after the command and might end the process of the tests without a word.
        monkeypatch.setattr(headstart.process, "_end_if_a_start_hangs", lambda: None)
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                headstart.cli.app.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return (caught.value.code or 0, *capsys.readouterr())

    return call

"""A frozen network gives an image the same features whatever goes with it, in either library."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from headstart.data.decoding import prepare_image
from headstart.errors import EngineRefused, ResourceError, UsageError
from headstart.features import engine_openvino
from headstart.features.cache import prune
from headstart.features.engines import (
    DEVICES,
    choose_device,
    choose_engine,
    make_engine,
    start_engine,
)
from headstart.features.extraction import extract
from headstart.features.runtime import Runtime
from headstart.networks.backbones import load_backbone
from headstart.parallel import count_cpus

LIBRARIES = ("openvino", "torch")


small = pytest.mark.parametrize("backbone", ["test_vit"], indirect=True)


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "test_vit"])
def backbone(request, tiny):
    if request.param == "test_vit":
        return load_backbone(tiny["backbone"], weights=tiny["weights"])
    return load_backbone()


@pytest.fixture(scope="module")
def run(backbone):
    """A function (pixels, library="openvino", precision="fp32", **options) -> outputs."""
    made = {}

    def call(pixels, library="openvino", precision="fp32", **options):
        name = (library, precision, *options.items())
        if name not in made:
            runtime = Runtime(engine=library, precision=precision, device="cpu")
            made[name] = start_engine(backbone, runtime, **options)[0]
        return made[name].run(pixels)

    return call


@pytest.fixture(scope="module")
def pixels(backbone):
    """Four parts of scikit-learn's two photographs."""
    photos = [Image.fromarray(p) for p in load_sample_images().images]
    parts = [*photos, *(p.crop((100, 50, 400, 300)) for p in photos)]
    return np.stack([prepare_image(p, backbone.preprocessing) for p in parts])


def distance(found, right):
    """The largest relative error of an image's vector."""
    return (np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)).max()


def digest(outputs):
    return hashlib.sha256(b"".join(outputs[cut].tobytes() for cut in outputs)).hexdigest()


# ---------------------------------------------------------------- the numbers


def test_openvino_agrees_with_the_reference(run, pixels):
    right = run(pixels, "torch")
    for cut, found in run(pixels).items():
        assert found.dtype == np.float32
        assert distance(found, right[cut]) < 1e-4


def test_bf16_is_as_near_as_its_eight_bits_allow(backbone, run, pixels):
    """At the classifier's input; of a pooled value near zero within the network less is left."""
    cut = backbone.cuts[-1].name
    right, rival, found = (
        run(pixels, *how)[cut].reshape(1, -1)
        for how in (("torch", "fp32"), ("torch", "bf16"), ("openvino", "bf16"))
    )
    assert distance(found, right) < min(0.05, 1.25 * distance(rival, right))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_in_any_company(library, precision, run, pixels):
    whole = run(pixels, library, precision)
    for rows in ([3, 1, 0, 2], [2, 0], [3], [1, 1, 1]):
        part = run(pixels[rows], library, precision)
        assert all((part[cut] == whole[cut][rows]).all() for cut in whole)


def test_the_same_bits_with_any_number_of_threads(run, pixels):
    whole = run(pixels, precision="bf16")
    for threads in (1, 5):
        with ThreadPoolExecutor(threads) as pool:
            jobs = [
                pool.submit(run, pixels[i % 4 :], precision="bf16", threads=threads)
                for i in range(12)
            ]
        for i, job in enumerate(jobs):
            assert all((v == whole[cut][i % 4 :]).all() for cut, v in job.result().items())


def test_the_same_bits_in_another_process(backbone, tiny, run, pixels, tmp_path):
    np.save(tmp_path / "pixels.npy", pixels)
    weights = tiny["weights"] if backbone.name == "test_vit" else None
    code = f"""if True:
        import hashlib, numpy as np
        from headstart.networks.backbones import load_backbone
        from headstart.features.engines import start_engine
        from headstart.features.runtime import Runtime
        backbone = load_backbone({backbone.name!r}, weights={weights!r})
        runtime = Runtime(engine="openvino", precision="bf16", device="cpu")
        found = start_engine(backbone, runtime)[0].run(np.load({str(tmp_path / "pixels.npy")!r}))
        print(hashlib.sha256(b"".join(v.tobytes() for v in found.values())).hexdigest())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == digest(run(pixels, precision="bf16"))


@small
@pytest.mark.parametrize("library", LIBRARIES)
def test_features_have_the_cuts_shapes(library, backbone, run, pixels):
    found = run(pixels[:3], library)
    assert tuple(found) == tuple(cut.name for cut in backbone.cuts)
    unpooled = run(pixels[:3], library, pooled=False)
    for cut in backbone.cuts:
        assert (found[cut.name].shape, found[cut.name].dtype) == ((3, cut.channels), "f4")
        assert unpooled[cut.name].shape == (3, *cut.shape)
        others = tuple(a for a in range(1, 1 + len(cut.shape)) if a != cut.axis)
        assert distance(unpooled[cut.name].mean(axis=others), found[cut.name]) < 1e-4


@small
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_single_cut_gives_what_all_give(library, backbone, run, pixels):
    cut = backbone.cuts[2].name
    alone = run(pixels[:2], library, cuts=(cut,))
    assert list(alone) == [cut]
    assert distance(alone[cut], run(pixels[:2], library)[cut]) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_leaves_the_network_whole(precision, backbone, run, pixels):
    before = {k: v.clone() for k, v in backbone.network.state_dict().items()}
    run(pixels, "torch", precision)
    assert not backbone.network.training
    assert not any(p.requires_grad for p in backbone.network.parameters())
    for name, tensor in backbone.network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert (tensor == before[name]).all()


# ---------------------------------------------------------------- the choice


@pytest.fixture
def vit(tiny, tmp_path):
    """The random network with a cache of its own."""
    return load_backbone(tiny["backbone"], weights=tiny["weights"], cache_dir=tmp_path)


def test_the_choice_says_why(vit, tmp_path, monkeypatch):
    for native, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(engine_openvino, "computes_bf16", lambda native=native: native)
        choice = choose_engine(vit, Runtime(device="cpu", cache_dir=tmp_path))
        assert str(choice) == f"openvino {precision}"
        assert choice.reason.startswith("the fastest on a CPU")
        assert "reason" not in choice.key()
        assert choice.key()["version"] == choice.version
    monkeypatch.setitem(DEVICES, "cuda", lambda: True)
    choice = choose_engine(vit, Runtime(cache_dir=tmp_path))
    assert (str(choice), choice.reason) == ("torch cuda bf16", "cuda is present")
    assert 1 <= count_cpus() <= 4096


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "openvin"}, r"engine 'openvin' is unknown \(nearest: openvino\); known: auto"),
        ({"precision": "fp23"}, r"precision 'fp23' is unknown \(nearest: fp32\); known: auto"),
        ({"device": "gpu"}, r"device 'gpu' is unknown.*; known: auto, cpu, cuda, mps"),
        ({"device": "cpu", "precision": "fp16"}, r"openvino.* no fp16 on a CPU; use --precision"),
        ({"device": "cpu", "precision": "fp16", "engine": "torch"}, r"fp16 on a CPU .*; use --pr"),
        ({"device": "cuda", "engine": "openvino"}, r"runs on a CPU, not on cuda; use --engine to"),
    ],
)
def test_what_cannot_be_is_refused(options, reason, vit, tmp_path, monkeypatch):
    monkeypatch.setitem(DEVICES, "cuda", lambda: True)
    with pytest.raises(UsageError, match=reason):
        choose_engine(vit, Runtime(cache_dir=tmp_path, **options))


def test_an_unknown_cut_is_refused(vit, tmp_path):
    choice = choose_engine(vit, Runtime(device="cpu", cache_dir=tmp_path))
    with pytest.raises(UsageError, match="cut point 'nowhere' is not one of test_vit"):
        make_engine(vit, choice, Runtime(cache_dir=tmp_path), cuts=("nowhere",))


def test_devices(monkeypatch):
    monkeypatch.setitem(DEVICES, "cuda", lambda: False)
    monkeypatch.setitem(DEVICES, "mps", lambda: False)
    assert choose_device() == choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"device 'cuda' is not present .*; use --device auto"):
        choose_device("cuda")
    monkeypatch.setitem(DEVICES, "cuda", lambda: True)
    assert choose_device() == "cuda"


# ---------------------------------------------------------------- networks that OpenVINO refuses


@pytest.fixture
def refused(monkeypatch):
    """OpenVINO takes no network; the list of the attempts."""
    attempts = []

    def refuse(*arguments, **options):
        attempts.append(1)
        raise RuntimeError("no such\noperation: twirl")

    monkeypatch.setattr(openvino.frontend.FrontEnd, "convert", refuse)
    return attempts


def test_auto_falls_back_says_why_and_remembers(vit, photos, tmp_path, refused):
    from headstart.data.loading import load_dataset

    dataset = load_dataset(photos)
    first = extract(dataset, vit, Runtime(device="cpu", cache_dir=tmp_path))
    assert (first.engine.library, first.computed, len(refused)) == ("torch", len(dataset), 1)
    assert "OpenVINO cannot take test_vit: no such operation: twirl" in first.engine.reason
    choice = choose_engine(vit, Runtime(device="cpu", cache_dir=tmp_path))
    assert (choice.library, choice.precision) == ("torch", "fp32")
    assert "OpenVINO cannot take test_vit: no such operation: twirl" in choice.reason
    again = extract(dataset, vit, Runtime(device="cpu", cache_dir=tmp_path))
    assert (again.computed, len(refused)) == (0, 1)
    assert all((again.values[c] == first.values[c]).all() for c in first.values)


def test_a_lack_of_memory_is_not_remembered_as_a_refusal(vit, tmp_path, monkeypatch):
    def short(*arguments, **options):
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(openvino.frontend.FrontEnd, "convert", short)
    runtime = Runtime(engine="openvino", precision="fp32", cache_dir=tmp_path)
    with pytest.raises(ResourceError, match="out of memory; close other programs"):
        start_engine(vit, runtime)
    assert choose_engine(vit, Runtime(device="cpu", cache_dir=tmp_path)).library == "openvino"


def test_whoever_starts_an_engine_falls_back(vit, refused, tmp_path, monkeypatch):
    """Also where the refusal cannot be remembered."""

    def full(*arguments):
        raise OSError("no space")

    monkeypatch.setattr("headstart.files.write_atomically", full)
    runtime = Runtime(device="cpu", cache_dir=tmp_path)
    for attempts in (1, 2):
        engine, choice = start_engine(vit, runtime, cuts=("blocks.2",), pooled=False)
        assert (choice.library, engine.cuts, len(refused)) == ("torch", ("blocks.2",), attempts)
        assert choice.reason == "OpenVINO cannot take test_vit: no such operation: twirl"
    with pytest.raises(EngineRefused, match="use --engine torch"):
        start_engine(vit, runtime.model_copy(update={"engine": "openvino"}))


def test_a_refusal_is_forgotten(vit, refused, tmp_path, monkeypatch):
    """In a week, by `cache prune`, and with another version of what makes or takes a network."""
    runtime, version = Runtime(device="cpu", cache_dir=tmp_path), importlib.metadata.version

    def attempts():
        start_engine(vit, runtime)
        return len(refused)

    assert (attempts(), attempts()) == (1, 1)
    (file,) = tmp_path.glob("backbones/*/*.refused")
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(file, (long_ago, long_ago))
    assert (attempts(), attempts()) == (2, 2)
    prune(tmp_path)
    assert not file.exists()
    assert (attempts(), attempts()) == (3, 3)
    for package, count in (("torch", 4), ("openvino", 5), ("headstart", 6)):
        other = {package: f"of another {package}"}
        monkeypatch.setattr(importlib.metadata, "version", lambda n, o=other: o.get(n, version(n)))
        assert (attempts(), attempts()) == (count, count)


def test_openvino_by_name_does_not_fall_back(vit, photos, tmp_path, refused):
    from headstart.data.loading import load_dataset

    with pytest.raises(UsageError, match="test_vit: no such operation: twirl; use --engine torch"):
        extract(load_dataset(photos), vit, Runtime(engine="openvino", cache_dir=tmp_path))


@pytest.mark.parametrize(("kind", "harm"), [("bin", "flip"), ("xml", "cut")])
def test_a_damaged_converted_network_is_made_again(kind, harm, vit, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    runtime = Runtime(engine="openvino", precision="fp32", cache_dir=tmp_path)
    right = start_engine(vit, runtime)[0].run(pixels)
    (file,) = tmp_path.glob(f"backbones/*/openvino-*.{kind}")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - b for b in data[middle : middle + 64])
    file.write_bytes(data if harm == "flip" else data[:middle])
    for blob in tmp_path.glob("openvino/*"):  # what OpenVINO itself keeps of the network
        blob.unlink()
    found = start_engine(vit, runtime)[0].run(pixels)
    assert all((found[cut] == right[cut]).all() for cut in right)


def test_a_cache_that_fills_while_a_network_is_converted_is_one_line(tiny, photos, tmp_path):
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import headstart.cli.app
sys.argv = ["headstart", *sys.argv[1:]]
headstart.cli.app.main()
"""
    cache = tmp_path / "cache"
    options = ["--backbone", "test_vit", "--weights", tiny["weights"], "--engine", "openvino"]
    options += ["--strategy", "linear-probe"]
    words = ["fit", photos, "-o", tmp_path / "run", *options, "--cache-dir", cache]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    (line,) = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
    assert "cannot be written; free space, or name another place with --cache-dir" in line
    assert list(cache.glob("backbones/*/.openvino*")) == []


def test_a_compiler_that_cannot_write_its_cache_is_not_taken_for_a_refusal(
    vit, tmp_path, monkeypatch
):
    compile_model = openvino.Core.compile_model

    def full(core, model, device, settings):
        if "CACHE_DIR" in settings:
            raise RuntimeError("basic_ios::clear: iostream error")
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", full)
    runtime = Runtime(engine="openvino", precision="fp32", cache_dir=tmp_path)
    with pytest.raises(ResourceError, match="a compiled network cannot be written; free space"):
        start_engine(vit, runtime)

    def short(core, model, device, settings):
        raise RuntimeError("iostream error" if "CACHE_DIR" in settings else "std::bad_alloc")

    monkeypatch.setattr(openvino.Core, "compile_model", short)
    with pytest.raises(ResourceError, match="out of memory"):
        start_engine(vit, runtime)
    assert choose_engine(vit, Runtime(device="cpu", cache_dir=tmp_path)).library == "openvino"

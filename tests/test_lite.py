"""The built-in networks without PyTorch are timm's: tensors, cut points, settings, numbers."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from headstart.errors import InputError, UsageError
from headstart.features.engine_openvino import has_own_graph
from headstart.features.engines import start_engine
from headstart.features.runtime import Runtime
from headstart.networks.backbones import backbone_of_state, load_backbone, truncate, wrap_network
from headstart.networks.building import build_network, get_config
from headstart.networks.lite import (
    LITE,
    build_lite_graph,
    find_packaged_file,
    list_lite_tensors,
    make_lite_config,
    read_lite,
)

NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module", params=LITE)
def pair(request):
    """(a backbone that was built by timm, the same made of its tensors alone), with statistics in
    BatchNorm that are not those of a fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(request.param, 7)
        for name, tensor in network.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
    built = wrap_network(network, name=request.param, weights="random")
    made = backbone_of_state(
        request.param,
        built.state,
        get_config(network),
        classifier="classifier",
        weights="random",
        end="classifier",
    )
    return built, made


def test_it_is_timms_network(pair):
    built, made = pair
    for field in dataclasses.fields(built):
        if field.name not in ("state", "config"):
            assert getattr(made, field.name) == getattr(built, field.name), field.name
    expected = {name: tuple(array.shape) for name, array in built.state.items()}
    assert list_lite_tensors(built.name, 7) == expected
    assert list(list_lite_tensors(built.name, 7)) == list(build_network(built.name, 7).state_dict())
    config = make_lite_config(built.name)
    theirs = {**built.config, "num_classes": 1000}
    assert {k: list(np.atleast_1d(v)) for k, v in config.items()} == {
        k: list(np.atleast_1d(theirs[k])) for k in config
    }


@pytest.mark.parametrize("input_px", [None, 97, 128])
def test_its_graph_gives_timms_numbers(input_px, pair, tmp_path):
    built, made = pair
    if input_px is not None:
        network = build_network(built.name, 7, input_px=(input_px, input_px))
        network.load_state_dict({k: torch.from_numpy(v) for k, v in built.state.items()})
        built = wrap_network(network, name=built.name, weights="random")
        made = backbone_of_state(
            built.name, built.state, built.config,
            classifier="classifier", weights="random", end="classifier",
        )  # fmt: skip
        assert made.cuts == built.cuts
        assert made.fingerprint == built.fingerprint
    size = built.preprocessing.input_px
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for pooled in (True, False):
        found = {}
        for library, backbone in (("torch", built), ("openvino", made)):
            runtime = Runtime(engine=library, precision="fp32", device="cpu", cache_dir=tmp_path)
            engine, _ = start_engine(backbone, runtime, pooled=pooled)
            found[library] = engine.run(pixels)
        for cut, right in found["torch"].items():
            assert found["openvino"][cut].shape == right.shape
            assert np.abs(found["openvino"][cut] - right).max() < 1e-4 * np.abs(right).max()
    assert list(tmp_path.iterdir()) == []  # nothing is converted or compiled into the cache


def test_the_packages_file_is_read_as_pytorch_reads_it():
    path, origin = find_packaged_file(NAME)
    theirs = torch.load(path, weights_only=True)
    ours = read_lite(NAME, path)
    for right, (name, found) in zip(theirs.values(), ours.items(), strict=True):
        assert found.dtype == right.numpy().dtype, name
        assert found.shape == right.shape
        assert (found == right.numpy()).all()
    backbone = load_backbone()
    assert (backbone.weights, backbone.licence) == (origin, "apache-2.0")
    for spelling in ("TF-EfficientNet-Lite0", f"{NAME}.in1k"):
        again = load_backbone(spelling)
        assert (again.name, again.fingerprint) == (NAME, backbone.fingerprint)


@pytest.mark.parametrize("px", [15, 2049])
def test_a_size_out_of_bounds_is_refused(px):
    with pytest.raises(UsageError, match=f"input_px must be 16 to 2048, got {px}"):
        load_backbone(input_px=px)


def test_a_size_within_bounds_is_taken():
    assert load_backbone(input_px=16).cut("classifier").shape == (1280,)
    assert load_backbone(input_px=320).preprocessing.crop_pct == 1.0


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (self.canary,))


def test_no_file_runs_code(tmp_path):
    file, canary = tmp_path / "weights.pth", tmp_path / "canary"
    file.write_bytes(pickle.dumps(Hostile(str(canary)), protocol=2))
    with pytest.raises(InputError, match="mkdir is no part of a dict of tensors"):
        read_lite(NAME, file)
    assert not canary.exists()


@pytest.mark.parametrize("harm", ["empty", "cut", "other", "text", "flip"])
def test_a_damaged_file_is_told(harm, tmp_path):
    whole = find_packaged_file(NAME)[0].read_bytes()
    file = tmp_path / "weights.pth"
    if harm == "other":
        torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    elif harm == "flip":
        file = tmp_path / find_packaged_file(NAME)[0].name
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[harm])
    reasons = {"other": "not those of tf_eff", "flip": "checksum in its name"}
    with pytest.raises(InputError, match=reasons.get(harm, "not a file of tensors")):
        read_lite(NAME, file)


def change(state, harm):
    if harm == "missing":
        del state["blocks.3.1.conv_pw.weight"]
    elif harm == "shape":
        state["bn1.bias"] = np.zeros(33, dtype=np.float32)
    else:
        state["blocks.9.weight"] = np.zeros(1, dtype=np.float32)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("missing", "tensor .blocks.3.1.conv_pw.weight. of tf_efficientnet_lite0 is missing"),
        ("shape", r"tensor .bn1.bias. has the shape \(33,\); tf_efficientnet_lite0 has \(32,\)"),
        ("extra", "tensor .blocks.9.weight. is none of tf_efficientnet_lite0"),
    ],
)
def test_tensors_that_do_not_fit_are_named(harm, reason):
    backbone = load_backbone()
    options = {"classifier": "classifier", "weights": "", "end": "classifier"}
    state = dict(backbone.state)
    change(state, harm)
    with pytest.raises(InputError, match=reason):
        backbone_of_state(NAME, state, backbone.config, **options)
    with pytest.raises(InputError, match="has no cut point 'nowhere'"):
        backbone_of_state(NAME, backbone.state, backbone.config, **{**options, "end": "nowhere"})


@pytest.mark.parametrize("cut", ["blocks.1", "blocks.4", "conv_head"])
def test_a_network_that_was_cut_short_comes_back(cut, tmp_path):
    short = truncate(load_backbone(), cut)
    options = {"classifier": "classifier", "weights": short.weights, "end": cut}
    again = backbone_of_state(NAME, short.state, short.config, **options)
    assert (again.cuts, again.fingerprint) == (short.cuts, short.fingerprint)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    found = []
    for library in ("torch", "openvino"):
        runtime = Runtime(engine=library, precision="fp32", device="cpu", cache_dir=tmp_path)
        found.append(start_engine(again, runtime)[0].run(pixels)[cut])
    assert np.abs(found[0] - found[1]).max() < 1e-4 * np.abs(found[0]).max()
    with pytest.raises(KeyError):
        build_lite_graph(
            NAME, short.state, ("classifier",), short.preprocessing, pooled=True, micro_batch=1
        )


def test_a_cut_within_a_block_is_left_to_the_converter():
    from headstart.networks.backbones import with_cut

    assert has_own_graph(load_backbone())
    assert has_own_graph(with_cut(load_backbone(), "blocks.2.1"))
    assert not has_own_graph(with_cut(load_backbone(), "blocks.2.0.conv_dw"))


def test_a_first_fit_and_prediction_import_no_pytorch(loose, tmp_path):
    code = f"""
import json, sys, headstart
options = {{"strategy": "linear-probe", "device": "cpu"}}
run = headstart.fit({str(loose)!r}, {str(tmp_path / "run")!r}, **options)
(first, *_) = headstart.predict({str(tmp_path / "run")!r}, [{str(loose / "plain")!r}], device="cpu")
headstart.evaluate({str(tmp_path / "run")!r}, {str(loose)!r}, device="cpu")
print(json.dumps([n for n in ("torch", "timm", "torchvision") if n in sys.modules]))
"""
    environment = {**os.environ, "HEADSTART_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == []

"""A frozen network gives an image the same features whatever goes with it."""

import numpy as np
import pytest
import torch

from headstart.backbones import build_network, load_backbone, wrap_network
from headstart.engines import DEVICES, choose_device, make_engine
from headstart.errors import UsageError


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "test_resnet"])
def backbone(request):
    name = request.param
    if name == "tf_efficientnet_lite0":
        return load_backbone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(name, 5)
    return wrap_network(network, name=name, weights="random", config=network.pretrained_cfg)


@pytest.fixture(scope="module")
def engine(backbone):
    return make_engine(backbone, device="cpu")


@pytest.fixture(scope="module")
def pixels(engine, backbone):
    shape = (engine.micro_batch, *backbone.preprocessing.input_px, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_same_bits_in_any_company(engine, pixels):
    whole = engine.run(pixels)
    order = np.random.default_rng(1).permutation(len(pixels))
    some = order[: len(order) // 2]
    for rows in (order, some, some[:1], np.array([2, 2, 2])):
        part = engine.run(pixels[rows])
        assert all((part[cut] == whole[cut][rows]).all() for cut in engine.cuts)


def test_features_have_the_cuts_shapes(engine, backbone, pixels):
    features = engine.run(pixels[:3])
    assert engine.cuts == tuple(features) == tuple(cut.name for cut in backbone.cuts)
    for cut in backbone.cuts:
        assert (features[cut.name].shape, features[cut.name].dtype) == ((3, cut.channels), "f4")
        assert np.isfinite(features[cut.name]).all()


def test_a_single_cut_gives_what_all_give(engine, backbone, pixels):
    for cut in (backbone.cuts[1].name, backbone.cuts[-1].name):
        one = make_engine(backbone, cuts=(cut,), device="cpu")
        assert one.cuts == (cut,)
        alone, all_of_them = one.run(pixels[:2]), engine.run(pixels[:2])
        assert alone[cut] == pytest.approx(all_of_them[cut], rel=1e-3, abs=1e-4)


def test_an_engine_leaves_the_network_whole(engine, backbone, pixels):
    assert not backbone.network.training
    assert not any(p.requires_grad for p in backbone.network.parameters())
    again = make_engine(backbone, device="cpu")
    assert (again.run(pixels[:1])[again.cuts[-1]] == engine.run(pixels[:1])[again.cuts[-1]]).all()


def test_an_unknown_cut_is_refused(backbone):
    with pytest.raises(UsageError, match=f"cut point 'nowhere' is not one of {backbone.name}"):
        make_engine(backbone, cuts=("nowhere",), device="cpu")


def test_devices(monkeypatch):
    with pytest.raises(UsageError, match=r"device 'cudo' is unknown \(nearest: cuda\); known: au"):
        choose_device("cudo")
    monkeypatch.setitem(DEVICES, "cuda", lambda: False)
    monkeypatch.setitem(DEVICES, "mps", lambda: False)
    assert choose_device() == choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"device 'cuda' is not present .*; use --device auto"):
        choose_device("cuda")
    monkeypatch.setitem(DEVICES, "cuda", lambda: True)
    assert choose_device() == "cuda"

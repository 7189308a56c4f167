"""Networks of both libraries and our own: layers, places to cut, and the small ones."""

import pytest
import torch

from headstart.errors import InputError, UsageError
from headstart.networks.architectures import SMALL
from headstart.networks.building import (
    build_network,
    build_pretrained,
    build_random,
    count_parameters,
    find_classifier,
    sketch_network,
)
from headstart.networks.graphs import find_cuts, find_layers, measure_cuts, resolve_cut

PARAMETERS = {
    "lenet5": 62_006,
    "small_cnn": 1_250_858,
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "vgg16": 138_357_544,
    "inception_v3": 23_834_568,
    "xception": 22_855_952,
    "mobilenet_v1": 4_231_976,
    "resnet50": 25_557_032,
    "bit_r50x3": 217_319_080,
    "wide_resnet50": 68_883_240,
}


def size_of(network):
    return tuple(network.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_layers_and_cuts(name):
    """Those of the papers, without memory for their weights."""
    network = sketch_network(name)
    assert next(network.parameters()).is_meta
    assert count_parameters(name) == PARAMETERS[name]
    classifier = find_classifier(network, name)
    cuts = find_cuts(network, name, classifier, size_of(network))
    assert 4 <= len(cuts) <= 12
    assert cuts[-1][0] == classifier
    layers = find_layers(network, size_of(network), cuts=[cut[0] for cut in cuts])
    assert sum(layer.parameters for layer in layers) == PARAMETERS[name]
    assert [layer.cut for layer in layers if layer.cut] == [cut[0] for cut in cuts]
    assert layers[-1].shape == (10 if name in SMALL else 1000,)
    assert [layer.index for layer in layers] == list(range(len(layers)))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_convnext", "swinv2_tiny_window8_256"]
)
def test_every_parameter_is_in_one_row(name):
    network = sketch_network(name)
    layers = find_layers(network, size_of(network))
    assert sum(layer.parameters for layer in layers) == count_parameters(name)
    assert len({layer.name for layer in layers}) == len(layers)


def test_rows_tell_output_and_what_is_trained():
    network = sketch_network("lenet5")
    layers = find_layers(network, (32, 32), cuts=["conv2", "fc3"], freeze_until="fc1")
    rows = {layer.name: layer for layer in layers}
    assert (rows["conv1"].kind, rows["conv1"].shape) == ("Conv2d", (6, 28, 28))
    assert (rows["conv1"].parameters, rows["relu1"].parameters) == (456, 0)
    assert [n for n, row in rows.items() if row.trainable] == [
        "fc1",
        "relu3",
        "fc2",
        "relu4",
        "fc3",
    ]
    assert [n for n, row in rows.items() if row.cut] == ["conv2", "fc3"]


# ---------------------------------------------------------------- freezing up to a layer


@pytest.mark.parametrize(
    ("name", "layer", "cut"),
    [
        ("resnet18", "layer2", "layer2"),
        ("resnet18", "layer2.1", "layer2.1"),
        ("resnet18", "layer2.0.conv1", "layer2.0.conv1"),
        ("resnet18", "0", None),
        ("resnet18", "1", "bn1"),
        ("resnet18", "fc", "fc"),
        ("test_vit", "blocks.3", "blocks.3"),
        ("test_vit", "patch_embed.proj", None),
    ],
)
def test_a_layer_is_a_place_to_cut(name, layer, cut):
    network = sketch_network(name)
    if cut is None:
        with pytest.raises(
            UsageError, match=r"nothing before layer '\S+' can be frozen; the first"
        ):
            resolve_cut(network, size_of(network), layer)
    else:
        assert resolve_cut(network, size_of(network), layer) == (cut, "")


def test_where_there_is_no_place_the_one_before_is_taken_and_told():
    network = sketch_network("resnet18")
    cut, told = resolve_cut(network, (224, 224), "layer2.0.conv2")
    assert cut == "layer2"  # beside conv2 runs the shortcut of the block
    assert "cannot be cut before 'layer2.0.conv2'" in told
    assert "before 'layer2' instead" in told


def test_every_index_and_every_name_of_a_row_is_understood():
    network = sketch_network("test_resnet")
    layers = find_layers(network, size_of(network))
    places = []
    for layer in layers[1::4]:
        by_name = resolve_cut(network, size_of(network), layer.name)
        assert resolve_cut(network, size_of(network), str(layer.index)) == by_name
        assert measure_cuts(network, "test_resnet", [by_name[0]], size_of(network))
        first = find_layers(network, size_of(network), freeze_until=by_name[0])
        places.append(sum(not row.trainable for row in first))
        assert places[-1] <= layer.index
    assert places == sorted(places)
    with pytest.raises(UsageError, match=rf"layer {len(layers)} does not exist; the last is"):
        resolve_cut(network, size_of(network), str(len(layers)))
    with pytest.raises(UsageError, match=r"layer 'layer9' does not exist \(nearest: layer"):
        resolve_cut(network, size_of(network), "layer9")


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "px"), [("inception_v3", 139), ("alexnet", 128), ("test_vit", 64), ("resnet18", 32)]
)
def test_a_network_sees_images_of_another_size(name, px):
    network = build_network(name, 3, input_px=(px, px))
    assert size_of(network) == (px, px)
    assert network.pretrained_cfg["crop_pct"] == 1.0
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, px, px)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "px", "message"),
    [
        ("lenet5", 64, "'lenet5' sees 32 x 32 pixels only"),
        ("vit_b_16", 96, "'vit_b_16' sees 224 x 224 pixels only"),
        ("resnet18", 8, "input_px must be 16 to 2048, got 8"),
        ("resnet18", 4096, "input_px must be 16 to 2048, got 4096"),
    ],
)
def test_a_size_that_cannot_be_is_refused(name, px, message):
    with pytest.raises(UsageError, match=message):
        build_network(name, 3, input_px=(px, px))


# ---------------------------------------------------------------- weights


def test_random_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_random("lenet5", seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", SMALL)
def test_the_small_networks_learn(name):
    """Stripes across from stripes down, in twenty steps."""
    network = build_random(name, seed=0).train()
    torch.manual_seed(0)
    images = torch.zeros(16, 3, 32, 32)
    images[:8, :, ::4] = 1
    images[8:, :, :, ::4] = 1
    images += 0.3 * torch.randn(images.shape)
    labels = torch.arange(16) // 8
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    with torch.inference_mode():
        assert (network.eval()(images).argmax(1) == labels).all()


def test_auxiliary_heads_of_a_file_are_left_out():
    state = build_network("googlenet", 3).state_dict()
    extra = {"aux1.conv.conv.weight": torch.zeros(1), "aux2.fc2.bias": torch.zeros(1)}
    network = build_pretrained("googlenet", state | extra, "file")
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert len(network.state_dict()["fc.bias"]) == 3
    with pytest.raises(InputError, match=r"^file: these weights do not fit googlenet"):
        build_pretrained("googlenet", state | {"more": torch.zeros(1)}, "file")

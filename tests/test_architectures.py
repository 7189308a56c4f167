"""Names of networks: usual ones, unknown ones, and what is known without building."""

import pytest
import torchvision

from headstart.errors import UsageError
from headstart.networks.architectures import (
    SMALL,
    find_network,
    imagenet_classes,
    list_networks,
    pretrained_config,
)

# The networks of the systems that people build by hand, as they are usually called.
USUAL = {
    "AlexNet": ("torchvision", "alexnet"),
    "VGG16": ("timm", "vgg16"),
    "vgg-16": ("timm", "vgg16"),
    "GoogLeNet": ("torchvision", "googlenet"),
    "inception_v1": ("torchvision", "googlenet"),
    "InceptionV3": ("timm", "inception_v3"),
    "Xception": ("timm", "legacy_xception"),
    "MobileNet": ("timm", "mobilenetv1_100"),
    "mobilenet_v1": ("timm", "mobilenetv1_100"),
    "ResNet-50": ("timm", "resnet50"),
    "resnet101": ("timm", "resnet101"),
    "ResNet152": ("timm", "resnet152"),
    "bit_r50x3": ("timm", "resnetv2_50x3_bit"),
    "BiT-M R50x3": ("timm", "resnetv2_50x3_bit"),
    "wide_resnet50": ("timm", "wide_resnet50_2"),
    "WideResNet50-2": ("timm", "wide_resnet50_2"),
    "LeNet-5": ("headstart", "lenet5"),
    "small_cnn": ("headstart", "small_cnn"),
    "tf_efficientnet_lite0": ("timm", "tf_efficientnet_lite0"),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_names_are_known(name):
    library, architecture, tag = find_network(name)
    assert (library, architecture, tag) == (*USUAL[name], "")
    config = pretrained_config(name)
    assert config.architecture == architecture
    assert bool(config.hf_hub_id or config.url) == (architecture not in SMALL)


def test_a_tag_names_a_set_of_weights():
    assert find_network("ResNet50.a1_in1k") == ("timm", "resnet50", "a1_in1k")
    assert pretrained_config("resnet50.a1h_in1k").input_size == (3, 176, 176)
    assert pretrained_config("alexnet.IMAGENET1K_V1").tag == "IMAGENET1K_V1"
    with pytest.raises(UsageError, match=r"torchvision has no weights of that tag.*IMAGENET1K_V1"):
        pretrained_config("alexnet.IMAGENET2K")
    with pytest.raises(UsageError, match="headstart has no weights of that tag; known: none"):
        pretrained_config("lenet5.in1k")


@pytest.mark.parametrize("name", ["alexnet", "shufflenet_v2_x1_5", "vit_b_16", "googlenet"])
def test_torchvisions_preprocessing_is_kept(name):
    config = pretrained_config(name)
    how = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = config.input_size[1]
    assert ([size], [int(size / config.crop_pct)]) == (how.crop_size, how.resize_size)
    assert config.interpolation == how.interpolation.value
    if name != "googlenet":
        assert (list(config.mean), list(config.std)) == (how.mean, how.std)


def test_lists_are_filtered_by_name():
    names = dict(list_networks())
    assert len(names) > 1000
    assert (names["alexnet"], names["lenet5"], names["resnet50"]) == (
        "torchvision",
        "headstart",
        "timm",
    )
    assert set(dict(list_networks("ResNet5"))) >= {"resnet50", "resnet51q", "wide_resnet50_2"}
    assert list_networks("alex*") == [("alexnet", "torchvision")]
    assert list_networks("BiT-R50x3") == [("resnetv2_50x3_bit", "timm")]
    assert "resnet50.a1_in1k" in dict(list_networks("resnet50.a1*"))
    assert list_networks("nothing like this") == []


def test_imagenets_classes_have_ids_and_names():
    ids, names = imagenet_classes(1000)
    assert (len(ids), len(set(ids)), len(names)) == (1000, 1000, 1000)
    assert (ids[407], names[407]) == ("n02701002", "ambulance")
    assert imagenet_classes(5) is None

"""Takes a name, gives the library that has the network and its settings: sizes, licence, weights' address.

This file has the two small networks that no library has. It imports torch, timm and torchvision, which takes
seconds, so `backbones` imports it only when a network is not known yet.
"""

import contextlib
import fnmatch
import functools
import math
import re
from collections.abc import Callable

import timm
import torch
import torchvision
from timm.models import PretrainedCfg
from torch import nn

from headstart.choices import nearest
from headstart.errors import UsageError

__all__ = [
    "SMALL",
    "PretrainedCfg",
    "find_network",
    "imagenet_classes",
    "list_networks",
    "pretrained_config",
]

# Usual names of networks that have another name in timm and torchvision, written without - and _. Names that
# differ only in those, or in upper case (ResNet-50, InceptionV3), need no entry.
ALIASES = {
    "lenet": "lenet5",
    "vgg": "vgg16",
    "inception": "inception_v3",
    "inceptionv1": "googlenet",
    "xception": "legacy_xception",
    "mobilenet": "mobilenetv1_100",
    "mobilenetv1": "mobilenetv1_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "densenet": "densenet121",
    "wideresnet50": "wide_resnet50_2",
    "wideresnet101": "wide_resnet101_2",
    "bitr50x1": "resnetv2_50x1_bit",
    "bitr50x3": "resnetv2_50x3_bit",
    "bitr101x1": "resnetv2_101x1_bit",
    "bitr101x3": "resnetv2_101x3_bit",
    "bitr152x2": "resnetv2_152x2_bit",
    "bitr152x4": "resnetv2_152x4_bit",
    "bitmr50x1": "resnetv2_50x1_bit",
    "bitmr50x3": "resnetv2_50x3_bit",
    "vit": "vit_base_patch16_224",
    "vitb16": "vit_base_patch16_224",
    "vits16": "vit_small_patch16_224",
}


def find_network(name: str) -> tuple[str, str, str]:
    """Find (library, architecture, tag) of a name, which may be a usual one: "ResNet-50", "mobilenet".

    The library is "timm", "torchvision" or "headstart"; timm goes before torchvision.

    Raises:
        UsageError: no library knows the name; says the nearest one.
    """
    architecture, _, tag = name.partition(".")
    alias = ALIASES.get(_squeeze(architecture), "")
    for candidate in (architecture, alias):
        for library, known in _known().items():
            if candidate in known:
                return library, candidate, tag
    for library, known in _known().items():
        for candidate in known:
            if _squeeze(candidate) == _squeeze(architecture):
                return library, candidate, tag
    everything = [*ALIASES, *(n for known in _known().values() for n in known)]
    raise UsageError(
        f"backbone '{architecture}' is unknown to timm {timm.__version__} and torchvision "
        f"{torchvision.__version__.partition('+')[0]}{nearest(architecture, everything)}; "
        "headstart backbones PATTERN lists those there are"
    )


def _squeeze(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


@functools.cache  # timm sorts its list anew every time
def _known() -> dict[str, list[str]]:
    """{library: its classification networks}."""
    return {
        "headstart": list(SMALL),
        "timm": timm.list_models(),
        "torchvision": torchvision.models.list_models(module=torchvision.models),
    }


def list_networks(pattern: str = "") -> list[tuple[str, str]]:
    """List (name, library) of the networks whose name contains the pattern, or matches it if it has * ? or [.

    A pattern with a dot lists every set of weights, `resnet50.a1_in1k`, instead of architectures. A
    usual name that no architecture contains gives the network it means.
    """
    text = pattern.lower()
    text = text if set(text) & set("*?[") else f"*{text}*"
    libraries: dict[str, str] = {}
    for library, known in _known().items():
        for architecture in known:
            tags = _list_tags(library, architecture) if "." in pattern else [""]
            for name in (f"{architecture}.{t}" if t else architecture for t in tags):
                if fnmatch.fnmatchcase(name.lower(), text):
                    libraries.setdefault(name, library)
    if not libraries and pattern:
        with contextlib.suppress(UsageError):
            library, architecture, tag = find_network(pattern)
            if not tag:
                libraries[architecture] = library
    return list(libraries.items())


def _list_tags(library: str, architecture: str) -> list[str]:
    """List the sets of weights that a library publishes for an architecture."""
    if library == "timm":
        return [n.partition(".")[2] for n in timm.list_pretrained(architecture)]
    if library == "torchvision":
        return [w.name for w in torchvision.models.get_model_weights(architecture)]
    return []


def pretrained_config(name: str) -> PretrainedCfg:
    """Get settings and weights' address of a network by name, with or without a tag, in timm's form.

    Raises:
        UsageError: no network or no tag of this name.
    """
    library, architecture, tag = find_network(name)
    tags = _list_tags(library, architecture)
    if tag and tag not in tags:
        raise UsageError(
            f"backbone '{name}': {library} has no weights of that tag{nearest(tag, tags)}; "
            f"known: {', '.join(tags) or 'none'}"
        )
    return CONFIGS[library](architecture, tag)


def _timm_config(architecture: str, tag: str) -> PretrainedCfg:
    name = f"{architecture}.{tag}" if tag else architecture
    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        raise UsageError(f"backbone '{name}': timm knows no settings for {architecture}")
    return config


def _torchvision_config(architecture: str, tag: str) -> PretrainedCfg:
    choices = torchvision.models.get_model_weights(architecture)
    weights = choices[tag] if tag else choices.DEFAULT
    transforms = weights.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    crop_pct = crop / resize
    while math.floor(crop / crop_pct) < resize:  # rounding must not lose a pixel
        crop_pct = math.nextafter(crop_pct, 0)
    # GoogLeNet was trained on pixels in -1 to 1; torchvision normalises otherwise and undoes it inside.
    halves = architecture == "googlenet"
    return PretrainedCfg(
        url=weights.url,
        architecture=architecture,
        tag=weights.name,
        input_size=(3, crop, crop),
        fixed_input_size=architecture.startswith("vit_"),
        interpolation=transforms.interpolation.value,
        crop_pct=crop_pct,
        mean=(0.5,) * 3 if halves else tuple(transforms.mean),
        std=(0.5,) * 3 if halves else tuple(transforms.std),
        num_classes=len(weights.meta["categories"]),
        classifier="",
        license=weights.meta.get("license", "bsd-3-clause"),
    )


def _small_config(architecture: str, tag: str) -> PretrainedCfg:
    return PretrainedCfg(
        architecture=architecture,
        input_size=(3, 32, 32),
        fixed_input_size=True,
        interpolation="bilinear",
        crop_pct=1.0,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        num_classes=10,
        classifier="",
        license="none",
    )


CONFIGS: dict[str, Callable[[str, str], PretrainedCfg]] = {
    "timm": _timm_config,
    "torchvision": _torchvision_config,
    "headstart": _small_config,
}


def imagenet_classes(count: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Get (synset ids, names) of ImageNet's classes in the order of a network with this many outputs, or
    None where no known set of them has that many."""
    subset = timm.data.infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    ids = tuple(info.label_names())
    return ids, tuple(info.label_name_to_description(i) for i in ids)


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) as it is built today: colour, relu, max pooling; 32 x 32 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, num_classes)."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(self.flatten(x)))
        logits: torch.Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits

    def get_classifier(self) -> nn.Module:
        """Get the classifier layer, as networks of timm do."""
        return self.fc3


class SmallCnn(nn.Module):
    """Two pairs of 3 x 3 convolutions and a dense layer with dropout, for 32 x 32 pixels: Keras'
    example for CIFAR-10."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.relu2 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.drop1 = nn.Dropout(0.25)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(64, 64, 3)
        self.relu4 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.drop2 = nn.Dropout(0.25)
        self.flatten = nn.Flatten()
        self.dense = nn.Linear(64 * 6 * 6, 512)
        self.relu5 = nn.ReLU()
        self.drop3 = nn.Dropout(0.5)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, num_classes)."""
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        x = self.drop1(self.pool1(x))
        x = self.relu4(self.conv4(self.relu3(self.conv3(x))))
        x = self.drop2(self.pool2(x))
        x = self.drop3(self.relu5(self.dense(self.flatten(x))))
        logits: torch.Tensor = self.classifier(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """Get the classifier layer, as networks of timm do."""
        return self.classifier


SMALL: dict[str, Callable[[int], nn.Module]] = {"lenet5": LeNet5, "small_cnn": SmallCnn}

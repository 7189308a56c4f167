"""Takes a network, lists its layers and cut points, and runs it up to a cut point.

Imports torch and timm, which takes seconds, so it is imported only when a network has to be built. Shape
letters: N images, C channels, H W pixels.
"""

import dataclasses
import inspect
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import fx, nn

from headstart.choices import nearest
from headstart.data.decoding import Preprocessing
from headstart.errors import UsageError
from headstart.networks.building import make_size_error, quietly

__all__ = [
    "FeatureNetwork",
    "Layer",
    "find_cuts",
    "find_layers",
    "measure_cuts",
    "pool",
    "resolve_cut",
    "tensors_before",
    "trace_network",
]

MAX_CUT_POINTS = 12


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
    chain = _data_nodes(graph)
    first = _first_uses(chain)
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
    """List the nodes whose value depends on the input, in order."""
    chain: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in chain for n in node.all_input_nodes):
            chain[node] = None
    return list(chain)


def _first_uses(chain: list[fx.Node]) -> dict[str, int]:
    """Give {module: index of the first node of the data in it}."""
    first: dict[str, int] = {}
    for index, node in enumerate(chain):
        names = {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
        if node.op == "call_module":
            names.add(str(node.target))
        for name in names:
            first.setdefault(name, index)
    return first


def find_cuts(
    network: nn.Module, name: str, classifier: str, input_px: tuple[int, int]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Choose cut points, at most `MAX_CUT_POINTS`, at the boundaries of a network's stages.

    Returns:
        (name, shape of the activation with the batch axis, axis of its channels) in the order of the
        data; the last is the classifier's input.

    Raises:
        UsageError: the network cannot be cut before its classifier.
    """
    candidates = _candidate_modules(network, classifier)
    cuts = measure_cuts(network, name, candidates, input_px)
    if classifier not in [cut[0] for cut in cuts]:
        raise UsageError(f"backbone '{name}' cannot be cut before its classifier '{classifier}'")
    return _thin(_drop_idle(cuts, network), MAX_CUT_POINTS)


def measure_cuts(
    network: nn.Module, name: str, modules: Iterable[str], input_px: tuple[int, int]
) -> "list[Cut]":
    """Measure those of the modules that the network can be cut before, in the form of `find_cuts`.

    Raises:
        UsageError: torch.fx cannot trace the network, or it cannot see images of this size.
    """
    graph, starts = trace_network(network)
    try:
        shapes = _measure(graph, {starts[m] for m in modules if m in starts}, input_px)
    except (RuntimeError, AssertionError, ValueError, TypeError) as exc:
        raise make_size_error(name, input_px, exc) from exc
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    layout = str(getattr(network, "output_fmt", "NCHW"))
    found = []
    for module in modules:
        if module in starts and starts[module] in shapes:
            shape = shapes[starts[module]]
            cut = (module, shape, _channel_axis(shape, layout))
            found.append((order[starts[module]], cut))
    return [cut for _, cut in sorted(found, key=lambda item: item[0])]


def _candidate_modules(network: nn.Module, classifier: str) -> list[str]:
    """Name the stages: top-level modules with several layers, or, where those are few, their children."""

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
    graph: fx.GraphModule,
    wanted: set[fx.Node],
    input_px: tuple[int, int],
    ranks: Iterable[int] = (2, 3, 4),
) -> dict[fx.Node, tuple[int, ...]]:
    """The shapes, for a batch of one, of those of these nodes' values that have so many axes; only such
    with 2, 3 or 4 can be pooled."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted and isinstance(value, torch.Tensor) and value.ndim in ranks:
                shapes[n] = tuple(value.shape)
            return value

    with torch.inference_mode():
        device = next(graph.parameters()).device
        Recorder(graph).run(torch.zeros(1, 3, *input_px, device=device))
    return shapes


def _channel_axis(shape: tuple[int, ...], layout: str) -> int:
    """Find the axis of the channels: from square maps themselves, else from the network's layout."""
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
    """Keep at most this many: where the activation's shape changes, else evenly; the last stays."""
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


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row of the table of layers.

    Attributes:
        index: its number, from 0, in the order of the data.
        name: of the module, or of the parameter where a module holds one beside its layers.
        kind: the module's class, or "Parameter".
        shape: of its output for one image, without the batch axis; () where that is no tensor.
        parameters: how many numbers it trains.
        cut: the cut point that lies before it, "" where none of those listed does.
        trainable: whether it would be trained.
    """

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    cut: str
    trainable: bool


def find_layers(
    network: nn.Module,
    input_px: tuple[int, int],
    *,
    cuts: Iterable[str] = (),
    freeze_until: str | None = None,
) -> list[Layer]:
    """List every layer of a network in the order of the data.

    Args:
        cuts: names of cut points, to be marked.
        freeze_until: the cut point up to which everything is frozen.

    Raises:
        UsageError: torch.fx cannot trace the network.
    """
    graph, _ = trace_network(network)
    chain = _data_nodes(graph.graph)
    first = _first_uses(chain)
    rows = _find_rows(graph, chain)
    shapes = _measure(graph, {node for _, _, node in rows}, input_px, ranks=range(1, 9))
    marks: dict[int, str] = {}
    for cut in cuts:
        marks[next(i for i, (_, place, _) in enumerate(rows) if place >= first[cut])] = cut
    limit = 0 if freeze_until is None else first[freeze_until]
    layers = []
    for index, (name, place, node) in enumerate(rows):
        modules = dict(network.named_modules())
        if name in modules:
            kind, parameters = type(modules[name]).__name__, list(modules[name].parameters())
        else:
            kind, parameters = "Parameter", [network.get_parameter(name)]
        count = sum(p.numel() for p in parameters)
        shape = shapes.get(node, ())[1:]
        layers.append(Layer(index, name, kind, shape, count, marks.get(index, ""), place >= limit))
    return layers


def resolve_cut(network: nn.Module, input_px: tuple[int, int], layer: str) -> tuple[str, str]:
    """Find where to cut a network so that everything before a layer is frozen, in the order of the data.

    Args:
        layer: the name of any module or parameter, or the index of a row of `find_layers`.

    Returns:
        (the module to cut before, "" or a sentence that tells why it is an earlier place than asked).

    Raises:
        UsageError: no such layer, or nothing before it could be frozen.
    """
    graph, starts = trace_network(network)
    chain = _data_nodes(graph.graph)
    first = _first_uses(chain)
    rows = _find_rows(graph, chain)
    places = {name: place for name, place, _ in rows} | first
    name = layer
    if layer not in places and layer.isascii() and layer.isdigit():
        if int(layer) >= len(rows):
            raise UsageError(f"layer {layer} does not exist; the last is {len(rows) - 1}")
        name = rows[int(layer)][0]
    if name not in places:
        raise UsageError(
            f"layer '{layer}' does not exist{nearest(layer, places)}; headstart layers lists them"
        )
    shapes = _measure(graph, set(starts.values()), input_px)
    usable = [n for n in starts if starts[n] in shapes]
    if name in usable:
        return name, ""
    before = [n for n in usable if first[n] <= places[name]]
    if not before:
        earliest = min(usable, key=lambda n: (first[n], len(n)))
        raise UsageError(
            f"nothing before layer '{name}' can be frozen; the first place to cut is '{earliest}'"
        )
    best = max(before, key=lambda n: (first[n], -len(n)))
    return best, f"the network cannot be cut before '{name}'; it is cut before '{best}' instead"


def _find_rows(graph: fx.GraphModule, chain: list[fx.Node]) -> list[tuple[str, int, fx.Node]]:
    """(layer, index of the first node of the data that needs it, node with its output).

    A layer is a module that is called as a whole or has no modules in it. A parameter that is used
    outside of these is a row of its own.
    """
    place = {node: i for i, node in enumerate(chain)}
    # A node without the data in it (a parameter, a bias computed from one) counts from its first use.
    for node in reversed(graph.graph.nodes):
        uses = [place[n] for n in node.users if n in place]
        if node not in place and uses:
            place[node] = min(uses)
    modules = dict(graph.named_modules())
    parameters = dict(graph.named_parameters())
    rows: dict[str, tuple[int, fx.Node]] = {}
    for node in graph.graph.nodes:
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        if node not in place:
            continue
        if node.op == "call_module":
            rows.setdefault(str(node.target), (place[node], node))
        elif stack and stack[-1] in modules and not any(modules[stack[-1]].children()):
            start = rows[stack[-1]][0] if stack[-1] in rows else place[node]
            rows[stack[-1]] = (start, node)
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name in parameters and not _is_inside(name, rows):
            rows[name] = (place[node], node)
    found = [(name, start, node) for name, (start, node) in rows.items()]
    return sorted(found, key=lambda row: row[1])


def _is_inside(name: str, modules: Container[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def tensors_before(network: nn.Module, cut: str) -> set[str]:
    """Name the parameters and buffers that the network needs up to a cut point.

    Raises:
        UsageError: it cannot be cut there.
    """
    graph, starts = trace_network(network)
    if cut not in starts:
        raise UsageError(f"{type(network).__name__} cannot be cut before '{cut}'")
    return set(_end_at(graph, [starts[cut]]).state_dict())


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
    """Average over every axis but the batch's and the channels'."""
    others = [a for a in range(1, values.ndim) if a != axis]
    return values.mean(dim=others) if others else values


def _end_at(graph: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """Make the same network return these nodes' values, without the nodes after the last."""
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

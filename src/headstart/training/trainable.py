"""Takes a `Backbone` and a head, gives the part above a cut point as a network that can be trained.

`tuning` trains what is made here. Shape letters: N images, C channels, D features, H W pixels.

While BatchNorm's statistics are frozen, a convolution and the norm after it are one convolution: its
weight times gamma / sigma, its bias beta - mu * gamma / sigma. Computing that one in every
step gives the same gradients of weight, gamma and beta, and saves a pass over the activations and the
memory that it keeps for the backward pass (`benchmarks/train.py` has the figures).
"""

import copy
from collections import Counter

import numpy as np
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import pad_same
from torch import fx, nn

from headstart.networks.backbones import Backbone
from headstart.networks.graphs import pool, trace_network
from headstart.problem import SINGLE_LABEL, Problem
from headstart.training.heads import Head, HeadShape, LinearHead, MlpHead

__all__ = ["TrainableNetwork", "head_of_module", "module_of_head", "new_head"]

FROZEN = "frozen"


class TrainableNetwork(nn.Module):
    """The part of a network above a cut point, with a head: activations or pixels -> logits.

    Attributes:
        body: from the cut point to the classifier's input; parameters and buffers are copies.
        head: features (N, D) -> logits (N, classes).
        depths: how many cut points lie below each parameter of the body, by its name in `body`.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        cut: str | None,
        head: nn.Module,
        *,
        batchnorm: str = FROZEN,
    ) -> None:
        """`cut` None takes pixels and trains everything; `batchnorm` is "frozen" or "adapt"."""
        super().__init__()
        network = copy.deepcopy(backbone.network).requires_grad_(True)
        graph, starts = trace_network(network)
        last = backbone.cuts[-1]
        body, depths = _between(
            graph,
            None if cut is None else starts[cut],
            starts[last.name],
            [starts[c.name] for c in backbone.cuts],
        )
        self._origins = _fold_norms(body) if batchnorm == FROZEN else {}
        self.body, self.head, self._batchnorm = body, head, batchnorm
        self.depths = {name: depths[self._original(name)] for name, _ in body.named_parameters()}
        self._axis, self._pixels = last.axis, cut is None
        for tensor in (*body.parameters(), *body.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        mean = torch.tensor(backbone.preprocessing.mean)
        std = torch.tensor(backbone.preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) pixels, or activations at the cut point -> float (N, classes)."""
        if self._pixels:
            inputs = inputs.permute(0, 3, 1, 2) * self.scale + self.shift
        elif inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.head(pool(self.body(inputs), self._axis))
        return logits

    def train(self, mode: bool = True) -> "TrainableNetwork":
        """Set the mode as in any module, but leave frozen BatchNorms in evaluation mode."""
        super().train(mode)
        if self._batchnorm == FROZEN:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def body_state(self) -> dict[str, np.ndarray]:
        """Give the body's tensors under their names in the whole network."""
        return {
            self._original(name): tensor.detach().cpu().contiguous().numpy()
            for name, tensor in self.body.state_dict().items()
        }

    def _original(self, name: str) -> str:
        for folded, original in self._origins.items():
            if name.startswith(folded + "."):
                return original + name[len(folded) :]
        return name


def _between(
    graph: fx.GraphModule, begin: fx.Node | None, end: fx.Node, cuts: list[fx.Node]
) -> tuple[fx.GraphModule, dict[str, int]]:
    """Cut out the network between two nodes, and count the cuts below each of its tensors."""
    shortened = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    depths: dict[str, int] = {}
    if begin is not None:
        copied[begin] = shortened.placeholder("activations")

    def copy_node(node: fx.Node) -> fx.Node:
        if node not in copied:  # such as a parameter that is read before the cut and used after it
            copied[node] = shortened.node_copy(node, copy_node)
            for name in _tensor_names(graph, node):
                depths.setdefault(name, passed)
        return copied[node]

    passed, reached = 0, begin is None
    for node in graph.graph.nodes:
        if reached and node.op != "output":
            copy_node(node)
        reached = reached or node is begin
        passed += node in cuts
        if node is end:
            break
    shortened.output(copied[end])
    module = fx.GraphModule(graph, shortened)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module, depths


def _tensor_names(graph: fx.GraphModule, node: fx.Node) -> list[str]:
    if node.op == "get_attr":
        return [str(node.target)]
    if node.op != "call_module":
        return []
    module = graph.get_submodule(str(node.target))
    return [f"{node.target}.{name}" for name, _ in module.named_parameters()]


class _FoldedConv(nn.Module):
    """A convolution and the frozen norm after it, as one convolution; both keep their tensors."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = torch.rsqrt(norm.running_var + norm.eps)
        bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        if norm.weight is not None:
            factor = factor * norm.weight
        bias = bias * factor
        if norm.bias is not None:
            bias = bias + norm.bias
        weight = conv.weight * factor.view(-1, 1, 1, 1)
        if isinstance(conv, Conv2dSame):
            x = pad_same(x, list(weight.shape[-2:]), list(conv.stride), list(conv.dilation))
            y = nn.functional.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)
        else:
            y = conv._conv_forward(x, weight, bias)
        # timm's norms include their activation.
        if isinstance(norm, BatchNormAct2d):
            return torch.as_tensor(norm.act(norm.drop(y)))
        return y


def _fold_norms(body: fx.GraphModule) -> dict[str, str]:
    """Replace every convolution and its norm by one module; give {name of its part: original name}."""
    modules = dict(body.named_modules())
    calls = Counter(n.target for n in body.graph.nodes if n.op == "call_module")
    origins: dict[str, str] = {}
    for node in list(body.graph.nodes):
        before = node.args[0] if node.args else None
        if not (
            node.op == "call_module"
            and isinstance(before, fx.Node)
            and before.op == "call_module"
            and len(before.users) == 1
            and calls[node.target] == calls[before.target] == 1
        ):
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        # Not their subclasses, which may compute something else with the weight.
        if not isinstance(norm, nn.BatchNorm2d) or type(conv) not in (nn.Conv2d, Conv2dSame):
            continue
        if norm.running_mean is None:
            continue
        name = f"folded_{len(origins)}"
        body.add_submodule(name, _FoldedConv(conv, norm))
        origins[f"{name}.conv"], origins[f"{name}.norm"] = str(before.target), str(node.target)
        with body.graph.inserting_before(node):
            folded = body.graph.call_module(name, before.args)
        node.replace_all_uses_with(folded)
        body.graph.erase_node(node)
        body.graph.erase_node(before)
    body.delete_all_unused_submodules()
    body.recompile()
    return origins


def new_head(shape: HeadShape, width: int, classes: int, seed: int) -> nn.Sequential:
    """Make a head of random weights, as torch draws them: features (N, width) -> logits (N, classes)."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for out, dropout in zip((*shape.widths, classes), shape.dropouts, strict=True):
            layers += [nn.ReLU()] if any(isinstance(m, nn.Linear) for m in layers) else []
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(width, out))
            width = out
    return nn.Sequential(*layers)


def module_of_head(head: Head, shape: HeadShape) -> nn.Sequential:
    """Make a module of a head, with the dropouts of `shape`, that can be trained."""
    module = new_head(shape, head.width, head.classes, 0)
    for layer, (weight, bias) in zip(_dense(module), head.layers, strict=True):
        layer.weight.data = torch.from_numpy(weight.copy())
        layer.bias.data = torch.from_numpy(bias.copy())
    return module


def head_of_module(module: nn.Module, problem: Problem = SINGLE_LABEL) -> Head:
    """Make a head of a trained module, for a kind of problem: the inverse of `module_of_head`."""
    layers = tuple(
        (m.weight.detach().cpu().numpy().copy(), m.bias.detach().cpu().numpy().copy())
        for m in _dense(module)
    )
    return LinearHead(*layers[0], problem) if len(layers) == 1 else MlpHead(layers, problem)


def _dense(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]

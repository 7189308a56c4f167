"""Takes a `Backbone`, gives an engine that runs it frozen: pixels in, pooled features out.

Place in the flow: after `backbones`; `features` and `classifier` run networks through here alone.
Shape letters: N images, D features, C channels, H W pixels.

Every engine works in micro-batches of one fixed size, the last one padded, so that an image's features
do not depend on how many others went with it: the libraries underneath choose their arithmetic by
the batch's shape.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import fx, nn

from headstart.backbones import Backbone, CutPoint, trace_network
from headstart.datasets import choose
from headstart.errors import ResourceError, UsageError

__all__ = ["DEVICES", "Engine", "TorchEngine", "choose_device", "make_engine"]

# Images a micro-batch. On two CPU cores 8 and 32 are within 5 % of 16 (EfficientNet-Lite0).
MICRO_BATCH = {"cpu": 16, "cuda": 64, "mps": 32}

DEVICES: dict[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


class Engine(Protocol):
    """Runs a frozen network.

    Attributes:
        name: for people and for the run's record, e.g. "torch cpu float32".
        cuts: names of the cut points whose features it gives.
        micro_batch: images at a time.
    """

    name: str
    cuts: tuple[str, ...]
    micro_batch: int

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3) with n at most `micro_batch` -> float32 (n, D) for each cut point."""
        ...


def choose_device(name: str = "auto") -> str:
    """The device to use: "cuda", else "mps", else "cpu" for "auto"; else the one named.

    Raises:
        UsageError: unknown, or not present on this machine.
    """
    present = choose("device", name, DEVICES)
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if DEVICES[d]())
    if not present():
        raise UsageError(f"device '{name}' is not present on this machine; use --device auto")
    return name


def make_engine(
    backbone: Backbone, *, cuts: tuple[str, ...] | None = None, device: str = "auto"
) -> Engine:
    """An engine for pooled features at these cut points; all of the backbone's by default.

    Raises:
        UsageError: an unknown cut point or device.
    """
    names = tuple(c.name for c in backbone.cuts) if cuts is None else cuts
    return TorchEngine(backbone, names, choose_device(device))


class TorchEngine:
    """The reference: PyTorch in float32, channels last."""

    def __init__(self, backbone: Backbone, cuts: tuple[str, ...], device: str) -> None:
        self.cuts = cuts
        self.micro_batch = MICRO_BATCH[device]
        self.name = f"torch {device} float32"
        self._device = device
        points = [backbone.cut(name) for name in cuts]
        self._module = FeatureNetwork(backbone, points).to(device)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3) with n at most `micro_batch` -> float32 (n, D) for each cut point."""
        with torch.inference_mode(), _translated_memory_errors(self._device):
            batch = torch.from_numpy(pad_batch(pixels, self.micro_batch)).to(self._device)
            outputs = [o.float().cpu().numpy()[: len(pixels)] for o in self._module(batch)]
        return dict(zip(self.cuts, outputs, strict=True))


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last image until there are `size`."""
    missing = size - len(pixels)
    if missing == 0:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])


class FeatureNetwork(nn.Module):
    """Pixels -> pooled features at several cut points, in one pass that ends at the last of them."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: Backbone, points: list[CutPoint]) -> None:
        super().__init__()
        graph, starts = trace_network(backbone.network)
        self.trunk = _end_at(graph, [starts[p.name] for p in points])
        # Not Module.to: it fails on the five-dimensional buffers of Swin.
        for tensor in (*self.trunk.parameters(), *self.trunk.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self.axes = [p.axis for p in points]
        mean = torch.tensor(backbone.preprocessing.mean)
        std = torch.tensor(backbone.preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 (N, H, W, 3) -> one (N, C) tensor a cut point."""
        # A permuted NHWC batch is what torch calls channels-last: nothing is copied.
        scaled = pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        values = self.trunk(scaled)
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


class _translated_memory_errors:
    """CUDA's out-of-memory error as a `ResourceError` that says what to do."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(
                f"out of memory on {self.device}; close other programs or use --device cpu"
            ) from error

"""The reference engine: PyTorch, on any device."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ResourceError
from headstart.features.engine import EngineChoice, pad_batch
from headstart.networks.backbones import Backbone

__all__ = ["TorchEngine", "best_precision", "describe_graph", "make", "refuses"]


def refuses(backbone: Backbone, device: str, precision: str) -> str:
    """Refuse slow fp16 on a CPU; it runs every network on every device."""
    if precision == "fp16" and device == "cpu":
        return "fp16 on a CPU is slow and inexact; use --precision bf16 or fp32"
    return ""


def best_precision(device: str) -> tuple[str, str]:
    """Choose bf16 on CUDA, where it takes half the time; else fp32."""
    return ("bf16" if device == "cuda" else "fp32"), ""


def describe_graph(backbone: Backbone) -> str:
    """Name the form: the network as its library built it."""
    return "traced"


def make(
    backbone: Backbone,
    choice: EngineChoice,
    cuts: tuple[str, ...],
    pooled: bool,
    threads: int,
    cache_dir: Path,
) -> "TorchEngine":
    """Start the engine; it serves any number of threads in turn, and caches nothing."""
    return TorchEngine(backbone, cuts, choice, pooled)


class TorchEngine:
    """The reference: PyTorch, channels last."""

    def __init__(
        self, backbone: Backbone, cuts: tuple[str, ...], choice: EngineChoice, pooled: bool
    ) -> None:
        import torch

        from headstart.networks.graphs import FeatureNetwork

        self.cuts, self.micro_batch, self._device = cuts, choice.micro_batch, choice.device
        points = [(name, backbone.cut(name).axis) for name in cuts]
        network = FeatureNetwork(backbone.network, points, backbone.preprocessing, pooled=pooled)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        if (choice.precision, choice.device) != (
            "fp32",
            "cpu",
        ):  # the backbone's own stays as it is
            import copy

            network = copy.deepcopy(network)
        self._network = network.to(choice.device, kind[choice.precision])
        self._lock = threading.Lock()  # one batch already uses every core

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run uint8 (n, H, W, 3), n up to `micro_batch`; give float32 (n, D), or (n, …) unpooled, by cut."""
        import torch

        with self._lock, torch.inference_mode(), _translated_memory_errors(self._device):
            batch = torch.from_numpy(pad_batch(pixels, self.micro_batch)).to(self._device)
            outputs = [o.float().cpu().numpy()[: len(pixels)] for o in self._network(batch)]
        return dict(zip(self.cuts, outputs, strict=True))


@contextlib.contextmanager
def _translated_memory_errors(device: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise ResourceError(
            f"out of memory on {device}; close other programs or use --device cpu"
        ) from exc

"""The contract of an engine, which runs a frozen network: pixels in, activations out.

Every engine works in micro-batches of one fixed size, the last one padded, so that an image's features
do not depend on how many others are in its batch: the libraries underneath choose their arithmetic by
the batch's shape. Shape letters: N images, D features, H W pixels.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.networks.backbones import Backbone

__all__ = ["Engine", "EngineChoice", "EngineKind", "pad_batch"]


class Engine(Protocol):
    """Runs a frozen network; may be called from several threads at once.

    Attributes:
        cuts: names of the cut points whose activations it gives.
        micro_batch: how many images it runs at a time.
    """

    micro_batch: int

    @property
    def cuts(self) -> tuple[str, ...]: ...

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run uint8 (n, H, W, 3), n up to `micro_batch`; give float32 (n, D), or (n, …) unpooled, by cut."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """The engine that will run the network; chosen without loading it.

    Attributes:
        library: a key of `engines.ENGINES`.
        device: "cpu", "cuda" or "mps".
        precision: of the arithmetic, "fp32", "bf16" or "fp16"; features are always float32.
        version: of the library.
        micro_batch: how many images it runs at a time.
        graph: which form of the network the library runs, where forms differ in their numbers.
        reason: why this engine, for people.
    """

    library: str
    device: str
    precision: str
    version: str
    micro_batch: int
    graph: str
    reason: str

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f" {self.device}"
        return f"{self.library}{device} {self.precision}"

    def key(self) -> dict[str, Any]:
        """Give the fields that change a number."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "reason"}


class EngineKind(Protocol):
    """The functions of an engine's file; `engines.ENGINES` lists such files by their library's name."""

    def refuses(self, backbone: Backbone, device: str, precision: str) -> str:
        """Say, without trying, why it cannot run this network there and what to do; "" where it can."""
        ...

    def best_precision(self, device: str) -> tuple[str, str]:
        """Give the precision for "auto" on a device, and a remark on it for people or ""."""
        ...

    def describe_graph(self, backbone: Backbone) -> str:
        """Name the form of the network that it runs: "traced", or the version of its own graph."""
        ...

    def make(
        self,
        backbone: Backbone,
        choice: EngineChoice,
        cuts: tuple[str, ...],
        pooled: bool,
        threads: int,
        cache_dir: Path,
    ) -> Engine:
        """Start the engine, which that many threads may call; EngineRefused if it cannot take the network."""
        ...


def pad_batch(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Repeat the last image until there are `size`."""
    missing = size - len(pixels)
    if missing == 0:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])

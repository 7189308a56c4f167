"""The contract of an engine, which runs a frozen network: pixels in, activations out.

Every engine works in micro-batches of one fixed size, the last one padded, so that an image's features
do not depend on how many others went with it: the libraries underneath choose their arithmetic by
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
        micro_batch: images at a time.
    """

    micro_batch: int

    @property
    def cuts(self) -> tuple[str, ...]: ...

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """uint8 (n, H, W, 3), n at most `micro_batch` -> float32 (n, D), or (n, …) unpooled, a cut."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What will run the network; decided without loading it.

    Attributes:
        library: a key of `engines.ENGINES`.
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16", of the arithmetic; features are float32 always.
        version: of the library.
        micro_batch: images at a time.
        graph: which form of the network the library runs, where forms differ in their numbers.
        reason: why this one, for people.
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
        """What of it changes a number."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "reason"}


class EngineKind(Protocol):
    """What the file of an engine offers; `engines.ENGINES` lists such files by their library's name."""

    def refuses(self, backbone: Backbone, device: str, precision: str) -> str:
        """Why it cannot run this network there, told without trying, and what to do; "" where it can."""
        ...

    def best_precision(self, device: str) -> tuple[str, str]:
        """(the precision for "auto" on a device, a remark on it for people or "")."""
        ...

    def describe_graph(self, backbone: Backbone) -> str:
        """Which form of the network it runs: "traced", or the version of its own."""
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
        """The running engine, which that many threads call; EngineRefused where it cannot be."""
        ...


def pad_batch(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Repeat the last image until there are `size`."""
    missing = size - len(pixels)
    if missing == 0:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])

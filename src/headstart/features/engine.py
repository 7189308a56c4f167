"""The contract of an engine, which runs a frozen network: pixels in, activations out.

Every engine works in micro-batches of one fixed size, the last one padded, so that an image's features
do not depend on how many others went with it: the libraries underneath choose their arithmetic by
the batch's shape. Shape letters: N images, D features, H W pixels.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

__all__ = ["Engine", "EngineChoice", "pad_batch"]


class Engine(Protocol):
    """Runs a frozen network; may be called from several threads at once.

    Attributes:
        cuts: names of the cut points whose activations it gives.
        micro_batch: images at a time.
    """

    micro_batch: int

    @property
    def cuts(self) -> tuple[str, ...]: ...

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3), n at most `micro_batch` -> float32 (n, D), or (n, …) unpooled, a cut."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What will run the network; decided without loading it.

    Attributes:
        library: "openvino" or "torch".
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16", of the arithmetic; features are float32 always.
        version: of the library.
        micro_batch: images at a time.
        reason: why this one, for people.
    """

    library: str
    device: str
    precision: str
    version: str
    micro_batch: int
    reason: str

    def __str__(self) -> str:
        device = "" if self.library == "openvino" else f" {self.device}"
        return f"{self.library}{device} {self.precision}"

    def key(self) -> dict[str, Any]:
        """What of it changes a number."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "reason"}


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last image until there are `size`."""
    missing = size - len(pixels)
    if missing == 0:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])

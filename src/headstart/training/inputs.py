"""Takes rows and views of images, gives a network's inputs: features, activations on disk, or pixels.

The loop trains on any of them. Shape letters: N images, B images a batch, K views, D features, H W
pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from headstart.draws import draw
from headstart.features.activations import Activations
from headstart.parallel import map_ahead

__all__ = ["ActivationSource", "MatrixSource", "Order", "PixelSource", "Source", "view_of"]

Order = Sequence[tuple[np.ndarray, np.ndarray]]


class Source(Protocol):
    """Gives a network's inputs.

    Attributes:
        views: K, views an image that differ; None for a new one every epoch.
        axis: of the channels in a batch.
    """

    views: int | None
    axis: int

    def read(self, order: Order) -> Iterator[torch.Tensor]:
        """For every (rows int64 (B,), views int64 (B,)) of the order the inputs, (B, …)."""
        ...


class MatrixSource:
    """Rows of a float matrix (N, D)."""

    views: int | None = 1
    axis: int = 1

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))

    def read(self, order: Order) -> Iterator[torch.Tensor]:
        """float32 (B, D) each."""
        for rows, _ in order:
            yield self._matrix[torch.from_numpy(rows)]


class ActivationSource:
    """Cached activations, read in a thread ahead of their use.

    Args:
        train, held: (rows, their activations) to train on, in K views, and to validate on, in one.
        axis: of the channels in a batch.
    """

    def __init__(
        self,
        train: tuple[np.ndarray, Activations],
        held: tuple[np.ndarray, Activations] | None,
        *,
        axis: int = 1,
    ) -> None:
        self.axis = axis
        self.views: int | None = train[1].views
        self._places = {
            int(row): (activations, place)
            for rows, activations in ((train, held) if held else (train,))
            for place, row in enumerate(rows)
        }

    def read(self, order: Order) -> Iterator[torch.Tensor]:
        """float32 (B, …) each."""

        def read(batch: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
            rows, views = batch
            activations = self._places[int(rows[0])][0]
            return activations.read_tensor(np.array([self._places[int(r)][1] for r in rows]), views)

        for tensor in map_ahead(read, order, 1):
            yield tensor.float()


class PixelSource:
    """Images decoded and augmented when they are needed; with `trunk`, run through it.

    Args:
        reader: gives uint8 (B, H, W, 3) for every batch of an order.
        trunk: what the frozen part makes of pixels; None trains on the pixels themselves.
        views: K, or None for a new view every epoch.
        axis: of the channels in a batch; pixels have them last.
    """

    def __init__(
        self,
        reader: Callable[[Order], Iterator[np.ndarray]],
        *,
        trunk: Callable[[np.ndarray], torch.Tensor] | None = None,
        views: int | None = None,
        axis: int = 3,
    ) -> None:
        self._reader, self._trunk, self.views, self.axis = reader, trunk, views, axis

    def read(self, order: Order) -> Iterator[torch.Tensor]:
        """uint8 (B, H, W, 3) each, or float32 (B, …) with a trunk."""
        for pixels in self._reader(order):
            yield torch.from_numpy(pixels) if self._trunk is None else self._trunk(pixels).float()


def view_of(image_id: str, epoch: int, views: int | None, seed: int) -> int:
    """Which view of an image an epoch (1, 2, …) sees: all K in turn, each image from one of its own.

    View 0 is the plain image. Without a limit every epoch has a new one, the plain one excepted.
    """
    if views is None:
        return epoch
    return (math.floor(draw(seed, "first view", image_id) * views) + epoch) % views

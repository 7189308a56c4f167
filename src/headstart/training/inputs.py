"""Takes rows and views of images, gives a network's inputs: features, activations on disk, or pixels.

The loop trains on any of them. Shape letters: N images, B images a batch, K views, D features, H W
pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from headstart.arrays import FloatND, IntN, PixelsNHW3
from headstart.draws import draw
from headstart.features.activations import Activations
from headstart.parallel import map_ahead

__all__ = ["ActivationInputs", "Batches", "Inputs", "MatrixInputs", "PixelInputs", "view_of"]

# Of each batch the rows int64 (B,) and which view of each, int64 (B,).
Batches = Sequence[tuple[IntN, IntN]]


class Inputs(Protocol):
    """A network's inputs, read in batches.

    Attributes:
        views: K, views an image that differ; None for a new one every epoch.
        axis: the axis of the channels in a batch.
    """

    views: int | None
    axis: int

    def read(self, batches: Batches) -> Iterator[torch.Tensor]:
        """Yield the inputs (B, …) of every batch."""
        ...


class MatrixInputs:
    """Rows of a float matrix (N, D)."""

    views: int | None = 1
    axis: int = 1

    def __init__(self, matrix: FloatND) -> None:
        self._matrix = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))

    def read(self, batches: Batches) -> Iterator[torch.Tensor]:
        """Yield float32 (B, D) of every batch."""
        for rows, _ in batches:
            yield self._matrix[torch.from_numpy(rows)]


class ActivationInputs:
    """Cached activations, read in a thread ahead of their use.

    Args:
        train, plain: (rows, their activations) to train on, in K views, and those of all others, in one.
        axis: the axis of the channels in a batch.
    """

    def __init__(
        self,
        train: tuple[IntN, Activations],
        plain: tuple[IntN, Activations] | None,
        *,
        axis: int = 1,
    ) -> None:
        self.axis = axis
        self.views: int | None = train[1].views
        self._places = {
            int(row): (activations, place)
            for rows, activations in ((train, plain) if plain else (train,))
            for place, row in enumerate(rows)
        }

    def read(self, batches: Batches) -> Iterator[torch.Tensor]:
        """Yield float32 (B, …) of every batch."""

        def read(batch: tuple[IntN, IntN]) -> torch.Tensor:
            rows, views = batch
            activations = self._places[int(rows[0])][0]
            return activations.read_tensor(np.array([self._places[int(r)][1] for r in rows]), views)

        for tensor in map_ahead(read, batches, 1):
            yield tensor.float()


class PixelInputs:
    """Images decoded and augmented when they are needed, and run through the frozen part if there is one.

    Args:
        reader: yields uint8 (B, H, W, 3) of every batch.
        frozen_part: computes activations from pixels; None trains on the pixels themselves.
        views: K, or None for a new view every epoch.
        axis: the axis of the channels in a batch; pixels have them last.
    """

    def __init__(
        self,
        reader: Callable[[Batches], Iterator[PixelsNHW3]],
        *,
        frozen_part: Callable[[PixelsNHW3], torch.Tensor] | None = None,
        views: int | None = None,
        axis: int = 3,
    ) -> None:
        self._reader, self._frozen_part, self.views, self.axis = reader, frozen_part, views, axis

    def read(self, batches: Batches) -> Iterator[torch.Tensor]:
        """Yield uint8 (B, H, W, 3) of every batch, or float32 (B, …) with a frozen part."""
        for pixels in self._reader(batches):
            if self._frozen_part is None:
                yield torch.from_numpy(pixels)
            else:
                yield self._frozen_part(pixels).float()


def view_of(image_id: str, epoch: int, views: int | None, seed: int) -> int:
    """Say which view of an image an epoch (1, 2, …) sees: all K in turn, each image from its own first one.

    View 0 is the plain image. Without a limit every epoch has a new one, the plain one excepted.
    """
    if views is None:
        return epoch
    return (math.floor(draw(seed, "first view", image_id) * views) + epoch) % views

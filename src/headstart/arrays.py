"""Types of arrays, each named by what it holds and the letters of its shape.

N images (or the B of a batch), C classes, D features, P pairs, S runs, H W pixels; a module that needs others
says so at its head.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BoolN",
    "BoolNC",
    "BoolSN",
    "FloatC",
    "FloatCD",
    "FloatD",
    "FloatN",
    "FloatNC",
    "FloatND",
    "IntCC",
    "IntN",
    "IntP2",
    "PixelsHW3",
    "PixelsNHW3",
    "Targets",
]

BoolN = NDArray[np.bool_]
BoolNC = NDArray[np.bool_]
BoolSN = NDArray[np.bool_]
IntN = NDArray[np.int64]
IntP2 = NDArray[np.int64]
IntCC = NDArray[np.int64]
FloatC = NDArray[np.floating[Any]]
FloatD = NDArray[np.floating[Any]]
FloatCD = NDArray[np.floating[Any]]
FloatN = NDArray[np.floating[Any]]
FloatNC = NDArray[np.floating[Any]]
FloatND = NDArray[np.floating[Any]]
PixelsHW3 = NDArray[np.uint8]
PixelsNHW3 = NDArray[np.uint8]

# (N, …): the target of each image, in the form that its `Problem` takes.
Targets = NDArray[Any]

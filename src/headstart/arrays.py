"""Types of arrays, each named by what it holds and the letters of its shape.

N images, C classes, D features, P pairs; a module that needs others says so at its head.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoolN", "FloatN", "FloatNC", "FloatND", "IntN", "IntP2", "Targets"]

BoolN = NDArray[np.bool_]
IntN = NDArray[np.int64]
IntP2 = NDArray[np.int64]
FloatN = NDArray[np.floating[Any]]
FloatNC = NDArray[np.floating[Any]]
FloatND = NDArray[np.floating[Any]]

# (N, …): what is known of each image, as its `Problem` wants it.
Targets = NDArray[Any]

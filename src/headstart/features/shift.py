"""Takes images and a `Backbone`, says how far they are from the data that the network was trained on.

A BatchNorm layer keeps the mean and variance of each channel of its input over the pre-training data, which
is a summary of those data that comes with the weights. The shift of a layer is how far the same two
figures of these images are from it. Shape letters: N images, C channels, H W pixels.
"""

from collections.abc import Sequence

import numpy as np

from headstart.arrays import FloatN, FloatND, IntN
from headstart.data.dataset import Dataset
from headstart.data.views import AUGMENTATIONS
from headstart.features.drawing import Drawing
from headstart.features.pixels import ViewReader
from headstart.features.runtime import Runtime
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress, no_progress

__all__ = ["measure_divergence", "measure_shift"]

BATCH = 16
# Below this fraction of the layer's median variance a channel is as good as constant, and says nothing.
LEAST_VARIANCE = 1e-4


def measure_shift(
    dataset: Dataset,
    rows: IntN,
    backbone: Backbone,
    runtime: Runtime = Runtime(),
    *,
    sha256: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> tuple[float, ...]:
    """Measure the shift at every BatchNorm layer, from the first to the last; () without such layers.

    Args:
        rows: int64 (N,), readable images; a hundred are enough.
        sha256: as in `ViewReader`.

    Raises:
        InputError, ResourceError: as `ViewReader.read` says.
    """
    import torch
    from torch import nn

    network = backbone.network
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [m for m in layers if m.running_mean is not None]
    if not layers or not len(rows):
        return ()
    sums: dict[nn.Module, FloatND] = {}  # of the values, and of their squares
    counts: dict[nn.Module, int] = {}

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0]
        places = [axis for axis in range(values.ndim) if axis != 1]
        spread, center = torch.var_mean(values, places, correction=0)
        both = np.stack([center.double().numpy(), (spread.double() + center.double() ** 2).numpy()])
        sums[module] = sums.get(module, 0) + len(values) * both
        counts[module] = counts.get(module, 0) + len(values)

    mean = torch.tensor(backbone.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(backbone.preprocessing.std).view(1, 3, 1, 1)
    drawing = Drawing(backbone.preprocessing, AUGMENTATIONS["none"], max_pixels=runtime.max_pixels)
    reader = ViewReader(dataset, drawing, sha256=sha256, runtime=runtime)
    batches = [(rows[i : i + BATCH], 0) for i in range(0, len(rows), BATCH)]
    hooks = [module.register_forward_pre_hook(add) for module in layers]
    try:
        with torch.inference_mode():
            for done, pixels in enumerate(reader.read(batches)):
                progress("comparing with the pre-training data", done * BATCH, len(rows))
                network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    finally:
        for hook in hooks:
            hook.remove()
    result = []
    for module, both in sums.items():  # in the order in which they ran
        center, square = both / counts[module]
        spread = np.maximum(square - center**2, 0)
        own, kept = module.running_mean, module.running_var
        assert isinstance(own, torch.Tensor)
        assert isinstance(kept, torch.Tensor)
        result.append(
            measure_divergence(center, spread, own.double().numpy(), kept.double().numpy())
        )
    return tuple(result)


def measure_divergence(mean: FloatN, variance: FloatN, own: FloatN, kept: FloatN) -> float:
    """Compute how far statistics of images are from those kept, as a median over channels; NaN without any.

    For each channel the Kullback-Leibler divergence of two normal distributions, in nats:
    ((v + (m - M)^2) / V - 1 - log(v / V)) / 2. A channel without variance on either side is left out.

    Args:
        mean, variance: float (C,), m and v, of the images.
        own, kept: float (C,), M and V, the layer's.
    """
    least = LEAST_VARIANCE * float(np.median(kept)) if len(kept) else 0.0
    live = (kept > least) & (variance > least)
    if not live.any() or not np.isfinite(mean[live]).all():
        return float("nan")
    m, v, own, kept = mean[live], variance[live], own[live], kept[live]
    return float(np.median((v + (m - own) ** 2) / kept - 1 - np.log(v / kept)) / 2)

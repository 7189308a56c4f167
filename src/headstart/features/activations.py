"""Takes a `Dataset` and a `Backbone`, gives `Activations`: unpooled, at one cut point, in several views.

The layers above a cut point can be trained on these without running the frozen part again. Shape letters:
N images, K views.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.choices import choose
from headstart.data.dataset import Dataset
from headstart.data.views import Views
from headstart.errors import UsageError
from headstart.features.drawing import name_views, pair_views
from headstart.features.engine import EngineChoice
from headstart.features.extraction import ITEM_BYTES, Extraction, run_extraction
from headstart.features.runtime import Runtime
from headstart.features.store import Store
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress, no_progress

if TYPE_CHECKING:
    import torch

__all__ = ["Activations", "activations_bytes", "extract_activations"]


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """Unpooled activations at one cut point, K views an image, on disk.

    Attributes:
        ids: N image ids, in the order of the data set.
        cut: the cut point.
        shape: of the activation of one image, without the batch axis.
        views: K; view 0 is the plain image.
        dtype: "bfloat16" or "float16".
        errors: N reasons why an image could not be read, "" for a good one.
        engine: the engine that computed them.
        computed: how many activations were computed now; the others came from the store.
        warnings: one line each, for people.
    """

    ids: tuple[str, ...]
    cut: str
    shape: tuple[int, ...]
    views: int
    dtype: str
    errors: tuple[str, ...]
    engine: EngineChoice
    computed: int
    warnings: tuple[str, ...]
    _store: Store
    _digests: tuple[bytes | None, ...]
    _recipe: bytes

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return (
            f"Activations({len(self.ids):,} images at {self.cut}, {views} of {shape} {self.dtype})"
        )

    def good(self) -> NDArray[np.bool_]:
        """Say which rows have activations, (N,)."""
        return np.array([not e for e in self.errors], dtype=bool)

    def read(
        self, rows: NDArray[np.int64], views: int | NDArray[np.int64]
    ) -> NDArray[np.float16] | NDArray[np.uint16]:
        """Read the activations of readable rows, (n, …): float16, or bfloat16 as uint16 bits.

        Args:
            rows: n row numbers.
            views: one view number for all, or one for each row.

        Raises:
            UsageError: a view does not exist, or a row could not be read.
            ResourceError: another process has removed the activations.
        """
        names = []
        for row, view in pair_views(rows, views):
            if not 0 <= view < self.views:
                raise UsageError(f"view {view} is not one of 0 to {self.views - 1}")
            digest = self._digests[row]
            if self.errors[row] or digest is None:
                raise UsageError(f"'{self.ids[row]}' has no activations: {self.errors[row]}")
            names += name_views(digest, self.ids[row], (view,), self._recipe)
        return self._store.read(self.cut, names)

    def read_tensor(
        self, rows: NDArray[np.int64], views: int | NDArray[np.int64]
    ) -> "torch.Tensor":
        """Read as `read` does, but give a torch tensor of the activations' own dtype."""
        import torch

        values = torch.from_numpy(self.read(rows, views))
        return values.view(torch.bfloat16) if self.dtype == "bfloat16" else values


def activations_bytes(dataset: Dataset, backbone: Backbone, cut: str, views: int) -> int:
    """Compute how many bytes the activations of a data set take on disk."""
    row_bytes = Extraction((cut,), pooled=False, dtype="bfloat16").row_bytes(backbone)
    return len(dataset) * views * row_bytes


def extract_activations(
    dataset: Dataset,
    backbone: Backbone,
    cut: str,
    runtime: Runtime = Runtime(),
    *,
    views: int | Views = 1,
    dtype: str = "bfloat16",
    progress: Progress = no_progress,
) -> Activations:
    """Extract unpooled activations of every image in K views, from the store or computed and stored.

    Only missing views are computed: another seed or augmentation shares view 0, and with more views than
    before only the new ones are computed.

    Args:
        cut: a cut point of the backbone.
        runtime: as in `extract`.
        views: K, at least 1, or `Views`, which say how they are drawn too. View 0 is the plain image,
            each other view one of `augment_image`, a pure function of (seed, image id, view).
        dtype: "bfloat16" or "float16".

    Raises:
        UsageError: an option is out of range.
        ResourceError: too little free disk space; raised before anything is computed.
        VerificationError: an activation does not fit float16.
    """
    drawn = views if isinstance(views, Views) else Views(views)
    choose("dtype", dtype, {name: size for name, size in ITEM_BYTES.items() if size == 2})
    shape = backbone.cut(cut).shape
    extraction = Extraction((cut,), pooled=False, dtype=dtype, views=drawn)
    extracted = run_extraction(dataset, backbone, extraction, runtime, progress)
    return Activations(
        ids=dataset.ids,
        cut=cut,
        shape=shape,
        views=drawn.count,
        dtype=dtype,
        errors=extracted.errors,
        engine=extracted.engine,
        computed=extracted.computed,
        warnings=extracted.warnings,
        _store=extracted.store,
        _digests=extracted.digests,
        _recipe=extracted.recipe,
    )

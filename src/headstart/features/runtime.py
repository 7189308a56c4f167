"""The settings of the machine that networks run on and images are read with.

They change what is trained by rounding alone.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headstart.data.bounds import MAX_PIXELS
from headstart.errors import UsageError
from headstart.files import default_cache_dir
from headstart.options import Option
from headstart.parallel import count_threads

__all__ = ["MAX_WORKERS", "Runtime", "make_runtime"]

PANEL = "Machine"

MAX_WORKERS = 256


class Runtime(BaseModel):
    """The engine, device, threads and cache; everything that reads images or runs a network takes it.

    Attributes:
        engine: a key of `engines.ENGINES`, or "auto": OpenVINO on a CPU where it takes the network,
            else PyTorch.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the processor computes in it.
        device: "cpu", "cuda", "mps", or "auto": the fastest that is present.
        workers: threads that read images; None for one more than there are CPUs. Changes no number.
        cache_dir: the folder of the feature store; None for `files.default_cache_dir()`.
        rehash: read every file again instead of trusting its size and times.
        max_pixels: width times height of the largest image that is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Annotated[
        str,
        Option(
            "Run the frozen network with openvino or torch; auto takes the faster one on this machine.",
            PANEL,
        ),
    ] = "auto"
    precision: Annotated[
        str,
        Option(
            "Run the frozen network in fp32 (exact), bf16 or fp16; auto takes bf16 where it is fast.",
            PANEL,
        ),
    ] = "auto"
    device: Annotated[
        str, Option("Run networks on cpu, cuda or mps; auto takes the fastest there is.", PANEL)
    ] = "auto"
    workers: Annotated[
        int | None,
        Field(ge=1, le=MAX_WORKERS),
        Option(
            "Read images in this many threads, by default one more than CPUs; changes no number.",
            PANEL,
            unit="threads",
        ),
    ] = None
    cache_dir: Annotated[
        str | None, Option("Keep features in this folder; HEADSTART_CACHE_DIR names it too.", PANEL)
    ] = None
    rehash: Annotated[
        bool, Option("Read every file again, whatever its size and times say.", PANEL)
    ] = False
    max_pixels: Annotated[
        int,
        Field(ge=1),
        Option("Treat an image with more pixels than this as unreadable.", PANEL, unit="pixels"),
    ] = MAX_PIXELS

    @field_validator("cache_dir", mode="before")
    @classmethod
    def _to_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @property
    def cache(self) -> Path:
        """The folder of the feature store and of cached networks."""
        return Path(self.cache_dir) if self.cache_dir is not None else default_cache_dir()

    @property
    def threads(self) -> int:
        """How many threads read images."""
        return min(count_threads(self.workers), MAX_WORKERS)


def make_runtime(**options: Any) -> Runtime:
    """Make a runtime from options by name.

    Raises:
        UsageError: a name is unknown, or a value is out of range; says what is allowed.
    """
    try:
        return Runtime(**options)
    except ValidationError as exc:
        problem = exc.errors()[0]
        wanted = problem["msg"].replace("Input should", "must")
        raise UsageError(f"{problem['loc'][0]} {wanted}, got {problem['input']!r}") from exc

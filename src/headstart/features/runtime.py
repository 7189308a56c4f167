"""On what and how carefully a network is run: the settings that go whole to whatever reads or runs.

None of them changes what is trained, but by rounding.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from headstart.data.bounds import MAX_PIXELS
from headstart.options import Option

__all__ = ["Runtime"]

PANEL = "Machine"


class Runtime(BaseModel):
    """Passed whole to whatever reads images or runs a network.

    Attributes:
        engine: a key of `engines.ENGINES`, or "auto": OpenVINO on a CPU where it takes the network,
            else PyTorch.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the processor computes in it.
        device: "cpu", "cuda", "mps", or "auto": the fastest that is present.
        workers: threads that read images; None for one more than CPUs. Changes no number.
        cache_dir: the place of the feature store; None for `files.default_cache_dir()`.
        rehash: read every file again instead of trusting its size and times.
        max_pixels: width times height of the largest image that is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Annotated[
        str,
        Option(
            "Run the frozen network with openvino or torch; auto takes what is faster here.", PANEL
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
        Field(ge=1, le=256),
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
        Option("Call an image unreadable that has more pixels than this.", PANEL, unit="pixels"),
    ] = MAX_PIXELS

"""Takes a `Backbone`, chooses and makes the engine that runs it: OpenVINO on a CPU, else PyTorch."""

import importlib.metadata
import importlib.util
import platform
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from headstart.choices import choose
from headstart.errors import UsageError
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engine_openvino import OpenVinoEngine, read_failure
from headstart.features.engine_torch import TorchEngine
from headstart.files import default_cache_dir
from headstart.networks.backbones import Backbone
from headstart.networks.openvino_library import import_openvino
from headstart.parallel import count_cpus

__all__ = [
    "DEVICES",
    "ENGINES",
    "PRECISIONS",
    "StartingEngine",
    "choose_device",
    "choose_engine",
    "make_engine",
]

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Images a micro-batch. On two CPU cores OpenVINO is fastest at 4 (EfficientNet-Lite0), where the
# activations still fit the cache; a GPU wants more.
MICRO_BATCH = {"cpu": 4, "cuda": 64, "mps": 32}


def _has_cuda() -> bool:
    # Asking torch takes seconds; without a driver there is nothing to ask for.
    driver = Path("/proc/driver/nvidia/version").exists() or platform.system() == "Windows"
    if not (driver or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
        return False
    import torch

    return torch.cuda.is_available()


def _has_mps() -> bool:
    if platform.system() != "Darwin":
        return False
    import torch

    return torch.backends.mps.is_available()


DEVICES: dict[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": _has_cuda,
    "mps": _has_mps,
}


def choose_device(name: str = "auto") -> str:
    """The device to use: "cuda", else "mps", else "cpu" for "auto"; else the one named.

    Raises:
        UsageError: unknown, or not present on this machine.
    """
    present = choose("device", name, DEVICES)
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if DEVICES[d]())
    if not present():
        raise UsageError(f"device '{name}' is not present on this machine; use --device auto")
    return name


def choose_engine(
    backbone: Backbone,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
) -> EngineChoice:
    """OpenVINO on a CPU, in bf16 where the CPU computes in it; else PyTorch.

    Raises:
        UsageError: an unknown name, or a combination that cannot be.
    """
    choose("engine", engine, dict.fromkeys(ENGINES))
    choose("precision", precision, dict.fromkeys(PRECISIONS))
    place = choose_device(device)
    reason = "as asked for"
    library = engine
    if engine == "auto":
        failure = read_failure(backbone, cache_dir)
        if place != "cpu":
            library, reason = "torch", f"{place} is present"
        elif importlib.util.find_spec("openvino") is None:
            library, reason = "torch", "OpenVINO is not installed"
        elif failure:
            library, reason = "torch", f"OpenVINO cannot take {backbone.name}: {failure}"
        else:
            library, reason = "openvino", "the fastest on a CPU"
    if library == "openvino":
        if place != "cpu":
            raise UsageError(f"engine 'openvino' runs on a CPU, not on {place}; use --engine torch")
        if precision == "fp16":
            raise UsageError("engine 'openvino' has no fp16 on a CPU; use --precision bf16 or fp32")
        if precision == "auto":
            native = _cpu_has_bf16()
            precision = "bf16" if native else "fp32"
            reason += ", and this CPU computes in bf16" if native else ""
        version = importlib.metadata.version("openvino")
    else:
        if precision == "auto":
            precision = "bf16" if place == "cuda" else "fp32"
        if precision == "fp16" and place == "cpu":
            raise UsageError("fp16 on a CPU is slow and inexact; use --precision bf16 or fp32")
        version = importlib.metadata.version("torch")
    return EngineChoice(library, place, precision, version, MICRO_BATCH[place], reason)


def _cpu_has_bf16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def make_engine(
    backbone: Backbone,
    choice: EngineChoice,
    *,
    cuts: tuple[str, ...] | None = None,
    pooled: bool = True,
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """An engine as chosen.

    Args:
        cuts: cut points whose activations it gives; all of the backbone's by default.
        pooled: averaged to one value a channel, or whole activations.
        threads: that will call it; CPUs to use, all at most and by default.
        cache_dir: where compiled networks are kept.

    Raises:
        UsageError: an unknown cut point, or OpenVINO cannot take the network.
    """
    names = tuple(c.name for c in backbone.cuts) if cuts is None else cuts
    for name in names:
        backbone.cut(name)
    cache = cache_dir or default_cache_dir()
    if choice.library == "openvino":
        streams = min(threads or count_cpus(), count_cpus())
        return OpenVinoEngine(backbone, names, choice, pooled, streams, cache)
    return TorchEngine(backbone, names, choice, pooled)


class StartingEngine:
    """An engine that is being made in a thread, so that reading can begin; the first `run` waits.

    What making it raises, `run` raises.
    """

    def __init__(self, choice: EngineChoice, make: Callable[[], Engine]) -> None:
        self.micro_batch = choice.micro_batch
        self._given_up = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="headstart-engine")
        self._engine = pool.submit(make)
        pool.shutdown(wait=False)

    def _wait(self) -> Engine:
        # Making one cannot be interrupted and takes seconds; whoever waits for it can.
        while not self._engine.done():
            if self._given_up.is_set():
                raise CancelledError
            wait([self._engine], timeout=0.1)
        return self._engine.result()

    def give_up(self) -> None:
        """Let nobody wait for an engine that is not there yet."""
        self._given_up.set()

    @property
    def cuts(self) -> tuple[str, ...]:
        """As the engine's."""
        return self._wait().cuts

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """As the engine's."""
        return self._wait().run(pixels)

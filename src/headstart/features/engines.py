"""Takes a `Backbone`, chooses and starts the engine that runs it: OpenVINO on a CPU, else PyTorch.

An engine is one file with the functions of `engine.EngineKind`, and one line in `ENGINES`. If an engine
refuses a network, the next one takes over, and the refusal is recorded in the cache.
"""

import hashlib
import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.choices import choose
from headstart.errors import EngineRefused, UsageError
from headstart.features import engine_openvino, engine_torch
from headstart.features.engine import Engine, EngineChoice, EngineKind
from headstart.features.runtime import Runtime
from headstart.files import write_quietly
from headstart.networks.backbones import Backbone

__all__ = [
    "DEVICES",
    "ENGINES",
    "PRECISIONS",
    "StartingEngine",
    "choose_device",
    "choose_engine",
    "make_engine",
    "measure_rate",
    "start_engine",
    "use_engine",
]

T = TypeVar("T")

# The faster one first; "auto" means the first that takes the network. Each is named by its package.
ENGINES: dict[str, EngineKind] = {"openvino": engine_openvino, "torch": engine_torch}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Images a micro-batch. On two CPU cores OpenVINO is fastest at 4 (EfficientNet-Lite0), where the
# activations still fit the cache; a GPU needs more.
MICRO_BATCH = {"cpu": 4, "cuda": 64, "mps": 32}

# A network is not tried again for this long on an engine that refused it. Most refusals last until another
# version, but a compiler may also have failed for a passing reason.
REFUSED_FOR_S = 7 * 24 * 3600


def _has_cuda() -> bool:
    # Importing torch takes seconds; without a driver it is of no use.
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
    """Choose the device: for "auto" the first of "cuda", "mps" and "cpu" that is present; else the one named.

    Raises:
        UsageError: unknown, or not present on this machine.
    """
    present = choose("device", name, DEVICES)
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if DEVICES[d]())
    if not present():
        raise UsageError(f"device '{name}' is not present on this machine; use --device auto")
    return name


def choose_engine(backbone: Backbone, runtime: Runtime = Runtime()) -> EngineChoice:
    """Choose what will run a network: the engine named, or for "auto" the first that takes it.

    Raises:
        UsageError: an unknown name, or an impossible combination.
    """
    return _choose(backbone, runtime, {})


def use_engine(backbone: Backbone, runtime: Runtime, use: Callable[[EngineChoice], T]) -> T:
    """Call `use` with the engine chosen, or with the next one if that refuses the network.

    Raises:
        EngineRefused: the engine was named and cannot take the network.
        UsageError: as in `choose_engine`.
    """
    refused: dict[str, str] = {}
    while True:
        choice = _choose(backbone, runtime, refused)
        try:
            return use(choice)
        except EngineRefused as exc:
            if runtime.engine != "auto":
                raise
            refused[choice.library] = exc.reason


def start_engine(
    backbone: Backbone,
    runtime: Runtime = Runtime(),
    *,
    cuts: tuple[str, ...] | None = None,
    pooled: bool = True,
    threads: int | None = None,
) -> tuple[Engine, EngineChoice]:
    """Start an engine; give it with its choice.

    Args:
        cuts, pooled, threads: as in `make_engine`.

    Raises:
        EngineRefused, UsageError: as in `use_engine`; or an unknown cut point.
        ResourceError: out of disk, memory or permission.
    """

    def start(choice: EngineChoice) -> tuple[Engine, EngineChoice]:
        engine = make_engine(backbone, choice, runtime, cuts=cuts, pooled=pooled, threads=threads)
        return engine, choice

    return use_engine(backbone, runtime, start)


def _choose(backbone: Backbone, runtime: Runtime, refused: Mapping[str, str]) -> EngineChoice:
    """Choose as `choose_engine` does; `refused` has the engines that refused just now, with reasons."""
    choose("engine", runtime.engine, {"auto": None, **ENGINES})
    choose("precision", runtime.precision, dict.fromkeys(PRECISIONS))
    device = choose_device(runtime.device)
    by_name = runtime.engine != "auto"
    reasons: list[str] = []
    for name in [runtime.engine] if by_name else ENGINES:
        reason = ENGINES[name].refuses(backbone, device, runtime.precision)
        if not by_name and not reason:  # one that is named is always tried
            reason = refused.get(name) or _read_refusal(backbone, name, runtime.cache)
        if not reason:
            break
        reasons.append(reason)
    else:
        raise UsageError(reasons[0])
    if by_name:
        why = "as asked for"
    elif device != "cpu":
        why = f"{device} is present"
    else:
        why = reasons[0] if reasons else "the fastest on a CPU"
    precision, remark = runtime.precision, ""
    if precision == "auto":
        precision, remark = ENGINES[name].best_precision(device)
    return EngineChoice(
        library=name,
        device=device,
        precision=precision,
        version=importlib.metadata.version(name),
        micro_batch=MICRO_BATCH[device],
        graph=ENGINES[name].describe_graph(backbone),
        reason=f"{why}, and {remark}" if remark else why,
    )


def make_engine(
    backbone: Backbone,
    choice: EngineChoice,
    runtime: Runtime = Runtime(),
    *,
    cuts: tuple[str, ...] | None = None,
    pooled: bool = True,
    threads: int | None = None,
) -> Engine:
    """Start the engine that was chosen, and no other; `start_engine` falls back to the next.

    Args:
        runtime: the folder of compiled networks, and the number of threads.
        cuts: cut points whose activations it gives; all of the backbone's by default.
        pooled: whether activations are averaged to one value a channel.
        threads: how many threads will call it; the runtime's by default.

    Raises:
        UsageError: an unknown cut point.
        EngineRefused: it cannot take the network; this is recorded in the cache.
        ResourceError: out of disk, memory or permission.
    """
    names = tuple(c.name for c in backbone.cuts) if cuts is None else cuts
    for name in names:
        backbone.cut(name)
    try:
        return ENGINES[choice.library].make(
            backbone, choice, names, pooled, threads or runtime.threads, runtime.cache
        )
    except EngineRefused as exc:
        write_quietly(_refusal_file(backbone, choice.library, runtime.cache), exc.reason.encode())
        raise


def measure_rate(
    backbone: Backbone, choice: EngineChoice, runtime: Runtime, *, cuts: tuple[str, ...]
) -> float:
    """Measure how many images a second the network takes in on one thread, up to these cut points.

    On a CPU by the process's own clock, which stands still while other programs run.

    Raises:
        EngineRefused, ResourceError: as in `make_engine`.
    """
    engine = make_engine(backbone, choice, runtime, cuts=cuts, threads=1)
    pixels = np.zeros((engine.micro_batch, *backbone.preprocessing.input_px, 3), np.uint8)
    clock = time.process_time if choice.device == "cpu" else time.perf_counter
    seconds = []
    for _ in range(5):
        began = clock()
        engine.run(pixels)
        seconds.append(clock() - began)
    return engine.micro_batch / max(min(seconds), 1e-6)


def _refusal_file(backbone: Backbone, library: str, cache_dir: Path) -> Path:
    """Name the record of a refusal, by versions: another version may take the network."""
    packages = dict.fromkeys(("headstart", "torch", library))
    text = " ".join(importlib.metadata.version(package) for package in packages)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_dir / "backbones" / backbone.fingerprint / f"{library}-{key}.refused"


def _read_refusal(backbone: Backbone, library: str, cache_dir: Path) -> str:
    """Read why an engine refused a network lately; "" where it did not."""
    folder = cache_dir / "backbones" / backbone.fingerprint
    if not folder.is_dir():  # nor is there a need to look versions up, which takes milliseconds
        return ""
    path = _refusal_file(backbone, library, cache_dir)
    try:
        fresh = time.time() - path.stat().st_mtime < REFUSED_FOR_S
        return path.read_text(encoding="utf-8") if fresh else ""
    except (OSError, ValueError):
        return ""


class StartingEngine:
    """An engine that is made in a thread, so that reading can begin; the first `run` waits for it.

    An error in making it is raised by `run`.
    """

    def __init__(self, choice: EngineChoice, make: Callable[[], Engine]) -> None:
        self.micro_batch = choice.micro_batch
        self._given_up = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="headstart-engine")
        self._engine = pool.submit(make)
        pool.shutdown(wait=False)

    def _wait(self) -> Engine:
        # Making one takes seconds and cannot be interrupted; waiting for it can.
        while not self._engine.done():
            if self._given_up.is_set():
                raise CancelledError
            wait([self._engine], timeout=0.1)
        return self._engine.result()

    def give_up(self) -> None:
        """End all waiting for the engine: if it is not made yet, `run` raises CancelledError."""
        self._given_up.set()

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the cut points whose activations the engine gives."""
        return self._wait().cuts

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run the engine, once it is made."""
        return self._wait().run(pixels)

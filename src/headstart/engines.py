"""Takes a `Backbone`, gives an engine that runs it frozen: pixels in, activations out.

Place in the flow: after `backbones`; `features` and `classifier` run networks through here alone.
Shape letters: N images, D features, C channels, H W pixels.

Every engine works in micro-batches of one fixed size, the last one padded, so that an image's features
do not depend on how many others went with it: the libraries underneath choose their arithmetic by
the batch's shape. OpenVINO runs networks on CPUs, PyTorch everywhere else and as the reference.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headstart.backbones import Backbone
from headstart.datasets import choose
from headstart.errors import ResourceError, UsageError
from headstart.store import default_cache_dir, write_atomically

__all__ = [
    "DEVICES",
    "ENGINES",
    "PRECISIONS",
    "Engine",
    "EngineChoice",
    "StartingEngine",
    "choose_device",
    "choose_engine",
    "count_cpus",
    "count_threads",
    "make_engine",
]

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Images a micro-batch. On two CPU cores OpenVINO is fastest at 4 (EfficientNet-Lite0), where the
# activations still fit the cache; a GPU wants more.
MICRO_BATCH = {"cpu": 4, "cuda": 64, "mps": 32}


class Engine(Protocol):
    """Runs a frozen network; may be called from several threads at once.

    Attributes:
        cuts: names of the cut points whose activations it gives.
        micro_batch: images at a time.
    """

    micro_batch: int

    @property
    def cuts(self) -> tuple[str, ...]: ...

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3), n at most `micro_batch` -> float32 (n, D), or (n, …) unpooled, a cut."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What will run the network; decided without loading it.

    Attributes:
        library: "openvino" or "torch".
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16", of the arithmetic; features are float32 always.
        version: of the library.
        micro_batch: images at a time.
        reason: why this one, for people.
    """

    library: str
    device: str
    precision: str
    version: str
    micro_batch: int
    reason: str

    def __str__(self) -> str:
        device = "" if self.library == "openvino" else f" {self.device}"
        return f"{self.library}{device} {self.precision}"

    def key(self) -> dict[str, Any]:
        """What of it changes a number."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "reason"}


def count_threads(workers: int | None) -> int:
    """Threads that read images and hand them to an engine: as asked for, else one more than CPUs, so
    that one reads while the others wait for their turn (3 to 5 % faster than one a CPU)."""
    return workers or count_cpus() + 1


def count_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---------------------------------------------------------------- the choice


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
        failure = _read_failure(backbone, cache_dir)
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
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last image until there are `size`."""
    missing = size - len(pixels)
    if missing == 0:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])


# ---------------------------------------------------------------- PyTorch


class TorchEngine:
    """The reference: PyTorch, channels last."""

    def __init__(
        self, backbone: Backbone, cuts: tuple[str, ...], choice: EngineChoice, pooled: bool
    ) -> None:
        import torch

        from headstart.networks import FeatureNetwork

        self.cuts, self.micro_batch, self._device = cuts, choice.micro_batch, choice.device
        points = [(name, backbone.cut(name).axis) for name in cuts]
        network = FeatureNetwork(backbone.network, points, backbone.preprocessing, pooled=pooled)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        if (choice.precision, choice.device) != (
            "fp32",
            "cpu",
        ):  # the backbone's own stays as it is
            import copy

            network = copy.deepcopy(network)
        self._network = network.to(choice.device, kind[choice.precision])
        self._lock = threading.Lock()  # one batch already uses every core

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3), n at most `micro_batch` -> float32 (n, D), or (n, …) unpooled, a cut."""
        import torch

        with self._lock, torch.inference_mode(), _translated_memory_errors(self._device):
            batch = torch.from_numpy(pad_batch(pixels, self.micro_batch)).to(self._device)
            outputs = [o.float().cpu().numpy()[: len(pixels)] for o in self._network(batch)]
        return dict(zip(self.cuts, outputs, strict=True))


@contextlib.contextmanager
def _translated_memory_errors(device: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise ResourceError(
            f"out of memory on {device}; close other programs or use --device cpu"
        ) from exc


# ---------------------------------------------------------------- OpenVINO


_FIRST_USE = threading.Lock()


class OpenVinoEngine:
    """OpenVINO on a CPU: one stream a thread, so that threads do not wait for one another and an
    image's numbers do not depend on how many there are."""

    def __init__(
        self,
        backbone: Backbone,
        cuts: tuple[str, ...],
        choice: EngineChoice,
        pooled: bool,
        threads: int,
        cache_dir: Path,
    ) -> None:
        import openvino

        self.cuts, self.micro_batch = cuts, choice.micro_batch
        model = _openvino_model(backbone, cuts, choice, pooled, cache_dir)
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[choice.precision],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "CACHE_DIR": str(cache_dir / "openvino"),
        }
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", settings)
        except RuntimeError as exc:
            _remember_failure(backbone, cache_dir, _first_line(exc))
            raise UsageError(
                f"OpenVINO cannot compile {backbone.name}: {_first_line(exc)}"
            ) from exc
        self._compiled = compiled
        self._lock = threading.Lock()
        self._local = threading.local()
        # What OpenVINO's Python layer sets up at its first use can stop two threads for ever, each of
        # which holds what the other waits for (seen with 2026.4); one thread goes through it alone.
        with _FIRST_USE:
            self.run(np.zeros((1, *backbone.preprocessing.input_px, 3), dtype=np.uint8))

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3), n at most `micro_batch` -> float32 (n, D), or (n, …) unpooled, a cut."""
        if not hasattr(self._local, "request"):
            with self._lock:
                self._local.request = self._compiled.create_infer_request()
            self._local.input = self._local.request.get_input_tensor(0).data
        request = self._local.request
        # Copied into the request's own memory, so that OpenVINO never holds memory of NumPy's, which
        # it could only release with Python's global lock in hand.
        self._local.input[: len(pixels)] = pixels
        self._local.input[len(pixels) :] = pixels[-1]
        request.start_async()
        request.wait()
        return {
            cut: request.get_output_tensor(i).data[: len(pixels)].copy()
            for i, cut in enumerate(self.cuts)
        }


def _openvino_model(
    backbone: Backbone, cuts: tuple[str, ...], choice: EngineChoice, pooled: bool, cache_dir: Path
) -> Path:
    """The network in OpenVINO's format, from the cache or converted."""
    folder = cache_dir / "backbones" / backbone.fingerprint
    # Outputs of the built-in network are the same however long the list of cut points is, but what
    # is compiled differs, so each list has its own file.
    text = f"{choice.version} {choice.micro_batch} {pooled} {' '.join(cuts)}"
    path = folder / f"openvino-{hashlib.sha256(text.encode()).hexdigest()[:16]}.xml"
    if _is_whole(path):
        return path
    import openvino
    import torch

    from headstart.networks import FeatureNetwork

    points = [(name, backbone.cut(name).axis) for name in cuts]
    network = FeatureNetwork(backbone.network, points, backbone.preprocessing, pooled=pooled).eval()
    height, width = backbone.preprocessing.input_px
    shape = (choice.micro_batch, height, width, 3)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch announces changes to its own tracer
            model = openvino.convert_model(
                network,
                example_input=torch.zeros(shape, dtype=torch.uint8),
                input=[(list(shape), openvino.Type.u8)],
            )
    except (MemoryError, OSError):  # of the machine, not of the network
        raise
    except Exception as exc:  # the converter raises many kinds on an operation that it lacks
        reason = _first_line(exc)
        _remember_failure(backbone, cache_dir, reason)
        raise UsageError(
            f"OpenVINO cannot take {backbone.name}: {reason}; use --engine torch"
        ) from exc
    folder.mkdir(parents=True, exist_ok=True)
    # Under another name first, the .xml last, so that a pair is whole or not there.
    part = folder / f".{path.stem}.{os.getpid()}.{threading.get_ident()}"
    openvino.save_model(model, f"{part}.xml", compress_to_fp16=False)
    sums = {kind: _sum(Path(f"{part}{kind}")) for kind in (".bin", ".xml")}
    for kind in sums:
        os.replace(f"{part}{kind}", path.with_suffix(kind))
    write_atomically(path.with_suffix(".sums.json"), json.dumps(sums).encode())
    return path


def _is_whole(path: Path) -> bool:
    """Whether a converted network is there as it was written; a flipped bit would change features."""
    try:
        sums = json.loads(path.with_suffix(".sums.json").read_bytes())
        return all(_sum(path.with_suffix(kind)) == sums[kind] for kind in (".bin", ".xml"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:160] or type(exc).__name__


def _failure_file(backbone: Backbone, cache_dir: Path | None) -> Path:
    version = importlib.metadata.version("openvino")
    folder = (cache_dir or default_cache_dir()) / "backbones" / backbone.fingerprint
    return folder / f"openvino-{version}.failed"


def _remember_failure(backbone: Backbone, cache_dir: Path | None, reason: str) -> None:
    path = _failure_file(backbone, cache_dir)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, reason.encode())


def _read_failure(backbone: Backbone, cache_dir: Path | None) -> str:
    try:
        return _failure_file(backbone, cache_dir).read_text()
    except (OSError, importlib.metadata.PackageNotFoundError):
        return ""

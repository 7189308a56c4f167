"""Takes a `Task`, measures the work that `costs` reckons with: of training, of the network, of the images.

What depends on machine and network alone is measured once and kept in the cache. On a CPU one thread is
timed by its own clock, which stands still while other programs run.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.data.views import AUGMENTATIONS
from headstart.draws import draw
from headstart.errors import InputError
from headstart.features.drawing import Drawing
from headstart.features.engine import EngineChoice
from headstart.features.engines import make_engine, use_engine
from headstart.files import read_json, write_quietly
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress, count_cpus
from headstart.training.costs import PIXELS, Costs, CutWork
from headstart.training.recipes import AUGMENT
from headstart.training.task import Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["measure_costs", "measure_step"]

STEP_IMAGES, DRAWN_IMAGES, DRAWN_VIEWS = 8, 16, 3
CALIBRATING = "measuring this machine"


def measure_costs(task: Task, probe_s: float) -> Costs:
    """Measure what training would cost here, on a sample of the task's images.

    Args:
        probe_s: seconds that fitting the linear probe takes, which is known already.

    Raises:
        InputError, ResourceError: an image can no longer be read; out of memory.
    """
    engine = task.features.engine
    threads = count_cpus() if engine.device == "cpu" else 1
    plain_ms, view_ms = _measure_drawing(task)
    path = _file_of(task, engine)
    kept = _read_kept(path)
    if kept is None:
        head_classes = len(task.dataset.classes)
        cuts = _measure_cuts(task.backbone, head_classes, engine.device, task.progress)
        kept = Costs(cuts, _measure_forward(task, engine), 0.0, 0.0, 0.0, threads)
        write_quietly(path, json.dumps(kept.to_json()).encode())
    return dataclasses.replace(
        kept, plain_ms=plain_ms, view_ms=view_ms, probe_s=probe_s, threads=threads
    )


def _file_of(task: Task, engine: EngineChoice) -> Path:
    """Name the file of what was measured, by all that may change it."""
    packages = ("headstart", "torch", engine.library)
    facts = [
        *(importlib.metadata.version(p) for p in dict.fromkeys(packages)),
        engine.key(),
        task.backbone.preprocessing.input_px,
        platform.machine(),
        platform.processor(),
        platform.node(),
        count_cpus(),
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = task.settings.runtime.cache / "backbones" / task.backbone.fingerprint
    return folder / f"costs-{key}.json"


def _read_kept(path: Path) -> Costs | None:
    try:
        return Costs.from_json(read_json(path))
    except (InputError, KeyError, TypeError):
        return None


def _measure_drawing(task: Task) -> tuple[float, float]:
    """Measure the work of reading an image and of another view of it, in milliseconds, in one thread."""
    settings = task.settings
    style = AUGMENTATIONS[settings.augment or AUGMENT]
    exact = task.features.engine.precision == "fp32"
    drawing = Drawing(
        task.backbone.preprocessing, style, settings.seed, exact, settings.runtime.max_pixels
    )
    draws = [draw(settings.seed, "drawing", task.dataset.ids[i]) for i in task.rows]
    plain, views = [], []
    for row in task.rows[np.argsort(draws)[:DRAWN_IMAGES]]:
        image = task.dataset.image(int(row))
        data = image.read()
        drawing.draw_all(data, image.id, [1])  # what is loaded once is not timed
        began = time.thread_time()
        drawing.draw_all(data, image.id, [0])
        between = time.thread_time()
        drawing.draw_all(data, image.id, range(1, 1 + DRAWN_VIEWS))
        plain.append(between - began)
        views.append((time.thread_time() - between) / DRAWN_VIEWS)
    return 1000 * float(np.mean(plain)), 1000 * float(np.mean(views))


def _measure_forward(task: Task, engine: EngineChoice) -> float:
    """Measure the work of the whole frozen network, in milliseconds an image."""
    backbone, runtime = task.backbone, task.settings.runtime
    clock = time.process_time if engine.device == "cpu" else time.perf_counter

    def measure(choice: EngineChoice) -> float:
        made = make_engine(backbone, choice, runtime)
        pixels = np.zeros((made.micro_batch, *backbone.preprocessing.input_px, 3), np.uint8)
        return _least_of(lambda: made.run(pixels), clock, 4) / made.micro_batch

    return 1000 * use_engine(backbone, runtime, measure)


def _measure_cuts(
    backbone: Backbone, classes: int, device: str, progress: Progress
) -> tuple[CutWork, ...]:
    """Measure the work of training above every cut point but the last, and from the pixels."""
    from headstart.training.heads import HeadShape
    from headstart.training.trainable import TrainableNetwork, new_head

    points = [None, *backbone.cuts[:-1]]
    found: list[CutWork] = []
    for done, cut in enumerate(points):
        progress(CALIBRATING, done, len(points))
        head = new_head(HeadShape(), backbone.cuts[-1].channels, classes, 0)
        network = TrainableNetwork(backbone, None if cut is None else cut.name, head)
        weights = sum(p.numel() for p in network.parameters()) * 4e-6
        shape = (*backbone.preprocessing.input_px, 3) if cut is None else cut.shape
        seconds, megabytes = measure_step(network, shape, device, pixels=cut is None)
        whole = found[0].train_ms if found else 1000 * seconds
        found.append(
            CutWork(
                name=PIXELS if cut is None else cut.name,
                megabytes=0.0 if cut is None else 2e-6 * math.prod(cut.shape),
                train_ms=1000 * seconds,
                step_mb=megabytes,
                frozen=max(0.0, 1 - 1000 * seconds / whole),
                weights_mb=weights,
            )
        )
    progress(CALIBRATING, len(points), len(points))
    return tuple(found)


def measure_step(
    network: "nn.Module", shape: tuple[int, ...], device: str, *, pixels: bool = False
) -> tuple[float, float]:
    """Measure a training step on inputs of this shape: (seconds, megabytes held) an image.

    On a CPU the seconds are those of one thread. No weight changes.
    """
    import torch

    network = network.to(device).train()
    dtype = torch.uint8 if pixels else torch.float32
    inputs = torch.zeros(STEP_IMAGES, *shape, device=device, dtype=dtype)
    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        torch.autograd.backward(network(inputs).square().mean())

    def step() -> None:
        torch.autograd.backward(network(inputs).square().mean())
        if device == "cuda":
            torch.cuda.synchronize()

    threads = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        seconds = _least_of(step, time.thread_time if device == "cpu" else time.perf_counter, 2)
    finally:
        torch.set_num_threads(threads)
    network.zero_grad(set_to_none=True)
    return seconds / STEP_IMAGES, held * 1e-6 / STEP_IMAGES


def _least_of(call: Callable[[], object], clock: Callable[[], float], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = clock()
        call()
        seconds.append(clock() - began)
    return min(seconds)

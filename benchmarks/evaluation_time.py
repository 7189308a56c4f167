"""How long all figures of an evaluation take, with their intervals, and how much memory.

    python benchmarks/evaluation_time.py

Random labels and probabilities; in groups of five images, too. Told are the processor's seconds for the
figures of all classes together and of each class, the best and the worst of three, and the memory that is
taken beyond the probabilities.
"""

import time
import tracemalloc

import numpy as np
from extract import describe

from headstart.metrics import measure, measure_each

SIZES = ((200, 2), (10_000, 100), (10_000, 1000))


def main() -> None:
    print(describe())
    print("| images | classes | groups | seconds, best | worst | MB |")
    print("|---:|---:|---|---:|---:|---:|")
    for images, classes in SIZES:
        rng = np.random.default_rng(0)
        labels = rng.integers(classes, size=images)
        logits = rng.normal(size=(images, classes)).astype(np.float32)
        logits[np.arange(images), labels] += 3
        odds = np.exp(logits)
        odds /= odds.sum(axis=1, keepdims=True)
        names = tuple(map(str, range(classes)))
        for groups in ((), tuple(str(n // 5) for n in range(images))):
            times = []
            for _ in range(3):
                began = time.process_time()
                measure(labels, odds, names, groups=groups)
                measure_each(labels, odds, names, groups=groups)
                times.append(time.process_time() - began)
            tracemalloc.start()
            measure(labels, odds, names, groups=groups)
            measure_each(labels, odds, names, groups=groups)
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            print(
                f"| {images:,} | {classes:,} | {'of 5' if groups else 'none'} | {min(times):.3f} | "
                f"{max(times):.3f} | {peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Whether a change of the code changes a figure: the SHA-256 of the model that each strategy trains.

    python benchmarks/bytes.py                        # one line a strategy
    python benchmarks/bytes.py --against ../before    # beside another checkout's; 1 where they differ

Generated pictures, a fixed seed, fp32, one thread of PyTorch's; both checkouts are run by this Python.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
FIXED = {"val": 0, "train_precision": "fp32", "flip": "no", "device": "cpu"}
RECIPES = {
    "linear-probe": {"precision": "fp32", "device": "cpu"},
    "shallow-probe": {"precision": "fp32", "device": "cpu"},
    "partial-fine-tune": {"cut": "blocks.6", "views": 2, "epochs": 2, "precision": "fp32", **FIXED},
    "fine-tune": {"epochs": 1, "batch": 8, "precision": "fp32", **FIXED},
    "scratch": {"epochs": 1, "batch": 8, "backbone": "lenet5", **FIXED},
}
FIT = """
import hashlib, json, pathlib, sys
import headstart
data, folder, strategy, options = sys.argv[1:]
headstart.fit(data, folder, strategy=strategy, **json.loads(options))
print(hashlib.sha256((pathlib.Path(folder) / "model.safetensors").read_bytes()).hexdigest())
"""


def plant(folder: Path) -> None:
    """Twelve noisy pictures of each of three greys."""
    rng = np.random.default_rng(0)
    for kind in range(3):
        (folder / f"grey{kind}").mkdir(parents=True)
        for number in range(12):
            pixels = rng.normal(60 + 60 * kind, 40, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"grey{kind}" / f"{number:02}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="Another checkout to compare with.")
    arguments = parser.parse_args()
    sources = [HERE, *([arguments.against.resolve()] if arguments.against else [])]
    same = True
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder, "data"))
        for strategy, options in RECIPES.items():
            found = []
            for number, source in enumerate(sources):
                place = Path(folder, str(number))
                environment = {
                    **os.environ,
                    "PYTHONPATH": str(source / "src"),
                    "HEADSTART_CACHE_DIR": str(place / "cache"),
                    "OMP_NUM_THREADS": "1",
                }
                run, words = place / strategy, json.dumps(options)
                command = [sys.executable, "-c", FIT, f"{folder}/data", str(run), strategy, words]
                done = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found.append(done.stdout.split()[-1])
            same &= len(set(found)) == 1
            print(strategy, *(digest[:32] for digest in found), flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

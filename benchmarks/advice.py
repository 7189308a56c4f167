"""Runs every strategy in full on many tasks, and compares rules that choose one without running any.

    python benchmarks/advice.py                         # the rules, by the results that are kept
    python benchmarks/advice.py --measure TASKS         # measure what is missing there, in hours

TASKS is a folder as `tasks.py` makes it; whoever adds a folder of that form has added a task. The results are
kept beside this file, an object a line: the accuracy on the task's test images, and the time. Half of the
tasks, drawn by a hash of their names, are set aside: no rule is made on them.

Printed is, for each rule, the mean regret (accuracy lost against the best of all, in points) and the share of
tasks on which it is within one point of the best, over those tasks on which every arm has been run.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("advice-results.jsonl")

# Every strategy with the settings that it is run in full with.
ARMS = {
    "linear-probe": {"strategy": "linear-probe"},
    "linear-probe auto": {"strategy": "linear-probe", "cut": "auto"},
    "shallow-probe": {"strategy": "shallow-probe"},
    "partial blocks.3": {"strategy": "partial-fine-tune", "cut": "blocks.3", "val": 0.0},
    "partial blocks.5": {"strategy": "partial-fine-tune", "cut": "blocks.5", "val": 0.0},
    "scratch": {"strategy": "scratch", "backbone": "small_cnn", "val": 0.0},
    "fine-tune": {"strategy": "fine-tune", "val": 0.0},
}


def is_set_aside(task: str) -> bool:
    """Whether a task was kept for judging alone; by its name, so that new tasks move no old one."""
    return bool(hashlib.sha256(f"set aside {task}".encode()).digest()[0] & 1)


def read_task(folder: Path) -> tuple[str, dict[str, str]]:
    """(description, settings) of a task."""
    first, *others = (folder / "TASK").read_text(encoding="utf-8").splitlines()
    return first, dict(line.split(": ", 1) for line in others if line.strip())


def run_arm(folder: Path, arm: str, seed: int, keep: Path | None) -> dict:
    """Train on a task as an arm says, in this process; measure on its test images."""
    import numpy as np

    import headstart
    from headstart.files import default_cache_dir

    _, options = read_task(folder)
    cache = default_cache_dir()
    for kept in (
        "features",
        "files",
    ):  # every arm begins with an empty store, and a compiled network
        shutil.rmtree(cache / kept, ignore_errors=True)
    history: list[dict] = []
    with tempfile.TemporaryDirectory() as out:
        began, cpu = time.perf_counter(), time.process_time()
        run = headstart.fit(
            folder, Path(out) / "run", seed=seed, on_epoch=history.append, **options, **ARMS[arm]
        )
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        result = headstart.evaluate(run, folder, split="test")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            keep / f"{folder.name} {arm} {seed}.npz",
            probabilities=result.measured.probabilities.astype(np.float16),
            labels=result.measured.labels,
        )
    scores = [h["val_accuracy"] for h in history if "val_accuracy" in h]
    return {
        "test": round(result.metrics["accuracy"].value, 4),
        "val": round(run.metrics["accuracy"].value, 4) if run.metrics else None,
        "settings": {n: str(run.settings[n]["value"]) for n in ("cut", "flip", "views")},
        "val_by_epoch": [round(s, 4) for s in scores],
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
    }


def measure(tasks: Path, seeds: int, keep: Path | None, arms: list[str]) -> None:
    """Run what the results lack, the smallest tasks first, each in a process of its own."""
    done = {(r["task"], r["arm"], r["seed"]) for r in read_results()}
    sizes = {f.parent: len(list(f.parent.glob("train/*/*"))) for f in tasks.glob("*/TASK")}
    folders = sorted(sizes, key=lambda f: (sizes[f] > 400, is_set_aside(f.name), sizes[f], f))
    for seed in range(seeds):
        for folder in folders:
            for arm in arms:
                if (folder.name, arm, seed) in done:
                    continue
                words = [
                    "--one",
                    str(folder),
                    arm,
                    str(seed),
                    *(["--keep", str(keep)] if keep else []),
                ]
                told = subprocess.run(
                    [sys.executable, __file__, *words], capture_output=True, text=True, check=False
                )
                if told.returncode:
                    print(folder.name, arm, told.stderr[-800:], flush=True)
                    continue
                entry = {"task": folder.name, "arm": arm, "seed": seed, **json.loads(told.stdout)}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                print(entry["task"], arm, seed, entry["wall_s"], flush=True)


def read_results() -> list[dict]:
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def judge() -> None:
    """Print what every rule loses, on the tasks that rules are made on and on those set aside."""
    accuracies: dict[str, dict[str, list[float]]] = {}
    for entry in read_results():
        arms = accuracies.setdefault(entry["task"], {})
        arms.setdefault(entry["arm"], []).append(entry["test"])
    for aside in (False, True):
        own = {
            t: a for t, a in accuracies.items() if is_set_aside(t) == aside and set(a) >= set(ARMS)
        }
        print(f"\n{'set aside' if aside else 'to make rules on'}: {len(own)} tasks run in full")
        for arm in ARMS if own else ():
            lost = []
            for arms in own.values():
                means = {name: sum(values) / len(values) for name, values in arms.items()}
                lost.append(max(means.values()) - means[arm])
            near = sum(gap <= 0.01 for gap in lost) / len(lost)
            print(
                f"  always {arm:<20} regret {100 * sum(lost) / len(lost):5.2f}  within one {near:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, help="Folder of tasks to run what is missing on.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument(
        "--keep", type=Path, help="Folder to keep the probabilities of test images in."
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, arm, seed = args.one
        print(json.dumps(run_arm(Path(folder), arm, int(seed), args.keep)))
    elif args.measure:
        measure(args.measure, args.seeds, args.keep, args.arms)
    else:
        judge()


if __name__ == "__main__":
    main()

"""Runs every strategy in full on many tasks, and compares rules that choose one without running any.

    python benchmarks/advice.py                         # the rules, by the results that are kept
    python benchmarks/advice.py --measure TASKS         # measure what is missing there, in hours

TASKS is a folder as `tasks.py` makes it; whoever adds a folder of that form has added a task. Two files
beside this one keep what was measured, an object a line: of every run, the accuracy on the test images, which
of them were right, and the time; of every task, the facts and costs that advice is decided on. The tasks of
`SET_ASIDE` are for judging alone: no rule is made on them.

Printed is, for each rule, the mean regret (accuracy lost against the best that was run, in points), the
share of tasks on which it is within one point of the best, and the share of the time of running all that what
it chose takes. The advice counts twice: what it chooses, and what `fit` does with that, which compares a
training with a probe on a fifth of the images and keeps the better. That is replayed on parts of the test
images, as many as `fit` would hold out.

The best of several runs on a test set is also the luckiest, so that even a rule that knew which is best loses
something. How much tells a rule that cheats: it takes what is best on half of the test images, and is judged
on the other half, where the advice is judged for comparison.
"""

import argparse
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headstart.training.advice import (
    BATCH,
    EPOCHS,
    WHOLE_EPOCHS,
    Candidate,
    Limits,
    choose_candidate,
    find_case,
    list_candidates,
)
from headstart.training.costs import PIXELS, Costs
from headstart.training.facts import Facts
from headstart.training.rules import count_epochs, expect_gain

RESULTS = Path(__file__).with_name("advice-results.jsonl")
FACTS = Path(__file__).with_name("advice-facts.jsonl")

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
# A task is judged where these have been run; the others count where they have been.
NEEDED = (
    "linear-probe",
    "linear-probe auto",
    "shallow-probe",
    "partial blocks.3",
    "partial blocks.5",
)
# The sources that came after the rules: drawings (`tasks.py --art`).
SET_ASIDE = ("clip", "emoji", "stamps", "terrain", "units")
# How often `fit`'s comparison on a fifth, and halves of the test images, are drawn.
REPLAYS = 200


def is_set_aside(task: str) -> bool:
    """Whether a task is for judging alone."""
    return task.split("-")[0] in SET_ASIDE


def read_task(folder: Path) -> tuple[str, dict[str, str]]:
    """(description, settings) of a task."""
    first, *others = (folder / "TASK").read_text(encoding="utf-8").splitlines()
    return first, dict(line.split(": ", 1) for line in others if line.strip())


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path: Path, entry: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def measure_facts(folder: Path) -> dict:
    """Measure what advice is decided on."""
    import headstart

    _, options = read_task(folder)
    advice = headstart.advise(folder, **options)
    return {"facts": advice.facts.to_json(), "costs": advice.costs.to_json()}


def run_arm(folder: Path, arm: str, seed: int, keep: Path | None) -> dict:
    """Train on a task as an arm says, in this process; measure on its test images."""
    import headstart
    from headstart.files import default_cache_dir

    _, options = read_task(folder)
    # Every arm begins with an empty store, and a compiled network.
    for kept in ("features", "files"):
        shutil.rmtree(default_cache_dir() / kept, ignore_errors=True)
    history: list[dict] = []
    with tempfile.TemporaryDirectory() as out:
        began, cpu = time.perf_counter(), time.process_time()
        run = headstart.fit(
            folder, Path(out) / "run", seed=seed, on_epoch=history.append, **options, **ARMS[arm]
        )
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        measured = headstart.evaluate(run, folder, split="test").measured
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            keep / f"{folder.name} {arm} {seed}.npz",
            probabilities=measured.probabilities.astype(np.float16),
            labels=measured.labels,
        )
    right = measured.probabilities.argmax(axis=1) == measured.labels
    return {
        "test": round(float(right.mean()), 4),
        "right": np.packbits(right).tobytes().hex(),
        "images": len(right),
        "settings": {n: str(run.settings[n]["value"]) for n in ("cut", "flip", "views")},
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
    }


def measure(tasks: Path, seeds: int, keep: Path | None, arms: list[str]) -> None:
    """Run what the results lack, the smallest tasks first, each in a process of its own."""
    done = {(r["task"], r["arm"], r["seed"]) for r in read_lines(RESULTS)}
    known = {r["task"] for r in read_lines(FACTS)}
    sizes = {f.parent: len(list(f.parent.glob("train/*/*"))) for f in tasks.glob("*/TASK")}
    folders = sorted(sizes, key=lambda f: (sizes[f] > 400, is_set_aside(f.name), sizes[f], f))
    wanted = [(folder, "facts", 0) for folder in folders if folder.name not in known]
    wanted += [
        (folder, arm, seed)
        for seed in range(seeds)
        for folder in folders
        for arm in arms
        if (folder.name, arm, seed) not in done
    ]
    for folder, arm, seed in wanted:
        words = ["--one", str(folder), arm, str(seed), *(["--keep", str(keep)] if keep else [])]
        told = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, check=False
        )
        if told.returncode:
            print(folder.name, arm, told.stderr[-800:], flush=True)
            continue
        found = json.loads(told.stdout)
        if arm == "facts":
            add_line(FACTS, {"task": folder.name, **found})
        else:
            add_line(RESULTS, {"task": folder.name, "arm": arm, "seed": seed, **found})
        print(folder.name, arm, seed, found.get("wall_s", ""), flush=True)


class Results:
    """What was run on one task."""

    def __init__(self, entries: list[dict]) -> None:
        runs = defaultdict(list)
        for entry in entries:
            runs[entry["arm"]].append(entry)
        self.accuracy = {a: float(np.mean([e["test"] for e in own])) for a, own in runs.items()}
        self.cpu_s = {a: float(np.mean([e["cpu_s"] for e in own])) for a, own in runs.items()}
        self.right = {
            arm: np.unpackbits(
                np.frombuffer(bytes.fromhex(own[0]["right"]), np.uint8), count=own[0]["images"]
            ).astype(bool)
            for arm, own in runs.items()
            if "right" in own[0]
        }


def arm_of(candidate: Candidate, facts: Facts) -> str:
    """Name the arm that does what a candidate says."""
    cut = candidate.settings.get("cut")
    if candidate.strategy == "linear-probe":
        last = cut == facts.singles[-1].cut
        return "linear-probe" if last else "linear-probe auto"
    return f"partial {cut}" if candidate.strategy == "partial-fine-tune" else candidate.strategy


def advise(facts: Facts, costs: Costs, own: Results) -> tuple[Candidate, list[Candidate]]:
    """What is advised of the arms that were run, with time for each of them; and those arms."""
    limits = Limits(seconds=math.inf, disk_mb=math.inf, refit=False)
    listed = [c for c in list_candidates(facts, costs, limits) if arm_of(c, facts) in own.accuracy]
    return choose_candidate(listed, math.inf), listed


def by_advice(facts: Facts, costs: Costs, own: Results) -> str:
    return arm_of(advise(facts, costs, own)[0], facts)


def by_textbook(facts: Facts, costs: Costs, own: Results) -> str:
    """The table of four cases: what courses say to do in each."""
    number = find_case(facts).number
    return {1: "linear-probe", 2: "shallow-probe", 3: "partial blocks.5", 4: "fine-tune"}[number]


def by_size(facts: Facts, costs: Costs, own: Results) -> str:
    """A probe below 1,000 images, else training."""
    return "linear-probe" if facts.images < 1000 else "partial blocks.3"


def by_fine_size(facts: Facts, costs: Costs, own: Results) -> str:
    """A probe below 100 images, the upper part below 500, else more of it."""
    if facts.images < 100:
        return "linear-probe"
    return "partial blocks.5" if facts.images < 500 else "partial blocks.3"


def by_probes(facts: Facts, costs: Costs, own: Results) -> str:
    """A probe, on the features that the advice would read."""
    return "linear-probe" if facts.best is facts.singles[-1] else "linear-probe auto"


Rule = Callable[[Facts, Costs, Results], str]
RULES: dict[str, Rule] = {
    "the advice": by_advice,
    "textbook's table": by_textbook,
    "size: probe, else partial": by_size,
    "size: three steps": by_fine_size,
    "the better probe": by_probes,
    **{f"always {arm}": lambda facts, costs, own, arm=arm: arm for arm in ARMS},
}


def replay_fit(facts: Facts, costs: Costs, own: Results) -> float:
    """The expected accuracy of a `fit` that follows the advice, and compares on a fifth."""
    chosen, listed = advise(facts, costs, own)
    arm = arm_of(chosen, facts)
    probes = [c for c in listed if c.strategy == "linear-probe"]
    best = max(probes, key=lambda c: c.accuracy)
    last = next(c for c in probes if arm_of(c, facts) == "linear-probe")
    kept, first = arm_of(best, facts), arm_of(last, facts)
    if chosen.strategy.endswith("probe") or not {arm, first} <= own.right.keys():
        return own.accuracy[arm]
    held = min(round(0.2 * facts.images), len(own.right[arm]))
    random, total = np.random.default_rng(0), 0.0
    for _ in range(REPLAYS):
        rows = random.choice(len(own.right[arm]), held, replace=False)
        trained, probe = own.right[arm][rows], own.right[first][rows]
        gain = expect_gain(
            int((trained & ~probe).sum()),
            int((probe & ~trained).sum()),
            held,
            expected=chosen.accuracy - last.accuracy,
            spread=chosen.spread,
        )
        total += own.accuracy[arm if gain > best.accuracy - last.accuracy else kept]
    return total / REPLAYS


def judge(*, details: bool) -> None:
    """Print what every rule loses, on the tasks that rules are made on and on those set aside."""
    entries = defaultdict(list)
    for entry in read_lines(RESULTS):
        entries[entry["task"]].append(entry)
    results = {task: Results(own) for task, own in entries.items()}
    facts = {
        r["task"]: (Facts.from_json(r["facts"]), Costs.from_json(r["costs"]))
        for r in read_lines(FACTS)
    }
    for aside in (False, True):
        tasks = [
            task
            for task, own in sorted(results.items())
            if is_set_aside(task) == aside and set(NEEDED) <= own.accuracy.keys()
            # With too few images to measure anything there is nothing to judge.
            if task in facts and facts[task][0].depths
        ]
        whole = sum("fine-tune" in results[t].accuracy for t in tasks)
        print(f"\n{'set aside' if aside else 'to make rules on'}: {len(tasks)} tasks run", end="")
        print(f", {whole} of them with fine-tune" if tasks else "")
        arms_advised = {t: by_advice(*facts[t], results[t]) for t in tasks}
        for name, rule in RULES.items() if tasks else ():
            arms = {t: rule(*facts[t], results[t]) for t in tasks}
            print_row(name, {t: results[t].accuracy.get(arms[t]) for t in tasks}, results, arms)
            if name == "the advice":
                replayed = {t: replay_fit(*facts[t], results[t]) for t in tasks}
                print_row("  and fit's comparison", replayed, results)
        print_halves({t: (arms_advised[t], results[t]) for t in tasks})
        if details:
            for task in tasks:
                print_task(task, *facts[task], results[task])
    print_times([entry for own in entries.values() for entry in own], facts)


def print_row(
    name: str,
    reached: dict[str, float | None],
    results: dict[str, Results],
    arms: dict[str, str] | None = None,
) -> None:
    """Print what a rule loses, on the tasks where what it chose was run."""
    run = {task: value for task, value in reached.items() if value is not None}
    if not run:
        return
    lost = [max(results[t].accuracy.values()) - value for t, value in run.items()]
    near = sum(gap <= 0.01 + 1e-9 for gap in lost) / len(lost)
    line = (
        f"  {name:<26} {len(run):3} tasks  regret {100 * np.mean(lost):5.2f}  within one {near:.2f}"
    )
    if arms is not None:
        shares = [results[t].cpu_s[arms[t]] / sum(results[t].cpu_s.values()) for t in run]
        line += f"  time {np.mean(shares):.2f}"
    print(line)


def print_halves(tasks: dict[str, tuple[str, Results]]) -> None:
    """Print what a rule that knows half of the test images loses on the other, and the advice there."""
    random, lost = np.random.default_rng(0), []
    for advised, own in tasks.values():
        arms = list(own.right)
        if advised not in arms:
            continue
        right = np.array([own.right[arm] for arm in arms])
        for _ in range(REPLAYS):
            half = random.permutation(right.shape[1])
            seen, other = np.array_split(half, 2)
            reached = right[:, other].mean(axis=1)
            known = reached[right[:, seen].mean(axis=1).argmax()]
            lost.append(reached.max() - [known, reached[arms.index(advised)]])
    if lost:
        cheat, advice = 100 * np.mean(lost, axis=0)
        print(f"  on halves of the test images: the best on the other half {cheat:.2f}, ", end="")
        print(f"the advice {advice:.2f}")


def print_times(entries: list[dict], facts: dict[str, tuple[Facts, Costs]]) -> None:
    """Print the predicted time of training above a cut as a share of the measured, in CPU seconds."""
    ratios = defaultdict(list)
    for entry in entries:
        cut = {"fine-tune": PIXELS}.get(entry["arm"], entry["arm"].removeprefix("partial "))
        if entry["task"] not in facts:
            continue
        known, costs = facts[entry["task"]]
        for work in [c for c in costs.cuts if c.name == cut]:
            least = WHOLE_EPOCHS if cut == PIXELS else EPOCHS
            bill = dataclasses.replace(costs, threads=1).bill_training(
                work,
                images=known.images,
                val_images=0,
                epochs=count_epochs(known.images, batch=BATCH, least=least),
                views=1 if cut == PIXELS else int(entry["settings"]["views"]),
                batch=BATCH,
            )
            ratios[entry["arm"]].append(bill.seconds / entry["cpu_s"])
    print("\npredicted time as a share of the measured: median, lowest, highest")
    for arm, own in ratios.items():
        print(
            f"  {arm:<18} {len(own):3} runs  {np.median(own):.2f}  {min(own):.2f}  {max(own):.2f}"
        )


def print_task(task: str, facts: Facts, costs: Costs, own: Results) -> None:
    chosen, listed = advise(facts, costs, own)
    expected = {arm_of(c, facts): c for c in listed}
    best = max(own.accuracy.values())
    print(f"  {task}, case {find_case(facts).number}")
    for arm, accuracy in own.accuracy.items():
        line = f"    {'*' if arm == arm_of(chosen, facts) else ' '} {arm:<18} {accuracy:.3f}"
        line += " best" if accuracy == best else ""
        if arm in expected:
            c = expected[arm]
            line += f"  expected {c.accuracy:.3f} ({c.low:.3f} to {c.high:.3f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, help="Folder of tasks to run what is missing on.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument(
        "--keep", type=Path, help="Folder to keep the probabilities of test images in."
    )
    parser.add_argument("--details", action="store_true", help="Print every task, too.")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, arm, seed = Path(args.one[0]), args.one[1], int(args.one[2])
        found = measure_facts(folder) if arm == "facts" else run_arm(folder, arm, seed, args.keep)
        print(json.dumps(found))
    elif args.measure:
        measure(args.measure, args.seeds, args.keep, args.arms)
    else:
        judge(details=args.details)


if __name__ == "__main__":
    main()

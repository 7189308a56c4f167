"""How many images change sides of the hold-out when images are added, by the rule of `split_dataset`.

    python benchmarks/split_stability.py

A class of 10, 100 or 1,000 images, and of 100 or 1,000 in groups of 1 to 9; 0.2 and 0.3 held out; 1, 10 and
100 % more images. The share of the images that were there before and change sides, in the mean and at most
over 50 seeds.
"""

from pathlib import Path

import numpy as np

import headstart


def make(names: list[str], groups: list[str]) -> headstart.Dataset:
    """One class without files."""
    labels = np.zeros(len(names), dtype=np.int64)
    blank = ("",) * len(names)
    return headstart.Dataset(
        Path("none"), ("class",), tuple(names), labels, blank, tuple(groups), blank
    )


def measure(count: int, added: int, val: float, seed: int, *, grouped: bool) -> float:
    """Share of `count` images that change sides when `added` more come."""
    rng = np.random.default_rng(seed)
    total = count + added
    names = [f"{n:06}.jpg" for n in range(total)]
    sizes = rng.integers(1, 10, total)
    of_image = np.repeat(np.arange(total), sizes)[:total]
    groups = [f"group {g}" for g in of_image] if grouped else [""] * total
    whole = make(names, groups)
    before = headstart.split_dataset(whole.select(np.arange(count)), val=val, seed=seed)
    after = headstart.split_dataset(whole, val=val, seed=seed)
    return float(np.mean([a != b for a, b in zip(before.splits, after.splits, strict=False)]))


def main() -> None:
    """A row for every size, share and growth."""
    print("| images | groups | held out | added | change sides, mean | at most |")
    print("|---:|---|---:|---:|---:|---:|")
    kinds = [(10, False), (100, False), (1000, False), (100, True), (1000, True)]
    for count, grouped in kinds:
        for val in (0.2, 0.3):
            for added in dict.fromkeys(max(1, count * percent // 100) for percent in (1, 10, 100)):
                moved = [measure(count, added, val, s, grouped=grouped) for s in range(50)]
                print(
                    f"| {count:,} | {'1 to 9' if grouped else 'none'} | {val} | {added:,} | "
                    f"{np.mean(moved):.3f} | {max(moved):.3f} |"
                )


if __name__ == "__main__":
    main()

"""Changes the bytes that one parser reads, guided by coverage, until the time is over or it fails.

    scripts/fuzz                       # every target for a minute
    scripts/fuzz 600 csv zip           # these for ten minutes each

A target that fails leaves its bytes in crash-… and says how: make them a test of the parser, and mend it.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import atheris

# Coverage of what reads, without that of PyTorch and the like, which would take minutes to prepare.
with atheris.instrument_imports(
    include=[
        "headstart.data",
        "headstart.runs",
        "headstart.networks.backbones",
        "zipfile",
        "tarfile",
    ]
):
    from fuzz_targets import TARGETS

MAX_BYTES = 2**16
SPARE_BYTES = 2**30  # of address space beside what is taken at the start; a bomb wants more


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[arguments.target](Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / f"{number}").write_bytes(seed)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = (taken + SPARE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1])
        resource.setrlimit(resource.RLIMIT_AS, limits)
        most = max(MAX_BYTES, *map(len, target.seeds))
        options = [f"-max_total_time={arguments.seconds}", f"-max_len={most}", "-timeout=10"]
        options += [f"-seed={arguments.seed}", "-print_final_stats=1", "-rss_limit_mb=0"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

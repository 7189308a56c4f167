"""Whatever bytes a file has that comes from outside, the outcome is a value or one line."""

import numpy as np
import pytest
from bad_images import mutate
from fuzz_targets import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

# Slow ones have tests of their own beside, or are tried at length by scripts/fuzz.
EXAMPLES = {"image": 60, "parquet": 60}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function (name) -> the target; those of a run share its folder."""
    run = tmp_path_factory.mktemp("run")
    made = {}

    def find(name):
        if name not in made:
            folder = run if name.startswith("run: ") else tmp_path_factory.mktemp("target")
            made[name] = TARGETS[name](folder)
        return made[name]

    return find


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name, make):
    target = make(name)
    assert [target.run(seed) for seed in target.seeds] == [True] * len(target.seeds)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes_are_read_or_refused_in_one_line(name, make):
    target = make(name)

    @settings(max_examples=EXAMPLES.get(name, 40), deadline=None, database=None)
    @given(st.sampled_from(target.seeds), st.integers(0, 2**32))
    def change(seed, number):
        target.run(mutate(seed, np.random.default_rng(number)))

    change()
    assert target.run(target.seeds[0])


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused_in_one_line(name, make):
    target = make(name)
    starts = st.sampled_from([b"", *(seed[:n] for seed in target.seeds for n in (4, 16, 64))])

    @settings(max_examples=30, deadline=None, database=None)
    @given(starts, st.binary(max_size=200))
    def write(start, rest):
        target.run(start + rest)

    write()
    assert target.run(target.seeds[0])

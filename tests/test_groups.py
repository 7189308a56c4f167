"""What a pattern captures is the group; a pattern that would search for ever is refused."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data import groups
from headstart.data.groups import capture_groups
from headstart.errors import UsageError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("([^/]+/[^/]+)_[^/]*$", ("stop_1/007", "stop_1/a_b", "")),
        ("(?:^|/)(?P<film>[^/_]+)_[^/]*$", ("007", "a", "")),
        (r"(?i)(STOP).1/(\d*)", ("stop\x00007", "stop\0", "")),
    ],
)
def test_captures(pattern, expected):
    ids = ("stop_1/007_01.png", "stop_1/a_b_2.png", "x/y.png")
    assert capture_groups(pattern, ids) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["([a-c]+)1", "(a|b)*(c?)", "x*(.)\\\\1", "(?<=a)(b+)", "([^/]*)$", "^(a*)?b"]),
    st.lists(st.text("abcx1/", min_size=1, max_size=12), min_size=1, max_size=10),
)
def test_the_notation_is_that_of_re(pattern, ids):
    pattern = pattern.replace("\\\\", "\\")
    matches = [re.search(pattern, i) for i in ids]
    wanted = [[g or "" for g in m.groups()] if m else [] for m in matches]
    try:
        found = capture_groups(pattern, ids)
    except UsageError:
        assert not any(any(texts) for texts in wanted)
    else:
        assert found == tuple("\0".join(t) if any(t) else "" for t in wanted)


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "((?:a|aa)+)(b)", "(a{1,1000}){1,1000}(b)"])
def test_a_pattern_that_searches_for_ever_is_refused(pattern, monkeypatch):
    monkeypatch.setattr(groups, "GROUP_SECONDS", 0.3)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=r"takes more than 0\.3 s .*\(at 'a/a+!'\).*repetitions"):
        capture_groups(pattern, ["x/b.png", *["a/" + "a" * 200 + "!"] * 1000])
    assert time.perf_counter() - start < 60


def test_the_time_is_bounded_for_all_names_together(monkeypatch):
    """No name alone takes long; the deadline is that of all."""
    now, given = [0.0], []

    class Slow:
        groups = 1

        def search(self, text, timeout):
            given.append(timeout)
            now[0] += 0.4
            if timeout < 0.4:
                raise TimeoutError

    monkeypatch.setattr(groups.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(groups.regex, "compile", lambda pattern: Slow())
    with pytest.raises(UsageError, match="takes more than 10 s"):
        capture_groups("(a)", ["a"] * 100_000)
    assert 24 <= len(given) <= 26

"""The window of events that API servers may send again: what it promises, and the memory it may take."""

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_operator.receiver import duplicates
from audit_operator.receiver.duplicates import Duplicates, Key


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_GENERATION", 8)
    monkeypatch.setattr(duplicates, "_SLOTS", 32)
    monkeypatch.setattr(duplicates, "_LAST", 31)


# Few places, many keys at each: so they meet.
_keys = st.tuples(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 31, 32, 63, -1]))


@given(st.lists(st.lists(_keys, max_size=20), max_size=12))
def test_the_last_generation_is_known_and_nothing_that_never_came(posts: list[list[Key]]) -> None:
    window = Duplicates()
    taken: list[Key] = []
    for post in posts:
        new = [key for key in dict.fromkeys(post) if not window.taken(key)]
        window.take(new)
        taken += new
        assert all(window.taken(key) for key in taken[-8:])
        assert not any(window.taken((moment + 10, event)) for moment, event in taken)
    assert not any(window.taken(key) for key in taken[:-16] if key not in taken[-16:])


def test_memory_does_not_grow_however_many_events_come() -> None:
    window = Duplicates()
    tracemalloc.start()
    try:
        for number in range(100):
            window.take([(number, number * 2**40 + each) for each in range(100)])
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 2000

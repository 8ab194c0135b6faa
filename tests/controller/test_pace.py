"""What may happen so many times at once, and then at a rate."""

from hypothesis import given
from hypothesis import strategies as st

from audit_operator.controller.pace import Pace

STEPS = st.lists(st.floats(0, 5), min_size=1, max_size=60)


@given(STEPS, st.integers(1, 9))
def test_no_more_happens_than_the_burst_and_what_the_rate_gives_since(steps: list[float], burst: int) -> None:
    pace, now, happened = Pace(burst, 0.5), 0.0, 0
    for step in steps:
        now += step
        happened += pace.allows(now)
        assert happened <= burst + now * 0.5 + 1e-6


def test_a_long_silence_saves_up_no_more_than_the_burst() -> None:
    pace = Pace(3, 1.0)
    assert [pace.allows(0.0) for _ in range(4)] == [True, True, True, False]
    assert [pace.allows(1000.0) for _ in range(4)] == [True, True, True, False]


@given(STEPS, st.integers(1, 9))
def test_who_waits_as_told_never_goes_faster_and_who_is_slow_never_waits(steps: list[float], burst: int) -> None:
    pace, now = Pace(burst, 0.5), 0.0
    for happened, step in enumerate(steps, start=1):
        now += step
        now += pace.delay(now)
        assert happened <= burst + now * 0.5 + 1e-6
    assert all(Pace(1, 0.5).delay(number * 2.0) == 0 for number in range(5))

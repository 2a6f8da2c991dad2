from datetime import datetime, timedelta

import pytest

from datapatterns.clock import Clock
from datapatterns.testing import ManualClock, wait_until
from datapatterns.testing.clock import BEGINNING


def test_a_manual_clock_stands_still_until_it_is_told() -> None:
    clock: Clock = ManualClock()

    assert clock.now() == clock.now() == BEGINNING
    assert clock.monotonic() == 0


def test_sleeping_on_a_manual_clock_lets_time_pass_at_once() -> None:
    clock = ManualClock()

    clock.sleep(1.5)
    clock.advance(2)

    assert clock.monotonic() == 3.5
    assert clock.now() == BEGINNING + timedelta(seconds=3.5)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(datetime(2026, 1, 1))  # noqa: DTZ001 -- what is refused


def test_waiting_ends_with_the_first_true_value() -> None:
    values = iter([0, None, "", "found", "not asked for"])

    assert wait_until(lambda: next(values), clock=ManualClock()) == "found"


def test_waiting_ends_at_the_deadline() -> None:
    clock = ManualClock()

    with pytest.raises(TimeoutError, match="stayed None for 5 s"):
        wait_until(lambda: None, deadline_seconds=5, clock=clock)

    assert clock.monotonic() == pytest.approx(5, abs=0.1)

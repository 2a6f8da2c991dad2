import pytest

from datapatterns.event_sourcing import every, slower_than


def test_every_counts_events_beyond_the_latest_snapshot() -> None:
    policy = every(100)

    assert not policy.is_due(events=99, load_seconds=9.0)
    assert policy.is_due(events=100, load_seconds=0.0)


def test_slower_than_looks_at_the_load() -> None:
    policy = slower_than(0.05)

    assert not policy.is_due(events=1_000, load_seconds=0.05)
    assert policy.is_due(events=1, load_seconds=0.06)


def test_policies_join_to_the_stricter_of_their_limits() -> None:
    policy = every(100) | slower_than(0.05) | every(10)

    assert policy == every(10) | slower_than(0.05)
    assert policy.is_due(events=10, load_seconds=0.0)
    assert policy.is_due(events=1, load_seconds=0.1)


def test_nothing_new_needs_no_snapshot() -> None:
    assert not slower_than(0).is_due(events=0, load_seconds=9.0)


def test_policies_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        every(0)
    with pytest.raises(ValueError, match="0 or more"):
        slower_than(-0.1)

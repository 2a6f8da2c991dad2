from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

import pytest

from datapatterns.cache_aside.flights import Flights, Turns
from datapatterns.cache_aside.steps import Outcome

ENOUGH_SECONDS = 30


def wait_until_somebody_waits(flights: Flights, entry: str) -> None:
    # What a caller that waits does can only be seen from inside.
    deadline = monotonic() + ENOUGH_SECONDS
    while not flights._flights[entry].landed._cond._waiters:  # type: ignore[attr-defined]  # noqa: SLF001 -- CPython's
        assert monotonic() < deadline


def fly_with_a_follower(
    first: Callable[[], Outcome[str]], second: Outcome[str], *, is_late: bool = False
) -> tuple[Outcome[str] | None, Outcome[str] | None]:
    """Return what a leader gets, and a follower that joined while it flew."""
    flights = Flights()
    with ThreadPoolExecutor(1) as pool:
        follower: Future[Outcome[str] | None]

        def lead(turns: Turns) -> Outcome[str]:
            nonlocal follower
            turns.begin()
            if is_late:
                turns.begin()
            follower = pool.submit(
                flights.join, "price", lambda _: second, wait_seconds=ENOUGH_SECONDS
            )
            wait_until_somebody_waits(flights, "price")
            if not is_late:
                turns.begin()
            return first()

        led = flights.join("price", lead, wait_seconds=ENOUGH_SECONDS)
        return led, follower.result(ENOUGH_SECONDS)


@pytest.mark.parametrize("source", ["hit", "stale", "filled"])
def test_what_was_stored_is_shared(source: str) -> None:
    led, followed = fly_with_a_follower(lambda: Outcome("old", source), Outcome("new", "hit"))

    assert led is followed


def test_what_may_be_older_than_the_call_is_not() -> None:
    _, followed = fly_with_a_follower(lambda: Outcome("old", "loaded"), Outcome("new", "loaded"))

    assert followed == Outcome("new", "loaded")


@pytest.mark.parametrize("source", ["hit", "stale", "filled"])
def test_what_was_settled_before_the_call_is_not_shared(source: str) -> None:
    """It may have been invalidated since, and before the call."""
    _, followed = fly_with_a_follower(
        lambda: Outcome("old", source), Outcome("new", "hit"), is_late=True
    )

    assert followed == Outcome("new", "hit")


def test_nobody_joins_a_load_of_another_kind() -> None:
    flights = Flights()

    def lead(_: Turns) -> Outcome[str]:
        other = flights.join("price", lambda _: Outcome("5", "hit"), wait_seconds=1, kind=int)
        assert other == Outcome("5", "hit")
        return Outcome("five", "hit")

    assert flights.join("price", lead, wait_seconds=1, kind=str) == Outcome("five", "hit")


def test_an_entry_is_free_again_after_its_load() -> None:
    flights = Flights()

    first = flights.join("price", lambda _: Outcome("first", "hit"), wait_seconds=1)
    second = flights.join("price", lambda _: Outcome("second", "hit"), wait_seconds=1)

    assert (first, second) == (Outcome("first", "hit"), Outcome("second", "hit"))


def test_nobody_joins_a_load_that_was_detached() -> None:
    flights = Flights()

    def lead(_: Turns) -> Outcome[str]:
        flights.detach(["price"])
        inner = flights.join("price", lambda _: Outcome("new", "filled"), wait_seconds=1)
        assert inner == Outcome("new", "filled")
        return Outcome("old", "loaded")

    assert flights.join("price", lead, wait_seconds=1) == Outcome("old", "loaded")


def test_a_follower_gives_up_in_the_end() -> None:
    flights = Flights()

    def lead(_: Turns) -> Outcome[str]:
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(
                flights.join, "price", lambda _: Outcome("never", "hit"), wait_seconds=0.01
            )
            assert follower.result(ENOUGH_SECONDS) is None
        return Outcome("slow", "filled")

    assert flights.join("price", lead, wait_seconds=1) == Outcome("slow", "filled")

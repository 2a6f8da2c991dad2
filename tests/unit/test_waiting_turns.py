"""Who looks next, why it does not go on, and how long to pause: decisions without a database."""

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.cqrs import Token
from datapatterns.cqrs.reading.answers import Age, Answer, Asked, Demand, Missed
from datapatterns.cqrs.reading.querying_flow import REST_SECONDS, Attempt, Await, Rest, querying
from datapatterns.cqrs.reading.sights import Awaited, Sight, Surroundings
from datapatterns.cqrs.reading.stalls import ShardState, Stall, find_stall
from datapatterns.cqrs.reading.turns import Seen, Ticket, Turn, Turns
from datapatterns.cqrs.reading.waiting_flow import Explain, Look, Pause, waiting
from datapatterns.errors import ForeignTokenError, ReadModelBehindError
from datapatterns.event_sourcing import Position
from tests.fixtures.read_models import Dashboard, SalesByProduct

# -- turns ----------------------------------------------------------------------------------------


def test_a_look_serves_those_who_came_before_it_began_and_nobody_else() -> None:
    turns: Turns[str] = Turns()
    first = turns.join()
    ticket = turns.begin()
    later = turns.join()

    assert turns.take(first) is turns.take(later) is Turn.WAIT
    seen = turns.succeed(ticket, "one")
    assert turns.take(first) == seen
    assert turns.take(later) is Turn.LOOK, "it came while the look was under way"


def test_who_wanted_a_look_that_failed_looks_alone_and_of_one_abandoned_begins_another() -> None:
    turns: Turns[str] = Turns()
    wanted = turns.join()
    turns.begin()
    turns.abandon()
    assert turns.take(wanted) is Turn.LOOK

    turns.fail(turns.begin())
    assert turns.take(wanted) is Turn.ALONE


def test_a_ring_since_a_look_began_is_a_reason_to_look_again() -> None:
    turns: Turns[str] = Turns()
    ticket = turns.begin()
    turns.rings += 1
    seen = turns.succeed(ticket, "one")

    assert turns.news(seen) is Turn.LOOK
    again = turns.succeed(turns.begin(), "two")
    assert turns.news(seen) == again
    assert turns.news(again) is Turn.WAIT


@given(st.lists(st.sampled_from(["join", "begin", "succeed", "fail", "abandon"]), min_size=10))
def test_nobody_is_served_by_a_look_that_had_begun_before(steps: list[str]) -> None:
    turns: Turns[int] = Turns()
    ticket, began, wanted = Ticket(0, 0), 0, dict[int, int]()
    for time, step in enumerate(steps):
        match step:
            case "join":
                wanted[time] = turns.join()
            case "begin" if not turns.under_way:
                ticket, began = turns.begin(), time
            case "succeed" if turns.under_way:
                turns.succeed(ticket, began)
            case "fail" if turns.under_way:
                turns.fail(ticket)
            case "abandon":
                turns.abandon()
            case _:
                pass
        check_turns(turns, wanted)


def check_turns(turns: Turns[int], wanted: dict[int, int]) -> None:
    for came, number in wanted.items():
        answer = turns.take(number)
        assert not isinstance(answer, Seen) or answer.value > came
        assert answer is not Turn.WAIT or turns.under_way, "or it would wait for ever"


# -- stalls ---------------------------------------------------------------------------------------


def shard(
    position: int,
    *,
    version: int = 1,
    status: str = "live",
    mode: str = "async",
    held: bool = True,
    error: dict[str, object] | None = None,
) -> ShardState:
    return ShardState(version, status, mode, Position(position), held, error)


POISON: dict[str, object] = {"event_type": "x", "position": 6, "error": "ValueError"}


@pytest.mark.parametrize(
    ("shards", "reason", "final"),
    [
        ([shard(5)], None, None),
        ([], "idle", False),
        ([shard(5, held=False)], "idle", False),
        ([shard(5, error=POISON)], "stopped", True),
        ([shard(5, error=POISON), shard(5)], "stopped", True),
        ([shard(5), shard(9, error=POISON)], None, None),  # it is another segment that lags
        ([shard(9, held=False), shard(5)], None, None),
        ([shard(5, mode="inline", held=False)], "late", False),
        ([shard(5, status="building")], "building", False),
        ([shard(5, status="ready")], "building", False),
        ([shard(5, status="retired")], "version", True),
        ([shard(5, status="failed")], "version", True),
        # Who waits for a standby reads what has taken its place.
        ([shard(9, version=2), shard(5, status="standby")], None, None),
        ([shard(5, version=2, error=POISON), shard(9, status="standby")], "stopped", True),
        ([shard(5, version=2, held=False), shard(9, status="standby")], "idle", False),
        ([shard(9, version=2), shard(5, status="retired")], "version", True),
        ([shard(9, version=2)], "version", True),
        ([shard(9, version=2), shard(5, status="building")], "building", False),
        ([shard(9, version=2), shard(5, status="ready")], "building", False),
        ([shard(5), shard(3, version=2, status="building", error=POISON)], None, None),
    ],
)
def test_what_keeps_a_table_from_a_position(
    shards: list[ShardState], reason: str | None, final: object
) -> None:
    stall = find_stall(shards, Position(8), version=1, in_table=True)

    assert (stall and stall.reason, stall and stall.final) == (reason, final)


def test_versions_in_redis_stand_side_by_side() -> None:
    shards = [shard(9, version=2), shard(5, status="standby")]

    assert find_stall(shards, Position(8), version=1, in_table=False) is None


# -- waiting --------------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def seen(position: int | None, log: str | None = None) -> Seen[Sight]:
    return Seen(Sight(None if position is None else Position(position), log), 1, 0)


def test_pauses_grow_and_why_is_asked_at_first_and_when_they_are_long() -> None:
    time, reasons, pauses = Time(), 0, list[float]()
    steps = waiting(Awaited(SalesByProduct, Token(Position(8))), 0.3, time)

    def take() -> None:
        nonlocal reasons
        step, answer = next(steps), object()
        while True:
            match step:
                case Look():
                    answer = seen(5)
                case Explain():
                    reasons += 1
                    answer = Surroundings((shard(5),), Position(9))
                case Pause(_, seconds):
                    time.now += seconds
                    pauses.append(round(seconds, 3))
                    answer = None
            step = steps.send(answer)

    with pytest.raises(ReadModelBehindError) as late:
        take()

    assert pauses[:6] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.05]
    assert sum(pauses) == pytest.approx(0.3)
    assert 3 <= reasons < len(pauses)
    assert (late.value.position, late.value.reason) == (5, "late")


def test_what_others_see_ends_a_wait() -> None:
    steps = waiting(Awaited(SalesByProduct, Token(Position(8))), 1, Time())
    next(steps)
    steps.send(seen(None))
    assert isinstance(steps.send(Surroundings((), Position(9))), Pause)
    with pytest.raises(StopIteration) as done:
        steps.send(seen(8))

    assert done.value.value == 8


def test_a_look_that_never_came_is_told_as_such() -> None:
    steps = waiting(Awaited(Dashboard, Token(Position(8))), 1, Time())
    next(steps)
    assert isinstance(steps.send(None), Explain)
    with pytest.raises(ReadModelBehindError) as late:
        steps.send(None)

    assert (late.value.position, late.value.reason) == (None, "late")


@pytest.mark.parametrize(
    ("token", "sight", "end"),
    [
        (Token(Position(8), "0000000a"), seen(9, "0000000b"), 9),
        (Token(Position(8)), seen(5), 7),
    ],
    ids=["of another log", "beyond the log"],
)
def test_a_foreign_token_is_not_waited_for(token: Token, sight: Seen[Sight], end: int) -> None:
    steps = waiting(Awaited(SalesByProduct, token), 1_000, Time())

    def take() -> None:
        next(steps)
        steps.send(sight)
        steps.send(Surroundings((shard(5),), Position(end)))

    with pytest.raises(ForeignTokenError):
        take()


def test_a_standby_cannot_tell_that_a_token_lies_beyond_the_log() -> None:
    steps = waiting(Awaited(SalesByProduct, Token(Position(8))), 1_000, Time())
    next(steps)
    steps.send(seen(5))

    assert isinstance(steps.send(Surroundings((shard(5),), None)), Pause)


# -- querying -------------------------------------------------------------------------------------

MISSED = Missed("sales", Position(5), Token(Position(8)))
BEHIND = MISSED.error()
ANSWER = Answer("yes", Token(Position(8)), 0, 0.0, 0, is_stale=False)


def ended(steps: Generator[Any, Any, Answer[Any]], *answers: object) -> Answer[Any]:
    next(steps)
    try:
        for answer in answers:
            steps.send(answer)
    except StopIteration as done:
        found: Answer[Any] = done.value
        return found
    raise AssertionError("it has not ended")


def test_a_query_asks_before_it_waits() -> None:
    steps = querying({"after": Position(8)}, Time())

    assert isinstance(next(steps), Attempt)
    with pytest.raises(StopIteration):
        steps.send(ANSWER)


def test_a_query_asks_again_after_it_has_waited() -> None:
    assert ended(querying({"after": Position(8)}, Time()), MISSED, None, ANSWER) == ANSWER


def test_a_query_rests_before_it_asks_again_what_need_not_move_to_become_fresh() -> None:
    time = Time()
    steps = querying({"max_staleness_seconds": 1, "timeout_seconds": 2 * REST_SECONDS}, time)
    attempt = next(steps)
    reached = Missed("sales", Position(8), Token(Position(8)))

    assert steps.send(reached) == Await(Token(Position(8)), 2 * REST_SECONDS)
    assert steps.send(None) == Rest(REST_SECONDS)
    time.now += REST_SECONDS * 1.5
    assert steps.send(None) == attempt
    steps.send(reached)
    rest = steps.send(None)
    assert isinstance(rest, Rest)
    assert 0 < rest.seconds < REST_SECONDS, "what is left"
    time.now += REST_SECONDS
    assert steps.send(None) == attempt
    steps.send(reached)
    with pytest.raises(ReadModelBehindError):
        steps.send(None)


def test_a_query_without_time_asks_once_what_is_the_matter() -> None:
    steps = querying({"after": Position(8), "timeout_seconds": 0}, Time())
    next(steps)

    assert steps.send(MISSED) == Await(Token(Position(8)), 0.0)
    with pytest.raises(ReadModelBehindError):
        steps.send(None)


def test_a_stale_answer_is_served_when_there_is_one() -> None:
    asked: Asked = {"after": Position(8), "stale": "serve"}

    assert ended(querying(asked, Time()), MISSED, BEHIND, ANSWER) == ANSWER
    steps = querying(asked, Time())
    next(steps)
    steps.send(MISSED)
    assert steps.send(BEHIND) == Attempt(Demand(Token(Position(8))), anyway=True)
    with pytest.raises(ReadModelBehindError):
        steps.send(MISSED)


def test_an_old_answer_is_waited_for_until_it_shows_what_is_newest_now() -> None:
    demand = Demand(Token(Position(3)), max_staleness_seconds=5)
    old, young = Age(Position(9), 6.0, 0), Age(Position(9), 4.0, 0)

    assert demand.is_met(Position(3), young)
    assert not demand.is_met(Position(3), old)
    assert not demand.is_met(Position(2), young)
    assert demand.goal(Position(3), old) == Token(Position(9))
    assert demand.goal(Position(2), old) == demand.goal(None, old) == Token(Position(3))


def test_a_stall_is_told_in_the_error() -> None:
    awaited = Awaited(SalesByProduct, Token(Position(8)))
    error = awaited.behind(seen(5).value, Stall("idle", "nobody runs it", final=False))

    assert (error.reason, error.stopped_by) == ("idle", "nobody runs it")
    assert "sales_by_product is at position 5, not at 8 (nobody runs it)" in str(error)

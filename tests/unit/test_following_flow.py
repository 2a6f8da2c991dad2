"""How a follower paces itself, step by step, without a log."""

from collections.abc import Iterator
from typing import Any

import pytest

from datapatterns.event_sourcing import Pace, Position
from datapatterns.event_sourcing.log.following_flow import (
    Begin,
    Deliver,
    Flow,
    Known,
    Look,
    Pause,
    Read,
    following,
)
from datapatterns.event_sourcing.recorded import LogPage
from datapatterns.testing.clock import BEGINNING

PACE = Pace(seconds_min=1, seconds_max=4)


def page(checkpoint: int, mark: int | None = None) -> LogPage:
    return LogPage([], Position(checkpoint), Position(checkpoint if mark is None else mark))


def steps(flow: Flow, *answers: object) -> Iterator[Any]:
    answer: object = None
    for following_answer in (*answers, None):
        yield flow.send(answer)
        answer = following_answer


def names(taken: list[Any]) -> list[str]:
    return [type(step).__name__ for step in taken]


def test_pages_follow_each_other_without_a_pause_until_one_is_caught_up() -> None:
    first, second = page(5, mark=9), page(9)

    taken = list(steps(following(PACE), 0, first, None, second, None))

    assert taken == [
        Begin(None),
        Read(Position(0)),
        Deliver(first),
        Read(first),  # a page, so that the mark is not asked for again
        Deliver(second),
        Pause(1, Position(9)),
    ]


def test_pauses_double_up_to_the_longest_and_only_hints_are_looked_at() -> None:
    taken = list(steps(following(PACE), 9, page(9), *[None, 9] * 4))

    assert taken[1] == Read(Position(9))
    assert taken[2:] == [
        Pause(1, Position(9)),
        Look(1),
        Pause(2, Position(9)),
        Look(2),
        Pause(4, Position(9)),
        Look(4),
        Pause(4, Position(9)),
        Look(4),
        Pause(4, Position(9)),
    ]


def test_what_a_hint_promises_is_read_and_the_pauses_begin_anew_when_it_comes() -> None:
    moved = page(12)

    taken = list(steps(following(PACE), 9, page(9), None, 9, None, 12, moved, None))

    assert taken[6:] == [Read(Position(9)), Deliver(moved), Pause(1, Position(12))]


def test_a_mark_that_is_held_back_is_asked_for_ever_more_slowly() -> None:
    """A hint cannot tell when the transaction ends; and what is known must not end each pause."""
    taken = list(steps(following(PACE), 9, page(9), None, 12, page(9), None, page(9), None))

    assert taken[3:] == [
        Look(1),
        Read(Position(9)),
        Pause(2, Position(12)),
        Read(Position(9)),
        Pause(4, Position(12)),
        Read(Position(9)),
    ]


def test_who_is_woken_reads_at_once() -> None:
    taken = list(steps(following(PACE), 9, page(9), None, 9, Position(9), page(9)))

    assert taken[4:] == [Pause(2, Position(9)), Read(Position(9)), Pause(1, Position(9))]


def test_after_a_lost_connection_it_begins_anew_after_the_last_event() -> None:
    class Event:
        position = Position(10)

    seen = LogPage([Event()], Position(14), Position(14))  # type: ignore[list-item] # no more is looked at

    while_looking = list(steps(following(PACE), 9, seen, None, None, None, None))
    while_reading = list(steps(following(PACE), 9, seen, None, None, 15, None, None, None, None))

    assert names(while_looking) == [
        "Begin", "Read", "Deliver", "Pause", "Look", "Pause", "Begin",
    ]  # fmt: skip
    assert names(while_reading) == [
        "Begin", "Read", "Deliver", "Pause", "Look", "Read", "Pause", "Begin", "Pause", "Begin",
    ]  # fmt: skip
    assert while_looking[-1] == while_reading[-1] == Begin(Position(10))


def test_what_is_known_is_forgotten_and_ends_pauses() -> None:
    known, life = Known(), (BEGINNING, BEGINNING)
    pause = Pause(1, Position(9))

    assert not known.is_fresh(0, 1)
    known.look(Position(9), life, 5)
    assert known.is_fresh(5.5, 1)
    assert not known.is_fresh(6, 1)
    assert not known.ends(pause, wakes=0)
    known.wakes += 1
    assert known.ends(pause, wakes=0)
    known.look(Position(10), life, 5)
    assert known.ends(pause, wakes=1)
    assert known.life == life
    known.forget()
    assert not known.ends(pause, wakes=1)
    assert known.life is None


@pytest.mark.parametrize(("shortest", "longest"), [(0, 1), (-1, 1), (2, 1)])
def test_a_pace_that_is_none_is_refused(shortest: float, longest: float) -> None:
    with pytest.raises(ValueError, match="pauses of"):
        Pace(seconds_min=shortest, seconds_max=longest)

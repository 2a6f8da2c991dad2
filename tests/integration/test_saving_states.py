"""What a state emits is saved once, and only if nobody else has saved meanwhile."""

from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, Engine

from datapatterns.errors import (
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    Aggregate,
    StreamId,
    applies,
)
from tests.fixtures.baskets import Basket, Scanned, filled, state, store, types
from tests.fixtures.colours import Call


def test_what_was_saved_is_loaded(call: Call) -> None:
    basket = call(store.load, Basket, "7")
    basket.scan(1, 149)
    basket.scan(2, 51)

    token = call(store.save, basket)
    loaded = call(store.load, Basket, "7")
    loaded.scan(1, 1)
    later = call(store.save, loaded)

    assert state(basket)[:2] == (2, 200)
    assert state(call(store.load, Basket, "7"))[:2] == (3, 201)
    assert call(store.high_water_mark) == later > token


def test_a_past_state_cannot_be_saved(conn: Connection) -> None:
    filled(conn, 3)
    past = store.load(conn, Basket, "7", version=2)
    past.scan(1)

    with pytest.raises(VersionConflictError):
        store.save(conn, past)


def test_of_two_who_loaded_the_same_the_second_must_decide_again(engine: Engine) -> None:
    with engine.begin() as conn:
        filled(conn, 1)
    with engine.connect() as one, engine.connect() as two:
        first, second = store.load(one, Basket, "7"), store.load(two, Basket, "7")
        first.scan(1)
        second.scan(2)
        store.save(one, first)
        one.commit()

        with pytest.raises(VersionConflictError):
            store.save(two, second)

        again = store.load(two, Basket, "7")
        again.scan(2)
        store.save(two, again)
        two.commit()

    with engine.begin() as conn:
        assert store.load(conn, Basket, "7").version == 3


@pytest.mark.parametrize("committed", [True, False])
def test_a_save_of_unknown_outcome_is_simply_repeated(engine: Engine, *, committed: bool) -> None:
    with engine.begin() as conn:
        basket = filled(conn, 1)
    basket.scan(2)
    basket.scan(3)
    with engine.connect() as conn:
        token = store.save(conn, basket)
        if committed:
            conn.commit()

    with engine.begin() as conn:
        again = store.save(conn, basket)
    with engine.begin() as conn:
        loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(basket)
    assert (again == token) is committed


def test_after_a_rollback_new_events_on_the_old_state_are_a_conflict(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    basket.scan(1)

    with engine.begin() as conn, pytest.raises(VersionConflictError):
        store.save(conn, basket)


def test_saving_nothing_returns_where_the_state_stands(conn: Connection) -> None:
    assert store.save(conn, Basket("7")) == 0
    token = store.save(conn, filled(conn, 1))
    assert store.save(conn, store.load(conn, Basket, "7")) == token


def test_a_state_of_events_that_others_replaced_cannot_be_saved(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    with engine.begin() as conn:
        theirs = filled(conn, 2)
        basket.scan(1)

        with pytest.raises(VersionConflictError, match="rolled back"):
            store.save(conn, basket)

        assert state(store.load(conn, Basket, "7")) == state(theirs)


def test_a_savepoint_that_was_rolled_back_takes_the_loaded_state_along(conn: Connection) -> None:
    filled(conn, 1)
    savepoint = conn.begin_nested()
    store.append(conn, StreamId("basket", "7"), [Scanned(1, 1)], expected_version=1)
    basket = store.load(conn, Basket, "7")
    savepoint.rollback()
    store.append(conn, StreamId("basket", "7"), [Scanned(2, 2)], expected_version=1)
    basket.scan(3)

    with pytest.raises(VersionConflictError):
        store.save(conn, basket)


@types.event("trail.begun")
@dataclass(frozen=True, slots=True)
class Begun:
    names: list[str]


class Names(Aggregate, category="names"):
    names: list[str] = []  # noqa: RUF012 -- each object gets its own

    @applies
    def _(self, e: Begun) -> None:
        self.names = e.names

    @applies
    def _(self, e: Scanned) -> None:
        self.names.append(str(e.product))


def test_what_the_state_does_with_a_list_of_an_event_does_not_change_the_event(
    conn: Connection,
) -> None:
    names, given = Names("1"), ["a"]
    names.emit(Begun(given))
    names.emit(Scanned(2, 2))
    given.append("late")

    store.save(conn, names)

    assert names.unsaved == ()
    assert store.load(conn, Names, "1").names == ["a", "2"]

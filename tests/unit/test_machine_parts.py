"""The parts of a consistency machine that need no server."""

from dataclasses import dataclass

import pytest
from hypothesis import find
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from datapatterns.event_sourcing import EventTypes
from datapatterns.testing import strategies
from datapatterns.testing.interleaving import Gate
from datapatterns.testing.models.consistency_machine import switching
from datapatterns.testing.models.derived import derived
from datapatterns.testing.models.transactions import (
    RowWrite,
    Savepoint,
    Transaction,
    is_lost,
    row_writes,
)

READY = [Gate(name, "SELECT 1") for name in "abc"]
PAIR = Table("pair", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
ROW = {"id": 1, "n": 2}


@pytest.mark.parametrize(
    ("first", "switches", "taken"),
    [
        (0, [], "aaaa"),
        (4, [], "bbbb"),
        (0, [(0, 0)], "abbb"),
        (0, [(1, 1)], "aacc"),
        (1, [(1, 0), (0, 2)], "bbab"),
    ],
)
def test_whoever_is_at_it_goes_on_but_for_the_switches(
    first: int, switches: list[tuple[int, int]], taken: str
) -> None:
    choose = switching(first, switches)

    assert "".join(choose(READY).task for _ in taken) == taken


def test_rows_that_no_server_would_take_are_refused() -> None:
    needs_name = Table(
        "needs_name",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("name", Text, nullable=False),
        Column("kind", Text, nullable=False, server_default="plain"),
    )
    rows = st.fixed_dictionaries({"id": st.integers(1, 3)})

    with pytest.raises(ValueError, match="a row of needs_name lacks name"):
        find(row_writes({needs_name: rows}), lambda _: True)
    with pytest.raises(ValueError, match="lacks id"):
        find(row_writes({needs_name: st.just({"name": "a"})}), lambda _: True)
    find(row_writes({needs_name: st.just({"id": 1, "name": "a"})}), lambda _: True)


def test_events_may_be_given_fields_that_their_classes_inherit() -> None:
    @dataclass(frozen=True)
    class Above:
        place: str

    types = EventTypes()

    @types.event("part.moved")
    @dataclass(frozen=True)
    class Moved(Above):
        pass

    moved = find(strategies.events(Moved, types=types, place=st.just("here")), lambda _: True)

    assert moved.place == "here"


def test_nobody_else_is_switched_to_if_nobody_else_is_ready() -> None:
    choose = switching(2, [(0, 1), (0, 1)])

    assert [choose(READY[:1]).task for _ in range(3)] == ["a"] * 3


def test_what_a_transaction_does_can_be_read() -> None:
    put, delete = RowWrite("put", PAIR, ROW), RowWrite("delete", PAIR, ROW)
    transaction = Transaction(
        [put, Savepoint([delete, RowWrite("delete all", PAIR, ROW)], kept=False)], commits=False
    )

    assert repr(transaction) == (
        "[put pair {'id': 1, 'n': 2},"
        " savepoint[delete pair {'id': 1}, delete all pair] rolled back] rolled back"
    )
    assert repr(RowWrite("update all", PAIR, ROW)) == "update all pair {'n': 2}"


class _DriverError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__()
        self.sqlstate = sqlstate


def test_losing_to_others_is_no_failure_and_everything_else_is() -> None:
    assert is_lost(IntegrityError("", {}, _DriverError("23505")))
    assert is_lost(OperationalError("", {}, _DriverError("40P01")))
    assert not is_lost(ProgrammingError("", {}, _DriverError("42P01")))
    assert not is_lost(OperationalError("", {}, _DriverError(None)))


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(TypeError, match="no MaterializedView"):
        derived(PAIR)

"""Code that would fold otherwise does not use the snapshots of the code before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, text

from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    EventStore,
    EventTypes,
    NewEvent,
    StreamId,
    applies,
    every,
)
from tests.fixtures.baskets import Scanned, store


def release(factor: int, *, snapshot_version: int = 0) -> type[Any]:
    """Return the aggregate as another release might have it."""

    class Counter(
        Aggregate, category="counter", snapshot=every(1), snapshot_version=snapshot_version
    ):
        total = 0

        if factor == 1:

            @applies
            def _(self, e: Scanned) -> None:
                self.total += e.cents

        else:

            @applies
            def _(self, e: Scanned) -> None:
                self.total += e.cents * 2

    return Counter


def test_changed_code_does_not_use_the_snapshots_of_other_code(conn: Connection) -> None:
    stream = StreamId("counter", "1")
    store.append(conn, stream, [Scanned(1, 10)] * 3, expected_version=NEW_STREAM)
    for cls in (release(1), release(2), release(1, snapshot_version=1)):
        assert store.save_snapshot(conn, store.load(conn, cls, "1"))

    assert not store.save_snapshot(conn, store.load(conn, release(1), "1"))
    assert store.load(conn, release(1), "1").total == 30
    assert store.load(conn, release(2), "1").total == 60


def test_a_new_upcaster_is_changed_code(conn: Connection) -> None:
    ours = EventTypes()
    ours.event("basket.scanned")(Scanned)
    shop = EventStore(types=ours)
    counter = release(1)
    old = NewEvent("basket.scanned", {"product": 1, "cents": 1}, schema_version=1)
    shop.append(conn, StreamId("counter", "1"), [old], expected_version=NEW_STREAM)
    shop.save_snapshot(conn, shop.load(conn, counter, "1"))

    ours.event("basket.scanned", version=2)(Scanned)
    ours.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 7})

    assert shop.load(conn, counter, "1").total == 7


def test_a_corrected_upcaster_is_changed_code(conn: Connection) -> None:
    wrong, right = EventTypes(), EventTypes()
    for ours in (wrong, right):
        ours.event("basket.scanned", version=2)(Scanned)
    wrong.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 7})
    right.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 8})
    old = NewEvent("basket.scanned", {"product": 1, "cents": 1}, schema_version=1)
    store.append(conn, StreamId("counter", "1"), [old], expected_version=NEW_STREAM)
    shop = EventStore(types=wrong)
    shop.save_snapshot(conn, shop.load(conn, release(1), "1"))

    assert EventStore(types=right).load(conn, release(1), "1").total == 8


def limited(limit: int) -> type[Any]:
    """Return an aggregate with state that no handler names, as releases may have it."""

    class Limited(Aggregate, category="limited", snapshot=every(1)):
        limit_cents = limit

        @applies
        def _(self, e: Scanned) -> None: ...

    return Limited


def started(start: int) -> type[Any]:
    """Return an aggregate that sets its state itself, as releases may do it."""

    class Started(Aggregate, category="started", snapshot=every(1)):
        start_cents: int

        def __init__(self, key: str) -> None:
            super().__init__(key)
            self.start_cents = start

        @applies
        def _(self, e: Scanned) -> None: ...

    return Started


def rounded(step: int) -> type[Any]:
    """Return an aggregate whose state has operators, as releases may define them."""

    @dataclass
    class Money:
        cents: int = 0

        if step == 1:

            def __add__(self, cents: int) -> Any:  # noqa: ANN401 -- Money, a local class
                return Money(self.cents + cents)

        else:

            def __add__(self, cents: int) -> Any:  # noqa: ANN401 -- Money, a local class
                return Money(self.cents + cents + 5)

    def _apply(self: Any, e: Scanned) -> None:  # noqa: ANN401 -- an aggregate without a name yet
        self.money = self.money + e.cents

    class Rounded(Aggregate, category="rounded", snapshot=every(1)):
        money: Money = Money()
        handler = applies(_apply)

    return Rounded


@pytest.mark.parametrize("release_of", [limited, started, rounded])
def test_other_defaults_and_values_do_not_use_the_snapshots_of_those_before(
    conn: Connection, release_of: Callable[[int], type[Any]]
) -> None:
    before, same, later = release_of(1), release_of(1), release_of(2)
    aggregate = before("1")
    aggregate.emit(Scanned(1, 1))
    store.save(conn, aggregate)
    assert store.save_snapshot(conn, aggregate)

    def snapshot_version(cls: type[Any]) -> int:
        history = store.load(conn, cls, "1")._history  # noqa: SLF001 -- what the load began with
        return int(history.snapshot_version)

    assert snapshot_version(same) == 1
    assert snapshot_version(later) == 0


def test_two_releases_keep_their_snapshots_side_by_side(conn: Connection) -> None:
    stream = StreamId("counter", "1")
    for version in range(3):
        store.append(conn, stream, [Scanned(1, 10)], expected_version=version)
        for cls in (release(1), release(2)):
            assert store.save_snapshot(conn, store.load(conn, cls, "1"), keep=1)

    kept = conn.execute(text("SELECT version FROM datapatterns.snapshot")).scalars()
    assert list(kept) == [3, 3]

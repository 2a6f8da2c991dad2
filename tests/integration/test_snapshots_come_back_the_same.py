"""A state comes back from its snapshot as it was, or is not written."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection

from datapatterns.errors import (
    AggregateError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    StreamId,
    applies,
    every,
)
from tests.fixtures.baskets import Line, Scanned, filled, store


def bad_states() -> dict[str, type[Aggregate]]:
    class Undeclared(Aggregate, category="bad", snapshot=every(1)):
        @applies
        def _(self, e: Scanned) -> None:
            self.total = e.cents

    class Unannotated(Aggregate, category="bad", snapshot=every(1)):
        lines = []  # type: ignore[var-annotated] # noqa: RUF012 -- the point

        @applies
        def _(self, e: Scanned) -> None: ...

    class Changing(Aggregate, category="bad", snapshot=every(1)):
        lines: Any = None

        @applies
        def _(self, e: Scanned) -> None:
            self.lines = Line(e.cents)

    class Wrong(Aggregate, category="bad", snapshot=every(1)):
        total: int = 0

        @applies
        def _(self, e: Scanned) -> None:
            self.total = str(e.cents)  # type: ignore[assignment] # the point

    class Unstorable(Aggregate, category="bad", snapshot=every(1)):
        total: float = 0

        @applies
        def _(self, e: Scanned) -> None:
            self.total = float("nan") * e.cents

    return {cls.__name__: cls for cls in (Undeclared, Unannotated, Changing, Wrong, Unstorable)}


@pytest.mark.parametrize("name", bad_states())
def test_state_that_would_not_come_back_the_same_is_refused(conn: Connection, name: str) -> None:
    stream = StreamId("bad", "1")
    store.append(conn, stream, [Scanned(1, 1)], expected_version=NEW_STREAM)

    with pytest.raises(AggregateError, match=name):
        store.save_snapshot(conn, store.load(conn, bad_states()[name], "1"))


def test_state_of_many_kinds_survives(conn: Connection) -> None:
    class Kinds(Aggregate, category="basket", snapshot=every(1)):
        seen: set[int] = set()  # noqa: RUF012 -- each object gets its own
        at: datetime | None = None
        unset: str

        @applies
        def _(self, e: Scanned) -> None:
            self.seen.add(e.product)
            self.at = datetime(2026, 1, 1, tzinfo=UTC)

    filled(conn, 4)
    store.save_snapshot(conn, store.load(conn, Kinds, "7"))
    loaded = store.load(conn, Kinds, "7")

    assert loaded.seen == {0, 1, 2}
    assert loaded.at == datetime(2026, 1, 1, tzinfo=UTC)
    assert not hasattr(loaded, "unset")


class Trail(Aggregate, category="trail", snapshot=every(1)):
    """Its state depends on the order of keys and on the version."""

    places: dict[str, int] = {}  # noqa: RUF012 -- each object gets its own

    @applies
    def _(self, e: Scanned) -> None:
        self.places[f"{e.product:b}"] = self.version


def test_snapshot_replay_and_memory_agree_on_order_and_version(conn: Connection) -> None:
    trail = Trail("1")
    for product in (9, 2, 5, 1):
        trail.emit(Scanned(product, 1))
    store.save(conn, trail)

    replayed_trail = store.load(conn, Trail, "1")
    assert store.save_snapshot(conn, replayed_trail)
    loaded = store.load(conn, Trail, "1")

    expected = [("1001", 0), ("10", 1), ("101", 2), ("1", 3)]
    assert list(trail.places.items()) == expected
    assert list(replayed_trail.places.items()) == expected
    assert list(loaded.places.items()) == expected


def test_state_under_a_name_that_every_aggregate_has_is_not_left_out_of_a_snapshot(
    conn: Connection,
) -> None:
    class Product(Aggregate, category="product", snapshot=every(1)):
        @applies
        def _(self, e: Scanned) -> None:
            vars(self)["category"] = str(e.product)

    product = Product("1")
    product.emit(Scanned(1, 1))
    store.save(conn, product)

    with pytest.raises(AggregateError, match="call it otherwise"):
        store.save_snapshot(conn, product)


def test_a_state_that_a_handler_left_half_changed_is_not_written(conn: Connection) -> None:
    class Halting(Aggregate, category="basket", snapshot=every(1)):
        total: int = 0

        @applies
        def _(self, e: Scanned) -> None:
            self.total += e.cents
            if e.product == 13:
                raise RuntimeError

    halting = Halting("7")
    halting.emit(Scanned(1, 5))
    store.save(conn, halting)
    with pytest.raises(RuntimeError):
        halting.emit(Scanned(13, 5))

    with pytest.raises(AggregateError, match="left half changed"):
        store.save_snapshot(conn, halting)

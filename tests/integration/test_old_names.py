"""Whoever asks for a class gets what was stored under its old names, too."""

from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.errors import ConditionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Aggregate,
    EventStore,
    EventTypes,
    NewEvent,
    RecordedEvent,
    StreamId,
    Tagged,
    applies,
    every,
)
from tests.fixtures.colours import Call

STREAM = StreamId("basket", "1")


@dataclass(frozen=True)
class Scanned:
    product: int


@dataclass(frozen=True)
class CouponUsed:
    code: str


def before() -> EventStore:
    types = EventTypes()
    types.event("scan", tags=lambda e: (f"product:{e.product}",))(Scanned)
    return EventStore(types=types)


def after() -> EventStore:
    types = EventTypes()
    types.event(
        "item.scanned",
        version=2,
        renamed_from="scan",
        tags=lambda e: (f"product:{e.product}", "scanned"),
    )(Scanned)
    types.event("coupon.used")(CouponUsed)
    types.dropped("viewed", reason="nobody asks")

    @types.upcast("item.scanned", 1, into={"item.scanned": 2, "coupon.used": 1})
    def _split(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [("item.scanned", old), ("coupon.used", {"code": f"c{old['product']}"})]

    return EventStore(types=types)


BEFORE, AFTER = before(), after()


class Basket(Aggregate, category="basket", snapshot=every(1)):
    products = 0
    coupons = 0

    @applies
    def _(self, _e: Scanned) -> None:
        self.products += 1

    @applies
    def _(self, _e: CouponUsed) -> None:
        self.coupons += 1


def append_old_and_new(conn: Connection) -> None:
    old = [Scanned(7), NewEvent("viewed", {"any": 1}), Scanned(8)]
    BEFORE.append(conn, STREAM, old, expected_version=NEW_STREAM)
    AFTER.append(conn, STREAM, [Scanned(7), CouponUsed("x")], expected_version=3)


def test_an_aggregate_folds_what_old_names_became_and_passes_over_what_was_dropped(
    call: Call,
) -> None:
    call(append_old_and_new)

    for _ in range(2):  # from the events, and from the snapshot
        basket = call(AFTER.load, Basket, "1")
        assert (basket.version, basket.products, basket.coupons) == (5, 3, 3)
        call(AFTER.save_snapshot, basket)


def test_a_query_for_a_class_finds_what_is_stored_under_its_old_names(call: Call) -> None:
    call(append_old_and_new)

    found = call(AFTER.read_tagged, Tagged(("product:7",), types=(Scanned,)))
    by_name = call(AFTER.read_tagged, Tagged(("product:7",), types=("item.scanned",)))

    assert [event.event_type for event in found] == ["scan", "item.scanned"]
    assert [event.event_type for event in by_name] == ["item.scanned"]


def test_a_condition_on_a_class_guards_against_its_old_names(engine: Engine) -> None:
    query = Tagged(("product:9",), types=(Scanned,))
    with engine.begin() as conn:
        append_old_and_new(conn)
    with engine.begin() as conn:
        condition = AFTER.read_tagged(conn, query).condition
    with engine.begin() as conn:  # the release before still runs
        BEFORE.append(conn, StreamId("basket", "2"), [Scanned(9)], expected_version=ANY)

    with engine.begin() as conn, pytest.raises(ConditionConflictError):
        AFTER.append(conn, STREAM, [CouponUsed("y")], expected_version=ANY, unless=condition)


def test_tags_are_stored_as_they_are_derived(conn: Connection) -> None:
    append_old_and_new(conn)

    tags = [event.tags for event in AFTER.read_stream(conn, STREAM)]

    assert tags == [("product:7",), (), ("product:8",), ("product:7", "scanned"), ()]


class Base(DeclarativeBase):
    pass


class Coupon(Base):
    __tablename__ = "coupon_seen"
    code: Mapped[str] = mapped_column(primary_key=True)
    times: Mapped[int] = mapped_column(default=0)


class Coupons(Projection, into=Coupon, version=1):
    @on(CouponUsed, key=lambda e, _meta: e.code)
    def _(self, row: Coupon, _e: CouponUsed, _meta: RecordedEvent) -> None:
        row.times += 1


def test_a_projection_reads_what_becomes_its_event_under_whatever_name(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        append_old_and_new(conn)

    Projections(AFTER).catch_up(engine, Coupons, timeout_seconds=30)

    with engine.connect() as conn:
        rows = conn.exec_driver_sql("SELECT code, times FROM coupon_seen ORDER BY code").all()
    assert [tuple(row) for row in rows] == [("c7", 1), ("c8", 1), ("x", 1)]

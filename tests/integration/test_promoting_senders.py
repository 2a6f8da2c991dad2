"""Versions of a projection that sends messages take each other's place: each is sent once."""

import pytest
from sqlalchemy import Engine

from datapatterns.cqrs import Projection, Projections, on, relay_messages
from datapatterns.errors import PromotionRefusedError, StandbyBehindError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import ItemScanned, ProductSales, append_all, create_tables

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)


class First(Projection, into=ProductSales, version=1, name="sending", messages=True):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, meta: RecordedEvent) -> None:
        row.quantity += 1
        self.emit("sold", meta.position)


class Second(First, into=ProductSales, version=2, name="sending", messages=True):
    pass


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """Version 2 is live, version 1 stands by, and the messages of all events have been sent."""
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)] * 2)
    PROJECTIONS.catch_up(engine, First)
    PROJECTIONS.rebuild(engine, Second)
    return engine


def sent(engine: Engine) -> list[object]:
    payloads: list[object] = []
    while not relay_messages(engine, lambda m: payloads.append(m.payload)).caught_up:
        pass
    return payloads


def test_each_message_is_sent_once_over_promotions_to_and_fro(shop: Engine) -> None:
    once = sent(shop)
    live: type[Projection] = Second
    for heir in (First, Second, First):
        append_all(shop, STORE, [ItemScanned("milk", 10)] * 2)
        PROJECTIONS.catch_up(shop, live)
        PROJECTIONS.promote(shop, heir)
        append_all(shop, STORE, [ItemScanned("tea", 10)])
        PROJECTIONS.catch_up(shop, heir)
        once += sent(shop)
        live = heir

    assert once == list(range(1, 12))


def test_the_live_version_is_named_if_it_is_the_one_behind(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 10)])

    with pytest.raises(StandbyBehindError, match=r"version 2 .* is at position 2.* lost") as behind:
        PROJECTIONS.rollback(shop, First, timeout_seconds=0.2)

    assert (behind.value.version, behind.value.position, behind.value.shown) == (2, 2, 3)


def test_a_sender_does_not_go_back_to_an_older_state(shop: Engine) -> None:
    once = sent(shop)
    append_all(shop, STORE, [ItemScanned("milk", 10)] * 2)
    PROJECTIONS.catch_up(shop, Second)
    once += sent(shop)

    with pytest.raises(PromotionRefusedError, match="without allow_older"):
        PROJECTIONS.rollback(shop, First, allow_older=True)
    with pytest.raises(PromotionRefusedError, match="without allow_older"):
        Projections(STORE, declared=[Second]).rollback(shop, "sending", allow_older=True)
    PROJECTIONS.rollback(shop, First)
    PROJECTIONS.catch_up(shop, First)

    assert [*once, *sent(shop)] == [1, 2, 3, 4]


def test_nothing_is_lost_when_the_standby_is_ahead_and_only_its_name_is_known(
    shop: Engine,
) -> None:
    once = sent(shop)
    append_all(shop, STORE, [ItemScanned("milk", 10)] * 2)
    PROJECTIONS.catch_up(shop, First)  # silently, for it is not live

    with pytest.raises(StandbyBehindError):
        PROJECTIONS.rollback(shop, "sending", timeout_seconds=0.2)
    PROJECTIONS.catch_up(shop, Second)
    assert PROJECTIONS.rollback(shop, "sending") == 1
    PROJECTIONS.catch_up(shop, First)

    assert [*once, *sent(shop)] == [1, 2, 3, 4]

from dataclasses import dataclass

from sqlalchemy import Engine

from datapatterns.event_sourcing import (
    NEW_STREAM,
    EventStore,
    EventTypes,
    NewEvent,
    StreamId,
)
from tests.fixtures.colours import Call

types = EventTypes()
store = EventStore(types=types)
CART = StreamId("cart", "7")


@types.event("item.added")
@dataclass(frozen=True, slots=True)
class ItemAdded:
    product: str
    quantity: int


def test_what_was_appended_is_read_back(call: Call) -> None:
    events = [ItemAdded("ëgg", 6), NewEvent("cart.sent", {"to": None}, metadata={"by": "ann"})]

    appended = call(store.append, CART, events, expected_version=NEW_STREAM)
    stream = call(store.read_stream, CART)
    page = call(store.read_log)

    assert appended.version == 2
    assert page.events == stream
    assert page.checkpoint == appended.position == stream[-1].position
    assert page.caught_up
    assert store.decode(stream[0]) == [ItemAdded("ëgg", 6)]
    assert (stream[1].data, stream[1].metadata) == ({"to": None}, {"by": "ann"})
    assert call(store.blockers) == []

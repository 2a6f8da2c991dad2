"""What is encoded together is what encoding each by itself gives, or is refused as it would be."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any
from uuid import RFC_4122, UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from datapatterns.errors import EventDataError, EventTypeError
from datapatterns.event_sourcing import EventTypes, ImportedEvent, NewEvent, Personal, StreamId
from datapatterns.event_sourcing.content.encoding import EncodedEvent, encode
from datapatterns.event_sourcing.content.payload import DEPTH_MAX, EVENT_BYTES_MAX
from datapatterns.event_sourcing.transfer.importing_encoding import encode_chunk
from datapatterns.event_sourcing.transfer.importing_parts import digest_of, parts_of_chunk

TYPES = EventTypes()
ID = UUID(int=0)


@TYPES.event("item.sold", version=2, tags=lambda sold: (f"item:{sold.item}",))
@dataclass(frozen=True)
class Sold:
    item: str
    price: float | None = 1.5


@TYPES.event("item.counted")
class Counted(msgspec.Struct, frozen=True):
    counts: list[Any]


@TYPES.event("item.timed")
@dataclass(frozen=True)
class Timed:
    at: datetime


@TYPES.event("item.listed")
class Listed(msgspec.Struct, frozen=True, array_like=True):
    items: int


@TYPES.event("item.sparse")
class Sparse(msgspec.Struct, frozen=True, omit_defaults=True):
    note: str | None = None
    weight: float | None = 2.0


@TYPES.event("item.weighed")
class Weighed(BaseModel):
    model_config = ConfigDict(frozen=True)
    grams: int | None = None


@TYPES.event("customer.named", version=3, renamed_from="client.named")
@dataclass(frozen=True)
class Named:
    customer: int
    name: Annotated[str, Personal(subject="customer")]


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(depth):
        data = {"a": data}
    return data


def new(data: dict[Any, Any], name: str = "x", **more: Any) -> NewEvent:  # noqa: ANN401 -- as NewEvent
    return NewEvent(name, data, event_id=ID, **more)


NASTY: list[object] = [
    new({"customer": 1, "name": "Ann"}, "client.named", schema_version=3),
    EncodedEvent("client.named", 3, ID, '{"customer":1,"name":"Ann"}', None),
    new({"a": "b\0c"}),
    new({"a": "\ud800"}),
    new({"a": float("nan")}),
    new({"a": [1, {"b": float("inf")}]}),
    new({"a": 2**63}),
    new({"a": 10**18}),
    new({"a": "1" * 30}),
    new({"a": {1: 2}}),
    new({"a": object()}),
    new({"a": (1, 2)}),
    new({"a": datetime(2026, 1, 1, tzinfo=UTC)}),
    new({"a": "x" * EVENT_BYTES_MAX}),
    new({"a": "[{" * DEPTH_MAX}),
    new(nested(DEPTH_MAX - 1)),
    new(nested(DEPTH_MAX)),
    new({"$sealed": [1]}),
    new({"a": '"$sealed":'}),
    new({"a": 1}, metadata={"m": float("nan")}),
    new({"a": 1}, metadata={"m": "\t\n"}, tags=("a:b",)),
    new({"customer": 1, "name": "Ada"}, "customer.named", schema_version=3),
    new({"customer": 1, "name": 7}, "customer.named", schema_version=3),
    new({"customer": 1}, "customer.named", schema_version=2),
    Timed(datetime(2026, 1, 1, tzinfo=UTC)),
    Timed(datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
    Sold("a"),
    Sold("null", None),
    Sold("a", float("nan")),
    Sold("a\0b"),
    Sold("a\n"),  # no tag
    Sold("x" * 600),
    Sold(7),  # type: ignore[arg-type] # the point
    Counted([None]),
    Counted([float("nan")]),
    Counted([nested(DEPTH_MAX)]),
    Counted([{"$sealed": 1}]),
    Counted([2**64]),
    Listed(1),
    Sparse(),
    Sparse("null"),
    Sparse(None, None),
    Sparse(None, float("nan")),
    Weighed(),
    Weighed(grams=3),
    Named(1, "Ada"),
    Named(1, None),  # type: ignore[arg-type] # the point
    EncodedEvent("x", 1, ID, "{}", None),
    EncodedEvent("customer.named", 3, ID, '{"customer":1,"name":"Ada"}', None),
    EncodedEvent("customer.named", 2, ID, "{}", None),
    EncodedEvent("customer.named", 3, ID, "e30=", None, codec=1),
    object(),
]
PLAIN = [
    new({"a": 1, "b": ["x", {"y": None}]}),
    Sold("b"),
    Counted([1, "[", {"a": []}]),
    EncodedEvent("y", 1, ID, "{}", None),
]


def one_by_one(events: list[object]) -> list[EncodedEvent]:
    return [
        event if isinstance(event, EncodedEvent) else encode(event, types=TYPES) for event in events
    ]


def outcome(
    encoder: Callable[[list[object]], list[EncodedEvent]], events: list[object]
) -> list[EncodedEvent] | tuple[type[Exception], str]:
    try:
        return [msgspec.structs.replace(event, event_id=ID) for event in encoder(events)]
    except (EventDataError, EventTypeError) as error:
        return type(error), str(error)


def together(events: list[object]) -> list[EncodedEvent]:
    return encode_chunk(events, TYPES)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_one_that_needs_a_closer_look_gets_it_among_plain_ones(nasty: object, place: int) -> None:
    same = next((p for p in PLAIN if type(p) is type(nasty)), nasty)
    for others in ([], [same, same], PLAIN):
        events = [*others[:place], nasty, *others[place:]]

        assert outcome(together, events) == outcome(one_by_one, events)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\0", "\ud800", "{", "\n", "\u2028", "null", "\\"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
EVENTS = st.builds(new, st.dictionaries(st.text(max_size=5), VALUES, max_size=4)) | st.builds(
    Counted, st.lists(VALUES, max_size=4)
)


@given(st.lists(EVENTS, max_size=6))
@example([new({"n": n}) for n in range(600)])
@example([Counted([{0: False}])])
def test_a_chunk_of_anything_is_encoded_like_each_of_it(events: list[object]) -> None:
    found, expected = outcome(together, events), outcome(one_by_one, events)

    if isinstance(expected, tuple):  # of several that are refused, any one may be named
        assert isinstance(found, tuple)
        assert found[0] is expected[0]
    else:
        assert found == expected


def test_ids_of_objects_are_new_and_different() -> None:
    ids = [event.event_id for event in together([Sold("a")] * 1_000)]

    assert len(set(ids)) == 1_000
    assert {(each.version, each.variant) for each in ids} == {(4, RFC_4122)}


def test_a_chunk_is_recognised_by_the_digest_that_it_had_before() -> None:
    at = datetime(2017, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    hard = new({"n": [1, None, 2.5]}, schema_version=3, metadata={"m": "\t"}, tags=("b:1", "b c"))
    chunk = [
        ImportedEvent(StreamId("sale", "a", "t"), new({"text": "é\\ \n"}, "item.said"), at),
        ImportedEvent(StreamId("sale", "b"), hard, at + timedelta(microseconds=7)),
        *[ImportedEvent(StreamId("sale", str(n)), new({"n": n}), at) for n in range(600)],
    ]
    encoded = encode_chunk([event.event for event in chunk], TYPES)

    digest = digest_of(chunk, encoded, parts_of_chunk(chunk), {})

    assert digest.hex() == "98d12dd41371a3a002d7544d274f03555716006a79027aed0715c42b694d7cab"

"""What the strategies draw can be stored, and is as awkward as it says."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Connection, LargeBinary, Text, Uuid, bindparam, select
from sqlalchemy.types import TypeEngine

from datapatterns.errors import EventTypeError
from datapatterns.event_sourcing import EventTypes, StreamId
from datapatterns.sharding.maps.shard_map import spread_evenly
from datapatterns.testing import strategies
from datapatterns.testing.models.stored_form import stored_form

types = EventTypes()
Cents = NewType("Cents", int)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Weight:
    grams: Decimal
    rough: float | None


class Line(msgspec.Struct, frozen=True):
    weights: dict[str, Weight]
    colour: Colour | Literal[1, 2] = Colour.RED


@types.event("item.scanned")
@dataclass(frozen=True)
class Scanned:
    product: int
    price: Cents
    notes: list[str]
    lines: tuple[Line, ...]
    pair: tuple[int, str]
    tags: frozenset[str]
    at: datetime
    on: date
    by: time
    took: timedelta
    token: UUID
    picture: bytes
    sure: bool
    rest: dict[str, Any]
    loose: Annotated[int, "of any size"]


@types.event("door.opened")
class Opened(msgspec.Struct, frozen=True):
    times: int

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError("a door that was never opened")


@given(strategies.events(types=types))
def test_events_can_be_stored_and_come_back_the_same(happened: object) -> None:
    stored_form(happened, types)


@given(strategies.events(Opened, types=types, times=st.integers(0, 2)))
def test_a_field_may_be_given_and_what_its_class_refuses_is_left_out(happened: Opened) -> None:
    assert happened.times in {1, 2}


def test_what_cannot_be_drawn_is_refused() -> None:
    class Odd(msgspec.Struct, frozen=True):
        what: complex

    class Bounded(msgspec.Struct, frozen=True):
        what: Annotated[int, msgspec.Meta(ge=1)]

    for cls in (Odd, Bounded):
        odd = EventTypes()
        odd.event("odd")(cls)
        with pytest.raises(TypeError, match=r"\.what is annotated with"):
            strategies.events(cls, types=odd)
        assert find(strategies.events(cls, types=odd, what=st.just(1)), bool).what == 1
    with pytest.raises(EventTypeError):
        strategies.events(int, types=types)
    with pytest.raises(ValueError, match="no event has a field cents"):
        strategies.events(Opened, types=types, cents=st.just(1))
    with pytest.raises(ValueError, match="no event is declared"):
        strategies.events(types=EventTypes())
    with pytest.raises(ValueError, match="no keys of float"):
        strategies.keys(str, float)
    with pytest.raises(ValueError, match="at least 4"):
        strategies.text_keys(bytes_max=3)


SQL_TYPES: dict[type, TypeEngine[Any]] = {
    str: Text(),
    int: BigInteger(),
    UUID: Uuid(),
    bytes: LargeBinary(),
}


@pytest.mark.postgres
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=strategies.keys())
def test_the_server_takes_every_key_and_gives_it_back(
    conn: Connection, key: str | int | UUID | bytes
) -> None:
    assert conn.scalar(select(bindparam("key", key, SQL_TYPES[type(key)]))) == key


@given(strategies.text_keys(bytes_max=20))
def test_text_keys_are_no_longer_than_they_may(key: str) -> None:
    assert len(key.encode()) <= 20


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (strategies.text_keys(), lambda key: len(key.encode()) == 500),
        (strategies.text_keys(), lambda key: key == ""),
        (strategies.text_keys(), lambda key: key == "e\u0301"),
        (strategies.integer_keys(), lambda key: key == -(2**63)),
        (strategies.integer_keys(bits=16), lambda key: key == 2**15 - 1),
        (strategies.uuid_keys(), lambda key: key.int == 2**128 - 1),
        (strategies.bytes_keys(), lambda key: key == b"a\0b"),
        (strategies.shard_sets(), lambda shards: len(shards) == 8),
        (strategies.stream_ids(), lambda stream: stream.tenant == "" and len(stream.key) > 200),
    ],
)
def test_what_is_awkward_is_drawn(
    strategy: st.SearchStrategy[Any], wanted: Callable[[Any], bool]
) -> None:
    find(
        strategy,
        wanted,
        settings=settings(max_examples=20_000, database=None, phases=[Phase.generate]),
    )


@given(strategies.stream_ids())
def test_streams_have_names_that_the_store_takes(stream: StreamId) -> None:
    assert StreamId(stream.category, stream.key, stream.tenant) == stream


@given(strategies.shard_sets(shards_min=2, shards_max=5))
def test_shards_can_share_buckets(shards: list[str]) -> None:
    assert 2 <= len(set(shards)) == len(shards) <= 5
    assert set(spread_evenly(8, shards)) == set(shards)


@given(
    st.lists(st.integers(), max_size=6).flatmap(
        lambda n: st.tuples(st.just(n), strategies.pages(n))
    )
)
def test_pages_are_the_list_in_its_order(drawn: tuple[list[int], list[list[int]]]) -> None:
    items, pages = drawn

    assert [item for page in pages for item in page] == items
    assert all(pages)


def test_the_simplest_cut_is_none() -> None:
    assert find(strategies.pages([1, 2, 3]), lambda _: True) == [[1, 2, 3]]
    assert find(strategies.pages([1, 2, 3]), lambda pages: len(pages) == 3) == [[1], [2], [3]]

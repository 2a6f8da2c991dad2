"""An event that was read is a value, and is decoded only where somebody looks."""

import copy
import gc
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import EventShapeError
from datapatterns.event_sourcing import Position, RecordedEvent, StreamId

ID = UUID(int=7)
AT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


def event(**changed: Any) -> RecordedEvent:  # noqa: ANN401 -- of any field
    fields: dict[str, Any] = {
        "position": Position(3),
        "stream": StreamId("s", "a"),
        "version": 2,
        "event_type": "thing.happened",
        "schema_version": 1,
        "data": {"n": 1},
        "metadata": None,
        "event_id": ID,
        "recorded_at": AT,
    }
    return RecordedEvent(**fields | changed)


def as_sent(moment: datetime) -> bytes:
    return ((moment - BEGINNING) // timedelta(microseconds=1)).to_bytes(8, signed=True)


def test_what_was_read_equals_what_was_made() -> None:
    read = event(
        data=b'{"n":1}', metadata=b'{"by":"ann"}', event_id=ID.bytes, recorded_at=as_sent(AT)
    )
    made = event(metadata={"by": "ann"})

    assert read == made
    assert hash(read) == hash(made)
    assert read != event(metadata={"by": "bob"})
    assert read != "something else"
    assert (read.stored, made.stored) == (b'{"n":1}', None)
    assert "'by': 'ann'" in repr(read)


@pytest.mark.parametrize("name", RecordedEvent.__match_args__)
def test_no_attribute_can_be_set(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(event(), name, None)


def test_it_can_be_copied_and_sent_to_another_process() -> None:
    read = event(data=b'{"n":1}', event_id=ID.bytes, recorded_at=as_sent(AT))

    assert pickle.loads(pickle.dumps(read)) == copy.deepcopy(read) == read  # noqa: S301 -- our own


def test_what_was_decoded_is_kept_with_the_event() -> None:
    read = event(
        data=b'{"n":1}', metadata=b'{"by":"ann"}', event_id=ID.bytes, recorded_at=as_sent(AT)
    )

    for name in ("data", "metadata", "event_id", "recorded_at"):
        assert getattr(read, name) is getattr(read, name)
    assert read.stored == b'{"n":1}'


def test_a_page_of_events_gives_the_garbage_collector_nothing_to_do() -> None:
    read = event(data=b'{"n":1}', metadata=b"{}", event_id=ID.bytes, recorded_at=as_sent(AT))

    assert not gc.is_tracked(read)
    assert not gc.is_tracked(copy.copy(read))


def test_it_can_be_matched_by_position() -> None:
    match event():
        case RecordedEvent(position, _, version):
            assert (position, version) == (3, 2)


def test_data_that_python_cannot_read_is_refused_where_it_is_asked_for() -> None:
    read = event(data=b'{"n":', metadata=b"[")

    assert read.event_id == ID
    with pytest.raises(EventShapeError):
        _ = read.data
    with pytest.raises(EventShapeError):
        _ = read.metadata


@given(st.datetimes(timezones=st.just(UTC)))
def test_any_time_is_read_to_the_microsecond(moment: datetime) -> None:
    assert event(recorded_at=as_sent(moment)).recorded_at == moment

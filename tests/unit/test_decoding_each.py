"""Many events are decoded as one is, whichever shape each was stored in."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes, Position, RecordedEvent, StreamId
from datapatterns.event_sourcing.log.decoding import decode_each

types = EventTypes()


@types.event("test.priced", version=2)
@dataclass(frozen=True, slots=True)
class Priced:
    cents: int


@types.upcast("test.priced", 1)
def in_cents(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"cents": 100 * data["euros"]}, {"cents": 0}]


types.dropped("test.noise", reason="nobody listens")


def recorded(name: str, version: int, data: Any) -> RecordedEvent:  # noqa: ANN401 -- as stored, too
    stream, at = StreamId("s", "1"), datetime(2026, 1, 1, tzinfo=UTC)
    return RecordedEvent(Position(1), stream, 1, name, version, data, None, UUID(int=1), at)


def test_each_comes_with_its_record() -> None:
    records = [
        recorded("test.priced", 2, b'{"cents": 5}'),
        recorded("test.priced", 1, b'{"euros": 2}'),
        recorded("test.noise", 1, b"{}"),
        recorded("test.priced", 2, {"cents": 7}),
    ]

    decoded = list(decode_each(types, records))

    assert decoded == [
        (Priced(5), records[0]),
        (Priced(200), records[1]),
        (Priced(0), records[1]),
        (Priced(7), records[3]),
    ]


@pytest.mark.parametrize("data", [b'{"cents": "x"}', b"{}", b"[" * 100_000, {"cents": "x"}])
def test_what_does_not_fit_is_told(data: bytes | dict[str, Any]) -> None:
    fine = recorded("test.priced", 2, b'{"cents": 5}')

    with pytest.raises(EventShapeError) as refused:
        list(decode_each(types, [fine, recorded("test.priced", 2, data)]))

    assert "test.priced" in str(refused.value)


def test_a_type_that_is_not_declared_is_told() -> None:
    with pytest.raises(EventTypeError):
        list(decode_each(types, [recorded("test.unknown", 1, b"{}")]))

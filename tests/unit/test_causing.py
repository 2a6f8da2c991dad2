from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from datapatterns.event_sourcing import Position, RecordedEvent, StreamId, caused_by

EVENT_ID, COMMAND_ID = UUID(int=1), UUID(int=2)


def recorded(metadata: dict[str, Any] | None) -> RecordedEvent:
    return RecordedEvent(
        Position(1),
        StreamId("basket", "1"),
        1,
        "item.scanned",
        1,
        {},
        metadata,
        EVENT_ID,
        datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("metadata", [None, {}, {"user": "ann"}])
def test_what_follows_from_an_event_without_a_cause_begins_with_it(
    metadata: dict[str, Any] | None,
) -> None:
    ids = {"correlation_id": str(EVENT_ID), "causation_id": str(EVENT_ID)}

    assert caused_by(recorded(metadata)) == ids


def test_the_correlation_is_handed_on_and_the_cause_is_the_latest() -> None:
    first = caused_by(COMMAND_ID)
    second = caused_by(recorded(first), {"user": "ann"})

    assert first == {"correlation_id": str(COMMAND_ID), "causation_id": str(COMMAND_ID)}
    assert second == {
        "user": "ann",
        "correlation_id": str(COMMAND_ID),
        "causation_id": str(EVENT_ID),
    }


def test_a_correlation_that_is_known_wins() -> None:
    for cause in (COMMAND_ID, recorded(caused_by("other"))):
        assert caused_by(cause, correlation_id="trace")["correlation_id"] == "trace"


def test_a_cause_is_named_once_and_by_something() -> None:
    with pytest.raises(ValueError, match="causation_id already"):
        caused_by(COMMAND_ID, {"causation_id": "x"})
    with pytest.raises(ValueError, match="empty"):
        caused_by("")

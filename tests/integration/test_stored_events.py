"""Events as they are stored, one at a time."""

from uuid import UUID

import pytest
from sqlalchemy import Engine

from datapatterns.event_sourcing import StreamId
from tests.fixtures.exports import append, stored

pytestmark = pytest.mark.postgres


def test_stored_events_are_found_by_position_and_by_id(engine: Engine) -> None:
    append(engine, "1", "a", "b")
    with engine.begin() as conn:
        [first, second] = stored.stream(conn, StreamId("door", "1"))
        assert first.position is not None
        assert stored.find(conn, first.position) == first
        assert stored.find(conn, second.event_id or 0) == second
        assert stored.find(conn, 2**62) is None
        assert stored.find(conn, UUID(int=1)) is None
        assert stored.stream(conn, StreamId("door", "1"), backwards=True) == [second, first]
        assert stored.stream(conn, StreamId("door", "1"), after_version=1) == [second]
        assert stored.stream(conn, StreamId("door", "2")) == []

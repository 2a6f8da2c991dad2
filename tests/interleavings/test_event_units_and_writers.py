"""Lost answers and rivals of units of work and of appends that stand alone (E3, E4)."""

from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    EventStore,
    EventWriter,
    Expected,
    NewEvent,
    StreamId,
)
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.basket import PREEMPTIONS
from tests.interleavings.clients import Client, Way, until_answered
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

store = EventStore()


class Rivals:
    """Two units over the same two streams, collected in opposite order."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._category = ""

    def tasks(self) -> Tasks:
        self._category = f"c{uuid4().hex}"
        return {"one": partial(self._work, "ab"), "two": partial(self._work, "ba")}

    def _work(self, keys: str) -> None:
        with Session(self._gated) as session:
            unit = store.unit(session)
            for key in keys:
                stream = StreamId(self._category, key)
                unit.append(stream, [NewEvent("a.b", {})], expected_version=NEW_STREAM)
            session.commit()

    def one_has_won_both(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            counts = [len(store.read_stream(conn, StreamId(self._category, key))) for key in "ab"]
        assert counts in ([1, 1], [0, 0]), f"the streams have {counts} events"
        assert outcome.faults or counts == [1, 1]


def test_of_two_units_over_the_same_streams_one_takes_place_whole(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    rivals = Rivals(gated, plain)

    explored = explorer.explore(
        rivals.tasks,
        invariant=rivals.one_has_won_both,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


def by_unit(engine: Engine, stream: StreamId, event_id: UUID) -> int:
    event = NewEvent("a.b", {}, event_id=event_id)

    def attempt() -> int:
        with Session(engine) as session:
            unit = store.unit(session)
            unit.append(stream, [event], expected_version=ANY, event_ids=[event_id])
            session.commit()
            return unit.appended[stream].version

    return until_answered(attempt)


def by_writer(expected: int | Expected, engine: Engine, stream: StreamId, event_id: UUID) -> int:
    event = NewEvent("a.b", {}, event_id=event_id)
    with EventWriter(store, engine, connections=1, patience_seconds=60) as writer:
        return writer.append(stream, [event], expected_version=expected).version


WAYS: list[Way] = [by_unit, partial(by_writer, NEW_STREAM), partial(by_writer, ANY)]


@pytest.mark.parametrize("way", WAYS, ids=["unit", "writer, version", "writer, any"])
def test_an_append_whose_answer_is_lost_takes_place_once(
    way: Way,
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    client = Client(gated, plain, way)

    explored = explorer.explore(
        client.tasks,
        invariant=client.it_happened_once,
        crash_at=lambda gate: gate.label != "connect",
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
        max_faults=2,
    )

    assert explored.exhausted
    assert explored.schedules > 3


def test_if_requests_were_not_remembered_a_writer_would_append_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain, WAYS[2])

    with (
        function_without(
            plain, "datapatterns.repeated_append", "r.event_id = ANY (p_ids)", instead="false"
        ),
        function_without(
            plain,
            "datapatterns.append_events",
            "IF noted < n THEN  -- the twin",
            instead="IF false THEN  --",
        ),
        pytest.raises(InterleavingError, match="one command, 2 events"),
    ):
        explorer.explore(
            client.tasks,
            invariant=client.it_happened_once,
            crash_at=lambda _: True,
            faults=[Fault.REPLY_LOST],
        )

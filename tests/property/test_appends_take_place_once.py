"""Appends by any expectation, by ids, to several streams, undone or sent again: as in a dict."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from datapatterns.errors import EventIdsReusedError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    EventStore,
    Expected,
    NewEvent,
    StreamEvents,
    StreamId,
)

pytestmark = pytest.mark.postgres

store = EventStore()
KEYS = "abc"


@dataclass(frozen=True)
class Sent:
    """An append, as it is sent each time.

    Attributes:
        offset: What is added to the true version to be expected, if a version is.
    """

    key: str
    count: int
    expected: Expected | None
    offset: int
    keyed: bool


sent = st.builds(
    Sent,
    key=st.sampled_from(KEYS),
    count=st.integers(1, 3),
    expected=st.sampled_from([None, None, ANY, EXISTS]),
    offset=st.sampled_from([0, 0, 0, 0, -1, 1]),
    keyed=st.booleans(),
)
steps = st.one_of(
    sent.map(lambda one: ("append", [one])),
    st.lists(sent, min_size=1, max_size=3, unique_by=lambda one: one.key).map(
        lambda several: ("streams", several)
    ),
    st.integers(0, 30).map(lambda back: ("again", back)),
)
undone = st.booleans()


@dataclass
class Model:
    """What the store should hold."""

    streams: dict[str, list[UUID]] = field(default_factory=dict)
    requests: dict[UUID, tuple[str, int]] = field(default_factory=dict)

    def copy(self) -> "Model":
        return Model({key: list(ids) for key, ids in self.streams.items()}, dict(self.requests))

    def append(self, wanted: Sequence[StreamEvents]) -> list[tuple[int, bool]] | type[Exception]:
        """Do all or nothing; return the versions, and what was a repetition."""
        after, answers = self.copy(), []
        for one in sorted(wanted, key=lambda one: one.stream):
            answer = after._append(one)  # noqa: SLF001 -- a copy of itself
            if isinstance(answer, type):
                return answer
            answers.append(answer)
        self.streams, self.requests = after.streams, after.requests
        return answers

    def _append(self, one: StreamEvents) -> tuple[int, bool] | type[Exception]:
        key, expected = one.stream.key, one.expected_version
        ids = [event.event_id for event in one.events if isinstance(event, NewEvent)]
        ids = list(one.event_ids or ids)
        there = self.streams.get(key, [])
        if isinstance(expected, Expected):
            if one.event_ids and ids[0] in self.requests:
                of, version = self.requests[ids[0]]
                end = version - 1 + len(ids)
                same = of == key and there[version - 1 : end] == ids
                return (end, True) if same else EventIdsReusedError
            if expected is EXISTS and not there:
                return VersionConflictError
            if one.event_ids:
                self.requests[ids[0]] = (key, len(there) + 1)
        elif expected != len(there):
            end = expected + len(ids)
            return (end, True) if there[expected:end] == ids else VersionConflictError
        self.streams[key] = there + ids
        return len(there) + len(ids), False


@given(st.lists(st.tuples(steps, undone), max_size=25))
def test_appends_do_what_a_dict_of_lists_would(
    module_engine: Engine, story: list[tuple[tuple[str, object], bool]]
) -> None:
    model, history, category = Model(), list[list[StreamEvents]](), f"c{uuid4().hex}"
    for (kind, what), is_undone in story:
        if kind == "again":
            if not history:
                continue
            assert isinstance(what, int)
            wanted = history[-1 - what % len(history)]
        else:
            assert isinstance(what, list)
            wanted = [made(one, model, category) for one in what]
            history.append(wanted)
        before = model.copy()
        with module_engine.begin() as conn:
            savepoint = conn.begin_nested()
            assert answer(conn, wanted) == model.append(wanted)
            if is_undone:
                savepoint.rollback()
                model = before
    with module_engine.begin() as conn:
        for key in KEYS:
            stream = store.read_stream(conn, StreamId(category, key))
            assert [event.event_id for event in stream] == model.streams.get(key, [])
            assert [event.version for event in stream] == list(range(1, len(stream) + 1))
            positions = [event.position for event in stream]
            assert positions == sorted(positions)


def made(one: Sent, model: Model, category: str) -> StreamEvents:
    expected: int | Expected = max(0, len(model.streams.get(one.key, [])) + one.offset)
    if one.expected is not None:
        expected = one.expected
    events = [NewEvent("a.b", {"n": n}) for n in range(one.count)]
    ids = [event.event_id for event in events] if one.keyed else None
    return StreamEvents(StreamId(category, one.key), events, expected, event_ids=ids)


def answer(
    conn: Connection, wanted: Sequence[StreamEvents]
) -> list[tuple[int, bool]] | type[Exception]:
    """Append; return the versions and what was a repetition, or the class of the refusal."""
    try:
        if len(wanted) > 1:
            done = store.append_to_streams(conn, wanted)
            return [(done[s].version, done[s].repeated) for s in sorted(done)]
        [one] = wanted
        appended = store.append(
            conn,
            one.stream,
            one.events,
            expected_version=one.expected_version,
            event_ids=one.event_ids,
        )
    except (VersionConflictError, EventIdsReusedError) as error:
        return type(error)
    return [(appended.version, appended.repeated)]

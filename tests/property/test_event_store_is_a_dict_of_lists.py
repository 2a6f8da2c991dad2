"""The store against the simplest thing that could be right, savepoints and rollbacks included."""

from copy import deepcopy
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine
from sqlalchemy.engine import NestedTransaction

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    EventStore,
    Expected,
    ImportedEvent,
    NewEvent,
    StreamId,
)

store = EventStore()

Stored = tuple[UUID, str, int, Any]

streams = st.builds(StreamId, st.sampled_from(["cart", "order"]), st.sampled_from(["1", "2", "ß"]))
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | words
data = st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=3)
new_events = st.lists(
    st.builds(NewEvent, st.sampled_from(["a.b", "c"]), data, schema_version=st.integers(1, 2)),
    min_size=1,
    max_size=4,
)


def stored(event: NewEvent) -> Stored:
    return event.event_id, event.event_type, event.schema_version, dict(event.data)


class Store(RuleBasedStateMachine):
    """One connection's work: every answer as the model's, and after a commit the log as well."""

    engine: Engine
    chunk = 0

    @initialize()
    def begin(self) -> None:
        self.conn = self.engine.connect()
        self.latest: Any = None  # stream, version before, events
        self.first = store.high_water_mark(self.conn)
        self.tenant = f"run {Store.chunk}"
        Store.chunk += 1
        self.committed: dict[StreamId, list[Stored]] = {}
        self.model: dict[StreamId, list[Stored]] = {}
        self.savepoints: list[tuple[NestedTransaction, dict[StreamId, list[Stored]]]] = []

    def _own(self, stream: StreamId) -> StreamId:
        return StreamId(stream.category, stream.key, self.tenant)

    @rule(stream=streams, events=new_events, off=st.sampled_from([0, 0, 0, -1, 1, ANY, EXISTS]))
    def append(self, stream: StreamId, events: list[NewEvent], off: int | Expected) -> None:
        stream = self._own(stream)
        events_before = self.model.get(stream, [])
        version = len(events_before)
        expected = off if isinstance(off, Expected) else version + off
        assume(isinstance(expected, Expected) or expected >= 0)
        fits = expected is ANY or expected == version or (expected is EXISTS and version > 0)
        if not fits:
            with pytest.raises(VersionConflictError) as conflict:
                store.append(self.conn, stream, events, expected_version=expected)
            assert conflict.value.found == version
            return
        appended = store.append(self.conn, stream, events, expected_version=expected)
        assert appended.version == version + len(events)
        self.model[stream] = events_before + [stored(event) for event in events]
        self.latest = (stream, version, events)

    @precondition(lambda self: self.latest is not None)
    @rule()
    def retry_the_latest_append(self) -> None:
        stream, version, events = self.latest
        wanted = [stored(event) for event in events]
        present = self.model.get(stream, [])
        is_there = present[version : version + len(events)] == wanted
        try:
            appended = store.append(self.conn, stream, events, expected_version=version)
        except VersionConflictError:
            assert not is_there
            assert len(present) != version
            return
        assert appended.repeated == is_there
        assert appended.version == version + len(events)
        if not is_there:
            self.model[stream] = present + wanted

    @rule(stream=streams, events=new_events)
    def import_chunk(self, stream: StreamId, events: list[NewEvent]) -> None:
        stream = self._own(stream)
        Store.chunk += 1
        chunk = [ImportedEvent(stream, event) for event in events]
        assert store.import_events(self.conn, chunk, source="t", chunk=Store.chunk) == len(events)
        self.model[stream] = self.model.get(stream, []) + [stored(event) for event in events]

    @precondition(lambda self: len(self.savepoints) < 3)
    @rule()
    def open_savepoint(self) -> None:
        self.savepoints.append((self.conn.begin_nested(), deepcopy(self.model)))

    @precondition(lambda self: self.savepoints)
    @rule()
    def roll_back_to_savepoint(self) -> None:
        savepoint, self.model = self.savepoints.pop()
        savepoint.rollback()

    @precondition(lambda self: self.savepoints)
    @rule()
    def release_savepoint(self) -> None:
        savepoint, _ = self.savepoints.pop()
        savepoint.commit()

    @rule()
    def commit(self) -> None:
        self.conn.commit()
        self.savepoints.clear()
        self.committed = deepcopy(self.model)

    @rule()
    def roll_back(self) -> None:
        self.conn.rollback()
        self.savepoints.clear()
        self.model = deepcopy(self.committed)

    @invariant()
    def streams_are_as_the_model(self) -> None:
        for stream, events in self.model.items():
            recorded = store.read_stream(self.conn, stream)
            assert [event.version for event in recorded] == list(range(1, len(events) + 1))
            assert [
                (e.event_id, e.event_type, e.schema_version, e.data) for e in recorded
            ] == events

    @invariant()
    def another_reader_sees_exactly_what_was_committed(self) -> None:
        # Not less, although a transaction is open: its fence lies above all that was committed.
        seen: dict[StreamId, list[Stored]] = {}
        checkpoint, caught_up = self.first, False
        with self.engine.connect() as other:
            while not caught_up:
                page = store.read_log(other, checkpoint, limit=3)
                checkpoint, caught_up = page.checkpoint, page.caught_up
                for e in page.events:
                    entry = (e.event_id, e.event_type, e.schema_version, e.data)
                    seen.setdefault(e.stream, []).append(entry)
        assert seen == self.committed

    def teardown(self) -> None:
        if hasattr(self, "conn"):
            self.conn.close()


def test_the_store_behaves_like_a_dict_of_lists(module_engine: Engine) -> None:
    class Machine(Store):
        engine = module_engine

    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=25))

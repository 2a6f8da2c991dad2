"""E9: fold(all events) = fold(snapshot at v, events after v), for any v, version, time and damage.

For an aggregate, and for deciders whose states are dataclasses, msgspec Structs, attrs classes and
pydantic models, unchanging or not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from datapatterns.event_sourcing import (
    CodecChain,
    Codecs,
    Decider,
    EventStore,
    MessagePack,
    StreamId,
    Zstandard,
    every,
)
from datapatterns.event_sourcing.states import snapshotting
from tests.fixtures.tills import (
    DECIDERS,
    AsDataclass,
    Closed,
    Event,
    Named,
    Scanned,
    Till,
    Weighed,
    decide,
    evolve,
    told,
    types,
)

PACKED = Codecs(CodecChain(MessagePack(), Zstandard()))
SUBJECTS: dict[str, Any] = {"Till": Till, **DECIDERS}

events = st.one_of(
    st.builds(Scanned, st.integers(0, 3), st.integers(-(2**53), 2**53)),
    st.builds(Named, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    st.builds(Weighed, st.integers(0, 3), st.floats(-1e300, 1e300)),  # no sum is infinite
    st.builds(Closed, by=st.none() | st.just("ann")),
)
DAMAGES = (
    None,
    *(
        f"UPDATE datapatterns.snapshot SET payload = NULL, codec = 0, state = '{state}'"  # noqa: S608
        for state in ("{}", "[]", '{"state": {"total": "x"}}', "null", '{"state": null}')
    ),
    *(
        f"UPDATE datapatterns.snapshot SET state = NULL, payload = 'x', codec = {codec}"  # noqa: S608
        for codec in (1, 2, 3, 4, 99)
    ),
    *(
        f"UPDATE datapatterns.snapshot SET {change}"  # noqa: S608 -- all of them constants
        for change in (
            "version = version + 1000",
            "position = position + 1",
            "fingerprint = decode(repeat('ab', 32), 'hex')",
            "aggregate = 'Foreign'",
        )
    ),
)
"""What may have become of snapshots; of a state that reads as a possible one nobody can tell."""


@dataclass(frozen=True)
class Case:
    """A history in appends, at which versions snapshots were written, and what was done to them."""

    subject: str
    appends: list[list[Event]]
    snapshots: list[int]
    damage: str | None
    packed: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    appends = draw(st.lists(st.lists(events, min_size=1, max_size=4), max_size=5))
    count = sum(map(len, appends))
    snapshots = draw(st.lists(st.integers(1, count), max_size=3)) if count else []
    return Case(
        draw(st.sampled_from(sorted(SUBJECTS))),
        appends,
        snapshots,
        draw(st.sampled_from(DAMAGES)),
        draw(st.booleans()),
    )


def folded(subject: Any, history: Sequence[Event]) -> dict[str, object]:  # noqa: ANN401 -- any
    """Return what the events alone make, without the store."""
    sourced = subject("7")
    for event in history:
        sourced.emit(event)
    return told(sourced)


def check(engine: Engine, case: Case) -> None:
    store = EventStore(types=types, codecs=PACKED if case.packed else Codecs())
    subject, stream = SUBJECTS[case.subject], new_stream()
    history: list[Event] = []
    moments: list[tuple[datetime, int]] = []
    for appended in case.appends:
        with engine.begin() as conn:
            store.append(conn, stream, appended, expected_version=len(history))
            [last] = store.read_stream(conn, stream, limit=1, backwards=True)
        history += appended
        moments.append((last.recorded_at, len(history)))
    with engine.connect() as conn:
        for version in case.snapshots:
            loaded = store.load(conn, subject, stream.key, version=version)
            store.save_snapshot(conn, loaded, keep=9)
        if case.damage is not None:
            conn.execute(text(case.damage))
        compare(Loads(conn, store, subject, stream.key), history, moments)
        conn.rollback()


def new_stream() -> StreamId:
    """Events stay: each case has a stream of its own."""
    return StreamId("till", uuid4().hex)


@dataclass(frozen=True)
class Loads:
    """Loads one stream."""

    conn: Connection
    store: EventStore
    subject: Any
    key: str

    def load(self, **moment: Any) -> Any:  # noqa: ANN401 -- as in the store
        return self.store.load(self.conn, self.subject, self.key, **moment)

    def load_many(self, at: datetime) -> Any:  # noqa: ANN401 -- as above
        return self.store.load_many(self.conn, self.subject, [self.key, "none"], at=at)


def compare(by: Loads, history: list[Event], moments: list[tuple[datetime, int]]) -> None:
    assert told(by.load()) == folded(by.subject, history)
    versions = range(len(history) + 1)
    for version in versions:
        assert told(by.load(version=version)) == folded(by.subject, history[:version])
    each = by.store.load_many(by.conn, by.subject, [by.key] * len(versions), versions=versions)
    assert list(map(told, each)) == [folded(by.subject, history[:version]) for version in versions]
    for at, version in moments:
        then, before = by.load(at=at), by.load(at=at - timedelta(microseconds=1))
        reached = max(v for t, v in moments if t <= at)
        assert told(then) == folded(by.subject, history[:reached])
        assert before.version == max([v for t, v in moments if t < at], default=0)
        [one, other] = by.load_many(at)
        assert (told(one), other.version) == (told(then), 0)
        assert version <= then.version


@given(case=cases())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_load_by_snapshots_is_what_all_events_make(module_engine: Engine, case: Case) -> None:
    check(module_engine, case)


# -- controls: without the guards it does not hold -------------------------------------------------

TWO_APPENDS: list[list[Event]] = [[Scanned(1, 5), Named("a")], [Scanned(2, 7), Closed()]]


def test_if_fingerprints_were_not_compared_changed_code_would_use_old_states(
    module_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(state: Any, e: Event) -> Any:  # noqa: ANN401 -- as the next release folds
        evolved = evolve(state, e)
        return replace(evolved, total=evolved.total + 1)

    now = Decider("till", AsDataclass(), decide, evolve, snapshot=every(1))
    later = Decider("till", AsDataclass(), decide, other, snapshot=every(1), events=now.events)
    store = EventStore(types=types)

    def agrees() -> bool:
        stream, history = new_stream(), [*TWO_APPENDS[0], *TWO_APPENDS[1]]
        with module_engine.connect() as conn:
            store.append(conn, stream, history, expected_version=0)
            assert store.save_snapshot(conn, store.load(conn, now, stream.key))
            loaded = told(store.load(conn, later, stream.key))
            conn.rollback()
        return loaded == folded(later, history)

    assert agrees()
    with ignoring(monkeypatch, "fingerprint", lambda *_, **__: bytes(32)):
        assert not agrees()


@contextmanager
def ignoring(monkeypatch: pytest.MonkeyPatch, name: str, instead: Any) -> Iterator[None]:  # noqa: ANN401
    with monkeypatch.context() as patched:
        patched.setattr(snapshotting, name, instead)
        snapshotting._snapshot_kind.cache_clear()  # noqa: SLF001 -- it holds what was found before
        yield
    snapshotting._snapshot_kind.cache_clear()  # noqa: SLF001 -- as above


def test_a_damaged_state_that_could_be_one_is_believed(module_engine: Engine) -> None:
    """The limit of what can be found out, and the proof that the property looks at snapshots."""
    case = Case(
        "AsStruct",
        TWO_APPENDS,
        [2],
        'UPDATE datapatterns.snapshot SET state = \'{"state": {"total": 99}}\'',
        packed=False,
    )

    with pytest.raises(AssertionError, match=r"99|106"):
        check(module_engine, case)

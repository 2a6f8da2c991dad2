"""Aggregates and deciders are loaded by the same statement, whatever their states are made of."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import AggregateError, EventGapError, VersionConflictError
from datapatterns.event_sourcing import (
    Aggregate,
    Decider,
    EventStore,
    NewEvent,
    Snapshots,
    StreamId,
    every,
    larger_than,
    on,
    slower_than,
)
from datapatterns.event_sourcing.states import loading
from datapatterns.testing import ManualClock
from tests.fixtures.colours import Call
from tests.fixtures.tills import (
    DECIDERS,
    AsDataclass,
    Closed,
    Named,
    Scanned,
    Till,
    Weighed,
    decide,
    evolve,
    told,
    types,
)

store = EventStore(types=types)
SUBJECTS: dict[str, Any] = {"Till": Till, **DECIDERS}
HISTORY = [Scanned(1, 5), Named("ann"), Weighed(2, 0.1), Weighed(2, 0.2), Closed(), Scanned(2, 7)]


def filled(conn: Connection, events: list[Any], key: str = "7") -> None:
    store.append(
        conn,
        StreamId("till", key),
        events,
        expected_version=store.load(conn, Till, key).version,
    )


def replayed(subject: Any, events: list[Any], key: str = "7") -> dict[str, object]:  # noqa: ANN401
    sourced = subject(key)
    for event in events:
        sourced.emit(event)
    return told(sourced)


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_kind_is_saved_loaded_and_snapshot(call: Call, name: str) -> None:
    subject = SUBJECTS[name]
    sourced = call(store.load, subject, "7")
    if isinstance(subject, Decider):
        assert sourced.decide(HISTORY) == tuple(HISTORY)
    else:
        for event in HISTORY:
            sourced.emit(event)
    token = call(store.save, sourced)

    loaded = call(store.load, subject, "7")
    assert call(store.save_snapshot, loaded)
    again = call(store.load, subject, "7")

    assert told(again) == told(loaded) == told(sourced) == replayed(subject, HISTORY)
    assert again._history.snapshot_version == 6  # noqa: SLF001 -- what the load began with
    assert call(store.save, again) == token
    assert type(getattr(again, "state", again)) is type(getattr(sourced, "state", sourced))


@pytest.mark.parametrize("name", DECIDERS)
def test_streams_of_one_decider_share_no_state(conn: Connection, name: str) -> None:
    filled(conn, HISTORY)
    decider = DECIDERS[name]

    store.load(conn, decider, "7")

    assert told(store.load(conn, decider, "none")) == told(decider("none"))


def test_a_decider_refuses_by_raising_and_then_nothing_has_happened(conn: Connection) -> None:
    def picky(command: int, _state: AsDataclass) -> Any:  # noqa: ANN401 -- a generator
        yield Scanned(1, command)
        if command > 5:
            raise ValueError("too much")

    decider = Decider("till", AsDataclass(), picky, evolve)
    till = store.load(conn, decider, "7")

    with pytest.raises(ValueError, match="too much"):
        till.decide(6)
    assert (till.version, till.unsaved, till.state) == (0, (), AsDataclass())
    till.decide(5)
    assert (till.version, till.unsaved) == (1, (Scanned(1, 5),))


def test_of_two_deciders_that_loaded_the_same_the_second_must_decide_again(
    conn: Connection,
) -> None:
    one, two = (store.load(conn, DECIDERS["AsStruct"], "7") for _ in range(2))
    one.decide([Named("a")])
    two.decide([Named("b")])
    store.save(conn, one)

    with pytest.raises(VersionConflictError):
        store.save(conn, two)


def test_many_streams_are_loaded_in_the_order_of_their_keys(call: Call) -> None:
    keys = [str(n) for n in range(150)]
    for key in keys[::2]:
        call(filled, HISTORY[: int(key) % 5 + 1], key)
    for key in keys[::4]:
        call(store.save_snapshot, call(store.load, Till, key))

    loaded = call(store.load_many, Till, keys)

    assert [till.stream.key for till in loaded] == keys
    for key, till in zip(keys, loaded, strict=True):
        events = HISTORY[: int(key) % 5 + 1] if int(key) % 2 == 0 else []
        assert told(till) == replayed(Till, events, key)
    assert call(store.load_many, Till, []) == []


def test_many_streams_as_they_were(engine: Engine) -> None:
    for half in (HISTORY[:3], HISTORY[3:]):
        with engine.begin() as conn:
            for key in ("a", "b"):
                filled(conn, half, key)
    with engine.begin() as conn:
        [first, *_] = store.read_stream(conn, StreamId("till", "b"), limit=1)

        then = store.load_many(conn, Till, ["a", "b", "c"], at=first.recorded_at)
        before = first.recorded_at - timedelta(days=1)

        assert [till.version for till in then] == [3, 3, 0]
        assert [till.version for till in store.load_many(conn, Till, ["a"], at=before)] == [0]


@pytest.mark.parametrize("snapshots", [(), (1, 4)])
def test_many_streams_each_at_a_version_of_its_own(call: Call, snapshots: tuple[int, ...]) -> None:
    keys = [str(n) for n in range(120)]  # more than one statement loads
    for key in {*keys} - {"0"}:
        call(filled, HISTORY, key)
        for kept in snapshots:
            call(store.save_snapshot, call(store.load, Till, key, version=kept))
    wanted = [*keys, *keys]  # each twice
    versions: list[int | None] = [None if n % 5 == 0 else n % 5 for n in range(1, 241)]
    versions[0] = versions[120] = 0

    loaded = call(store.load_many, Till, wanted, versions=versions)

    for key, version, till in zip(wanted, versions, loaded, strict=True):
        assert told(till) == replayed(Till, HISTORY[:version], key)


def test_versions_of_many_streams_go_with_a_time(engine: Engine) -> None:
    for half in (HISTORY[:3], HISTORY[3:]):
        with engine.begin() as conn:
            filled(conn, half, "a")
            filled(conn, half, "b")
    with engine.begin() as conn:
        [first, *_] = store.read_stream(conn, StreamId("till", "b"), limit=1)

        then = store.load_many(
            conn, Till, ["a", "b"], versions=[2, len(HISTORY)], at=first.recorded_at
        )

        assert [till.version for till in then] == [2, 3]


def test_each_key_has_a_version_that_its_stream_has_reached(call: Call) -> None:
    call(filled, HISTORY, "a")

    with pytest.raises(ValueError, match="1 versions for 2 keys; give one for each"):
        call(store.load_many, Till, ["a", "b"], versions=[1])
    with pytest.raises(ValueError, match="till-b is at version 0, not yet at 1"):
        call(store.load_many, Till, ["a", "b"], versions=[None, 1])
    with pytest.raises(ValueError, match="-1 is no version"):
        call(store.load_many, Till, ["a", "b"], versions=[1, -1])


@pytest.mark.parametrize("page", [1, 2, 3, 6, 7])
def test_long_streams_are_read_in_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(loading, "PAGE_EVENTS", page)
    with engine.begin() as conn:
        filled(conn, HISTORY)
    with engine.begin() as conn:
        [first, *_] = store.read_stream(conn, StreamId("till", "7"), limit=1)

        assert told(store.load(conn, Till, "7")) == replayed(Till, HISTORY)
        assert told(store.load(conn, Till, "7", version=4)) == replayed(Till, HISTORY[:4])
        assert store.load(conn, Till, "7", at=first.recorded_at).version == 6
        assert store.load(conn, Till, "7", at=first.recorded_at, version=5).version == 5


@pytest.mark.parametrize("page", [3, 6, 9, 17, 18])
def test_many_long_streams_are_read_in_pages_up_to_their_versions(
    call: Call, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(loading, "PAGE_EVENTS", page)
    call(filled, HISTORY)
    call(filled, HISTORY, "8")

    loaded = call(store.load_many, Till, ["8", "7", "7"], versions=[2, 5, None])

    assert list(map(told, loaded)) == [
        replayed(Till, HISTORY[:2], "8"),
        replayed(Till, HISTORY[:5]),
        replayed(Till, HISTORY),
    ]


@pytest.mark.parametrize("missing", [1, 3, 6])
def test_a_missing_event_is_found_wherever_it_is(conn: Connection, missing: int) -> None:
    filled(conn, HISTORY)
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
    conn.execute(text("DELETE FROM datapatterns.event WHERE version = :v"), {"v": missing})

    with pytest.raises(EventGapError) as gap:
        store.load(conn, Till, "7")

    assert gap.value.version == missing


def archive(conn: Connection, *, before: int) -> None:
    """Move events of one stream out of the way, as compaction and archiving do."""
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
    conn.execute(
        text(
            "WITH moved AS (DELETE FROM datapatterns.event WHERE version < :before RETURNING"
            " position, stream_id, version, at, event_id, type_id, data, meta, payload, codec,"
            " tags) INSERT INTO datapatterns.event_archive SELECT * FROM moved"
        ),
        {"before": before},
    )
    conn.execute(
        text("UPDATE datapatterns.stream SET first_version = least(:before, version)"),
        {"before": before},
    )


def test_a_compacted_stream_begins_at_its_first_version(conn: Connection) -> None:
    filled(conn, [*HISTORY[:5], Scanned(9, 9)])
    archive(conn, before=6)

    till = store.load(conn, Till, "7")
    assert (till.version, till.total, till.names) == (6, 9, [])
    till.emit(Scanned(1, 1))
    store.save(conn, till)
    assert (store.load(conn, Till, "7").version, store.load(conn, Till, "7").total) == (7, 10)
    assert store.save_snapshot(conn, store.load(conn, Till, "7"))
    assert store.load(conn, Till, "7").total == 10


def test_what_was_before_compaction_is_read_from_the_start(engine: Engine) -> None:
    with engine.begin() as conn:
        filled(conn, HISTORY, "8")  # has an event wherever the summary will stand, and earlier
        filled(conn, HISTORY[:2], "7")
    with engine.begin() as conn:
        [first, *_] = store.read_stream(conn, StreamId("till", "7"), limit=1)
        assert store.save_snapshot(conn, store.load(conn, Till, "7"))
        filled(conn, [*HISTORY[2:5], Scanned(9, 9)])
        archive(conn, before=6)

        # The snapshot from before serves the past, and nobody else.
        assert told(store.load(conn, Till, "7", version=5)) == replayed(Till, HISTORY[:5])
        assert told(store.load(conn, Till, "7", at=first.recorded_at)) == replayed(
            Till, HISTORY[:2]
        )
        [summary] = store.read_stream(conn, StreamId("till", "7"), limit=1, backwards=True)
        assert store.load(conn, Till, "7", at=summary.recorded_at).total == 9
        assert store.load(conn, Till, "7", version=6).total == 9
        assert store.load(conn, Till, "7").total == 9


def test_an_archived_stream_is_still_loaded(conn: Connection) -> None:
    filled(conn, HISTORY)
    store.save_snapshot(conn, store.load(conn, Till, "7", version=4))
    archive(conn, before=7)
    conn.execute(text("UPDATE datapatterns.stream SET first_version = 1, archived_at = now()"))

    till = store.load(conn, Till, "7")

    assert told(till) == replayed(Till, HISTORY)
    assert till._history.snapshot_version == 4  # noqa: SLF001 -- what the load began with


def test_types_that_no_handler_names_are_looked_up(conn: Connection) -> None:
    ours = types.skipping_unknown()
    shop = EventStore(types=ours)
    filled(conn, HISTORY)
    shop.append(
        conn,
        StreamId("till", "7"),
        [NewEvent("till.moved", {}), NewEvent("till.lit", {}), Named("bo")],
        expected_version=6,
    )

    till = shop.load(conn, Till, "7")

    assert (till.version, till.names) == (9, ["ann", "bo"])


def test_policies_see_what_was_loaded_and_saved(conn: Connection) -> None:
    def due(policy: Any, clock: ManualClock | None = None) -> bool:  # noqa: ANN401
        shop = EventStore(types=types, clock=clock) if clock else store
        decider = Decider("till", AsDataclass(), decide, evolve, snapshot=policy)
        return shop.snapshot_if_due(conn, shop.load(conn, decider, "7"))

    filled(conn, HISTORY[:4])
    assert not due(on(Closed) | larger_than(1_000) | every(5))
    assert not due(slower_than(1.0))
    filled(conn, HISTORY[4:])
    assert due(on(Closed, Named))
    assert not due(on(Closed))  # it lies in the snapshot

    decider = Decider("till", AsDataclass(), decide, evolve, snapshot=on(Weighed))
    till = store.load(conn, decider, "7")
    till.decide([Named("x")])
    store.save(conn, till)
    assert not store.snapshot_if_due(conn, till)
    till.decide([Weighed(1, 1.0)])
    store.save(conn, till)
    assert store.snapshot_if_due(conn, till)
    assert not store.snapshot_if_due(conn, till)
    filled(conn, [Named("y" * 500), Named("z" * 500)])
    assert due(larger_than(1_000))
    assert not due(larger_than(1_000))


def test_keys_are_listed_in_pages_as_they_are_and_were(engine: Engine) -> None:
    for key in ("a", "b", "c"):
        with engine.begin() as conn:
            filled(conn, HISTORY[:1], key)
            store.append(conn, StreamId("other", key), [Named("x")], expected_version=0)
            store.append(conn, StreamId("till", key, "acme"), [Named("x")], expected_version=0)
    with engine.begin() as conn:
        [begun] = store.read_stream(conn, StreamId("till", "b"))

        assert (
            store.list_keys(conn, Till)
            == store.list_keys(conn, DECIDERS["AsModel"])
            == ["a", "b", "c"]
        )
        assert store.list_keys(conn, Till, limit=2) == ["a", "b"]
        assert store.list_keys(conn, Till, after="b", limit=2) == ["c"]
        assert store.list_keys(conn, Till, at=begun.recorded_at) == ["a", "b"]
        with pytest.raises(ValueError, match="at least 1"):
            store.list_keys(conn, Till, limit=0)
        with pytest.raises(ValueError, match="no time zone"):
            store.list_keys(conn, Till, at=begun.recorded_at.replace(tzinfo=None))
        with pytest.raises(AggregateError, match="has no category"):
            store.list_keys(conn, Aggregate)
        assert store.list_keys(conn, Till, limit=10**30) == ["a", "b", "c"]


def test_snapshots_of_other_code_are_deleted_and_no_others(call: Call) -> None:
    old = Decider("till", AsDataclass(), decide, evolve, snapshot=every(1), snapshot_version=1)
    new = Decider("till", AsDataclass(), decide, evolve, snapshot=every(1), snapshot_version=2)
    subjects: list[Any] = [old, new, Till]
    for key in ("a", "b"):
        call(filled, HISTORY, key)
        for subject in subjects:
            assert call(store.save_snapshot, call(store.load, subject, key))

    snapshots = Snapshots(store, known=(new, Till))
    assert [call(snapshots.drop_outdated, limit=1) for _ in range(3)] == [1, 1, 0]
    for subject, kept in zip(subjects, (0, 6, 6), strict=True):
        loaded: Any = call(store.load, subject, "b")
        assert loaded._history.snapshot_version == kept  # noqa: SLF001 -- what the load began with

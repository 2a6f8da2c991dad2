"""A stream becomes another one: what it holds, what is refused, and who may write meanwhile."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine

from datapatterns.errors import (
    EventDataError,
    EventGapError,
    IsolationLevelError,
    StreamArchivedError,
    StreamCopyError,
)
from datapatterns.event_sourcing import (
    ANY,
    COPIED_FROM,
    NEW_STREAM,
    Archive,
    CopyProgress,
    NewEvent,
    RecordedEvent,
    StreamCopy,
    StreamId,
    unchanged,
)
from tests.fixtures.colours import Call
from tests.fixtures.copied_baskets import (
    COPY,
    NEW,
    OLD,
    STORE,
    Put,
    append,
    one_each,
    products,
    scanned,
)


def test_a_copy_holds_what_the_transformation_makes_of_each_event(call: Call) -> None:
    call(append, 1, 0, 2)

    first = call(COPY.copy_page, limit=2)
    second = call(COPY.copy_page, first, limit=2)
    last = call(COPY.finish, second)

    assert first == CopyProgress(2, 1, read=2, appended=1)
    assert second == CopyProgress(3, 3, read=1, appended=2, caught_up=True)
    assert last == CopyProgress(3, 3, caught_up=True, finished=True)
    originals, copies = call(STORE.read_stream, OLD), call(STORE.read_stream, NEW)
    assert [STORE.decode(copy) for copy in copies] == [[Put("p0")], [Put("p2")], [Put("p2")]]
    assert len({copy.event_id for copy in copies}) == 3
    assert copies[2].metadata == {
        "user": "ann",
        COPIED_FROM: {
            "tenant": "",
            "category": "basket",
            "key": "1",
            "version": 3,
            "event_id": str(originals[2].event_id),
            "recorded_at": originals[2].recorded_at.isoformat(),
        },
    }
    assert [original.data["quantity"] for original in originals] == [1, 0, 2]


def test_the_times_are_those_of_the_copying_and_do_not_go_back(call: Call) -> None:
    call(append, 1, 1)
    call(COPY.finish)

    original, *_ = call(STORE.read_stream, OLD)
    copies = call(STORE.read_stream, NEW)

    assert original.recorded_at < copies[0].recorded_at <= copies[1].recorded_at


def test_tags_and_metadata_of_the_copy_are_those_that_it_declares(conn: Connection) -> None:
    append(conn, 1)
    COPY.finish(conn)
    [tags] = conn.exec_driver_sql(
        "SELECT array_agg(tag) FROM datapatterns.event_tag WHERE tenant = 'shop'"
    ).one()
    assert tags == ["product:p0"]

    other = StreamId("cart", "2")
    own = StreamCopy(STORE, OLD, other, lambda _: NewEvent("x", {}, metadata={"user": "bob"}))
    own.finish(conn)
    [copy] = STORE.read_stream(conn, other)
    assert copy.metadata is not None
    assert (copy.metadata["user"], set(copy.metadata)) == ("bob", {"user", COPIED_FROM})


def test_an_event_may_be_copied_as_it_is(conn: Connection) -> None:
    event = NewEvent("any", {"a": [1, 1.5, None, "ß"]}, 7, UUID(int=1), tags=("a:1", "b:2"))
    STORE.append(conn, OLD, [event], expected_version=NEW_STREAM)

    StreamCopy(STORE, OLD, NEW, unchanged).finish(conn)

    [copy] = STORE.read_stream(conn, NEW)
    assert (copy.event_type, copy.schema_version, copy.data) == ("any", 7, event.data)
    assert copy.event_id != event.event_id
    assert copy.tags == event.tags


def test_a_copy_of_a_copy_names_the_one_that_it_was_made_from(conn: Connection) -> None:
    """Else no later page would know how far it has come."""
    append(conn, 1, 1)
    COPY.finish(conn)
    third = StreamId("van", "1")
    again = StreamCopy(
        STORE, NEW, third, lambda e: NewEvent(e.event_type, e.data, metadata=dict(e.metadata or {}))
    )

    assert again.copy_page(conn, limit=1).appended == 1
    assert again.copy_page(conn).appended == 1
    metadata = [event.metadata or {} for event in STORE.read_stream(conn, third)]
    assert [one[COPIED_FROM]["category"] for one in metadata] == ["cart", "cart"]


def test_one_stream_may_be_copied_into_several_whose_names_share_parts(conn: Connection) -> None:
    """The ids of copies follow from the target's whole name: else one would be no new event."""
    for stranger in (StreamId("basket", "1", "other"), StreamId("other", "1")):
        STORE.append(conn, stranger, scanned(1, 1, 1), expected_version=NEW_STREAM)
    append(conn, 1, 2)

    targets = [
        NEW,
        StreamId("cart", "1"),
        StreamId("cart", "2", "shop"),
        StreamId("van", "1", "shop"),
    ]
    for target in targets:
        page = StreamCopy(STORE, OLD, target, one_each).finish(conn, end_source=False)
        assert (page.source_version, page.appended, page.finished) == (2, 3, True)

    assert [products(conn, target) for target in targets] == [["p0", "p1", "p1"]] * 4
    ids = {copy.event_id for target in targets for copy in STORE.read_stream(conn, target)}
    assert len(ids) == 12


def test_a_copy_of_another_shape_is_no_copy_of_this_one(conn: Connection) -> None:
    """The same data under another name, or in another version of it, is another event."""
    append(conn, 1)
    named = StreamCopy(STORE, OLD, NEW, lambda _: NewEvent("one", {"a": 1}))
    named.copy_page(conn)

    changed = [
        StreamCopy(STORE, OLD, NEW, lambda _: NewEvent("two", {"a": 1})),
        StreamCopy(STORE, OLD, NEW, lambda _: NewEvent("one", {"a": 1}, 2)),
    ]
    for copy in changed:
        with pytest.raises(StreamCopyError, match="transformation has changed"):
            copy.copy_page(conn)
    assert named.copy_page(conn).appended == 0


def test_running_it_again_appends_nothing_twice(conn: Connection) -> None:
    append(conn, 2, 1, 0)
    assert COPY.finish(conn).appended == 3

    for _ in range(2):
        assert COPY.copy_page(conn).appended == 0
        assert COPY.finish(conn) == CopyProgress(3, 3, read=1, caught_up=True, finished=True)

    append(conn, 1)
    assert COPY.copy_page(conn).appended == 1
    assert len(products(conn)) == 4


def test_a_long_run_of_events_that_leave_nothing_is_passed_page_by_page(conn: Connection) -> None:
    append(conn, 1, *[0] * 7, 1)
    pages = [COPY.copy_page(conn, limit=2)]
    while not pages[-1].caught_up:
        pages.append(COPY.copy_page(conn, pages[-1], limit=2))

    assert [page.source_version for page in pages] == [2, 4, 6, 8, 9]
    assert products(conn) == ["p0", "p8"]


def test_a_page_ends_before_it_becomes_too_many_events_for_one_append(conn: Connection) -> None:
    append(conn, 6_000, 4_000, 4_000, 1)

    first = COPY.copy_page(conn)
    second = COPY.copy_page(conn, first)

    assert (first.read, first.appended, first.caught_up) == (2, 10_000, False)
    assert (second.read, second.appended, second.caught_up) == (2, 4_001, True)
    assert products(conn) == ["p0"] * 6_000 + ["p1"] * 4_000 + ["p2"] * 4_000 + ["p3"]


def test_one_event_that_becomes_too_many_is_refused_and_not_waited_at_for_ever(
    conn: Connection,
) -> None:
    append(conn, 10_001)

    with pytest.raises(ValueError, match="10000"):
        COPY.copy_page(conn)


def test_a_source_that_lacks_an_event_is_not_copied_without_it(conn: Connection) -> None:
    append(conn, 1, 1, 1)
    conn.exec_driver_sql("ALTER TABLE datapatterns.event DISABLE TRIGGER moves_only")
    conn.exec_driver_sql("DELETE FROM datapatterns.event WHERE version = 2")

    for run in (COPY.copy_page, COPY.finish):
        with pytest.raises(EventGapError) as gap:
            run(conn)
        assert gap.value.version == 2
    assert products(conn) == []


def test_progress_of_a_transaction_that_was_rolled_back_is_not_believed(conn: Connection) -> None:
    append(conn, 1, 1, 1)
    with conn.begin_nested() as savepoint:
        lost = COPY.copy_page(conn, limit=2)
        savepoint.rollback()

    COPY.copy_page(conn, lost)

    assert products(conn) == ["p0", "p1", "p2"]


def test_a_stream_in_the_archive_and_one_behind_a_summary_are_copied_as_they_load(
    conn: Connection,
) -> None:
    archive = Archive(STORE)
    append(conn, 1, 1)
    [summary] = scanned(3)
    archive.compact(conn, OLD, summary, expected_version=2)
    append(conn, 1)
    archive.move(conn, OLD)
    assert COPY.copy_page(conn).source_version == 4
    assert products(conn) == ["p0"] * 4

    archive.stop(conn, OLD)
    archive.move(conn, OLD)
    again = StreamCopy(STORE, OLD, StreamId("cart", "2"), one_each)
    assert again.finish(conn, end_source=True).appended == 4


def other_events(conn: Connection) -> StreamCopy:
    STORE.append(conn, NEW, [Put("own")], expected_version=ANY)
    return COPY


def forged(conn: Connection) -> StreamCopy:
    """Its origin is named as no copy names it."""
    origin = {"tenant": "", "category": "basket", "key": "1", "version": "2"}
    event = NewEvent("cart.put", {"product": "p1"}, metadata={COPIED_FROM: origin})
    STORE.append(conn, NEW, [event], expected_version=ANY)
    return COPY


def changed(conn: Connection, transform: Callable[[RecordedEvent], object]) -> StreamCopy:
    COPY.copy_page(conn)
    return StreamCopy(STORE, OLD, NEW, transform)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (other_events, "holds cart.put, which is no copy"),
        (forged, "holds cart.put, which is no copy"),
        (lambda conn: (COPY.finish(conn), other_events(conn))[1], "no copy"),
        (lambda conn: changed(conn, lambda _: Put("x")), "transformation has changed"),
        (lambda conn: changed(conn, lambda e: [one_each(e)] * 2), "transformation has changed"),
        (lambda conn: changed(conn, lambda _: None), "transformation has changed"),
        (
            lambda conn: (
                StreamCopy(STORE, StreamId("basket", "2"), NEW, unchanged).copy_page(conn),
                COPY,
            )[1],
            "no copy",
        ),
    ],
)
def test_a_target_with_other_content_is_refused(
    conn: Connection, prepare: Callable[[Connection], StreamCopy], reason: str
) -> None:
    append(conn, 1, 1)
    STORE.append(conn, StreamId("basket", "2"), scanned(1), expected_version=ANY)
    copy = prepare(conn)
    before = products(conn)

    for run in (copy.copy_page, copy.finish):
        with pytest.raises(StreamCopyError, match=reason):
            run(conn)

    assert products(conn) == before


def test_what_cannot_be_copied_is_refused(engine: Engine, conn: Connection) -> None:
    with pytest.raises(ValueError, match="into itself"):
        StreamCopy(STORE, OLD, OLD, unchanged)
    for run in (COPY.copy_page, COPY.finish):
        with pytest.raises(StreamCopyError, match="no events"):
            run(conn)
    append(conn, 1)
    with pytest.raises(ValueError, match="at least 1"):
        COPY.copy_page(conn, limit=0)
    with pytest.raises(EventDataError):
        StreamCopy(STORE, OLD, NEW, lambda _: NewEvent("x", {"a": object()})).copy_page(conn)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as each_for_itself, pytest.raises(IsolationLevelError):
        COPY.finish(each_for_itself)


def test_a_source_that_is_not_copied_whole_is_not_ended(conn: Connection) -> None:
    append(conn, 1, 1, 1)

    page = COPY.finish(conn, end_source=True, limit=2)

    assert (page.finished, page.source_version) == (False, 2)
    append(conn, 1)
    assert COPY.finish(conn, page, end_source=True, limit=2).finished
    with pytest.raises(StreamArchivedError):
        append(conn, 1)
    assert COPY.finish(conn, end_source=True).finished, "once more does no harm"

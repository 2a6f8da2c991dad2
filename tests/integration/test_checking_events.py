"""What is stored, and whether this code can read it: told before a deployment."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import AggregateError, DataPatternsError
from datapatterns.event_sourcing import (
    ANY,
    Aggregate,
    Archive,
    Decider,
    EventStore,
    EventTypes,
    NewEvent,
    StreamId,
    Verdict,
    applies,
    check_events,
)
from datapatterns.event_sourcing.evolution.checking import StoredType, judge_types
from tests.fixtures.colours import Call


@dataclass(frozen=True)
class Scanned:
    product: int


@dataclass(frozen=True)
class Left:
    pass


class Basket(Aggregate, category="basket"):
    @applies
    def _(self, _e: Scanned) -> None:
        pass


def today() -> EventTypes:
    types = EventTypes()
    types.event("item.scanned", version=3, renamed_from="scan")(Scanned)
    types.upcast("item.scanned", 2)(lambda old: {"product": int(old["code"])})
    types.event("left")(Left)
    types.dropped("viewed", reason="nobody asks")
    return types


STORE = EventStore(types=today())


def append(conn: Connection, *events: tuple[str, int, dict[str, Any]], key: str = "1") -> None:
    new = [NewEvent(name, data, version) for name, version, data in events]
    STORE.append(conn, StreamId("basket", key), new, expected_version=ANY)


GOOD = ("item.scanned", 3, {"product": 7})


def test_everything_that_can_be_read_passes(conn: Connection) -> None:
    append(conn, GOOD, ("scan", 2, {"code": "7"}), ("viewed", 9, {"a": 1}), ("left", 1, {}))

    report = check_events(conn, STORE)

    assert report.ok, report.problems
    assert [(one.event_type, one.verdict, one.becomes) for one in report.types] == [
        ("item.scanned", Verdict.READABLE, ("item.scanned",)),
        ("left", Verdict.READABLE, ("left",)),
        ("scan", Verdict.READABLE, ("item.scanned",)),
        ("viewed", Verdict.DROPPED, ()),
    ]
    assert report.summary == "4 types stored: 3 readable, 1 dropped"
    assert str(report.types[2]) == "scan version 2: readable as item.scanned"
    assert str(report.types[3]) == "viewed version 9: dropped: nobody asks"


def test_every_type_without_a_way_to_a_class_is_a_problem(conn: Connection) -> None:
    append(conn, GOOD, ("scan", 1, {}), ("gone", 2, {}), ("item.scanned", 4, {}))

    report = check_events(conn, STORE)

    assert not report.ok
    assert [one.split(":")[0] for one in report.problems] == [
        "gone version 2",
        "item.scanned version 4",
        "scan version 1",
    ]
    verdicts = [one.verdict for one in report.types if not one.ok]
    assert verdicts == [Verdict.UNKNOWN, Verdict.TOO_NEW, Verdict.NO_UPCASTER]
    assert "it is read as item.scanned version 1: no upcaster" in report.problems[2]


def test_a_type_whose_append_was_rolled_back_was_never_stored(engine: Engine) -> None:
    with engine.connect() as conn, conn.begin() as transaction:
        append(conn, ("gone", 1, {}))
        transaction.rollback()
    with engine.begin() as conn:
        assert check_events(conn, STORE).types == ()


def test_nothing_is_stored_in_an_empty_database(conn: Connection) -> None:
    report = check_events(conn, STORE, sample=3, count_events=True, aggregates=[Basket])

    assert report.ok
    assert report.summary == "0 types stored"


def test_events_are_counted_with_the_archived_ones(conn: Connection) -> None:
    append(conn, GOOD, GOOD, ("left", 1, {}))
    conn.execute(
        text(
            "INSERT INTO datapatterns.event_archive SELECT position + 1000, stream_id,"
            " version + 1000, at, event_id, type_id, data, meta, payload, codec, tags"
            " FROM datapatterns.event"
        )
    )
    # Two transactions may each have listed a new type.
    conn.execute(
        text("INSERT INTO datapatterns.event_type (name, schema_version) VALUES ('left', 1)")
    )

    report = check_events(conn, STORE, count_events=True)

    assert [(one.event_type, one.events) for one in report.types] == [
        ("item.scanned", 4),
        ("left", 2),
    ]
    assert str(report.types[1]) == "left version 1 (2 events): readable as left"


def test_some_events_of_each_type_are_tried(call: Call) -> None:
    bad = ("scan", 2, {"code": "secret"})
    call(append, *[GOOD] * 5, ("scan", 2, {"code": "1"}), bad)
    call(append, ("item.scanned", 3, {"product": "x"}), *[GOOD] * 5, key="2")

    report = call(check_events, STORE, sample=2)

    # The one in the middle of its type is not among the newest and the oldest.
    [misread] = report.misread
    assert (misread.event.event_type, misread.event.version) == ("scan", 7)
    assert misread.reason == "its upcaster raised ValueError"
    assert "secret" not in str(misread)
    assert (report.tried, report.untried) == (6, ())
    assert report.summary.endswith("6 events tried, 1 cannot be read")
    assert not report.ok

    misfits = call(check_events, STORE, sample=6).misread
    assert [one.event.stream.key for one in misfits] == ["1", "2"]
    assert "product" in misfits[1].reason


def test_events_in_the_archive_are_tried_too(conn: Connection) -> None:
    append(conn, ("scan", 2, {"code": "x"}), GOOD)
    archive = Archive(STORE)
    archive.stop(conn, StreamId("basket", "1"))
    assert archive.move(conn, StreamId("basket", "1")) == 2

    report = check_events(conn, STORE, sample=1)

    assert (report.tried, report.untried) == (2, ())
    assert [one.event.version for one in report.misread] == [1]


def test_what_lies_beyond_the_reach_is_named(conn: Connection) -> None:
    append(conn, *[GOOD] * 5, ("left", 1, {}), *[GOOD] * 5)

    report = check_events(conn, STORE, sample=1, reach=3)

    assert [one.event_type for one in report.untried] == ["left"]
    assert report.ok
    assert check_events(conn, STORE, sample=1, reach=6).untried == ()


def test_a_type_without_a_handler_where_it_occurs_is_a_problem(conn: Connection) -> None:
    append(conn, GOOD, ("viewed", 1, {}))
    STORE.append(conn, StreamId("till", "1"), [Left()], expected_version=ANY)
    assert check_events(conn, STORE, aggregates=[Basket]).ok
    append(conn, ("left", 1, {}))

    report = check_events(
        conn, STORE, aggregates=[Basket], handled={"till": [Scanned], "basket": [Left, Scanned]}
    )

    assert [(gap.handler, gap.lacks) for gap in report.gaps] == [
        ("Basket", ("left",)),
        ("what handles till", ("left",)),
    ]
    assert "has no handler for left" in report.problems[0]
    assert report.summary.endswith("2 without a handler")


@pytest.mark.parametrize(
    ("before", "behind", "lacks"), [(0, 6, ["left"]), (6, 0, ["left"]), (6, 6, [])]
)
def test_types_in_streams_are_looked_for_at_both_ends_of_the_log(
    conn: Connection, before: int, behind: int, lacks: list[str]
) -> None:
    append(conn, *[GOOD] * before, ("left", 1, {}), *[GOOD] * behind)

    report = check_events(conn, STORE, aggregates=[Basket], reach=3)

    assert [gap.event_type for gap in report.gaps] == lacks


def evolve(state: int, _event: Scanned) -> int:
    return state


def evolve_anything(state: int, _event: object) -> int:
    return state


def test_a_decider_must_handle_what_occurs_too(conn: Connection) -> None:
    append(conn, GOOD)
    decider: Decider[object, int, Scanned] = Decider(
        "basket", 0, lambda _command, _state: [], evolve
    )
    assert check_events(conn, STORE, aggregates=[decider]).ok
    append(conn, ("left", 1, {}))

    assert [gap.lacks for gap in check_events(conn, STORE, aggregates=[decider]).gaps] == [
        ("left",)
    ]


def test_what_cannot_be_asked_is_refused(conn: Connection) -> None:
    class Homeless(Aggregate):
        @applies
        def _(self, _e: Scanned) -> None:
            pass

    for sample, reach in ((-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="sample"):
            check_events(conn, STORE, sample=sample, reach=reach)
    with pytest.raises(AggregateError, match="category"):
        check_events(conn, STORE, aggregates=[Homeless])
    nameless: Decider[object, int, object] = Decider(
        "basket", 0, lambda _command, _state: [], evolve_anything
    )
    with pytest.raises(AggregateError, match="names no event"):
        check_events(conn, STORE, aggregates=[nameless])


steps = st.lists(
    st.tuples(
        st.sampled_from(["class", "plain", "rename", "drop"]),
        st.sampled_from("ab"),
        st.integers(1, 3),
    ),
    max_size=8,
)
shapes = st.tuples(st.sampled_from("abc"), st.integers(1, 4))


def declare(types: EventTypes, kind: str, name: str, version: int) -> None:
    classes = {"a": Scanned, "b": Left}
    if kind == "class":
        types.event(name, version=version)(classes[name])
    elif kind == "plain":
        types.upcast(name, version)(dict)
    elif kind == "rename":
        types.renamed(name, "b" if name == "a" else "a", from_version=version)
    else:
        types.dropped(name, reason="x")


@given(steps, st.sets(shapes, min_size=1))
def test_the_verdict_is_what_an_attempt_to_read_shows(
    declared: list[tuple[str, str, int]], stored: set[tuple[str, int]]
) -> None:
    types = EventTypes()
    for one in declared:
        with suppress(DataPatternsError):  # it is refused, and changes nothing
            declare(types, *one)

    def can_be_read(name: str, version: int) -> bool:
        try:
            types.decode(name, version, {"product": 1})
        except DataPatternsError:
            return False
        return True

    for finding in judge_types([StoredType(*one) for one in stored], types):
        assert finding.ok == can_be_read(finding.event_type, finding.schema_version), finding

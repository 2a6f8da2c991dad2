"""Whatever breaks off, however pages are cut, and whoever appends: the copy is the transformed."""

from typing import Final
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from datapatterns.event_sourcing import (
    ANY,
    CopyProgress,
    EventStore,
    NewEvent,
    RecordedEvent,
    StreamCopy,
    StreamId,
)
from datapatterns.failpoints import armed

STORE: Final = EventStore()


class DiedError(Exception):
    """The process is gone before its COMMIT."""


def transform(recorded: RecordedEvent) -> list[NewEvent]:
    n = recorded.data["n"]
    return [NewEvent("copied", {"n": n, "part": part}) for part in range(recorded.data["times"])]


counts = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3]), min_size=1, max_size=6)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), counts),
        st.tuples(st.sampled_from(["page", "die", "forget"]), st.integers(1, 4)),
    ),
    min_size=5,
    max_size=15,
)


def run(engine: Engine, steps: list[tuple[str, list[int] | int]]) -> None:
    source, target = (StreamId(category, uuid4().hex) for category in ("source", "target"))
    copy = StreamCopy(STORE, source, target, transform)
    expected: list[dict[str, int]] = []
    number = 0

    def append(conn: Connection, times: list[int]) -> None:
        nonlocal number
        for count in times:
            event = NewEvent("original", {"n": number, "times": count})
            STORE.append(conn, source, [event], expected_version=ANY)
            expected.extend({"n": number, "part": part} for part in range(count))
            number += 1

    with engine.begin() as conn:
        append(conn, [1])
    progress: CopyProgress | None = None
    for action, how in steps:
        if isinstance(how, list):
            with engine.begin() as conn:
                append(conn, how)
        elif action == "die":

            def die() -> None:
                raise DiedError

            with armed("copy.page-appended", die), pytest.raises(DiedError), engine.begin() as conn:
                copy.copy_page(conn, progress, limit=how)
            progress = None  # nobody is left to remember it
        else:
            with engine.begin() as conn:
                progress = copy.copy_page(conn, progress if action == "page" else None, limit=how)
    while progress is None or not progress.finished:
        with engine.begin() as conn:
            progress = copy.finish(conn, progress, limit=3)
    with engine.connect() as conn:
        assert [event.data for event in STORE.read_stream(conn, target)] == expected


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=actions)
def test_a_copy_is_its_source_transformed(
    engine: Engine, steps: list[tuple[str, list[int] | int]]
) -> None:
    run(engine, steps)


def test_without_looking_at_the_target_it_would_not_be(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(
        _self: StreamCopy, conn: Connection, after: CopyProgress | None, _first: int
    ) -> CopyProgress:
        version = len(STORE.read_stream(conn, _self.target))
        return CopyProgress(after.source_version if after else 0, version)

    monkeypatch.setattr(StreamCopy, "_begin", forgetful)

    with pytest.raises(AssertionError):
        run(engine, [("append", [1, 2]), ("page", 2), ("die", 1), ("page", 2)])

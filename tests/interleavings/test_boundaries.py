"""Decisions over several streams (E5): each knew all that matched and came before it."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from datapatterns.errors import ConditionConflictError
from datapatterns.event_sourcing import ANY, EventStore, NewEvent, Position, StreamId, Tagged
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.basket import PREEMPTIONS
from tests.interleavings.clients import Client, until_answered
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

store = EventStore()


class Course:
    """It has one place. Some enrol if they know of nobody, some enrol whoever is there."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._course = ""
        self._known: dict[str, set[Position]] = {}

    def _begin(self) -> None:
        self._course, self._known = f"course:{uuid4().hex}", {}

    def two_careful(self) -> Tasks:
        self._begin()
        return {name: partial(self._enrol_if_free, name) for name in ("ann", "bob")}

    def two_exclusive(self) -> Tasks:
        self._begin()
        return {name: partial(self._enrol_exclusively, name) for name in ("ann", "bob")}

    def one_of_each(self) -> Tasks:
        self._begin()
        return {
            "ann": partial(self._enrol_if_free, "ann"),
            "bob": partial(self._enrol_exclusively, "bob"),
            "eve": self._enrol_anyway,
        }

    def careful_and_careless(self) -> Tasks:
        self._begin()
        return {"ann": partial(self._enrol_if_free, "ann"), "eve": self._enrol_anyway}

    def _enrol_if_free(self, name: str) -> None:
        with self._gated.begin() as conn:
            page = store.read_tagged(conn, self._query(name))
        self._known[name] = {event.position for event in page}
        if not page.events:
            with self._gated.begin() as conn:
                store.append(
                    conn,
                    self._stream(name),
                    self._event(name),
                    expected_version=ANY,
                    unless=page.condition,
                )

    def _enrol_exclusively(self, name: str) -> None:
        with self._gated.begin() as conn:
            page = store.read_tagged(conn, self._query(name), exclusively=True)
            self._known[name] = {event.position for event in page}
            if not page.events:
                store.append(conn, self._stream(name), self._event(name), expected_version=ANY)

    def _enrol_anyway(self) -> None:
        with self._gated.begin() as conn:
            store.append(conn, self._stream("eve"), self._event("eve"), expected_version=ANY)

    def _query(self, name: str) -> Tagged:
        # Two queries that overlap, and are locked by tags of their own.
        return Tagged((self._course, "x" if name == "ann" else "y"))

    def _event(self, name: str) -> list[NewEvent]:
        return [NewEvent("enrolled", {"name": name}, tags=(self._course, "x", "y"))]

    def _stream(self, name: str) -> StreamId:
        return StreamId("enrolment", f"{name}-{self._course}")

    def everybody_knew_what_came_before(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            events = store.read_tagged(conn, Tagged((self._course,))).events
        for number, event in enumerate(events):
            name = str(event.data["name"])
            before = {earlier.position for earlier in events[:number]}
            if name in self._known:
                assert before <= self._known[name], f"{name} decided without knowing {before}"


@pytest.mark.parametrize(
    "who",
    [Course.two_careful, Course.two_exclusive, Course.one_of_each],
    ids=["two careful", "two exclusive", "one of each"],
)
def test_decisions_about_one_thing_know_each_other(
    who: Callable[[Course], Tasks], explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    course = Course(gated, plain)

    explored = explorer.explore(
        partial(who, course),
        invariant=course.everybody_knew_what_came_before,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit if who is Course.two_careful else None,
        allowed_errors=(ConditionConflictError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


NOBODY_WAITS = ("PERFORM pg_advisory_xact_lock(class, lock.key);", "")
NO_MARK = ("- coalesce(held, 0)", "")
NOT_LOOKED = ("t.position > p_after\n         WHERE", "false\n         WHERE")


@pytest.mark.parametrize(
    ("function", "guard", "who"),
    [
        ("lock_tags", NOBODY_WAITS, Course.two_careful),
        ("lock_tags", NOBODY_WAITS, Course.two_exclusive),
        ("high_water_mark", NO_MARK, Course.careful_and_careless),
        ("matches_after", NOT_LOOKED, Course.two_careful),
    ],
    ids=["no lock", "no lock, exclusively", "newest position instead of the mark", "not looked"],
)
def test_without_a_guard_one_place_is_given_away_twice(
    function: str,
    guard: tuple[str, str],
    who: Callable[[Course], Tasks],
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    course = Course(gated, plain)

    with (
        function_without(plain, f"datapatterns.{function}", guard[0], instead=guard[1]),
        pytest.raises(InterleavingError, match="decided without knowing"),
    ):
        explorer.explore(
            partial(who, course),
            invariant=course.everybody_knew_what_came_before,
            allowed_errors=(ConditionConflictError,),
        )


# -- the gate that stands for very many locks ------------------------------------------------------


@pytest.mark.parametrize("who", [Course.two_careful, Course.careful_and_careless])
@pytest.mark.parametrize("shut", [True, False])
def test_a_gate_that_is_shut_does_what_very_many_locks_would(
    who: Callable[[Course], Tasks],
    shut: bool,  # noqa: FBT001 -- a parameter of the test
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    course = Course(gated, plain)
    mode = "SHARE MODE" if who is Course.careful_and_careless else "SHARE ROW EXCLUSIVE MODE"
    shutting = f"LOCK TABLE datapatterns.tag_gate IN {mode};"

    with ExitStack() as stack:
        taken_out = partial(function_without, plain, "datapatterns.lock_tags")
        stack.enter_context(taken_out("held + wanted > 200 AND"))  # any number is very many
        if not shut:
            stack.enter_context(taken_out(shutting, instead="NULL;"))
            stack.enter_context(taken_out(NOBODY_WAITS[0]))  # or two conditions meet there
            stack.enter_context(pytest.raises(InterleavingError, match="without knowing"))
        explorer.explore(
            partial(who, course),
            invariant=course.everybody_knew_what_came_before,
            max_preemptions=PREEMPTIONS,
            allowed_errors=(ConditionConflictError,),
        )


# -- a lost answer ---------------------------------------------------------------------------------


def enrol(plain: Engine, engine: Engine, stream: StreamId, event_id: UUID) -> int:
    course = f"course:{stream.key}"
    event = NewEvent("enrolled", {}, event_id=event_id, tags=(course,))
    with plain.begin() as conn:
        page = store.read_tagged(conn, Tagged((course,)))

    def attempt() -> int:
        with engine.begin() as conn:
            return store.append(
                conn, stream, [event], expected_version=ANY, unless=page.condition
            ).version

    return until_answered(attempt)


def test_a_conditional_append_whose_commit_was_not_answered_can_be_tried_again(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain, partial(enrol, plain))

    explored = explorer.explore(
        client.tasks,
        invariant=client.it_happened_once,
        crash_at=lambda _: True,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
        max_faults=2,
    )

    assert explored.exhausted


def test_if_own_events_were_not_recognised_a_retry_would_be_a_conflict(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain, partial(enrol, plain))

    with (
        function_without(
            plain, "datapatterns.append_events", "e.event_id = ids[1]", instead="false"
        ),
        pytest.raises(InterleavingError, match="ConditionConflictError"),
    ):
        explorer.explore(
            client.tasks,
            invariant=client.it_happened_once,
            crash_at=is_commit,
            faults=[Fault.REPLY_LOST],
        )

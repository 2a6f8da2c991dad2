"""Somebody is forgotten while others append about them, and write down states about them."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import StreamCopyError, SubjectForgottenError
from datapatterns.event_sourcing import (
    ANY,
    Archive,
    ImportedEvent,
    StreamCopy,
    StreamId,
    Subjects,
    unchanged,
)
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.people import Customer, Registered, Secret, store
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import function_without, statements_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 3 if THOROUGH else 2
HOLD, GUARD = "datapatterns.hold_subject_keys", "FOR KEY SHARE"
ABOUT = text("SELECT count(*) FROM datapatterns.snapshot WHERE subjects @> ARRAY[:key]")

SEALED_AFTER = text(
    "SELECT count(*) FROM datapatterns.event_all"
    " WHERE position > :position AND strpos(data::text, '$sealed') > 0"
)


class Scene:
    """One who appends, one who writes a snapshot, and one who forgets."""

    def __init__(self, gated: Engine, plain: Engine, *, known: bool) -> None:
        self._gated, self._plain, self._known = gated, plain, known
        self._stream = StreamId("customer", "nobody")
        self._secret = Secret()

    def prepare(self) -> None:
        self._stream = StreamId("customer", uuid4().hex)
        self._secret = Secret()
        if self._known:
            self.append(self._plain)

    def both(self) -> Tasks:
        self.prepare()
        return {"writer": self.append, "forgetter": self.forget}

    def two_writers(self) -> Tasks:
        return {**self.both(), "other": self.append}

    def with_snapshot(self) -> Tasks:
        self.prepare()
        return {"snapshot": self.snapshot, "forgetter": self.forget}

    def with_rewrapping(self) -> Tasks:
        self.prepare()
        return {"rewrapper": self.rewrap, "forgetter": self.forget}

    def with_import(self) -> Tasks:
        self.prepare()
        return {"importer": self.bring_in, "forgetter": self.forget}

    def with_copy(self) -> Tasks:
        self.prepare()
        return {"copier": self.copy, "forgetter": self.forget}

    def with_archive(self) -> Tasks:
        self.prepare()
        self._stop()
        return {"archivist": self.move, "forgetter": self.forget}

    def append(self, engine: Engine | None = None) -> None:
        with (engine or self._gated).begin() as conn:
            event = Registered(self._stream.key, self._secret.word)
            store.append(conn, self._stream, [event], expected_version=ANY)

    def snapshot(self) -> None:
        with self._gated.begin() as conn:
            customer = store.load(conn, Customer, self._stream.key)
        with self._gated.begin() as conn:
            store.save_snapshot(conn, customer)

    def rewrap(self) -> None:
        just_before = ("", self._stream.key[:-1])
        with self._gated.begin() as conn:
            Subjects(store).rewrap(conn, just_before, limit=1)

    def bring_in(self) -> None:
        chunk = [ImportedEvent(self._stream, Registered(self._stream.key, self._secret.word))]
        with self._gated.begin() as conn:
            store.import_events(conn, chunk, source=self._stream.key, chunk=1)

    def copy(self) -> None:
        copied = StreamCopy(store, self._stream, self._copied, unchanged)
        with self._gated.begin() as conn:
            page = copied.copy_page(conn)
        with self._gated.begin() as conn:
            copied.finish(conn, page)

    def move(self) -> None:
        with self._gated.begin() as conn:
            Archive(store).move(conn, self._stream)

    def _stop(self) -> None:
        with self._plain.begin() as conn:
            Archive(store).stop(conn, self._stream, expected_version=1)

    @property
    def _copied(self) -> StreamId:
        return StreamId("customer", f"{self._stream.key}-copy")

    def forget(self) -> None:
        with self._gated.begin() as conn:
            Subjects(store).forget(conn, self._stream.key)

    def nothing_is_left(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            assert self._secret.found_in(conn) == [], "the secret was found"
            told = store.read_stream(conn, StreamId("forgotten", self._stream.key))
            if not told:
                assert outcome.faults, "nobody was told"
                return
            events = [
                *store.read_stream(conn, self._stream),
                *store.read_stream(conn, self._copied),
            ]
            late = conn.scalar(SEALED_AFTER, {"position": told[0].position})
            assert not late, "personal data was appended after its person was forgotten"
            assert {event.data["email"] for event in events} <= {"[forgotten]"}
            assert conn.scalar(ABOUT, {"key": self._stream.key}) == 0, "a snapshot is left"


@pytest.mark.parametrize("begun", ["with a key", "without a key yet"])
def test_nothing_is_appended_about_somebody_who_is_forgotten(
    begun: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=begun == "with a key")

    explored = explorer.explore(
        scene.both,
        invariant=scene.nothing_is_left,
        max_preemptions=PREEMPTIONS,
        allowed_errors=(SubjectForgottenError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_two_who_need_a_key_for_the_first_time_get_the_same(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=False)

    explored = explorer.explore(
        scene.two_writers,
        invariant=scene.nothing_is_left,
        max_preemptions=PREEMPTIONS - 1,
        allowed_errors=(SubjectForgottenError,),
    )

    assert explored.exhausted


def test_a_snapshot_is_never_left_behind(explorer: Explorer, gated: Engine, plain: Engine) -> None:
    scene = Scene(gated, plain, known=True)

    explored = explorer.explore(
        scene.with_snapshot, invariant=scene.nothing_is_left, max_preemptions=PREEMPTIONS
    )

    assert explored.exhausted
    assert explored.blocked_steps


@pytest.mark.parametrize("beside", ["with_rewrapping", "with_import", "with_copy", "with_archive"])
def test_nothing_is_left_by_who_works_on_keys_and_streams_meanwhile(
    beside: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=True)

    explored = explorer.explore(
        getattr(scene, beside),
        invariant=scene.nothing_is_left,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(120),
        allowed_errors=(SubjectForgottenError, StreamCopyError),
    )

    assert explored.blocked_steps or beside == "with_archive"


def test_were_a_key_not_locked_while_it_is_wrapped_anew_it_would_come_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=True)

    with (
        statements_without(gated, " FOR NO KEY UPDATE"),
        pytest.raises(InterleavingError, match="CheckViolation"),
    ):
        explorer.explore(
            scene.with_rewrapping,
            invariant=scene.nothing_is_left,
            max_preemptions=2,
            allowed_errors=(SubjectForgottenError,),
        )


def test_who_breaks_off_while_forgetting_has_forgotten_nobody(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=True)

    explored = explorer.explore(
        scene.both,
        invariant=scene.nothing_is_left,
        max_preemptions=1,
        crash_at=lambda gate: gate.task == "forgetter",
        faults=[Fault.CRASH],
        allowed_errors=(SubjectForgottenError,),
    )

    assert explored.exhausted


@pytest.mark.parametrize(
    ("tasks", "found"), [("both", "appended after"), ("with_snapshot", "snapshot is left")]
)
def test_were_the_key_not_held_something_would_be_left(
    tasks: str, found: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    scene = Scene(gated, plain, known=True)

    with (
        function_without(plain, HOLD, GUARD),
        pytest.raises(InterleavingError, match=found),
    ):
        explorer.explore(
            getattr(scene, tasks),
            invariant=scene.nothing_is_left,
            max_preemptions=2,
            allowed_errors=(SubjectForgottenError,),
        )

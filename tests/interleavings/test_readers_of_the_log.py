"""A reader of the log skips nothing and reads nothing twice, whoever appends meanwhile (E6)."""

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.event_sourcing import ANY, Position, RecordedEvent
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.basket import PREEMPTIONS, Scanned, append, new_stream, store
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres


class Log:
    """Two append, each in its way, and one reads the log meanwhile, page after page."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._start = self._checkpoint = Position(0)
        self._read: list[RecordedEvent] = []

    def tasks(self) -> Tasks:
        with self._plain.begin() as conn:
            self._start = self._checkpoint = store.high_water_mark(conn)
        self._read = []
        return {"plain": self._append, "late": self._append_late, "reader": self._read_twice}

    def _append(self) -> None:
        append(self._gated, new_stream(), expected=0)

    def _append_late(self) -> None:
        """Draw the transaction's id first, and a position only then."""
        with self._gated.begin() as conn:
            conn.execute(text("SELECT pg_current_xact_id()"))
            store.append(conn, new_stream(), [Scanned(1), Scanned(2)], expected_version=ANY)

    def _read_twice(self) -> None:
        for _ in range(2):
            with self._gated.begin() as conn:
                self._read_page(conn)

    def _read_page(self, conn: Connection) -> None:
        page = store.read_log(conn, self._checkpoint)
        self._read += page.events
        self._checkpoint = page.checkpoint

    def everything_was_read_once(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            self._read_page(conn)
            written = store.read_log(conn, self._start).events
        positions = [event.position for event in self._read]
        assert positions == [event.position for event in written], (
            f"read were the positions {positions} of {[event.position for event in written]}"
        )


def test_a_reader_of_the_log_skips_nothing_and_reads_nothing_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    explored = explorer.explore(
        log.tasks, invariant=log.everything_was_read_once, max_preemptions=PREEMPTIONS - 1
    )

    assert explored.exhausted


def test_a_writer_that_dies_holds_no_reader_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    explored = explorer.explore(
        log.tasks,
        invariant=log.everything_was_read_once,
        max_preemptions=PREEMPTIONS - 2,
        crash_at=lambda gate: gate.task != "reader",
        faults=[Fault.CRASH],
    )

    assert explored.exhausted


@pytest.mark.parametrize(
    ("function", "guard"),
    [
        (
            "raise_fence_before_insert",
            (
                "is_raised := pg_advisory_xact_lock_shared(class::int, (bound & 2147483647)::int)"
                " IS NOT NULL;"
            ),
        ),
        ("high_water_mark", "- coalesce(held, 0)"),
    ],
    ids=["no fence is raised", "no fence is looked at"],
)
def test_without_fences_events_are_skipped(
    function: str, guard: str, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    log = Log(gated, plain)

    with (
        function_without(plain, f"datapatterns.{function}", guard),
        pytest.raises(InterleavingError, match="read were the positions"),
    ):
        explorer.explore(log.tasks, invariant=log.everything_was_read_once, max_preemptions=2)

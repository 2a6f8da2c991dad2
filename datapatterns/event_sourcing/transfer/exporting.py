"""Write the log as lines of JSON, a page in each transaction.

An export ends where the log was final when it began. It goes on after any checkpoint, because
no event can appear at or before one any more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine

from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.transfer.json_lines import (
    Checkpoint,
    Header,
    line_of,
    new_header,
)
from datapatterns.event_sourcing.transfer.stored_events import StoredEvents
from datapatterns.transactions import reading

_PAGE_EVENTS_MAX: Final = 2_000
_PAGE_BYTES: Final = 4 * 1_048_576

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Exported:
    """How far an export has come.

    Attributes:
        events: How many events the file holds.
        checkpoint: All events up to this position that were asked for are in it.
        up_to: Where it ends: what was final when it began.
    """

    events: int
    checkpoint: Position
    up_to: Position

    @property
    def is_complete(self) -> bool:
        """Whether it has come to its end."""
        return self.checkpoint >= self.up_to


Report = Callable[[Exported], object]


@dataclass(frozen=True, slots=True)
class EventExport:
    """What to export.

    Attributes:
        source: Where the events are, archived ones among them.
        matching: Which of them.
        after: Begin after this position.
    """

    source: StoredEvents
    matching: LogFilter = EVERYTHING
    after: Position = START

    def header(self) -> Header:
        """Return the first line of a new file."""
        return new_header(
            after=self.after,
            where=_asked(self.matching),
            now=self.source.store.clock.now(),
        )

    def write(
        self,
        engine: Engine,
        write: Write,
        *,
        begun: Exported | None = None,
        report: Report = lambda _: None,
    ) -> Exported:
        """Give lines to ``write``, a page at a time, and at the end a checkpoint.

        Args:
            engine: Where the store is.
            write: Is given whole lines.
            begun: How far earlier lines have come; without it, a header is written first.
            report: Is told how far it has come, after each page.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
        """
        after = begun.checkpoint if begun else self.after
        with _fresh(engine) as conn:
            up_to = read_mark(conn, schema=self.source.store.schema, after=after)
        if begun is None:
            write(line_of(self.header()))
        before = begun or Exported(0, self.after, up_to)
        done = self._pages(engine, write, replace(before, up_to=up_to), report)
        if begun is None or not begun.is_complete or done.checkpoint > begun.checkpoint:
            write(line_of(Checkpoint(checkpoint=done.checkpoint, events=done.events)))
        return done

    def _pages(self, engine: Engine, write: Write, done: Exported, report: Report) -> Exported:
        limit = 100
        caught_up = False
        while not caught_up:
            with _fresh(engine) as conn:
                page = self.source.page(
                    conn, done.checkpoint, up_to=done.up_to, limit=limit, matching=self.matching
                )
            lines = b"".join(line_of(event) for event in page.events)
            if lines:
                write(lines)
                # Events differ in size by a factor of 100,000, memory should not.
                fitting = len(page.events) * _PAGE_BYTES // len(lines)
                limit = max(1, min(fitting, 2 * limit, _PAGE_EVENTS_MAX))
            done = Exported(done.events + len(page.events), page.checkpoint, done.up_to)
            caught_up = page.caught_up
            report(done)
        return done


@contextmanager
def _fresh(engine: Engine) -> Iterator[Connection]:
    # What the application set for its engine is right for its commands, not for the log.
    fresh = engine.connect().execution_options(isolation_level="READ COMMITTED")
    with fresh as conn, reading(conn):
        yield conn


def _asked(matching: LogFilter) -> dict[str, Any]:
    """Return the conditions that ``matching`` has, as the header of a file keeps them."""
    return {name: value for name, value in asdict(matching).items() if value not in (None, ())}

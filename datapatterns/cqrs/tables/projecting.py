"""One page of the log into a table, in one transaction with the checkpoint."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, StatementError

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.messages.outgoing import store_messages
from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.tables.folding import (
    RowsByTable,
    Step,
    fold_steps,
    keys_by_table,
    plan_steps,
)
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore

_MESSAGE_CHARS_MAX = 500

_OF_DATA: Final = (
    "21",  # two keys that only the database finds equal
    "44",  # WITH CHECK OPTION of a view
    "54",  # too long for an index
    "42846",  # a class of value that cannot become the column's
    "P0001",  # refused by a trigger
)
"""Which SQLSTATEs, besides those of the classes 22 and 23, values are to blame for."""


class UnappliableError(Exception):
    """A page holds an event that cannot be applied; its cause says why."""


def apply_events(  # noqa: PLR0913 -- what may be said about one page
    conn: Connection,
    store: EventStore,
    projection: type[Projection],
    models: ReadModels,
    events: Sequence[RecordedEvent],
    segment: Segment = WHOLE,
    *,
    takes: Callable[[Step], bool] | None = None,
    sends: bool = False,
    check_deferred: bool = True,
    alone: bool = True,
) -> None:
    """Fold ``events`` into the rows of ``models``: read them at once, write them at once.

    Args:
        conn: A connection in a transaction.
        store: What decodes the events.
        projection: Whose handlers.
        models: Where the rows are.
        events: In the order of the log.
        segment: Only rows whose keys it owns.
        takes: Which of their steps; all unless given.
        sends: Whether what handlers emit goes to the outbox.
        check_deferred: Whether constraints that are deferred are checked at once.
        alone: Whether nobody else writes rows of other keys meanwhile.

    Raises:
        UnappliableError: An event cannot be decoded or folded, or its rows cannot be stored.
    """
    with blaming_data():
        instance = projection()
        steps = plan_steps(instance, decode_each(store.types, events), segment)
        if takes is not None:
            steps = [step for step in steps if takes(step)]
        rows = {
            table: models[table].fetch(conn, keys) for table, keys in keys_by_table(steps).items()
        }
        # A new row must not be one that somebody else has made meanwhile: of a key that only the
        # database finds equal to ours.
        there = None
        if not alone or segment != WHOLE:
            there = {table: set(of_table) for table, of_table in rows.items()}
        new_row = {table: model.new_row for table, model in models.items()}
        messages = fold_steps(instance, steps, rows, new_row=new_row)
        write_rows(conn, models, rows, there=there, check_deferred=check_deferred)
        if sends:
            store_messages(conn, store.schema, projection, messages)


@contextmanager
def blaming_data() -> Iterator[None]:
    """Tell what events or their rows are to blame for.

    Raises:
        UnappliableError: They are; its cause says for what.
    """
    try:
        yield
    except DBAPIError as error:
        # What the data did stops the projection; a lost connection, a deadlock or a missing
        # table is not the event's fault.
        if is_of_data(error):
            raise UnappliableError from error
        raise
    except Exception as error:  # the application's code may raise anything
        raise UnappliableError from error


def write_rows(
    conn: Connection,
    models: ReadModels,
    rows: RowsByTable,
    *,
    there: Mapping[type, Collection[Hashable]] | None = None,
    check_deferred: bool = True,
) -> None:
    """Store what a fold has left, each table in one statement, and check it at once.

    Rows that are not among those ``there``, if it is given, must be new.
    """
    written = [(table, model) for table, model in models.items() if table in rows]
    for table, model in reversed(written):  # what refers to others goes before them
        model.delete(conn, rows[table])
    for table, model in written:
        kept = rows[table]
        if there is not None:
            kept = model.insert_new(conn, kept, there[table])
        model.upsert(conn, kept)
    if written and check_deferred:
        # Now, not at the commit, where nobody would know that it was an event.
        conn.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")


def is_of_data(error: DBAPIError) -> bool:
    """Return whether the values are to blame, rather than the server, the table or the right."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:  # the driver has refused them, before the server saw any
        return isinstance(error, DataError | ProgrammingError)
    return isinstance(error, DataError | IntegrityError) or sqlstate.startswith(_OF_DATA)


def is_refusal(error: psycopg.Error) -> bool:
    """Return the same of an error of the driver's own."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.DataError | psycopg.ProgrammingError)
    refused = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
    return refused or error.sqlstate.startswith(_OF_DATA)


def find_poison(
    conn: Connection,
    events: Sequence[RecordedEvent],
    apply: Callable[[Sequence[RecordedEvent]], None],
) -> tuple[int, Exception | None]:
    """Return how many of ``events`` can be applied, and what the next one raises; apply none."""

    def attempt(length: int) -> Exception | None:
        savepoint = conn.begin_nested()
        try:
            apply(events[:length])
        except UnappliableError as error:
            return error
        finally:
            savepoint.rollback()
        return None

    return longest_prefix(len(events), attempt)


def describe_stop(
    projection: type[AnyProjection], poison: RecordedEvent, failure: Exception
) -> tuple[dict[str, Any], ProjectionStoppedError]:
    """Return what to keep and what to raise when ``poison`` cannot be applied."""
    error = (failure.__cause__ or failure) if isinstance(failure, UnappliableError) else failure
    message = message_of(error)
    stopped = ProjectionStoppedError(
        projection.name,
        position=poison.position,
        event_type=poison.event_type,
        reason=f"{type(error).__name__}: {message}",
    )
    stopped.__cause__ = error
    record = {
        "position": poison.position,
        "event_type": poison.event_type,
        "error": type(error).__name__,
        "message": message,
    }
    return record, stopped


def message_of(error: BaseException | None) -> str:
    """Return what happened in a line that can be stored and shown, without whole rows."""
    if isinstance(error, StatementError):
        # The driver's details and SQLAlchemy's parameters quote whole rows.
        diagnosis = getattr(error.orig, "diag", None)
        return getattr(diagnosis, "message_primary", None) or message_of(error.orig)
    # Nothing that jsonb would refuse: the error must not be lost to another one.
    shortened = str(error)[:_MESSAGE_CHARS_MAX].replace("\0", "\\0")
    return shortened.encode(errors="backslashreplace").decode()

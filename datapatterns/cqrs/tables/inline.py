"""Read models that are kept in the transaction of the append: never behind, at the writer's price.

Several appends may change one row at the same time. So before its positions are drawn, an append
locks the keys of the rows that its events concern: whoever comes next reads the row after this
transaction has ended, and has later positions. So the row is the fold in the order of the log, as
it is for a projection that follows the log.

Whether a projection is kept inline is written down in the database, and changed while nobody
appends (see `switching`). Each append holds a shared lock on that, and looks after it has it. A
writer that does not know of the projection is refused by a trigger.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.declared import refuse_twins
from datapatterns.cqrs.running.paging import stored_types
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.cqrs.tables.coming_events import coming_events
from datapatterns.cqrs.tables.folding import plan_steps
from datapatterns.cqrs.tables.inline_holding import (
    Kept,
    SwitchedError,
    check_modes,
    hold_modes,
    lock_keys,
    say_nothing,
    saying_no_more,
)
from datapatterns.cqrs.tables.inline_locks import key_lock, keys_lock
from datapatterns.cqrs.tables.projecting import (
    UnappliableError,
    apply_events,
    message_of,
)
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.errors import (
    InlineKeyError,
    InlineProjectionError,
    ProjectionDefinitionError,
    ProjectionVersionError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.event_sourcing.appending.appending import StreamBatch
from datapatterns.event_sourcing.appending.keeping_inline import AppendedByStream
from datapatterns.event_sourcing.appending.reading_back import JustAppended, read_back
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.transactions import refuse_autocommit

KEYS_MAX: Final = 500
"""Of how many rows one append locks the keys; for more it has the projection to itself.

Each lock takes a place in a table of the server that all share.
"""


@dataclass(frozen=True, slots=True)
class InlineProjections:
    """Keeps projections in the transaction of each append, of those that are switched to inline.

    Given to an `EventStore` as ``inline=``. A projection is switched by `Projections.make_inline`,
    and back by `Projections.make_async`; until then it costs each append two round trips.

    Args:
        projections: Those that may be kept inline; of each, as many versions as may be live.

    Raises:
        ProjectionDefinitionError: One is not a `Projection`, or a version is there twice.
    """

    projections: tuple[type[Projection], ...]

    def __post_init__(self) -> None:
        refuse_twins(self.projections)
        for projection in self.projections:
            if not issubclass(projection, Projection):
                raise ProjectionDefinitionError(
                    projection.name, "only a Projection that folds in Python can be kept inline"
                )

    def append(
        self,
        store: EventStore,
        conn: Connection,
        batches: Sequence[StreamBatch],
        append: Callable[[], AppendedByStream],
    ) -> AppendedByStream:
        """Call ``append``, and change the rows that its events concern.

        Raises:
            InlineKeyError: A key depends on what is not known before the append.
            InlineProjectionError: A projection refuses an event. Nothing was appended, and the
                transaction is still usable.
            IsolationLevelError: The transaction is not READ COMMITTED, so it may not see rows
                that committed since it began.
            ProjectionVersionError: Another version is kept inline.
        """
        if not self.projections:
            return append()
        kept = hold_modes(conn, store.schema, self._names)
        while True:
            try:
                return self._append(store, conn, batches, append, kept)
            except SwitchedError as switched:
                kept = switched.kept

    def _append(
        self,
        store: EventStore,
        conn: Connection,
        batches: Sequence[StreamBatch],
        append: Callable[[], AppendedByStream],
        kept: Kept,
    ) -> AppendedByStream:
        if not kept:
            check_modes(conn, store.schema, self._names, kept)
            return append()
        refuse_autocommit(conn)  # each lock would be gone with its statement
        coming = coming_events(batches)
        concerned = [
            (projection, types)
            for projection, types in ((p, stored_types(store, p)) for p in self._known(kept))
            if any(event.event_type in types for event in coming)
        ]
        locks = _locks(store, [(p, _of_types(coming, types)) for p, types in concerned])
        if not concerned:
            with saying_no_more(conn):
                lock_keys(conn, store.schema, self._names, kept, locks)
                return append()
        # So that an error leaves neither the events nor half of what follows from them; nor what
        # is said, or somebody else could append in this transaction and keep nothing.
        with conn.begin_nested():
            lock_keys(conn, store.schema, self._names, kept, locks)
            appended = append()
            events = _read_back(store, conn, batches, appended)
            for projection, types in concerned:
                _apply(conn, store, projection, _of_types(events, types))
        return appended

    @property
    def _names(self) -> list[str]:
        return sorted({projection.name for projection in self.projections})

    def _known(self, kept: Kept) -> list[type[Projection]]:
        known = {
            (projection.name, projection.version): projection for projection in self.projections
        }
        for name, version in kept:
            if (name, version) not in known:
                newest = max(number for known_name, number in known if known_name == name)
                raise ProjectionVersionError(name, declared=newest, live=version)
        return [known[each] for each in kept]


def _of_types(events: Sequence[RecordedEvent], types: Collection[str]) -> list[RecordedEvent]:
    return [event for event in events if event.event_type in types]


def _locks(
    store: EventStore, coming: Sequence[tuple[type[Projection], Sequence[RecordedEvent]]]
) -> dict[str, list[int]]:
    shared, exclusive = set[int](), set[int]()
    for projection, events in coming:
        digests = _key_digests(store, projection, events)
        if len(digests) > KEYS_MAX:
            exclusive.add(keys_lock(store.schema, projection.name))
        else:
            shared.add(keys_lock(store.schema, projection.name))
            exclusive |= {key_lock(store.schema, projection.name, digest) for digest in digests}
    return {"shared": sorted(shared), "exclusive": sorted(exclusive)}


def _key_digests(
    store: EventStore, projection: type[Projection], events: Sequence[RecordedEvent]
) -> set[bytes]:
    try:
        decoded = decode_each(store.types, events)
        return {key_digest(step.key) for step in plan_steps(projection(), decoded)}
    except InlineKeyError:
        raise
    except Exception as error:  # the application's code may raise anything
        raise _refused(projection, error) from error


def _read_back(
    store: EventStore,
    conn: Connection,
    batches: Sequence[StreamBatch],
    appended: AppendedByStream,
) -> list[RecordedEvent]:
    wanted = []
    for batch in batches:
        done, count = appended[batch.stream], len(batch.encoded)
        if not done.repeated:  # the first time, its rows were changed as well
            before = done.version - count
            wanted.append(JustAppended(batch.stream, before, done.version, done.position))
    if not wanted:
        say_nothing(conn)
        return []
    return read_back(conn, wanted, schema=store.schema, contents=store.contents)


def _apply(
    conn: Connection,
    store: EventStore,
    projection: type[Projection],
    events: Sequence[RecordedEvent],
) -> None:
    try:
        models = read_models_of(projection)
        # Constraints of the caller may be deferred, so they are left alone: at the COMMIT they
        # undo the events as well.
        apply_events(
            conn, store, projection, models, events, sends=True, check_deferred=False, alone=False
        )
    except UnappliableError as error:
        cause = error.__cause__ or error
        raise _refused(projection, cause) from cause


def _refused(projection: type[Projection], error: BaseException) -> InlineProjectionError:
    return InlineProjectionError(
        projection.name, reason=f"{type(error).__name__}: {message_of(error)}"
    )

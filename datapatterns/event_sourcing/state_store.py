"""What the event store promises about states: load them, save what they emit, keep copies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, overload

from sqlalchemy import Connection

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.event_sourcing.appending.keeping_inline import KeptInline
from datapatterns.event_sourcing.content.codecs import PLAIN, Codecs
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES, EventTypes
from datapatterns.event_sourcing.persons.subject_keys import SubjectKeys
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider, Folded
from datapatterns.event_sourcing.states.listing import list_keys
from datapatterns.event_sourcing.states.loading import Loader, Moment
from datapatterns.event_sourcing.states.saving import save_sourced
from datapatterns.event_sourcing.states.snapshotting import is_due, save_snapshot
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.subjects import Subject
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema

A = TypeVar("A", bound=Aggregate)
C = TypeVar("C")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class StateStore:
    """The part of an `EventStore` that knows about aggregates and deciders."""

    schema: str = DEFAULT_SCHEMA
    types: EventTypes = field(default=EVENT_TYPES, repr=False)
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)
    codecs: Codecs = field(default=PLAIN, repr=False)
    keys: SubjectKeys | None = field(default=None, repr=False)
    inline: KeptInline | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checked_schema(self.schema)

    @property
    def contents(self) -> Contents:
        """How contents get into the database and out of it."""
        return Contents(self.types, self.codecs, self.keys, self.schema)

    @overload
    def load(
        self,
        conn: Connection,
        subject: type[A],
        key: str,
        *,
        tenant: str = "",
        version: int | None = None,
        at: datetime | None = None,
    ) -> A: ...

    @overload
    def load(
        self,
        conn: Connection,
        subject: Decider[C, S, Any],
        key: str,
        *,
        tenant: str = "",
        version: int | None = None,
        at: datetime | None = None,
    ) -> Folded[C, S]: ...

    def load(
        self,
        conn: Connection,
        subject: Subject,
        key: str,
        *,
        tenant: str = "",
        version: int | None = None,
        at: datetime | None = None,
    ) -> Any:
        """Return the state of the stream with that key; without events it is as declared.

        One statement reads the latest snapshot that fits and the events that followed it, events
        of the caller's own transaction among them. Very long streams are read in pages.

        Args:
            conn: A connection in a transaction.
            subject: The class of the aggregate, or the decider.
            key: Which one.
            tenant: Whose.
            version: As it was after so many events.
            at: As it was then; all events of an append have one time.

        Raises:
            AggregateError: The class lacks a handler, a category, or a type for its state.
            EventGapError: The stream lacks an event.
            EventShapeError: Stored data does not fit its class, or no upcaster leads to it.
            EventTypeError: A stored type is not declared.
            ValueError: The stream has not reached ``version``, or ``at`` has no time zone.
        """
        [loaded] = self._loader.load(conn, subject, [key], Moment([version], at), tenant)
        return loaded

    @overload
    def load_many(
        self,
        conn: Connection,
        subject: type[A],
        keys: Sequence[str],
        *,
        tenant: str = "",
        versions: Sequence[int | None] | None = None,
        at: datetime | None = None,
    ) -> list[A]: ...

    @overload
    def load_many(
        self,
        conn: Connection,
        subject: Decider[C, S, Any],
        keys: Sequence[str],
        *,
        tenant: str = "",
        versions: Sequence[int | None] | None = None,
        at: datetime | None = None,
    ) -> list[Folded[C, S]]: ...

    def load_many(
        self,
        conn: Connection,
        subject: Subject,
        keys: Sequence[str],
        *,
        tenant: str = "",
        versions: Sequence[int | None] | None = None,
        at: datetime | None = None,
    ) -> Any:
        """Return the states of many streams, in the order of ``keys``, as `load` does for one.

        A hundred streams are one statement. Those of another subject are another call; with the
        same ``at`` the answers belong together, as soon as it lies so far back that no open
        transaction can append before it.

        Args:
            conn: A connection in a transaction.
            subject: The class of the aggregates, or the decider.
            keys: Which ones; the same one may stand there twice, at two versions.
            tenant: Whose; those of another tenant are another call.
            versions: As each was after so many events, in the order of ``keys``; None for one as
                it is now.
            at: As they were then. Across streams, time does not rise with the position.

        Raises:
            ValueError: There are more or fewer versions than keys; further, what `load` raises.
        """
        return self._loader.load(conn, subject, keys, Moment(versions, at), tenant)

    def list_keys(
        self,
        conn: Connection,
        subject: Subject,
        *,
        tenant: str = "",
        at: datetime | None = None,
        after: str = "",
        limit: int = 500,
    ) -> list[str]:
        """Return at most ``limit`` keys of streams that the subject has, or had at a time.

        In the order of the database; go on after the last one, until there are none.

        Args:
            conn: A connection in a transaction.
            subject: The class of the aggregates, or the decider.
            tenant: Whose.
            at: Only those that had begun by then.
            after: The last key of the page before.
            limit: How many at most.

        Raises:
            ValueError: ``limit`` is not positive, or ``at`` has no time zone.
        """
        return list_keys(
            conn, subject, tenant=tenant, schema=self.schema, at=at, after=after, limit=limit
        )

    @property
    def _loader(self) -> Loader:
        return Loader(self.schema, self.types, self.clock, self.contents)

    def save(
        self,
        conn: Connection,
        sourced: Sourced,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Position:
        """Append what ``sourced`` has emitted since the last save; return the last position.

        The position is the token for reading one's own write. Saved once more without new
        events, the aggregate sends its last batch again: if the COMMIT of the first attempt
        got through, that is recognised, if not, it is made up for. So call it again when the
        outcome is unknown.

        Raises:
            VersionConflictError: The stream has changed since the aggregate was loaded. Nothing
                was written and the transaction is still usable; load it and decide again.
        """
        return save_sourced(self, conn, sourced, metadata=metadata)

    def save_snapshot(self, conn: Connection, sourced: Sourced, *, keep: int = 3) -> bool:
        """Store the state, so that later loads begin there; return whether it is new.

        Nothing writes snapshots unasked. Best called after the command's transaction, in one of
        its own: the command then is not slower for it.

        It is False, and nothing was stored, if there is one at this version already, or if the
        stream does not hold the events of this state (their transaction was rolled back).

        Args:
            conn: A connection in a transaction. The caller commits.
            sourced: As loaded or saved, without unsaved events.
            keep: How many snapshots this release may hold of the stream; older ones are deleted.
                More than one serves questions about the past.

        Raises:
            AggregateError: The class declares no policy, or its state cannot be stored.
            ValueError: There are unsaved events, or ``keep`` is not positive.
        """
        return save_snapshot(
            conn,
            sourced,
            schema=self.schema,
            types=self.types,
            contents=self.contents,
            keep=keep,
        )

    def snapshot_if_due(self, conn: Connection, sourced: Sourced, *, keep: int = 3) -> bool:
        """Do `save_snapshot` if the policy asks for it."""
        return is_due(sourced) and self.save_snapshot(conn, sourced, keep=keep)

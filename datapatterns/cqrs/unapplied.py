"""What projections could not apply: look at it, retry it, give it up."""

from abc import ABC, abstractmethod
from collections.abc import Hashable

from sqlalchemy import Connection, Engine

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.running.unapplied_lists import (
    ParkedKey,
    SkippedEvent,
    list_parked,
    list_skipped,
)
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.parts import row_digest
from datapatterns.cqrs.tables.retrying import ParkedWork, Retried
from datapatterns.event_sourcing.store import EventStore


class UnappliedEvents(ABC):
    """The part of `Projections` that deals with events that were parked or skipped."""

    __slots__ = ()

    store: EventStore

    @property
    @abstractmethod
    def _source(self) -> EventStore:
        """Return the store as runners read it."""

    @abstractmethod
    def _terms(self) -> LeaseTerms: ...

    def parked(
        self,
        conn: Connection,
        projection: type[AnyProjection] | str | None = None,
        *,
        limit: int = 1_000,
    ) -> list[ParkedKey]:
        """Return rows whose events wait, since one of them could not be applied; by position.

        A row is known by a digest of its key, which tells nothing about it; with several tables it
        says, too, in which of them the row is. `retry` takes it.

        Args:
            conn: A connection in a transaction.
            projection: Of which, in the version that is declared, or in all if only the name is
                given; of all unless given.
            limit: At most.
        """
        return list_parked(
            conn, projection_tables(self.store.schema), _which(projection), limit=limit
        )

    def skipped(
        self,
        conn: Connection,
        projection: type[AnyProjection] | str | None = None,
        *,
        limit: int = 1_000,
    ) -> list[SkippedEvent]:
        """Return events that were left out, as they could not be applied or were given up."""
        return list_skipped(
            conn, projection_tables(self.store.schema), _which(projection), limit=limit
        )

    def retry(
        self,
        engine: Engine,
        projection: type[Projection],
        key: Hashable = None,
        *,
        key_digest: bytes | None = None,
        page_events: int = 1_000,
    ) -> Retried:
        """Apply what is parked, in the order of the log, once what refused it is mended.

        Of each row as far as it can be: if one event is refused again, it and those behind it go
        on waiting. The lease is taken from whoever runs the projection, who loses a page; until
        it is given back, the segment does not move on.

        Args:
            engine: Where the read model is.
            projection: With the mended code, in the version that parked.
            key: Of which row; of all unless given.
            key_digest: The same, as `parked` gives it.
            page_events: How many events of a row one transaction applies at most.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            LeaseLostError: Somebody else took the lease meanwhile; what was committed stays.
            ReadModelBuildingError: The version has no rows yet; what is parked waits.
        """
        digests = _row_digests(projection, key, key_digest)
        return self._parked_work(projection, page_events).retry(engine, digests)

    def discard(
        self,
        engine: Engine,
        projection: type[Projection],
        key: Hashable = None,
        *,
        key_digest: bytes | None = None,
    ) -> Retried:
        """Give up what is parked of one row: it is left out for good, and is in `skipped`.

        Later events of the row are applied again, to what there was before.

        Raises:
            ValueError: It does not say which row.
        """
        digests = _row_digests(projection, key, key_digest)
        if digests is None:
            raise ValueError("say which row to give up: key or key_digest")
        return self._parked_work(projection, 1).discard(engine, digests)

    def _parked_work(self, projection: type[Projection], page_events: int) -> ParkedWork:
        if page_events < 1:
            raise ValueError(f"{page_events} events move nothing on; ask for at least 1")
        return ParkedWork(self._source, projection, self._terms(), page_events)


def _which(projection: type[AnyProjection] | str | None) -> tuple[str, int | None] | None:
    if projection is None or isinstance(projection, str):
        return None if projection is None else (projection, None)
    return projection.name, projection.version


def _row_digests(
    projection: type[Projection], key: Hashable, key_digest: bytes | None
) -> list[bytes] | None:
    if key_digest is not None:
        return [key_digest]
    if key is None:
        return None
    return [row_digest(projection, table, key) for table in projection.tables]

"""What captured changes make obsolete, for one round of a relay."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.cache_aside.capturing import Followed, consumer_of, read_followed
from datapatterns.change_log import Consumer, Snapshot, Xid
from datapatterns.change_log.consuming import advance_consumer, lock_consumer
from datapatterns.errors import MissingRightsError

_logger = logging.getLogger(__name__)

_ROWS_PER_FETCH = 500


@dataclass(frozen=True, slots=True)
class Obsolete:
    """What one transaction made obsolete.

    Attributes:
        xid: The transaction.
        keys: Entries and tags, as the outbox calls them.
        and_more: Whether there are entries that nobody can name.
    """

    xid: Xid
    keys: frozenset[str]
    and_more: bool = False


@dataclass(frozen=True, slots=True)
class CapturedChanges:
    """The changes of captured tables, for a relay that holds their consumer.

    Attributes:
        followed: The tables; none if only what writers record is sent.
        consumer: How far their changes have been sent; None without tables.
        schema: Where the library's tables live.
    """

    followed: Sequence[Followed]
    consumer: Consumer | None
    schema: str

    @classmethod
    def hold(cls, conn: Connection, *, schema: str, target: str) -> "CapturedChanges | None":
        """Keep other relays of ``target`` out until the transaction ends; None if one is at it.

        The transaction must not have written anything.

        Raises:
            ForeignSnapshotError: Changes were last sent from another database.
            MissingRightsError: The role may not move the consumer on.
        """
        followed = read_followed(conn, schema=schema, target=target)
        if not followed:
            return cls(followed, None, schema)
        try:
            consumer = lock_consumer(conn, consumer_of(target), schema=schema, skip_locked=True)
        except ProgrammingError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                raise MissingRightsError(
                    "this role may not update change_consumer, which the relay of a cache that"
                    " follows captured tables moves on"
                ) from error
            raise
        return None if consumer is None else cls(followed, consumer, schema)

    @property
    def says_too_little(self) -> bool:
        """Return whether rows have changed of which no log tells, so that all has to go."""
        if self.consumer is None:
            return False
        missed = [each for each in self.followed if each.further_columns]
        for each in missed:
            _logger.warning(
                "everything is forgotten each time: changes of %s, columns of %s, are not logged;"
                " let the owner call Cache.capture() again",
                ", ".join(each.further_columns),
                each.table_tag,
            )
        return bool(missed) or self.consumer.must_rebuild or self.consumer.has_switched

    def since_last(self, conn: Connection, now: Snapshot) -> Iterator[Obsolete]:
        """Return what has become obsolete since the last round and shows in ``now``."""
        if self.consumer is None:
            return
        for each in self.followed:
            pending = each.pending(self.consumer.snapshot, now, schema=self.schema)
            rows = conn.execute(pending.execution_options(yield_per=_ROWS_PER_FETCH))
            for xid, of_one in groupby(rows, key=lambda row: row.change_xid):
                keys: set[str] = set()
                and_more = False
                for row in of_one:
                    keys.update(each.keys_of(row))
                    and_more = and_more or each.forgets_all(row)
                    if len(keys) >= _ROWS_PER_FETCH:
                        yield Obsolete(xid, frozenset(keys))
                        keys.clear()
                yield Obsolete(xid, frozenset(keys), and_more)

    def advance(self, conn: Connection, now: Snapshot) -> bool:
        """Store that all has been sent that ``now`` shows; return whether that is not enough."""
        if self.consumer is None:
            return False
        return advance_consumer(
            conn,
            self.consumer.name,
            now,
            schema=self.schema,
            rebuilt=self.consumer if self.says_too_little else None,
            own_xid=self.consumer.own_xid,
        )

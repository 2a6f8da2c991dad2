"""The table of messages: take them in their order, note what came of them.

Keys fall into buckets. Whoever takes messages locks buckets until the transaction ends, so all that
a key has goes through one relay at a time; and looks into them afterwards, so that it sees what the
one before has passed on. The locks are advisory: a relay that waits for a broker holds back neither
vacuum nor anybody who emits.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    SmallInteger,
    and_,
    any_,
    bindparam,
    column,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from datapatterns.cqrs.messages.drafts import BUCKETS
from datapatterns.cqrs.messages.passing_on import Message, Refusal
from datapatterns.cqrs.schema import outbox_table
from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.server import check_writable

BUCKETS_MAX: Final = 16
"""How many buckets one relay takes at once; the others are left to others."""

BACKOFF_SECONDS: Final = 1.0
BACKOFF_SECONDS_MAX: Final = 300.0


class Batch(NamedTuple):
    """Messages that one transaction has taken.

    Attributes:
        more: Whether there may be others that nobody has taken.
    """

    messages: list[Message]
    more: bool


@dataclass(frozen=True, slots=True)
class Outbox:
    """The messages in one schema.

    Attributes:
        schema: Where the library's tables are.
    """

    schema: str = DEFAULT_SCHEMA

    def take(self, conn: Connection, *, limit: int = 100) -> list[Message]:
        """Return the next messages, which nobody else gets before this transaction ends.

        Once they are passed on, say so by `remove`; what is not said is taken again. Those of one
        key come in their order. None comes whose key has an earlier one that waits to be tried
        again.

        Args:
            conn: A connection in a transaction.
            limit: At most.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED, so it may not see what
                another relay has passed on.
            ValueError: ``limit`` is not positive.
        """
        return self.take_batch(conn, limit=limit).messages

    def take_batch(self, conn: Connection, *, limit: int) -> Batch:
        """Do as `take`, and say whether that may be all."""
        check_limit(limit)
        check_writable(conn)
        locks = [_bucket_lock(self.schema, bucket) for bucket in range(BUCKETS)]
        buckets_max = min(limit, BUCKETS_MAX)
        wanted = {"locks": locks, "wanted": buckets_max}
        held = conn.scalars(_lock_statement(self.schema), wanted).all()
        if not held:
            return Batch([], more=False)
        # A later statement: whoever had a bucket before has committed what it has passed on.
        rows = conn.execute(_take_statement(self.schema), {"held": held, "limit": limit})
        messages = [Message(*row) for row in rows]
        # As many buckets as it may have: there may be others, of which it has seen nothing.
        return Batch(messages, more=len(messages) >= limit or len(held) >= buckets_max)

    def remove(self, conn: Connection, messages: Collection[Message]) -> int:
        """Delete messages that were passed on; return how many there were."""
        outbox = outbox_table(self.schema)
        done = conn.execute(delete(outbox).where(_among([message.id for message in messages])))
        return done.rowcount

    def put_off(
        self, conn: Connection, refusals: Sequence[Refusal], *, attempts_max: int | None = None
    ) -> None:
        """Let messages that could not be passed on wait, each time twice as long, or give them up.

        Args:
            conn: A connection in the transaction that took them.
            refusals: Which, and why.
            attempts_max: After so many attempts a message is given up, and those of its key that
                follow go on without it; unless given, none ever is.
        """
        outbox = outbox_table(self.schema)
        for refused in refusals:
            attempts = refused.message.attempts + 1
            given_up = attempts_max is not None and attempts >= attempts_max
            pause = min(BACKOFF_SECONDS * 2 ** min(attempts - 1, 30), BACKOFF_SECONDS_MAX)
            later = func.clock_timestamp() + timedelta(seconds=pause)
            conn.execute(
                update(outbox)
                .where(outbox.c.id == refused.message.id)
                .values(
                    attempts=attempts,
                    error=refused.error,
                    retry_at=None if given_up else later,
                    given_up_at=func.clock_timestamp() if given_up else None,
                )
            )

    def given_up(self, conn: Connection, *, limit: int = 1_000) -> list[Message]:
        """Return messages that were given up, oldest first."""
        outbox = outbox_table(self.schema)
        gone = _messages(self.schema).where(outbox.c.given_up_at.is_not(None))
        return [Message(*row) for row in conn.execute(gone.order_by(outbox.c.id).limit(limit))]

    def take_back(self, conn: Connection, message_ids: Collection[str] | None = None) -> int:
        """Let messages that were given up, or wait, be tried at once; return how many.

        Those of one key that followed may have been passed on before them.
        """
        outbox = outbox_table(self.schema)
        these = true() if message_ids is None else outbox.c.dedupe.in_(message_ids)
        stuck = or_(outbox.c.given_up_at.is_not(None), outbox.c.retry_at.is_not(None))
        done = conn.execute(
            update(outbox).where(stuck, these).values(retry_at=None, given_up_at=None)
        )
        return done.rowcount

    def forget(self, conn: Connection, *, older_than: timedelta, limit: int = 10_000) -> int:
        """Delete at most ``limit`` messages that were given up so long ago; return how many."""
        check_limit(limit)
        outbox = outbox_table(self.schema)
        old = (
            select(outbox.c.id)
            .where(outbox.c.given_up_at < func.clock_timestamp() - older_than)
            .order_by(outbox.c.given_up_at)
            .limit(limit)
        )
        return conn.execute(delete(outbox).where(outbox.c.id.in_(old))).rowcount


def _bucket_lock(schema: str, bucket: int) -> int:
    # PostgreSQL knows advisory locks by a number of 64 bits, one space for all that use them.
    digest = sha256(f"{schema}.outbox.{bucket}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _among(ids: list[int]) -> ColumnElement[bool]:
    return column("id", BigInteger) == any_(bindparam("ids", ids, ARRAY(BigInteger)))


def _due(schema: str) -> ColumnElement[bool]:
    outbox = outbox_table(schema)
    earlier = outbox.alias("earlier")
    now = func.statement_timestamp()
    waits_behind = exists().where(
        earlier.c.key == outbox.c.key, earlier.c.id < outbox.c.id, earlier.c.retry_at > now
    )
    due = or_(outbox.c.retry_at.is_(None), outbox.c.retry_at <= now)
    return and_(outbox.c.given_up_at.is_(None), due, ~waits_behind)


@cache
def _lock_statement(schema: str) -> Select[tuple[int]]:
    outbox = outbox_table(schema)
    locks = (
        func.unnest(bindparam("locks", type_=ARRAY(BigInteger)))
        .table_valued(column("lock", BigInteger), with_ordinality="place", name="buckets")
        .render_derived()
    )
    bucket = (locks.c.place - 1).cast(SmallInteger)
    first = (
        select(outbox.c.id)
        .where(outbox.c.bucket == bucket, _due(schema))
        .order_by(outbox.c.id)
        .limit(1)
        .lateral("first")
    )
    # Materialized, or locks might be tried on more buckets than are taken.
    full = (
        select(bucket.label("bucket"), locks.c.lock)
        .join_from(locks, first, true())
        .order_by(first.c.id)
        .cte("full_ones")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        select(full.c.bucket)
        .where(func.pg_try_advisory_xact_lock(full.c.lock))
        .limit(bindparam("wanted", type_=Integer))
    )


@cache
def _take_statement(schema: str) -> Select[Any]:
    outbox = outbox_table(schema)
    held = any_(bindparam("held", type_=ARRAY(SmallInteger)))
    return (
        _messages(schema)
        .where(outbox.c.bucket == held, _due(schema))
        .order_by(outbox.c.id)
        .limit(bindparam("limit", type_=Integer))
    )


def _messages(schema: str) -> Select[Any]:
    c = outbox_table(schema).c
    return select(
        c.id,
        c.dedupe,
        c.topic,
        c.key,
        c.payload,
        c.position,
        c.projection,
        c.created_at,
        c.attempts,
    )

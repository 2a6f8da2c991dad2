"""Which streams a category has, or had: the keys for questions over many of them."""

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, Text, bindparam, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.events import LIMIT_MAX, StreamId
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.states.subjects import Subject, subject_name


def list_keys(  # noqa: PLR0913 -- StateStore binds the schema
    conn: Connection,
    subject: Subject,
    *,
    tenant: str,
    schema: str,
    at: datetime | None,
    after: str,
    limit: int,
) -> list[str]:
    """Do what `EventStore.list_keys` promises."""
    if limit < 1:
        raise ValueError(f"a page of {limit} keys cannot move on; ask for at least 1")
    if at is not None and at.utcoffset() is None:
        raise ValueError(f"{at} has no time zone; give one, so that it is one instant")
    if subject.category is None:
        raise AggregateError(
            subject_name(subject), 'has no category; add category="..." to its class'
        )
    StreamId(subject.category, "any", tenant)  # refuses what cannot name a tenant
    keys = conn.scalars(
        _keys_statement(schema, is_past=at is not None),
        {
            "tenant": tenant,
            "category": subject.category,
            "after": after,
            "limit": min(limit, LIMIT_MAX),
            **({} if at is None else {"at": at}),
        },
    )
    return list(keys)


@cache
def _keys_statement(schema: str, *, is_past: bool) -> Select[Any]:
    streams = event_tables(schema).streams
    begun = [streams.c.created_at <= bindparam("at", type_=TIMESTAMP(timezone=True))]
    return (
        select(streams.c.key)
        .where(
            streams.c.tenant == bindparam("tenant", type_=Text),
            streams.c.category == bindparam("category", type_=Text),
            streams.c.key > bindparam("after", type_=Text),
            *(begun if is_past else []),
        )
        .order_by(streams.c.key)
        .limit(bindparam("limit", type_=BigInteger))
    )

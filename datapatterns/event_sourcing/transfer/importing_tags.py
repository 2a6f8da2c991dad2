"""Tags of imported events: locked before they are written, and indexed afterwards."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    null,
    select,
    true,
)

from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.sql.unnesting import unnested


def tags_by_tenant(
    events: Iterable[tuple[str, Iterable[EncodedEvent]]],
) -> dict[str, set[str]]:
    """Return the tags of ``events``, which are given by tenant."""
    tags: dict[str, set[str]] = {}
    for tenant, of_tenant in events:
        for event in of_tenant:
            if event.tags:
                tags.setdefault(tenant, set()).update(event.tags)
    return tags


def lock_tags(conn: Connection, tags: Mapping[str, Iterable[str]], *, schema: str) -> None:
    """Take the locks that writers of these tags take, by tenant; call it before streams are locked.

    A condition on one of them then waits for the import, or the import for it.
    """
    for tenant, of_tenant in sorted(tags.items()):
        lock = event_tables(schema).function(
            "lock_tags",
            bindparam("tenant", tenant, type_=Text()),
            bindparam("shared", sorted(of_tenant), type_=ARRAY(Text)),
            cast(null(), ARRAY(Text)),
        )
        conn.execute(select(cast(lock, Text)))


def index_tags(conn: Connection, streams: Mapping[int, int], *, schema: str) -> None:
    """Make the entries by which tags are looked up, as an append does.

    ``streams`` are those that were written to: by their ids, the versions before.
    """
    written = {"written_id": [*streams], "written_version": [*streams.values()]}
    conn.execute(_index_statement(schema), written)


@cache
def _index_statement(schema: str) -> Any:  # noqa: ANN401 -- Core has no public name for it
    tables = event_tables(schema)
    events = tables.events
    written = unnested("written", {"id": BigInteger(), "version": BigInteger()})
    tag = func.unnest(events.c.tags).table_valued(column("tag", Text), name="tag")
    tagged = tag.render_derived()
    entries = (
        select(tables.streams.c.tenant, tagged.c.tag, events.c.position, events.c.type_id)
        .select_from(written)
        .join(tables.streams, tables.streams.c.id == written.c.id)
        .join(
            events,
            (events.c.stream_id == written.c.id) & (events.c.version > written.c.version),
        )
        .join(tagged, true())
        .distinct()
    )
    return insert(tables.tags).from_select(["tenant", "tag", "position", "type_id"], entries)

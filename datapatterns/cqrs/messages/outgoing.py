"""Put what handlers have emitted into the outbox, in the transaction of what they did."""

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Connection,
    SmallInteger,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.messages.drafts import Emitted, bucket_of
from datapatterns.cqrs.schema import outbox_table
from datapatterns.cqrs.tables.parts import row_digest
from datapatterns.event_sourcing.events import Position

_COLUMNS = {
    "dedupe": Text,
    "topic": Text,
    "key": Text,
    "bucket": SmallInteger,
    "payload": Text,
    "position": BigInteger,
}


def store_messages(
    conn: Connection, schema: str, projection: type[Projection], emitted: Sequence[Emitted]
) -> None:
    """Store messages in their order, each of which is known by the event and row it is from."""
    if not emitted:
        return
    numbers: Counter[tuple[Position, bytes]] = Counter()
    rows = []
    for position, table, row_key, draft in emitted:
        digest = row_digest(projection, table, row_key)
        number = numbers[position, digest]
        numbers[position, digest] += 1
        dedupe = f"{projection.name}:{position}:{digest.hex()}:{number}"
        key = digest.hex() if draft.key is None else draft.key
        rows.append((dedupe, draft.topic, key, bucket_of(key), draft.payload, position))
    types = [kind() for kind in _COLUMNS.values()]
    arrays = [
        bindparam(f"v{i}", list(values), ARRAY(types[i]))
        for i, values in enumerate(zip(*rows, strict=True))
    ]
    named = [column(name, kind) for name, kind in zip(_COLUMNS, types, strict=True)]
    page = (
        func.unnest(*arrays)
        .table_valued(*named, with_ordinality="place", name="page")
        .render_derived()
    )
    values = [cast(c, JSONB) if c.name == "payload" else c for c in page.c if c.name != "place"]
    outbox = outbox_table(schema)
    stored = insert(outbox).from_select(
        ["projection", *_COLUMNS],
        select(literal(projection.name), *values).order_by(page.c.place),
        include_defaults=False,
    )
    # What was emitted is known by what it follows from, so a second time it is the same message.
    conn.execute(stored.on_conflict_do_nothing(index_elements=["dedupe"]))

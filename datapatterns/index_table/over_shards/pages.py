"""Read rows page by page, and make entries of a page in one statement for each index shard.

Values go from server to server as the arrays that one has written and the other reads, and are not
taken apart in between: that, and not the servers' work, is what a backfill would spend its time on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    FromClause,
    Insert,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.sql.elements import Grouping

from datapatterns.index_table.over_shards.net_changes import Entry, Included
from datapatterns.index_table.over_shards.sharded_index import (
    CLAIM,
    CLAIMED_AT,
    ShardedIndex,
    as_text,
    from_text,
)
from datapatterns.sql.metadata import declared_once

_ORDINAL: Final = "datapatterns_ordinal"


@dataclass(frozen=True, slots=True)
class Portion:
    """The rows of a page whose entries belong on one shard.

    Attributes:
        rows: How many.
        buckets: Where their entries belong.
        packed: Each column of the index, as an array in the words of the server.
    """

    rows: int
    buckets: tuple[int, ...]
    packed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of one shard, in the order of their primary keys.

    Attributes:
        rows: How many there are.
        portions: They, by the shards of their entries.
        last: The primary key of the last one, as texts; None if there is none.
    """

    rows: int
    portions: Mapping[str, Portion]
    last: tuple[str, ...] | None


def read_page(
    conn: Connection,
    index: ShardedIndex,
    owners: Sequence[str],
    *,
    after: Sequence[str] | None,
    limit: int,
) -> Page:
    """Return the next rows that belong into the index.

    Args:
        conn: In a transaction on a shard.
        index: Which index.
        owners: The shard of each bucket of the index.
        after: Primary key of the last row of the page before, as texts.
        limit: At most how many rows.
    """
    values: dict[str, Any] = {"owners": list(owners), "limit": limit}
    if after is not None:
        values |= {f"after_{at}": text for at, text in enumerate(after)}
    found = conn.execute(_page((index, after is not None)), values).all()
    width = len(index.definition.columns)
    portions = {
        row.owner: Portion(row.rows, tuple(row.buckets), tuple(row[-width:])) for row in found
    }
    last = tuple(found[0].last) if found else None
    return Page(sum(each.rows for each in portions.values()), portions, last)


def make_entries(
    conn: Connection, index: ShardedIndex, portion: Portion
) -> list[tuple[Entry, Included]]:
    """Make an entry for each row of ``portion``; return those whose key another row has.

    An entry that is there already gets a fresh claim: a transaction that has made it may still
    fail, and would take it away with it.
    """
    packed = {f"c{at}": array for at, array in enumerate(portion.packed)}
    made = conn.execute(_made(index), packed).rowcount
    if made == portion.rows:
        return []
    width = len(index.names)
    rows = conn.execute(_contested(index), packed)
    return [(index.entry(row[:width]), tuple(row[width:])) for row in rows]


def packed_rows(width: int) -> FromClause:
    """Return a relation of texts that parameters ``c0``, ``c1`` and so on hold, as arrays."""
    arrays = [cast(cast(bindparam(f"c{at}", type_=Text), Text), ARRAY(Text)) for at in range(width)]
    columns = [column(f"c{at}", Text) for at in range(width)]
    return func.unnest(*arrays).table_valued(*columns, name="wanted").render_derived()


def beyond(index: ShardedIndex) -> ColumnElement[bool]:
    """Return the condition that a row comes after that of the parameters ``after_0`` and so on."""
    primary = list(index.definition.base.primary_key.columns)
    last = [
        from_text(cast(bindparam(f"after_{at}", type_=Text), Text), own)
        for at, own in enumerate(primary)
    ]
    return tuple_(*primary) > tuple_(*last)


def bucket_in_index(index: ShardedIndex) -> ColumnElement[int]:
    """Return the bucket of the entry of a row of the base table."""
    name = next(iter(index.definition.key))
    key = index.definition.projection(index.definition.base)[name]
    return index.group.bucket_of(key, strategy=index.group.strategy, schema=index.definition.schema)


@declared_once
def _page(asked: tuple[ShardedIndex, bool]) -> Select[Any]:
    index, is_later = asked
    base = index.definition.base
    primary = list(base.primary_key.columns)
    texts = index.as_texts(base, index.definition.columns)
    page = (
        select(
            *(text.label(f"c{at}") for at, text in enumerate(texts)),
            *(as_text(own).label(f"p{at}") for at, own in enumerate(primary)),
            bucket_in_index(index).label("bucket"),
            func.row_number().over(order_by=primary).label(_ORDINAL),
        )
        .where(index.definition.is_indexed(base), beyond(index) if is_later else true())
        .order_by(*primary)
        .limit(bindparam("limit", type_=Integer))
        .cte("page")
    )
    owners = Grouping(cast(bindparam("owners"), ARRAY(Text)))
    placed = select(page, owners[page.c.bucket + 1].label("owner")).cte("placed")
    last_key = func.jsonb_build_array(*(placed.c[f"p{at}"] for at in range(len(primary))))
    last = select(last_key).order_by(placed.c[_ORDINAL].desc()).limit(1).scalar_subquery()
    return select(
        placed.c.owner,
        func.count().label("rows"),
        last.label("last"),
        func.array_agg(placed.c.bucket.distinct()).label("buckets"),
        *(cast(func.array_agg(placed.c[f"c{at}"]), Text) for at in range(len(texts))),
    ).group_by(placed.c.owner)


@declared_once
def _made(index: ShardedIndex) -> Insert:
    names, table = [*index.definition.columns], index.table
    wanted = packed_rows(len(names))
    texts = {name: wanted.c[f"c{at}"] for at, name in enumerate(names)}
    # In the order of those who claim, so that two cannot wait for each other. And each once: two
    # rows with one key may be in one page.
    identity = [texts[own.name] for own in index.identity]
    source = (
        select(*(from_text(texts[name], table.c[name]) for name in names), func.gen_random_uuid())
        .ext(distinct_on(*identity))
        .order_by(*identity, *(texts[own.name] for own in index.row_columns))
    )
    made = insert(table).from_select([*names, CLAIM], source)
    made = made.execution_options(preserve_rowcount=True)
    return made.on_conflict_do_update(
        index_elements=index.identity,
        set_={CLAIM: made.excluded[CLAIM], CLAIMED_AT: func.now()},
        where=and_(*(own == made.excluded[own.name] for own in index.row_columns)),
    )


@declared_once
def _contested(index: ShardedIndex) -> Select[Any]:
    names, table = [*index.definition.columns], index.table
    wanted = packed_rows(len(names))
    texts = {name: wanted.c[f"c{at}"] for at, name in enumerate(names)}
    same = [own == from_text(texts[own.name], own) for own in index.entry_columns]
    has_entry = select(literal_column("1")).select_from(table).where(*same).exists()
    return select(*texts.values()).where(~has_entry)

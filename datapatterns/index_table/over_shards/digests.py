"""Compare an index with its table by sums of hashes, one scan of either.

A sum does not depend on the order of rows, nor on how they are spread over shards. Both sides are
cut into parts by a hash of their entries, so what differs is known to be in few of them.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Numeric,
    Select,
    cast,
    collate,
    func,
    select,
    true,
)

from datapatterns.errors import IndexDefinitionError, StaleShardMapError
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, as_text
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.maps.ownership import agrees_with_map
from datapatterns.transactions import fresh_reads, reading

PARTS: Final = 4_096
"""How many parts. A part that differs is read row by row; a number for each is kept in memory."""

_LOOKS_MAX: Final = 20
"""How often a side is read anew because a bucket was handed over while it was begun."""

Digest: TypeAlias = Mapping[int, tuple[int, int]]
"""Of each part how many entries, and the sum of their hashes."""


def base_digest(access: ShardAccess, index: ShardedIndex) -> Digest:
    """Return the digest of what the rows of all shards say should be in the index.

    Raises:
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: Buckets are handed over all the time.
    """
    base = index.definition.base
    shard_key = shard_key_of(access, index)
    names = index.definition.columns
    images = dict(zip(names, index.as_texts(base, names), strict=True))
    return _digest(access, index, shard_key, base, images, index.definition.is_indexed(base))


def index_digest(access: ShardAccess, index: ShardedIndex) -> Digest:
    """Return the digest of what is in the index, as `base_digest` does."""
    own = index.table
    images = {name: as_text(own.c[name]) for name in index.definition.columns}
    return _digest(access, index, shard_key_of(access, index, own), own, images, true())


def differing(one: Digest, other: Digest) -> frozenset[int]:
    """Return the parts in which two digests differ."""
    return frozenset(part for part in {*one, *other} if one.get(part) != other.get(part))


def is_in(
    images: Mapping[str, ColumnElement[str]], index: ShardedIndex, parts: Iterable[int]
) -> ColumnElement[bool]:
    """Return the condition that an entry is in one of ``parts``."""
    return _part(images, index).in_(sorted(parts))


def shard_key_of(
    access: ShardAccess, index: ShardedIndex, table: FromClause | None = None
) -> ShardKey:
    """Return what a table is sharded by; unless given, that whose rows are found.

    Raises:
        IndexDefinitionError: It is not sharded.
    """
    found = access.placements.shard_key(index.definition.base if table is None else table)
    if found is None:
        raise IndexDefinitionError(index.name, "its table is not sharded; keep it in mode 'local'")
    return found


def _digest(
    access: ShardAccess,
    index: ShardedIndex,
    shard_key: ShardKey,
    rows: FromClause,
    images: Mapping[str, ColumnElement[str]],
    wanted: ColumnElement[bool],
) -> Digest:
    part = _part(images, index)
    summed = func.sum(cast(_hash(images, index.definition.columns), Numeric))
    statement: Any = (
        select(part, func.count(), summed).select_from(rows).where(wanted).group_by(part)
    )
    for _ in range(_LOOKS_MAX - 1):
        try:
            return _added(access, shard_key, statement, rows)
        except StaleShardMapError:
            continue  # the map has been read again
    return _added(access, shard_key, statement, rows)


def _added(
    access: ShardAccess, shard_key: ShardKey, statement: Select[Any], rows: FromClause
) -> Digest:
    shard_map = access.router.map_of(shard_key.group)
    key = shard_key.of(rows.c)

    def ask(shard: str) -> list[Any]:
        # In the snapshot of the statement a shard has just what the map says, and of what is
        # underway it counts nothing that is another's. So each row is read on one shard.
        mine = [
            shard_key.group.predicate(
                key, bucket, strategy=shard_map.strategy, schema=access.schema
            ).is_not(true())
            for bucket in shard_map.elsewhere(shard)
        ]
        agreed = agrees_with_map(shard_map, shard, schema=access.schema)
        with (
            access.asking(shard),
            fresh_reads(access.companions.side_engines[shard]) as conn,
            reading(conn),
        ):
            return list(conn.execute(statement.where(agreed, *mine)))

    questions = {shard: partial(ask, shard) for shard in access.companions.side_engines}
    answers = access.fan_out.answers(questions)
    added: dict[int, tuple[int, int]] = {}
    for answer in answers.values():
        for part, count, total in answer.result():
            before = added.get(part, (0, 0))
            added[part] = before[0] + count, before[1] + int(total)
    return added


def _part(images: Mapping[str, ColumnElement[str]], index: ShardedIndex) -> ColumnElement[int]:
    return _hash(images, index.names).op("&", return_type=BigInteger())(PARTS - 1)


def _hash(images: Mapping[str, ColumnElement[str]], names: Iterable[str]) -> ColumnElement[int]:
    # Texts: they are what entries are compared by. Under "C", whatever the database sorts by.
    row = func.row(*(collate(images[name], "C") for name in names))
    return func.hash_record_extended(row, 0, type_=BigInteger)

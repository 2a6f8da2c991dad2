"""The statements that load objects by their primary key, each made once."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Select, bindparam, select
from sqlalchemy.orm import Mapper

from datapatterns.errors import UnroutableStatementError
from datapatterns.sharding.maps.ownership import owns_one
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.footprint import Footprint, footprint_of
from datapatterns.sharding.routing.guarded import with_guard
from datapatterns.sharding.routing.placements import Placements

_PREPARED_MAX = 1_000
_GROUP, _BUCKET, _GENERATION = "dp_group_id", "dp_bucket", "dp_generation"


@dataclass(frozen=True, slots=True)
class PreparedGet:
    """How the objects of a class are loaded.

    Attributes:
        statement: With the guard of one bucket; all values are parameters.
        names: What those of the primary key are called.
        footprint: What it reads.
    """

    statement: Select[Any]
    names: tuple[str, ...]
    footprint: Footprint

    def guard(self, shard_map: ShardMap, bucket: int) -> dict[str, int]:
        """Return the values of the guard."""
        (generation,) = shard_map.generations_of((bucket,))
        return {_GROUP: shard_map.group_id, _BUCKET: bucket, _GENERATION: generation}


class PreparedGets:
    """Remembers them by class."""

    def __init__(self) -> None:
        self._prepared: dict[Mapper[Any], PreparedGet | None] = {}

    def of(self, mapper: Mapper[Any], placements: Placements, *, schema: str) -> PreparedGet | None:
        """Return how to load objects of a class; None if that takes a look at each statement."""
        try:
            return self._prepared[mapper]
        except KeyError:
            pass
        try:
            prepared = _prepare(mapper, placements, schema)
        except UnroutableStatementError:
            return None  # that look will tell
        while len(self._prepared) >= _PREPARED_MAX:
            # Another thread may have dropped the oldest one just now.
            self._prepared.pop(next(iter(self._prepared)), None)
        self._prepared[mapper] = prepared
        return prepared


def _prepare(mapper: Mapper[Any], placements: Placements, schema: str) -> PreparedGet | None:
    names = tuple(f"pk_{place}" for place, _ in enumerate(mapper.primary_key, 1))
    statement = select(mapper).where(
        *(
            column == bindparam(name, type_=column.type)
            for column, name in zip(mapper.primary_key, names, strict=True)
        )
    )
    footprint = footprint_of(statement, placements)
    binds = {
        bind.key
        for block in footprint.blocks
        for condition in (*block.conditions, *block.outer_conditions)
        for bind in condition.binds
    }
    is_simple = footprint.blocks and not footprint.broadcast and not footprint.early
    if not is_simple or not binds <= set(names):
        return None
    guard = owns_one(
        schema, *(bindparam(name, type_=Integer) for name in (_GROUP, _BUCKET, _GENERATION))
    )
    return PreparedGet(with_guard(statement, guard), names, footprint)

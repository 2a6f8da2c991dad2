"""What references may do with the transaction of a session over shards."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.sessions.shard_work import ShardWork


@dataclass(frozen=True, slots=True)
class SessionReach:
    """The transaction of a session.

    Attributes:
        session: Which session.
        work: Its transaction.
    """

    session: Session
    work: ShardWork

    def connect(self, shards: Collection[str]) -> dict[str, Connection]:
        """Return its connections to the primaries of shards."""
        for shard in shards:
            self.work.hold(shard)  # what a replica shows may be what was there before
        self.work.parts.open(shards)
        return {shard: self.work.connection_to(shard) for shard in shards}

    def write_to(self, shard: str) -> None:
        """Take note that the transaction writes there.

        Raises:
            MultiShardWriteError: It has written to another one, and the session is not atomic.
        """
        self.work.become_writer(shard)

    def claim(self, shard: str, shard_map: ShardMap, buckets: Collection[int]) -> None:
        """Keep buckets on a shard until the transaction ends."""
        self.work.claim(shard, shard_map, buckets)

    def is_in_savepoint(self) -> bool:
        """Return whether what it locks now may be given back before its end."""
        return self.session.in_nested_transaction()

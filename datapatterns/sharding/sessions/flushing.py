"""Objects of a session over shards, as a flush writes them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.orm import Session

from datapatterns.errors import MultiShardWriteError, ShardKeyError
from datapatterns.sharding.routing.instances import declared_key, key_of
from datapatterns.sharding.sessions.broadcast_writing import BroadcastWriting
from datapatterns.sharding.sessions.reference_writing import ReferenceWriting
from datapatterns.sharding.sessions.shard_work import ShardWork


@dataclass(frozen=True, slots=True)
class Flushing:
    """Finds the shards of objects for a session.

    Attributes:
        session: Whose objects.
        work: Its transaction.
        broadcasting: Writes those that every shard holds.
        referring: Checks those that refer to others, or are referred to.
    """

    session: Session
    work: ShardWork
    broadcasting: BroadcastWriting
    referring: ReferenceWriting

    def check_pending(self) -> None:
        """Refuse what cannot commit together, before anything is sent.

        Raises:
            MultiShardWriteError: The objects belong to several shards.
        """
        if self.work.atomic:
            return
        access = self.work.access
        shards = set(self.work.written)
        for instance in (*self.session.new, *self.session.dirty, *self.session.deleted):
            if instance in self.session.dirty and not self.session.is_modified(instance):
                continue
            mapper = inspect(instance).mapper
            if access.placements.is_broadcast(mapper.local_table):
                continue
            shard_key = declared_key(mapper, access.placements)
            key = key_of(instance, shard_key)
            if key is not None:
                shards.add(access.router.map_of(shard_key.group).shard_of(key))
        if len(shards) > 1:
            raise MultiShardWriteError(shards)

    def connection_for(
        self,
        mapper: Any = None,  # noqa: ANN401 -- as SQLAlchemy declares it
        instance: object | None = None,
        **_named: Any,  # noqa: ANN401 -- as SQLAlchemy declares it
    ) -> Connection:
        """Return the connection that an object is written on; SQLAlchemy asks in a flush."""
        access = self.work.access
        if instance is not None and access.placements.is_broadcast(mapper.local_table):
            return self.broadcasting.flushing(instance)
        # Rows that this one refers to must be on its shard, too.
        self.broadcasting.copy_flushed()
        shard_key = declared_key(mapper, access.placements)
        group = shard_key.group
        key = key_of(instance, shard_key)
        if key is None:
            raise ShardKeyError(group.name, f"{shard_key.named} of a new object is not set")
        shard_map = access.router.map_of(group)
        shard_id = shard_map.shard_of(key)
        bucket = shard_map.strategy.bucket(key)
        self.work.become_writer(shard_id)
        self.work.claim(shard_id, shard_map, (bucket,))
        self.work.flushed.wrote(shard_map, bucket, key)
        conn = self.work.connection_to(shard_id)
        if instance is not None:
            self.referring.flushes(instance, conn)
        return conn

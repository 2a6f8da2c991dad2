"""Keep the shard map in memory, and know when it has changed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import tables_needed
from datapatterns.sharding.maps.elsewhere import load_moving
from datapatterns.sharding.maps.loading import load_epochs, load_maps
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.metadata import DEFAULT_SCHEMA

logger = logging.getLogger(__name__)


class Router:
    """Says which shard holds a key, from a map that is looked after but may be a little old.

    An old map does no harm: shards answer only for what they own, and what they refuse makes the
    router read the map again. So the control database may be away while routing goes on.
    """

    def __init__(
        self,
        control: Engine,
        groups: Sequence[EntityGroup],
        *,
        shards: Sequence[str],
        schema: str = DEFAULT_SCHEMA,
        poll_seconds: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._control = control
        self._groups = tuple(groups)
        self._shards = frozenset(shards)
        self._schema = schema
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._moving: Mapping[int, frozenset[int]] = {}
        self._lock = Lock()
        self._polled_at = clock.monotonic()
        self._maps: Mapping[str, ShardMap] = self._load()

    def map_of(self, group: EntityGroup) -> ShardMap:
        """Return the map of ``group``; asks for its epoch if that was not done for a while."""
        if self._clock.monotonic() - self._polled_at >= self._poll_seconds:
            self._poll()
        return self._maps[group.name]

    def maps(self) -> list[ShardMap]:
        """Return the maps of all groups, as `map_of` does."""
        return [self.map_of(group) for group in self._groups]

    def refresh(self) -> None:
        """Read the map again; keep the old one if the control database does not answer.

        Raises:
            ConfigurationError: The new map does not go with what the code declares.
            ShardMapCorruptError: The new map is incomplete.
        """
        try:
            self._read()
        except OperationalError:
            logger.warning("no answer from the control database; the shard map may be old")

    def newest(self, group: EntityGroup) -> ShardMap:
        """Read the map again, and return what was read, whatever other threads have read.

        Raises:
            ConfigurationError: The new map does not go with what the code declares.
            OperationalError: The control database does not answer.
            ShardMapCorruptError: The new map is incomplete.
        """
        return self._read()[group.name]

    def _read(self) -> Mapping[str, ShardMap]:
        self._polled_at = self._clock.monotonic()
        self._maps = maps = self._load()
        return maps

    def _poll(self) -> None:
        # One thread asks, the others go on with what they have.
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._polled_at = self._clock.monotonic()
            with self._control.connect() as conn:
                epochs = load_epochs(conn, schema=self._schema)
                moving = load_moving(conn, schema=self._schema)
            maps = self._maps.items()
            if moving != self._moving or any(epochs.get(n) != known.epoch for n, known in maps):
                self.refresh()
        except OperationalError:
            logger.warning("no answer from the control database; the shard map may be old")
        finally:
            self._lock.release()

    def _load(self) -> dict[str, ShardMap]:
        with tables_needed(self._schema), self._control.connect() as conn:
            # Before the map is read: a move that ends in between is left out of nothing.
            moving = load_moving(conn, schema=self._schema)
            maps = load_maps(conn, self._groups, shards=self._shards, schema=self._schema)
        self._moving = moving
        return {
            name: replace(found, moving=moving.get(found.group_id, frozenset()))
            for name, found in maps.items()
        }

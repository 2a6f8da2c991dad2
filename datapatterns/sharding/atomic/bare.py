"""Connections of the driver, for as long as a transaction does nothing but ask on them.

SQLAlchemy's own connection around each costs as much as a short query; it is made when somebody
needs it, and finds the transaction as it is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection

from datapatterns.sharding.engines import has_idle_connection
from datapatterns.sharding.listening import others_listen
from datapatterns.sharding.reaching.at_once import Talk, all_at_once
from datapatterns.sharding.reaching.conversation import (
    can_converse,
    can_roll_back,
    is_at_rest,
    roll_back,
)
from datapatterns.sql.poolers import is_pooled


class BareConnections:
    """Those of one transaction.

    Args:
        engines: Whose connections they are, by shard.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._held: dict[str, PoolProxiedConnection] = {}

    @property
    def shards(self) -> tuple[str, ...]:
        """Return the shards that there are connections to."""
        return tuple(self._held)

    def can_ask(self, shard: str) -> bool:
        """Return whether nobody wants to know what is executed there, and how."""
        engine = self._engines[shard]
        return not (
            others_listen(engine)
            or engine._execution_options  # noqa: SLF001 -- there is no public name
            or engine._should_log_info()  # noqa: SLF001 -- nor for this
        )

    def take(self, shard: str) -> PoolProxiedConnection | None:
        """Return a connection to a shard if there is one at hand that can be used so."""
        found = self._held.get(shard)
        if found is None and has_idle_connection(self._engines[shard]):
            found = self._held[shard] = self._engines[shard].raw_connection()
        if found is None or not can_converse(found.dbapi_connection, found.info):
            return None
        if is_pooled(found):  # settings come first there, which SQLAlchemy's connection sees to
            return None
        return found

    def dress(self, shard: str) -> Connection | None:
        """Return SQLAlchemy's connection in place of a bare one, if there is one."""
        found = self._held.pop(shard, None)
        return None if found is None else Connection(self._engines[shard], found)

    def close(self) -> None:
        """Roll back on all servers at once, and give all back."""
        held, self._held = self._held, {}
        if not held:
            return
        try:
            _roll_back(held)
        finally:
            _give_back(held.values())


def _roll_back(held: Mapping[str, PoolProxiedConnection]) -> None:
    drivers: dict[str, Any] = {shard: each.dbapi_connection for shard, each in held.items()}
    all_at_once(
        {
            shard: Talk(driver, roll_back(driver))
            for shard, driver in drivers.items()
            if can_roll_back(driver)
        }
    )


def _give_back(held: Iterable[PoolProxiedConnection]) -> None:
    for each in held:
        if not is_at_rest(each.dbapi_connection):
            each.invalidate()  # nobody knows what it is at
        each.close()

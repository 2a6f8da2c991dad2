"""Look at all shards at once."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.transactions import reading

T = TypeVar("T")


def on_each(access: ShardAccess, ask: Callable[[str, Connection], T]) -> dict[str, T]:
    """Ask all shards, each in one snapshot; return the answers in the order of names.

    Returns only when all have answered or failed, so that nobody still uses a connection.

    Raises:
        ShardUnavailableError: One of them does not answer.
    """

    def look(shard: str) -> T:
        with shard_errors(shard), access.engines[shard].connect() as plain:
            conn = plain.execution_options(isolation_level="REPEATABLE READ")
            with reading(conn):
                return ask(shard, conn)

    answers = access.fan_out.answers(
        {shard: partial(look, shard) for shard in sorted(access.engines)}
    )
    return {shard: answer.result() for shard, answer in answers.items()}

"""Ask all shards for columns in one round trip each, without a thread for each of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from psycopg.abc import PQGen
from sqlalchemy import Connection, Dialect
from sqlalchemy.orm import ORMExecuteState

from datapatterns.sharding.maps.ownership import agreement_of, agrees_with_any_map
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.at_once import Talk, all_at_once
from datapatterns.sharding.reaching.conversation import ask
from datapatterns.sharding.routing.guarded import with_guard
from datapatterns.sharding.scatter.plan_cache import Planned
from datapatterns.sharding.scatter.sent import Received, SentStatement, sent_statement
from datapatterns.sharding.sessions.shard_work import ShardWork

# Others may change how a statement is executed.
_KNOWN_OPTIONS = frozenset(("autoflush", "scatter", "shard", "_result_disable_adapt_to_context"))


def columns_at_once(
    work: ShardWork,
    state: ORMExecuteState,
    planned: Planned,
    shard_map: ShardMap,
    shards: Iterable[str],
) -> dict[str, Received] | None:
    """Return the rows of all shards, each of which agrees with the map.

    Args:
        work: The session's transaction.
        state: What is being executed.
        planned: How to answer it.
        shard_map: What the shards are asked to agree with.
        shards: All of them.

    Returns:
        None if that takes more: listeners, replicas, buckets that move, a driver for asyncio.

    Raises:
        ShardUnavailableError: One does not answer.
        StaleShardMapError: One owns other buckets than the map says.
    """
    if not _is_simple(work, state, planned, shard_map):
        return None
    connections = work.beneath(shards)
    if connections is None:
        return None
    sent = _sent(planned, work.access.engines[next(iter(connections))].dialect, work.access.schema)
    if sent is None or sent.lacks({**planned.parameters, **agreement_of(shard_map, "")}):
        return None
    asked = {}
    for shard, conn in connections.items():
        driver: Any = conn.dbapi_connection
        values = {**planned.parameters, **agreement_of(shard_map, shard)}
        asked[shard] = Talk(driver, _rows(driver, sent, values))
    work.missing = ()
    heard = all_at_once(asked)
    if heard.failed is not None:
        shard, error = heard.failed
        with work.access.asking(shard):
            _explain(work.parts.on(shard), error, sent)
    return {shard: heard.given[shard] for shard in asked}


def _rows(driver: Any, sent: SentStatement, values: Mapping[str, Any]) -> PQGen[Received]:  # noqa: ANN401 -- the driver's connection
    return sent.rows(driver, (yield from ask(driver, sent.query(driver, values))))


def _explain(conn: Connection, error: Exception, sent: SentStatement) -> NoReturn:
    """Raise ``error`` as SQLAlchemy does, so that its listeners hear of it."""
    handle: Callable[..., NoReturn] = conn._handle_dbapi_exception  # noqa: SLF001 -- there is no public name
    try:
        raise error
    except type(error):
        handle(error, sent.sql.decode(), {}, None, None)


def _is_simple(
    work: ShardWork, state: ORMExecuteState, planned: Planned, shard_map: ShardMap
) -> bool:
    plan, session = planned.plan, state.session
    return (
        planned.shape is not None
        and plan.combined is None
        and not plan.streamed
        and work.replica_seconds is None
        and not work.access.citus
        and not shard_map.moving
        and not session.dispatch.after_begin
        and not session.execution_options
        and state.local_execution_options.keys() <= _KNOWN_OPTIONS
    )


def _sent(planned: Planned, dialect: Dialect, schema: str) -> SentStatement | None:
    assert planned.shape is not None

    def make() -> SentStatement | None:
        guarded = with_guard(planned.plan.statement, agrees_with_any_map(schema))
        return sent_statement(guarded, dialect)

    return planned.shape.once(schema, make)

"""Ask several shards, let PostgreSQL combine what they send, and give it as a result."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Executable, Result
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData

from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.combining import combine, copy_out
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan
from datapatterns.sharding.scatter.scattering import ask_each
from datapatterns.sharding.scatter.selected import AnySelect

if TYPE_CHECKING:
    from datapatterns.sharding.access import ShardAccess


def gather_in_postgres(
    plan: ScatterPlan,
    statements: Mapping[str, AnySelect],
    connections: Mapping[str, Connection],
    parameters: Parameters,
    *,
    access: "ShardAccess",
) -> list[Sequence[Any]]:
    """Return what one database would say, where Python cannot tell.

    Args:
        plan: How to answer.
        statements: What each shard is asked.
        connections: In whose transactions.
        parameters: The values that the caller passed beside the statement.
        access: The way to the shards.

    Raises:
        MergeLimitError: These are more rows than may be merged.
        MissingRightsError: The role may not create temporary tables.
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: A shard owns other buckets than the map says.
    """
    questions = {
        s: lambda s=s: copy_out(connections[s], statements[s], parameters) for s in statements
    }
    parts = ask_each(access.fan_out, questions)
    with access.combiner.connection([*statements]) as conn:
        return combine(plan, [*parts.values()], conn, parameters)


def as_result(statement: Executable, rows: Sequence[Sequence[Any]]) -> Result[Any]:
    """Return merged rows as a session returns others: by position, name, or column."""
    described = cast("AnySelect", statement).column_descriptions
    names = [str(column["name"]) for column in described]
    columns = [(column["expr"],) for column in described]
    metadata = SimpleResultMetaData(names, columns)
    return IteratorResult(metadata, iter([tuple(row) for row in rows]))

"""Say beforehand which shards a statement asks, and who merges their answers."""

from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.routing.footprint import footprint_of
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.scatter_plan import plan_scatter, refuse_other_shapes

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How a statement is answered.

    Attributes:
        shards: Whom it asks.
        merged_by: Who makes one answer of theirs; nobody if a single shard has all of it.
        sent: What each shard is asked, besides whether it owns what it answers.
        combined: What PostgreSQL is asked about all that the shards sent.
        reason: What Python does not merge exactly.
        index: The index table that says which shards it asks, if it is ready.
    """

    shards: tuple[str, ...]
    merged_by: Literal["python", "postgresql"] | None
    sent: str
    combined: str | None = None
    reason: str | None = None
    index: str | None = None

    def __str__(self) -> str:
        """Return it in a few lines."""
        if self.index is not None:
            return f"the shards of rows that {self.index} finds: {_on_one_line(self.sent)}"
        asked = f"{', '.join(self.shards)}: {_on_one_line(self.sent)}"
        match self.merged_by:
            case None:
                return asked
            case "python":
                return f"{asked}\nmerged in Python"
            case "postgresql":
                combined = _on_one_line(self.combined or "")
                return f"{asked}\ncombined in PostgreSQL, because of {self.reason}: {combined}"


def explain(access: ShardAccess, statement: SelectBase, parameters: Parameters) -> ReadPlan:
    """Return how ``statement`` would be answered if it may ask all shards; asks none.

    Raises:
        MergeLimitError: It asks for more rows than may be merged.
        UnmergeableQueryError: The answers of several shards cannot be merged exactly.
        UnroutableStatementError: It cannot be told what it reads.
    """
    footprint = footprint_of(statement, access.placements)
    shard_map = access.router.map_of(footprint.group)
    buckets = footprint.buckets(parameters, shard_map.strategy)
    options = cast("Executable", statement).get_execution_options()
    if buckets is None and options.get("index", "") is not None:
        finding = access.companions.finding(access, statement, parameters)
        if finding is not None:
            return ReadPlan((), None, _sql(statement), index=finding.index)
    shards = shard_map.owners if buckets is None else shard_map.shards_of(buckets)
    named = tuple(sorted(set(shards)))
    if len(named) <= 1 and buckets is not None:
        return ReadPlan(named or shard_map.owners[:1], None, _sql(statement))
    selected = refuse_other_shapes(statement, footprint)
    plan = plan_scatter(selected, footprint, parameters, rows_max=access.merge_rows_max)
    if plan.combined is None:
        return ReadPlan(named, "python", _sql(plan.statement))
    return ReadPlan(named, "postgresql", _sql(plan.statement), _sql(plan.combined), plan.reason)


def _sql(statement: SelectBase) -> str:
    return str(statement.compile(dialect=_DIALECT))


def _on_one_line(sql: str) -> str:
    return " ".join(sql.split())

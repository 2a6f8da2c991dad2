"""Whether an answer without some shards is a part of the right one, or is wrong."""

from datapatterns.errors import PartialAnswerError
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan
from datapatterns.sharding.scatter.selected import AnySelect, distinct_on_of


def refuse_wrong_answers(statement: AnySelect, plan: ScatterPlan) -> None:
    """Refuse a statement whose answer without some rows is not its answer minus some rows.

    Whether a shard is away makes no difference, so that this is found out while all are there.
    Rows as they are, distinct ones, and groups that each lie on one shard are short at most. A
    LIMIT without an order takes any rows, so any of the answer will do.

    Raises:
        PartialAnswerError: It has aggregates, or the first or next rows in an order.
    """
    if plan.combined is not None:
        # It may be in order only, which nobody would have to refuse; but who can tell?
        raise PartialAnswerError(
            plan.reason or "what PostgreSQL combines", 'order text under COLLATE "C"'
        )
    if plan.groups is not None:
        raise PartialAnswerError("an aggregate", "group by the shard key, or select the rows")
    if plan.offset:
        raise PartialAnswerError("an OFFSET", "continue after the last row with WHERE instead")
    if plan.limit is not None and plan.order:
        raise PartialAnswerError(
            "the first rows in an order", "bound what is ordered by with WHERE instead of a LIMIT"
        )
    if distinct_on_of(statement):
        raise PartialAnswerError("the first row of each DISTINCT ON", "select all rows")

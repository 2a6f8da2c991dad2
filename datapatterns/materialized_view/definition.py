"""A view as an application declares it, checked as far as that goes without a database."""

from dataclasses import dataclass

from datapatterns.errors import ViewDefinitionError
from datapatterns.materialized_view.algebra import CountingPlan, NotCountableError, Query, read_plan
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.strategy import (
    Explanation,
    Full,
    Incremental,
    Maintain,
    Strategy,
)

_NAME_BYTES = 63
_UNNAMED = ("", "_no_label")


@dataclass(frozen=True, slots=True)
class ViewDefinition:
    """A view's query and what follows from it.

    Attributes:
        names: What its parts are called.
        query: What it shows.
        columns: What its columns are called, in order.
        maintain: How it was asked to be kept.
        explanation: How it will be kept, unless the server knows better.
        plan: What has to be counted, if counting can keep it.
    """

    names: ViewNames
    query: Query
    columns: tuple[str, ...]
    maintain: Maintain
    explanation: Explanation
    plan: CountingPlan | None


def define_view(names: ViewNames, query: Query, maintain: Maintain) -> ViewDefinition:
    """Return the definition of a view.

    Raises:
        ViewDefinitionError: The query cannot be kept, or not as it was asked for.
    """
    columns = _column_names(names.view, query)
    plan, explanation = _choose(names.view, query, maintain)
    return ViewDefinition(names, query, columns, maintain, explanation, plan)


def _choose(view: str, query: Query, maintain: Maintain) -> tuple[CountingPlan | None, Explanation]:
    if isinstance(maintain, Full):
        return None, Explanation(Strategy.REBUILD, "asked for")
    try:
        plan = read_plan(query)
    except NotCountableError as obstacle:
        if isinstance(maintain, Incremental):
            raise ViewDefinitionError(
                view, clause=str(obstacle), advice="maintain it with Auto() or Full()"
            ) from obstacle
        return None, Explanation(Strategy.REBUILD, str(obstacle))
    return plan, Explanation(
        Strategy.COUNTING, "inner joins, plain conditions, counts and exact sums by column"
    )


def _column_names(view: str, query: Query) -> tuple[str, ...]:
    names = tuple(str(name) for name in query.selected_columns.keys())  # noqa: SIM118
    for name in names:
        if name in _UNNAMED or names.count(name) > 1:
            raise ViewDefinitionError(
                view, clause=f"a column without a name of its own ({name})", advice="label() it"
            )
        if len(name.encode()) > _NAME_BYTES:
            raise ViewDefinitionError(
                view, clause=f"the long name {name}", advice="label() it with 63 bytes at most"
            )
    return names

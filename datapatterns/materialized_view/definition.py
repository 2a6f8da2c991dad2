"""A view as an application declares it, checked as far as that goes without a database."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sqlalchemy import ClauseElement

from datapatterns.change_log.inspecting import table_name
from datapatterns.errors import ViewChangedError, ViewDefinitionError
from datapatterns.materialized_view.algebra import Query, read_plan
from datapatterns.materialized_view.blueprint import Blueprint, Source, as_sql
from datapatterns.materialized_view.counted import Counted
from datapatterns.materialized_view.grouped import Grouped
from datapatterns.materialized_view.grouping.reading import NotGroupableError, read_group_plan
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import named_pending
from datapatterns.materialized_view.rebuilt import Rebuilt
from datapatterns.materialized_view.sources import NotCountableError
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
        candidates: What keeps it exactly, the cheapest first; the server may object to some.
    """

    names: ViewNames
    query: Query
    columns: tuple[str, ...]
    candidates: tuple[Maintenance, ...]
    _blueprints: dict[Strategy, Blueprint] = field(default_factory=dict, compare=False, repr=False)

    @property
    def explanation(self) -> Explanation:
        """How it will be kept, unless the server knows better."""
        return self.candidates[0].explanation

    def kept_by(self, strategy: Strategy) -> Maintenance:
        """Return what keeps it by ``strategy``.

        Raises:
            ViewChangedError: Nothing does any more.
        """
        for candidate in self.candidates:
            if candidate.explanation.strategy is strategy:
                return candidate
        raise ViewChangedError(self.names.view)

    def under(self, names: ViewNames) -> "ViewDefinition":
        """Return the same for a version of the view with other names."""
        renamed = {
            candidate.explanation.strategy: self.blueprint(candidate).under(self.names, names)
            for candidate in self.candidates
        }
        candidates = tuple(candidate.under(names) for candidate in self.candidates)
        return replace(self, names=names, candidates=candidates, _blueprints=renamed)

    def blueprint(self, maintenance: Maintenance) -> Blueprint:
        """Return what the view consists of if ``maintenance`` keeps it.

        Raises:
            ViewDefinitionError: A value in the query has no form in SQL.
        """
        strategy = maintenance.explanation.strategy
        if strategy not in self._blueprints:
            self._blueprints[strategy] = self._blueprint(maintenance)
        return self._blueprints[strategy]

    def _blueprint(self, maintenance: Maintenance) -> Blueprint:

        def written(element: ClauseElement) -> str:
            return as_sql(self.names.view, element)

        pending, marker = named_pending(maintenance)
        return Blueprint(
            columns=self.columns,
            strategy=maintenance.explanation.strategy,
            reason=maintenance.explanation.reason,
            definition=written(self.query),
            fresh=written(maintenance.fresh()),
            stored=tuple(maintenance.stored),
            key=tuple(maintenance.key),
            key_is_unique=maintenance.key_is_unique,
            shown=written(maintenance.shown()),
            current=written(maintenance.current(pending, marker)),
            sources=tuple(
                Source(table_name(t), tuple(c.name for c in maintenance.columns_of(t)))
                for t in maintenance.tables
            ),
            requirements=tuple(dict.fromkeys(maintenance.requirements)),
        )


def define_view(names: ViewNames, query: Query, maintain: Maintain) -> ViewDefinition:
    """Return the definition of a view.

    Raises:
        ViewDefinitionError: The query cannot be kept, or not as it was asked for.
    """
    columns = _column_names(names.view, query)
    candidates = tuple(_candidates(names, columns, query, maintain))
    return ViewDefinition(names, query, columns, candidates)


def not_incremental(view: str, obstacle: str) -> ViewDefinitionError:
    """Return the error for a view that was to be kept incrementally, and cannot be."""
    return ViewDefinitionError(view, clause=obstacle, advice="maintain it with Auto() or Full()")


def _candidates(
    names: ViewNames, columns: tuple[str, ...], query: Query, maintain: Maintain
) -> Iterator[Maintenance]:
    if isinstance(maintain, Full):
        yield Rebuilt(names, columns, Explanation(Strategy.REBUILD, "asked for"))
        return
    counted: Maintenance | None = None
    reason = "the server has another view of its columns"
    try:
        counted = Counted(names, columns, read_plan(query))
        yield counted
    except NotCountableError as obstacle:
        reason = str(obstacle)
    try:
        yield Grouped(names, read_group_plan(query), Explanation(Strategy.GROUPS, reason))
    except NotGroupableError as obstacle:
        if counted is None and isinstance(maintain, Incremental):
            raise not_incremental(names.view, f"{reason}; and {obstacle}") from obstacle
        if counted is None and str(obstacle) != reason:
            reason = f"{reason}; and {obstacle}"
    if not isinstance(maintain, Incremental):
        yield Rebuilt(names, columns, Explanation(Strategy.REBUILD, reason))


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

"""Read a select: can it be kept by groups, and if so, by which keys?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, FunctionElement, Join, Label, Select
from sqlalchemy import select as new_select
from sqlalchemy.sql.elements import ClauseList, Grouping, _textual_label_reference
from sqlalchemy.sql.selectable import FromGrouping
from sqlalchemy.sql.visitors import iterate

from datapatterns.materialized_view.algebra import AnySelect, Query, skeleton
from datapatterns.materialized_view.grouping.expressions import (
    condition,
    conjuncts,
    occurrences_in,
    same_expression,
    unreadable_part,
)
from datapatterns.materialized_view.grouping.harmlessness import is_harmless
from datapatterns.materialized_view.grouping.join_tree import Joined, JoinKind, JoinTree, Node
from datapatterns.materialized_view.grouping.plan import GroupPlan, Key
from datapatterns.materialized_view.sources import (
    NotCountableError,
    own_source,
    plain,
    shown,
    table_of,
)

NULLABLE_KEY_TABLES_MAX = 3
"""Each of them doubles the keys that a change may concern."""

TABLES_MAX = 6
"""Each of them doubles the queries by which the keys are found."""

_GROUPING_SETS = frozenset({"rollup", "cube", "grouping_sets"})


class NotGroupableError(Exception):
    """A clause that keeping by groups cannot follow; its text says which."""


def read_group_plan(query: Query) -> GroupPlan:
    """Return how ``query`` can be kept by groups.

    Raises:
        NotGroupableError: Some clause of it cannot be followed.
    """
    if not isinstance(query, Select):
        raise NotGroupableError("it combines several SELECTs")
    clauses = _clauses(query)
    _require_nothing_else(query, clauses)
    plan = GroupPlan(
        sources=tuple(clauses.sources),
        tree=clauses.tree,
        keys=tuple(_keys(clauses)),
        outputs=clauses.outputs,
        output_names=tuple(str(name) for name in query.selected_columns.keys()),  # noqa: SIM118
        groups=clauses.groups,
        having=clauses.having,
        distinct=clauses.distinct,
    )
    _require_few_tables(plan)
    _require_groups_apart(plan)
    _require_selected_as_stored(plan)
    return plan


@dataclass(frozen=True, slots=True)
class _Clauses:
    sources: Sequence[FromClause]
    tree: JoinTree
    outputs: tuple[ColumnElement[Any], ...]
    groups: tuple[ColumnElement[Any], ...]
    having: tuple[ColumnElement[Any], ...]
    distinct: bool


def _clauses(query: AnySelect) -> _Clauses:
    sources: list[FromClause] = []
    root: Node | None = None
    for source in query.get_final_froms():
        node = _node(plain(source), sources)
        root = node if root is None else Joined(JoinKind.INNER, root, node)
    if root is None:
        raise NotGroupableError("it reads no table")
    where = () if query.whereclause is None else tuple(conjuncts(plain(query.whereclause)))
    clauses = _Clauses(
        sources,
        JoinTree(root, tuple(condition(part, sources) for part in where)),
        outputs=tuple(_unlabelled(column) for column in query.selected_columns),
        # There are no public lists of these three.
        groups=tuple(_group(group, query) for group in query._group_by_clauses),  # noqa: SLF001
        having=tuple(plain(part) for part in query._having_criteria),  # noqa: SLF001
        distinct=query._distinct and not query._distinct_on,  # noqa: SLF001
    )
    for part in (*where, *clauses.outputs, *clauses.groups, *clauses.having):
        _require_readable(part)
    return clauses


def _node(source: Any, sources: list[FromClause]) -> Node:  # noqa: ANN401
    if isinstance(source, FromGrouping):  # parentheses
        return _node(plain(source.element), sources)
    if not isinstance(source, Join):
        try:
            table_of(source)
        except NotCountableError as error:
            raise NotGroupableError(str(error)) from error
        sources.append(source)
        return len(sources) - 1
    left, right = _node(plain(source.left), sources), _node(plain(source.right), sources)
    on = () if source.onclause is None else tuple(conjuncts(plain(source.onclause)))
    for part in on:
        _require_readable(part)
    kind = JoinKind.LEFT if source.isouter else JoinKind.INNER
    conditions = tuple(condition(part, sources) for part in on)
    return Joined(JoinKind.FULL if source.full else kind, left, right, conditions)


def _group(group: Any, query: AnySelect) -> Any:  # noqa: ANN401
    if not isinstance(group, _textual_label_reference):
        return _unlabelled(group)
    named = query.selected_columns.get(group.element)
    if named is None:
        raise NotGroupableError(f"GROUP BY {group.element!r} names no column that it shows")
    return _unlabelled(named)


def _keys(clauses: _Clauses) -> list[Key]:
    if clauses.groups:
        return _grouped_keys(clauses)
    if clauses.having:
        raise NotGroupableError("HAVING without GROUP BY makes one group of everything")
    return _shown_keys(clauses)


def _grouped_keys(clauses: _Clauses) -> list[Key]:
    """Return the keys that GROUP BY names.

    Some are enough: the rows that have one value of these are several whole groups.
    """
    keys: list[Key] = []
    obstacles: list[str] = []
    for group in clauses.groups:
        if obstacle := _key_obstacle(group, clauses):
            obstacles.append(obstacle)
            continue
        places = (
            number
            for number, output in enumerate(clauses.outputs)
            if same_expression(output, group, clauses.sources)
        )
        (occurrence,) = occurrences_in(group, clauses.sources)
        keys.append(Key(group, occurrence, next(places, None)))
    if not keys:
        raise NotGroupableError(obstacles[0])
    return keys


def _key_obstacle(group: ColumnElement[Any], clauses: _Clauses) -> str | None:
    for part in iterate(group):
        if isinstance(part, FunctionElement) and part.name.lower() in _GROUPING_SETS:
            raise NotGroupableError(f"GROUP BY {part.name} groups in several ways")
    tables = len(occurrences_in(group, clauses.sources))
    if tables != 1:
        return f"GROUP BY {shown(group)} names columns of {tables} tables, not of one"
    unprotected = isinstance(clauses.tree.root, int) and all(
        condition.evaluable for condition in clauses.tree.where
    )
    if not unprotected and not is_harmless(group):
        return f"GROUP BY {shown(group)} might fail for rows that the query leaves out"
    return None


def _shown_keys(clauses: _Clauses) -> list[Key]:
    """Return the shown columns by which rows are told apart: a primary key if there is one."""
    keys: dict[int, dict[str, Key]] = {}
    for number, output in enumerate(clauses.outputs):
        source = own_source(output, clauses.sources)
        if source is not None and isinstance(output, Column):
            (occurrence,) = occurrences_in(output, clauses.sources)
            key = Key(output, occurrence, number)
            keys.setdefault(occurrence, {}).setdefault(str(output.key), key)
    if not keys:
        raise NotGroupableError("it neither groups nor shows a column as it is")
    nullable = clauses.tree.nullable()

    def preference(occurrence: int) -> tuple[bool, bool, int]:
        unique = _primary_key(clauses.sources[occurrence], keys[occurrence])
        return not unique, occurrence in nullable, occurrence

    best = min(keys, key=preference)
    unique = _primary_key(clauses.sources[best], keys[best])
    return unique or list(keys[best].values())


def _primary_key(source: FromClause, keys: dict[str, Key]) -> list[Key]:
    names = [column.key for column in table_of(source).primary_key]
    return [keys[name] for name in names] if all(name in keys for name in names) else []


def _require_readable(part: Any) -> None:  # noqa: ANN401
    unreadable = unreadable_part(part)
    if unreadable is not None:
        raise NotGroupableError(f"{shown(unreadable)} is more than columns and functions of them")


def _require_nothing_else(query: AnySelect, clauses: _Clauses) -> None:
    # Of plain parts: the ORM adds conditions of its own, as for inheritance in a single table.
    rebuilt = new_select(*map(plain, query.selected_columns))
    rebuilt = rebuilt.select_from(*map(plain, query.get_final_froms()))
    if query.whereclause is not None:
        rebuilt = rebuilt.where(plain(query.whereclause))
    rebuilt = rebuilt.group_by(*map(plain, query._group_by_clauses))  # noqa: SLF001
    rebuilt = rebuilt.having(*clauses.having)
    rebuilt = rebuilt.distinct() if clauses.distinct else rebuilt
    # The rows of a view have no order.
    if skeleton(rebuilt) != skeleton(query.order_by(None)):
        raise NotGroupableError("it has clauses beyond SELECT, FROM, WHERE, GROUP BY and HAVING")


def _require_few_tables(plan: GroupPlan) -> None:
    if len(plan.sources) > TABLES_MAX:
        raise NotGroupableError(f"it joins more than {TABLES_MAX} tables")
    if len(plan.nullable_key_tables) > NULLABLE_KEY_TABLES_MAX:
        raise NotGroupableError(
            f"its keys come from more than {NULLABLE_KEY_TABLES_MAX} tables that an outer join"
            " may leave out"
        )


def _require_groups_apart(plan: GroupPlan) -> None:
    hidden = any(key.shown_by is None for key in plan.keys)
    if plan.distinct and plan.groups and hidden:
        raise NotGroupableError("DISTINCT makes one row of groups whose keys it does not show")


def _require_selected_as_stored(plan: GroupPlan) -> None:
    for column in (column for table in plan.tables for column in plan.columns_of(table)):
        if column.type.column_expression(column) is not None:
            raise NotGroupableError(f"{shown(column)} is not selected as it is stored")


def _unlabelled(element: Any) -> Any:  # noqa: ANN401
    bare = plain(element)
    if isinstance(bare, Label | Grouping):
        return _unlabelled(bare.element)
    # A function may stand in FROM as well; in GROUP BY it comes wrapped for that.
    if type(bare) is ClauseList and len(bare.clauses) == 1:
        return _unlabelled(bare.clauses[0])
    return bare

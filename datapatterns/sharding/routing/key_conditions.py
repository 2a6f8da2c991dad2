"""Find what a WHERE clause says about the shard key, as far as every row must satisfy it.

Sound, not clever: only conjuncts count. What stands under OR, NOT or CASE, or in the ON of an
outer join, may be false for a row of the answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

from sqlalchemy import BindParameter, Float, FromClause, Numeric, Table, TupleType
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BooleanClauseList,
    ClauseElement,
    ClauseList,
    ExpressionClauseList,
    Grouping,
    Tuple,
)
from sqlalchemy.types import TypeEngine

from datapatterns.sharding.definition import ShardKey, is_plain_key_type
from datapatterns.sharding.strategies.strategy import Key, KeyOperator, ShardingStrategy

Parameters: TypeAlias = Mapping[str, Any]

_ORDERS: Mapping[Any, KeyOperator] = {
    operators.lt: "<",
    operators.le: "<=",
    operators.gt: ">",
    operators.ge: ">=",
}
_TURNED: Mapping[KeyOperator, KeyOperator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BY_CODE_POINT = frozenset(("C", "ucs_basic"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One use of a sharded table in a FROM clause.

    Attributes:
        used: The table, or an alias of it.
        table: The table.
        shard_key: What was declared about the table.
    """

    used: FromClause
    table: Table
    shard_key: ShardKey

    @property
    def name(self) -> str:
        """Return the table's name."""
        return self.table.name

    def is_key(self, clause: object) -> bool:
        """Return whether ``clause`` is the key column of this use, and of no other."""
        # An annotated column hashes as the column that it stands for; == would build SQL.
        return hash(clause) == hash(self.used.c[self.shard_key.column])


@dataclass(frozen=True, slots=True)
class KeyCondition:
    """Every row of the answer has a key that compares so with some values.

    Attributes:
        leaf: Whose key.
        operator: How it compares.
        binds: The parameters that hold the values.
        position: Where the key stands in each value, if the values are tuples.
    """

    leaf: Leaf
    operator: KeyOperator
    binds: tuple[BindParameter[Any], ...]
    position: int | None = None

    def keys(self, parameters: Parameters) -> frozenset[Key] | None:
        """Return the keys that such a row can have; None if they are not listed.

        Raises:
            ShardKeyError: A value is of another type than the key.
        """
        return self._listed(parameters) if self.operator in {"=", "in"} else None

    def buckets(self, parameters: Parameters, strategy: ShardingStrategy) -> frozenset[int] | None:
        """Return the buckets that such a row can be in; None if that may be any.

        Raises:
            ShardKeyError: A value is of another type than the key.
        """
        group = self.leaf.shard_key.group
        if self.operator in {"=", "in"}:
            return strategy.buckets_for("in", [*self._listed(parameters)])
        values = [value for bind in self.binds for value in _values(bind, parameters)]
        if None in values:  # nothing compares with NULL
            return frozenset()
        keys = [group.checked_key(value) for value in values]
        return strategy.buckets_for(self.operator, keys if self.operator == "between" else keys[0])

    def _listed(self, parameters: Parameters) -> frozenset[Key]:
        group = self.leaf.shard_key.group
        values = [value for bind in self.binds for value in _values(bind, parameters)]
        if self.position is not None:
            values = [value[self.position] for value in values]
        # NULL equals nothing, so it adds no row.
        return frozenset(group.checked_key(value) for value in values if value is not None)


def conjuncts(clause: object) -> Iterator[ClauseElement]:
    """Yield the conditions that ``clause`` requires all of."""
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from conjuncts(part)
    elif isinstance(clause, Grouping):
        yield from conjuncts(clause.element)
    elif isinstance(clause, ClauseElement):
        yield clause


def key_condition(clause: ClauseElement, leaves: list[Leaf]) -> KeyCondition | None:
    """Return what a conjunct says about the key of one of ``leaves``, if it does."""
    if not isinstance(clause, BinaryExpression):
        return None
    if clause.operator is operators.eq:
        for column, value in ((clause.left, clause.right), (clause.right, clause.left)):
            leaf = _leaf_of(column, leaves)
            if leaf is not None and _is_plain_bind(value, leaf):
                return KeyCondition(leaf, "=", (value,))
    if clause.operator is operators.in_op:
        return _in_condition(clause, leaves)
    if clause.operator is operators.between_op:
        return _between_condition(clause, leaves)
    return _order_condition(clause, leaves)


def key_tie(clause: ClauseElement, leaves: list[Leaf]) -> tuple[Leaf, Leaf] | None:
    """Return the two uses of tables whose keys a conjunct makes equal, if it does."""
    if isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
        left, right = _leaf_of(clause.left, leaves), _leaf_of(clause.right, leaves)
        if left is not None and right is not None:
            return left, right
    return None


def _in_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    left: object = clause.left
    if isinstance(left, Grouping):
        left = left.element
    if isinstance(left, Tuple):
        return _in_tuples_condition(left, clause.right, leaves)
    if (leaf := _leaf_of(left, leaves)) is None:
        return None
    binds = _listed_binds(clause.right, leaf)
    return None if binds is None else KeyCondition(leaf, "in", binds)


def _in_tuples_condition(left: Tuple, right: object, leaves: list[Leaf]) -> KeyCondition | None:
    # The values are tuples, which only one expanding parameter can hold.
    if not isinstance(right, BindParameter) or not isinstance(right.type, TupleType):
        return None
    for position, column in enumerate(left.clauses):
        leaf = _leaf_of(column, leaves)
        if leaf is not None and _compares_as_key(right.type.types[position], leaf):
            return KeyCondition(leaf, "in", (right,), position)
    return None


def _order_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    if (operator := _ORDERS.get(clause.operator)) is None:
        return None
    for column, value, meant in (
        (clause.left, clause.right, operator),
        (clause.right, clause.left, _TURNED[operator]),
    ):
        leaf = _ordered_leaf_of(column, leaves)
        if leaf is not None and _is_plain_bind(value, leaf):
            return KeyCondition(leaf, meant, (value,))
    return None


def _between_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    leaf = _ordered_leaf_of(clause.left, leaves)
    # SYMMETRIC would take the bounds in either order.
    if leaf is None or clause.modifiers.get("symmetric"):
        return None
    binds = _listed_binds(clause.right, leaf)
    return None if binds is None else KeyCondition(leaf, "between", binds)


def _ordered_leaf_of(clause: object, leaves: list[Leaf]) -> Leaf | None:
    """Return whose key ``clause`` is, if it is ordered as strategies order keys.

    Text is ordered by its collation: under most of them B lies between a and c.
    """
    if isinstance(clause, Grouping):
        clause = clause.element
    if isinstance(clause, BinaryExpression) and clause.operator is operators.collate:
        by_code_point = getattr(clause.right, "collation", None) in _BY_CODE_POINT
        return _leaf_of(clause.left, leaves) if by_code_point else None
    leaf = _leaf_of(clause, leaves)
    if leaf is None or leaf.shard_key.group.key_type != "text":
        return leaf
    type_ = leaf.table.columns[leaf.shard_key.column].type
    return leaf if getattr(type_, "collation", None) in _BY_CODE_POINT else None


def _listed_binds(right: object, leaf: Leaf) -> tuple[BindParameter[Any], ...] | None:
    if isinstance(right, BindParameter):
        return (right,) if right.expanding and _compares_as_key(right.type, leaf) else None
    if isinstance(right, Grouping):
        right = right.element
    if isinstance(right, ClauseList | ExpressionClauseList):
        listed = tuple(value for value in right.clauses if _is_plain_bind(value, leaf))
        return listed if len(listed) == len(right.clauses) else None
    return None


def _leaf_of(clause: object, leaves: list[Leaf]) -> Leaf | None:
    return next((leaf for leaf in leaves if leaf.is_key(clause)), None)


def _is_plain_bind(clause: object, leaf: Leaf) -> TypeGuard[BindParameter[Any]]:
    return (
        isinstance(clause, BindParameter)
        and not clause.expanding
        and _compares_as_key(clause.type, leaf)
    )


def _compares_as_key(type_: TypeEngine[Any], leaf: Leaf) -> bool:
    # A parameter is sent with the collation of its type, which decides over that of the column.
    own = getattr(leaf.table.columns[leaf.shard_key.column].type, "collation", None)
    collation = getattr(type_, "collation", None)
    # Of fractions is said, when their values are known, that they are no keys.
    known = is_plain_key_type(type_) or isinstance(type_, Numeric | Float)
    return known and collation in {None, own, *_BY_CODE_POINT}


def _values(bind: BindParameter[Any], parameters: Parameters) -> list[Any]:
    value: Any = parameters.get(bind.key, bind.effective_value)
    values = list(value) if bind.expanding else [value]
    if isinstance(bind.type, Numeric | Float):
        # What is sent as a fraction compares as one, even if it is whole: it is no key.
        return [float(each) if isinstance(each, int) else each for each in values]
    return values

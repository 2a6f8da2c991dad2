"""Find what a WHERE clause says about the shard key, as far as every row must satisfy it.

Sound, not clever: only conjuncts count. What stands under OR, NOT or CASE, or in the ON of an
outer join, may be false for a row of the answer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

from sqlalchemy import BindParameter, Column, Float, FromClause, Numeric, Table, TupleType
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

from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.key_types import is_plain_key_type
from datapatterns.sharding.strategies.strategy import (
    Key,
    KeyOperator,
    KeyPart,
    ShardingStrategy,
)

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

    def part_of(self, clause: object) -> int | None:
        """Return which part of the key of this use ``clause`` is; None if it is none."""
        # An annotated column hashes as the column that it stands for; == would build SQL.
        named, columns = hash(clause), self.used.c
        for part, name in enumerate(self.shard_key.columns):
            if named == hash(columns[name]):
                return part
        return None

    def has_key(self, clauses: Iterable[object]) -> bool:
        """Return whether all columns of the key of this use are among ``clauses``."""
        parts = {self.part_of(clause) for clause in clauses}
        return parts.issuperset(range(len(self.shard_key.columns)))

    def column(self, part: int) -> Column[Any]:
        """Return the column of the table that holds a part of the key."""
        return self.table.columns[self.shard_key.columns[part]]


KeyTie: TypeAlias = tuple[Leaf, Leaf, int]
"""Two uses of tables whose rows have the same key, as far as one part of it goes."""


@dataclass(frozen=True, slots=True)
class KeyCondition:
    """Every row of the answer has a key that compares so with some values.

    Attributes:
        leaf: Whose key.
        operator: How it compares.
        binds: The parameters that hold the values.
        position: Where the key stands in each value, if the values are tuples.
        parts: Which parts of the key compare, if it is two columns.
        positions: Where these stand in each value, if the values are tuples.
    """

    leaf: Leaf
    operator: KeyOperator
    binds: tuple[BindParameter[Any], ...]
    position: int | None = None
    parts: tuple[int, ...] = (0,)
    positions: tuple[int, ...] = ()

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

    @property
    def is_one_key(self) -> bool:
        """Return whether it says that the key equals one parameter, which is no number to round."""
        return (
            self.operator == "="
            and self.position is None
            and len(self.binds) == len(self.leaf.shard_key.columns) == 1
            and not self.binds[0].expanding
            and not isinstance(self.binds[0].type, Numeric | Float)
        )

    def buckets_of_one(
        self, parameters: Parameters, strategy: ShardingStrategy
    ) -> frozenset[int] | None:
        """Do as `buckets`, sooner, if it `is_one_key`.

        Raises:
            ShardKeyError: The value is of another type than the key.
        """
        (bind,) = self.binds
        value = parameters.get(bind.key, bind.effective_value)
        if value is None:  # nothing equals NULL
            return frozenset()
        return strategy.buckets_for("=", self.leaf.shard_key.group.checked_key(value))

    def part_values(self, parameters: Parameters) -> list[tuple[KeyPart, ...]]:
        """Return what is compared with, as a tuple of the parts that compare; without NULLs.

        Raises:
            ShardKeyError: A value is of another type than that part of the key.
        """
        group = self.leaf.shard_key.group
        values = (value for bind in self.binds for value in _values(bind, parameters))
        rows = (
            tuple(value[position] for position in self.positions) if self.positions else (value,)
            for value in values
        )
        return [
            tuple(group.checked_part(v, part) for v, part in zip(row, self.parts, strict=True))
            for row in rows
            if None not in row
        ]

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
            found = _part_of(column, leaves)
            if found is not None and _is_plain_bind(value, found):
                return found.condition("=", (value,))
    if clause.operator is operators.in_op:
        return _in_condition(clause, leaves)
    if clause.operator is operators.between_op:
        return _between_condition(clause, leaves)
    return _order_condition(clause, leaves)


def key_tie(clause: ClauseElement, leaves: list[Leaf]) -> KeyTie | None:
    """Return the two uses of tables whose keys a conjunct makes equal, in one part, if it does."""
    if isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
        left, right = _part_of(clause.left, leaves), _part_of(clause.right, leaves)
        if left is not None and right is not None and left.part == right.part:
            return left.leaf, right.leaf, left.part
    return None


@dataclass(frozen=True, slots=True)
class _Part:
    """A column that holds a part of a key; of most keys, all of it."""

    leaf: Leaf
    part: int

    @property
    def column(self) -> Column[Any]:
        return self.leaf.column(self.part)

    def condition(
        self, operator: KeyOperator, binds: tuple[BindParameter[Any], ...]
    ) -> KeyCondition:
        return KeyCondition(self.leaf, operator, binds, parts=(self.part,))


def _in_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    left: object = clause.left
    if isinstance(left, Grouping):
        left = left.element
    if isinstance(left, Tuple):
        return _in_tuples_condition(left, clause.right, leaves)
    if (found := _part_of(left, leaves)) is None:
        return None
    binds = _listed_binds(clause.right, found)
    return None if binds is None else found.condition("in", binds)


def _in_tuples_condition(left: Tuple, right: object, leaves: list[Leaf]) -> KeyCondition | None:
    # The values are tuples, which only one expanding parameter can hold.
    if not isinstance(right, BindParameter) or not isinstance(right.type, TupleType):
        return None
    compared: dict[Leaf, dict[int, int]] = {}
    for position, column in enumerate(left.clauses):
        found = _part_of(column, leaves)
        if found is not None and _compares_as_key(right.type.types[position], found):
            compared.setdefault(found.leaf, {}).setdefault(found.part, position)
    if not compared:
        return None
    # What names most of a key says most.
    leaf, places = max(compared.items(), key=lambda item: len(item[1]))
    if not leaf.shard_key.is_composite:
        return KeyCondition(leaf, "in", (right,), places[0])
    return KeyCondition(leaf, "in", (right,), parts=tuple(places), positions=tuple(places.values()))


def _order_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    if (operator := _ORDERS.get(clause.operator)) is None:
        return None
    for column, value, meant in (
        (clause.left, clause.right, operator),
        (clause.right, clause.left, _TURNED[operator]),
    ):
        found = _ordered_part_of(column, leaves)
        if found is not None and _is_plain_bind(value, found):
            return found.condition(meant, (value,))
    return None


def _between_condition(clause: BinaryExpression[Any], leaves: list[Leaf]) -> KeyCondition | None:
    found = _ordered_part_of(clause.left, leaves)
    # SYMMETRIC would take the bounds in either order.
    if found is None or clause.modifiers.get("symmetric"):
        return None
    binds = _listed_binds(clause.right, found)
    return None if binds is None else found.condition("between", binds)


def _ordered_part_of(clause: object, leaves: list[Leaf]) -> _Part | None:
    """Return whose key ``clause`` is, if it is ordered as strategies order keys.

    Text is ordered by its collation: under most of them B lies between a and c.
    """
    if isinstance(clause, Grouping):
        clause = clause.element
    if isinstance(clause, BinaryExpression) and clause.operator is operators.collate:
        by_code_point = getattr(clause.right, "collation", None) in _BY_CODE_POINT
        return _part_of(clause.left, leaves) if by_code_point else None
    found = _part_of(clause, leaves)
    if found is None or found.leaf.shard_key.group.key_types[found.part] != "text":
        return found
    return found if getattr(found.column.type, "collation", None) in _BY_CODE_POINT else None


def _listed_binds(right: object, found: _Part) -> tuple[BindParameter[Any], ...] | None:
    if isinstance(right, BindParameter):
        return (right,) if right.expanding and _compares_as_key(right.type, found) else None
    if isinstance(right, Grouping):
        right = right.element
    if isinstance(right, ClauseList | ExpressionClauseList):
        listed = tuple(value for value in right.clauses if _is_plain_bind(value, found))
        return listed if len(listed) == len(right.clauses) else None
    return None


def _part_of(clause: object, leaves: list[Leaf]) -> _Part | None:
    for leaf in leaves:
        if (part := leaf.part_of(clause)) is not None:
            return _Part(leaf, part)
    return None


def _is_plain_bind(clause: object, found: _Part) -> TypeGuard[BindParameter[Any]]:
    return (
        isinstance(clause, BindParameter)
        and not clause.expanding
        and _compares_as_key(clause.type, found)
    )


def _compares_as_key(type_: TypeEngine[Any], found: _Part) -> bool:
    # A parameter is sent with the collation of its type, which decides over that of the column.
    own = getattr(found.column.type, "collation", None)
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

"""Which index finds the rows of a statement, and by which keys.

Sound, not clever, as where shard keys are looked for: only what every row of the answer satisfies
counts. So an index is used if conjuncts of the WHERE compare each part of its key with parameters,
by ``=`` or IN, and say all that its own ``where`` asks for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice, product
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Alias,
    BindParameter,
    ColumnClause,
    ColumnElement,
    Date,
    DateTime,
    Delete,
    FromClause,
    Integer,
    SmallInteger,
    Table,
    Time,
    TupleType,
    Update,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ClauseElement,
    ClauseList,
    ExpressionClauseList,
    Grouping,
    Null,
    Tuple,
)
from sqlalchemy.sql.selectable import SelectBase
from sqlalchemy.sql.visitors import cloned_traverse, iterate
from sqlalchemy.types import INTEGER, SMALLINT, NullType, TypeEngine

from datapatterns.index_table.definition import on_rows
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.sharding.key_types import COLUMN_TYPES
from datapatterns.sharding.routing.key_conditions import Parameters, conjuncts

_BY_BYTES: Final = frozenset((None, "C", "ucs_basic"))
_PYTHON_TYPES: Final[Mapping[str, type]] = {"bigint": int, "text": str, "uuid": UUID}
_BITS: Final[Mapping[type[TypeEngine[Any]], int]] = {
    SmallInteger: 16,
    SMALLINT: 16,
    Integer: 32,
    INTEGER: 32,
}


@dataclass(frozen=True, slots=True)
class Matched:
    """An index that finds all rows of a statement.

    Attributes:
        index: Which.
        used: The use of its base table in the statement.
        keys: The keys that they can have.
    """

    index: ShardedIndex
    used: FromClause
    keys: Sequence[tuple[Any, ...]]


def matched(
    statement: SelectBase | Update | Delete,
    parameters: Parameters,
    indexes: Iterable[ShardedIndex],
    *,
    keys_max: int,
    chosen: str | None = None,
) -> Matched | None:
    """Return the cheapest of ``indexes`` that finds the rows of a statement; None if none does.

    Args:
        statement: What is to be executed.
        parameters: With these.
        indexes: Those that may be read.
        keys_max: At most how many keys are looked up.
        chosen: The only one that may be used, by its name; None for any.
    """
    clauses = list(conjuncts(getattr(statement, "whereclause", None)))
    conditions = [_Conditions.of(used, clauses, parameters) for used in _uses(clauses)]
    # A unique index has one row for a key.
    usable = (each for each in indexes if chosen in {None, each.name})
    for index in sorted(usable, key=lambda each: not each.definition.unique):
        for each in conditions:
            if each.base is index.definition.base:
                keys = each.keys_of(index, keys_max)
                if keys is not None:
                    return Matched(index, each.used, keys)
    return None


@dataclass(frozen=True, slots=True)
class _Shape:
    """An expression, as SQLAlchemy tells it from others, with the values in it."""

    key: tuple[Any, ...]
    values: tuple[Any, ...]

    @classmethod
    def of(
        cls, expression: ColumnElement[Any], used: FromClause, parameters: Parameters
    ) -> "_Shape | None":
        key = _normal(expression, used, parameters)._generate_cache_key()  # noqa: SLF001 -- there is no public name
        if key is None:
            return None
        return cls(key.key, tuple(bind.value for bind in key.bindparams))

    @classmethod
    def of_part(cls, part: object, used: FromClause, parameters: Parameters) -> "_Shape | None":
        """Return that of what is compared, unless it is about something else as well."""
        if not isinstance(part, ColumnElement) or _tables_in(part) != {hash(used)}:
            return None
        return cls.of(part, used, parameters)


@dataclass(frozen=True, slots=True)
class _Compared:
    """That an expression is one of some values.

    Attributes:
        shape: The expression.
        binds: What holds the values.
        place: Where it stands in each of them, if they are tuples.
    """

    shape: _Shape
    binds: tuple[BindParameter[Any], ...]
    place: int | None = None

    def values(self, type_: TypeEngine[Any], parameters: Parameters) -> list[Any] | None:
        """Return the values that a key of this type can have; None if that can't be told."""
        if not all(_compares_alike(self._type(bind), type_) for bind in self.binds):
            return None
        values = [value for bind in self.binds for value in _given(bind, parameters)]
        if self.place is not None:
            values = [value[self.place] for value in values]
        # NULL equals nothing, so it finds no row.
        given = list(dict.fromkeys(value for value in values if value is not None))
        return given if all(_is_kept(value, type_) for value in given) else None

    def _type(self, bind: BindParameter[Any]) -> TypeEngine[Any]:
        if self.place is None or not isinstance(bind.type, TupleType):
            return bind.type
        return bind.type.types[self.place]


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What a statement says about one use of a table."""

    used: FromClause
    base: Table
    compared: Sequence[_Compared]
    said: Sequence[_Shape]
    parameters: Parameters

    @classmethod
    def of(
        cls, used: FromClause, clauses: Sequence[ClauseElement], parameters: Parameters
    ) -> "_Conditions":
        mine = [each for each in clauses if _tables_in(each) == {hash(used)}]
        shapes = (_Shape.of(each, used, parameters) for each in mine)  # type: ignore[arg-type] # conditions are columns
        return cls(
            used=used,
            base=_base_of(used),
            compared=[each for clause in mine for each in _comparisons(clause, used, parameters)],
            said=[shape for shape in shapes if shape is not None],
            parameters=parameters,
        )

    def keys_of(self, index: ShardedIndex, keys_max: int) -> list[tuple[Any, ...]] | None:
        definition = index.definition
        if definition.where is not None and not all(map(self._says, conjuncts(definition.where))):
            return None
        parts = [self._values(part) for part in definition.key.values()]
        listed = [values for values in parts if values is not None]
        if len(listed) < len(parts):
            return None
        keys = list(islice(product(*listed), keys_max + 1))
        return keys if len(keys) <= keys_max else None

    def _says(self, condition: ClauseElement) -> bool:
        assert isinstance(condition, ColumnElement)
        shape = _Shape.of(condition, self.used, self.parameters)
        if shape in self.said:
            return True
        if not isinstance(condition, BinaryExpression) or not isinstance(condition.right, Null):
            return False
        # What equals something is not NULL.
        compared = _Shape.of(condition.left, self.used, self.parameters)
        return condition.operator is operators.is_not and any(
            each.shape == compared for each in self.compared
        )

    def _values(self, part: ColumnElement[Any]) -> list[Any] | None:
        shape = _Shape.of(part, self.used, self.parameters)
        for each in self.compared:
            if each.shape == shape:
                values = each.values(part.type, self.parameters)
                if values is not None:
                    return values
        return None


def _normal(
    expression: ColumnElement[Any], used: FromClause, parameters: Parameters
) -> ColumnElement[Any]:
    """Return an expression with its values, but without names and types that mean nothing in SQL.

    Of many functions the type is only known where it was declared.
    """

    def forget_type(function: Any) -> None:  # noqa: ANN401 -- a copy of a function
        function.type = NullType()

    def forget_name(bind: Any) -> None:  # noqa: ANN401 -- a copy of a parameter
        bind.value, bind.callable = _value(bind, parameters), None
        bind._convert_to_unique()  # noqa: SLF001 -- there is no public name
        bind._key_is_anon = True  # noqa: SLF001

    forget = {"function": forget_type, "bindparam": forget_name}
    return cloned_traverse(on_rows(expression, used), {}, forget)


def _value(bind: BindParameter[Any], parameters: Parameters) -> Any:  # noqa: ANN401 -- of any type
    return parameters.get(bind.key, bind.effective_value)


def _uses(clauses: Iterable[ClauseElement]) -> list[FromClause]:
    uses: dict[int, FromClause] = {}
    for element in (part for clause in clauses for part in iterate(clause)):
        if isinstance(element, ColumnClause) and element.table is not None:
            table = element.table
            named = table.element if isinstance(table, Alias) else table
            if isinstance(named, Table):
                uses.setdefault(hash(table), table)
    return list(uses.values())


def _base_of(used: FromClause) -> Table:
    named = used.element if isinstance(used, Alias) else used
    assert isinstance(named, Table)
    # Of a mapped class it is a copy with annotations, which hashes as the table itself.
    return named.metadata.tables[named.key]


def _tables_in(clause: ClauseElement) -> set[int]:
    return {
        hash(element.table)
        for element in iterate(clause)
        if isinstance(element, ColumnClause) and element.table is not None
    }


def _comparisons(
    clause: ClauseElement, used: FromClause, parameters: Parameters
) -> Iterator[_Compared]:
    if not isinstance(clause, BinaryExpression):
        return
    sides: list[tuple[Any, tuple[BindParameter[Any], ...] | None]] = []
    if clause.operator is operators.eq:
        sides = [
            (own, (other,))
            for own, other in ((clause.left, clause.right), (clause.right, clause.left))
            if isinstance(other, BindParameter) and not other.expanding
        ]
    elif clause.operator is operators.in_op:
        sides = [(clause.left, _listed(clause.right))]
    for own, binds in sides:
        compared = own.element if isinstance(own, Grouping) else own
        parts = enumerate(compared.clauses) if isinstance(compared, Tuple) else [(None, compared)]
        for place, part in parts if binds is not None else ():
            shape = _Shape.of_part(part, used, parameters)
            if shape is not None:
                yield _Compared(shape, binds or (), place)


def _listed(right: object) -> tuple[BindParameter[Any], ...] | None:
    if isinstance(right, BindParameter):
        return (right,) if right.expanding else None
    listed = right.element if isinstance(right, Grouping) else right
    if not isinstance(listed, ClauseList | ExpressionClauseList):
        return None
    binds = tuple(part for part in listed.clauses if isinstance(part, BindParameter))
    return binds if len(binds) == len(listed.clauses) else None


def _given(bind: BindParameter[Any], parameters: Parameters) -> list[Any]:
    value = _value(bind, parameters)
    return list(value) if bind.expanding else [value]


def _compares_alike(sent: TypeEngine[Any], own: TypeEngine[Any]) -> bool:
    """Return whether a parameter compares with a key as that does with others of its type."""
    sent = sent._variant_mapping.get("postgresql", sent)  # noqa: SLF001 -- there is no public name
    collation = getattr(sent, "collation", None)
    if collation not in _BY_BYTES and collation != getattr(own, "collation", None):
        return False
    return type(sent) is NullType or _family(sent) == _family(own)


def _family(type_: TypeEngine[Any]) -> object:
    for name, types in COLUMN_TYPES.items():
        if type(type_) in types:
            return name
    return type(type_), getattr(type_, "timezone", None)


def _is_kept(value: object, type_: TypeEngine[Any]) -> bool:
    """Return whether a key can be exactly ``value``, and is sent as that."""
    if isinstance(value, datetime | time):
        return (
            isinstance(type_, DateTime if isinstance(value, datetime) else Time)
            and (value.tzinfo is not None) == type_.timezone
        )
    if isinstance(value, date):
        return isinstance(type_, Date)
    if isinstance(value, str) and ("\0" in value or not _is_encodable(value)):
        return False  # the server says what is wrong with it
    family = _family(type_)
    expected = _PYTHON_TYPES.get(family) if isinstance(family, str) else type_.python_type
    if type(value) is not expected:
        return False
    if not isinstance(value, int) or isinstance(value, bool):
        return True
    bits = _BITS.get(type(type_), 64)
    return -(1 << bits - 1) <= value < 1 << bits - 1


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

"""How many rows a statement asks for, and how many it skips."""

from sqlalchemy import BindParameter
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.selected import AnySelect


def bounds_of(statement: AnySelect, parameters: Parameters) -> tuple[int | None, int | None]:
    """Return the LIMIT and the OFFSET of a statement.

    Raises:
        UnmergeableQueryError: They are no plain numbers.
    """
    limit = _number(statement._limit_clause, parameters)  # noqa: SLF001 -- no public name
    return limit, _number(statement._offset_clause, parameters)  # noqa: SLF001 -- nor for this


def _number(clause: ClauseElement | None, parameters: Parameters) -> int | None:
    if clause is None:
        return None
    binds = [part for part in visitors.iterate(clause) if isinstance(part, BindParameter)]
    if len(binds) == 1:
        value = parameters.get(binds[0].key, binds[0].effective_value)
        if type(value) is int and value >= 0 and isinstance(clause, BindParameter):
            return value
    raise UnmergeableQueryError("a computed LIMIT or OFFSET", "pass a number")

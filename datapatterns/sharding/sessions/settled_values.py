"""Evaluate parameters that compute their value once: the route and the server must get the same."""

from typing import Any

from sqlalchemy import BindParameter, ClauseElement, Executable, Insert
from sqlalchemy.orm import FromStatement, ORMExecuteState
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import UnroutableStatementError


def settle_values(state: ORMExecuteState) -> None:
    """Put values in place of what ``bindparam(callable_=...)`` computes, as it says now.

    Asked for the route and again when it is sent, it may say two things, and the shard of the one
    would be asked for rows of the other.

    Raises:
        UnroutableStatementError: There is a parameter that cannot be replaced.
    """
    statement = state.statement
    if isinstance(statement, SelectBase | UpdateBase | FromStatement) and _computes(statement):
        # What compares a relation reads attributes, which a flush may set.
        state.session._autoflush()  # noqa: SLF001 -- as Session.execute does
        state.statement = _settled(statement)


def _computes(statement: ClauseElement) -> bool:
    key = statement._generate_cache_key()  # noqa: SLF001 -- there is no public name
    if key is not None:
        return any(bind.callable is not None for bind in key.bindparams)
    return any(
        isinstance(part, BindParameter) and part.callable is not None
        for part in visitors.iterate(statement)
    )


def _settled(statement: Any) -> Executable:  # noqa: ANN401 -- one that can be executed
    def settle(bind: BindParameter[Any]) -> None:
        bind.value, bind.callable = bind.effective_value, None

    options = statement._with_options  # noqa: SLF001 -- which cannot be copied
    bare = statement._generate() if options else statement  # noqa: SLF001
    if options:
        bare._with_options = ()  # noqa: SLF001
    # As ClauseElement.params() does.
    options_of_copy = {"maintain_key": True, "detect_subquery_cols": True}
    settled: Any = visitors.cloned_traverse(bare, options_of_copy, {"bindparam": settle})
    if options:
        settled._with_options = options  # noqa: SLF001
    # A copy of another shape would take rows from elsewhere: from a subquery and its copy, say.
    if _computes(settled) or not _is_alike(statement, settled):
        raise UnroutableStatementError(
            "a parameter whose value is computed stands where it cannot be replaced",
            "give it a name, and pass its value with the statement",
        )
    return settled  # type: ignore[no-any-return] # a copy of the statement


def _is_alike(statement: Any, settled: Any) -> bool:  # noqa: ANN401 -- one that can be executed
    own, its = statement._generate_cache_key(), settled._generate_cache_key()  # noqa: SLF001
    if own is None:  # rows to insert have no key, and nothing that would be copied
        return isinstance(statement, Insert) and statement.select is None
    return its is not None and own.key == its.key

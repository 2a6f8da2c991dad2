"""What SQLAlchemy is about to execute: its sets of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Executable, Insert
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql import visitors

from datapatterns.errors import UnroutableStatementError
from datapatterns.sharding.routing.key_conditions import Parameters


def refuse_other_schemas(options: Mapping[str, Any]) -> None:
    """Refuse to read tables of another schema than the declared one.

    Nobody moves their rows with the bucket, and what merges rows does not know of them.

    Raises:
        UnroutableStatementError: Options of execution name one.
    """
    if options.get("schema_translate_map"):
        raise UnroutableStatementError(
            "schema_translate_map puts tables in place of the declared ones, which are what moves",
            "name the schema in the tables",
        )


def all_sets(state: ORMExecuteState) -> Sequence[Parameters]:
    """Return the sets of parameters that were passed with the statement, or kept in it.

    Raises:
        UnroutableStatementError: They are kept in an INSERT.
    """
    given = state.parameters
    sets = () if given is None else (given,) if isinstance(given, Mapping) else given
    kept = _kept_params(state.statement)
    if not kept:
        return sets
    if isinstance(state.statement, Insert):
        raise UnroutableStatementError(
            "an INSERT with params()", "pass the values with it to execute()"
        )
    # As SQLAlchemy does: what is passed goes first.
    return [{**kept, **each} for each in sets or ({},)]


def one_set(state: ORMExecuteState) -> Parameters:
    """Return the parameters that were passed with a SELECT.

    Raises:
        UnroutableStatementError: They are several sets.
    """
    sets = all_sets(state)
    if len(sets) > 1:
        raise UnroutableStatementError("a SELECT with several sets of parameters", "pass one set")
    return sets[0] if sets else {}


def _kept_params(statement: Executable) -> Parameters:
    """Return what ``params()`` has left in a statement, and in those inside of it."""
    if not isinstance(statement, ClauseElement):
        return {}
    key = statement._generate_cache_key()  # noqa: SLF001 -- there is no public name
    if key is not None:
        return key.params or {}
    kept: dict[str, Any] = {}
    for part in visitors.iterate(statement):
        kept |= getattr(part, "_params", {})
    return kept

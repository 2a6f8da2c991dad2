"""What SQLAlchemy is about to execute: its sets of parameters."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import ORMExecuteState

from datapatterns.errors import UnroutableStatementError
from datapatterns.sharding.routing.key_conditions import Parameters


def all_sets(state: ORMExecuteState) -> Sequence[Parameters]:
    """Return the sets of parameters that were passed with the statement."""
    given = state.parameters
    if given is None:
        return ()
    return (given,) if isinstance(given, Mapping) else given


def one_set(state: ORMExecuteState) -> Parameters:
    """Return the parameters that were passed with a SELECT.

    Raises:
        UnroutableStatementError: They are several sets.
    """
    sets = all_sets(state)
    if len(sets) > 1:
        raise UnroutableStatementError("a SELECT with several sets of parameters", "pass one set")
    return sets[0] if sets else {}

"""Which rows of a view are meant, as conditions on its columns."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

_CONDITION: Final = re.compile(r"\s*(\w+)\s*(<=|>=|<>|=|<|>)\s*(.*)", re.DOTALL)


def condition_of(conditions: Sequence[str]) -> "ColumnElement[bool] | None":
    """Return what ``conditions``, such as ``week>=7``, say together; None for none.

    Raises:
        UsageError: One is no condition.
    """
    from sqlalchemy import and_, bindparam, column  # noqa: PLC0415 -- help must not wait for it
    from sqlalchemy.types import NullType  # noqa: PLC0415

    found = []
    for condition in conditions:
        if (parts := _CONDITION.fullmatch(condition)) is None:
            raise click.UsageError(f"{condition!r} is no condition; write column>=value")
        name, operator, value = parts.groups()
        # The server reads the value as what it is compared with.
        found.append(
            column(name).op(operator, is_comparison=True)(bindparam(None, value, NullType()))
        )
    return and_(*found) if found else None

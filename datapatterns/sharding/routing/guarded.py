"""Add a guard to statements, before all else, without finding out their new shape each time.

SQLAlchemy looks a compiled statement up by its cache key, which takes longer to make than all else
that routing does. A statement with a guard has the key of the statement and that of the guard put
together, always in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import BindParameter, ColumnElement, Select
from sqlalchemy.sql.cache_key import CacheKey

AnySelect = TypeVar("AnySelect", bound=Select[Any])

_MEMO = "_generate_cache_key"


@dataclass(frozen=True, slots=True)
class GuardedShape:
    """The cache key of statements of one shape with guards of one shape.

    Attributes:
        guard: The guards' key.
        key: Theirs together.
        order: Where each of its parameters stands among those of the statement and of the guard.
    """

    guard: tuple[Any, ...]
    key: tuple[Any, ...]
    order: tuple[int, ...]


def with_guard(statement: AnySelect, guard: ColumnElement[bool]) -> AnySelect:
    """Return ``statement`` with ``guard`` as the first of its conditions.

    The server looks at conditions without columns, such as EXISTS about another table, in the order
    in which they stand, and leaves the rest alone when one is false.
    """
    guarded = statement._generate()  # noqa: SLF001 -- as where() does, which looks at the guard anew
    guarded._where_criteria = (guard, *statement._where_criteria)  # noqa: SLF001
    return guarded


def guarded_shape(
    statement: Select[Any], guard: ColumnElement[bool], with_guard: Select[Any]
) -> GuardedShape | None:
    """Return what further statements of this shape need; None if they cannot have it."""
    keys = [part._generate_cache_key() for part in (statement, guard, with_guard)]  # noqa: SLF001 -- no public name
    own, of_guard, both = keys
    if own is None or of_guard is None or both is None:
        return None
    places = {id(bind): place for place, bind in enumerate(_binds(own, of_guard))}
    order = [places.get(id(bind)) for bind in both.bindparams]
    known = tuple(place for place in order if place is not None)
    if len(known) < len(order):
        return None
    return GuardedShape(of_guard.key, both.key, known)


def with_guard_of(
    statement: AnySelect, guard: ColumnElement[bool], shape: GuardedShape | None
) -> AnySelect:
    """Return ``statement`` with ``guard``, under the key that it would have anyhow."""
    guarded = with_guard(statement, guard)
    own, of_guard = statement._generate_cache_key(), guard._generate_cache_key()  # noqa: SLF001
    if shape is None or own is None or of_guard is None or of_guard.key != shape.guard:
        return guarded
    binds = _binds(own, of_guard)
    key = own._replace(key=shape.key, bindparams=[binds[place] for place in shape.order])
    # Where SQLAlchemy itself remembers it, and forgets it when the statement is changed.
    guarded.__dict__[_MEMO] = lambda: key
    guarded._memoized_keys |= {_MEMO}  # noqa: SLF001
    return guarded


def _binds(own: CacheKey, of_guard: CacheKey) -> Sequence[BindParameter[Any]]:
    return [*own.bindparams, *of_guard.bindparams]

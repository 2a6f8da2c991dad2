"""Values that can be stored as JSON and come back the same, drawn by their annotation."""

# ruff: noqa: ANN401 -- annotations, and values of whatever type they name

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from msgspec import Meta

T = TypeVar("T")

_INTEGER_MAX: Final = 2**63 - 1
_YEARS_10: Final = timedelta(days=3_650)


def text(*, max_size: int | None = None) -> SearchStrategy[str]:
    """Return text that PostgreSQL can store: without U+0000 and halves of surrogate pairs."""
    return st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=max_size
    )


def storable(cls: type[T], given: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[T]:
    """Return objects of a dataclass or Struct; what it refuses by ValueError is left out.

    Args:
        cls: The class.
        given: What to take for a field, by its name, instead of what its annotation says.

    Raises:
        TypeError: A field is annotated with something that cannot be drawn.
    """
    hints = get_type_hints(cls, include_extras=True)
    values = {
        name: given[name] if name in given else _of(hints[name], f"{cls.__name__}.{name}")
        for name in field_names(cls)
    }

    @st.composite
    def made(draw: DrawFn) -> T:
        drawn = draw(st.fixed_dictionaries(values))
        try:
            return cls(**drawn)
        except ValueError:
            reject()

    return made()


_PLAIN: Final[dict[Any, SearchStrategy[Any]]] = {
    NoneType: st.none(),
    None: st.none(),
    bool: st.booleans(),
    int: st.integers(-_INTEGER_MAX, _INTEGER_MAX),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: text(),
    bytes: st.binary(),
    bytearray: st.binary().map(bytearray),
    UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    date: st.dates(),
    datetime: st.datetimes(timezones=st.just(UTC)),
    time: st.times(),
    timedelta: st.timedeltas(-_YEARS_10, _YEARS_10),
}
_PLAIN[Any] = _PLAIN[object] = st.recursive(
    st.none() | st.booleans() | _PLAIN[int] | text(),
    lambda inner: st.lists(inner) | st.dictionaries(text(), inner),
    max_leaves=5,
)


def _of(hint: Any, place: str) -> SearchStrategy[Any]:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, NewType):
        return _of(hint.__supertype__, place)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if isinstance(hint, type) and field_names(hint):
        return st.deferred(lambda: storable(hint, {}))
    return _of_generic(hint, place)


def _of_generic(hint: Any, place: str) -> SearchStrategy[Any]:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of([_of(argument, place) for argument in arguments])
    if origin is Annotated and not any(isinstance(a, Meta) for a in arguments[1:]):
        return _of(arguments[0], place)
    if origin in (list, set, frozenset):
        element = _of(arguments[0] if arguments else Any, place)
        return st.lists(element, unique=origin is not list).map(origin)
    if origin is tuple:
        return _of_tuple(arguments or (Any, ...), place)
    if origin in (dict, Mapping):
        key, value = arguments or (str, Any)
        return st.dictionaries(_of(key, place), _of(value, place))
    raise TypeError(f"{place} is annotated with {hint!r}, which cannot be drawn; give a strategy")


def _of_tuple(arguments: tuple[Any, ...], place: str) -> SearchStrategy[Any]:
    if arguments[-1] is ...:
        return st.lists(_of(arguments[0], place)).map(tuple)
    return st.tuples(*[_of(argument, place) for argument in arguments])


def field_names(cls: type) -> tuple[str, ...]:
    """Return what a dataclass or Struct is made from, inherited fields too."""
    if is_dataclass(cls):
        return tuple(field.name for field in fields(cls) if field.init)
    return tuple(getattr(cls, "__struct_fields__", ()))

"""Which method of an aggregate applies which event."""

from collections.abc import Callable, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from types import FunctionType, UnionType
from typing import TypeVar, Union, get_args, get_origin

from datapatterns.errors import AggregateError

F = TypeVar("F", bound=Callable[..., None])

_MARK = "__applies__"


def applies(handler: F) -> F:
    """Mark the method that changes the state after an event; its annotation says which one.

    The method may be called ``_``, as often as there are events. It must not decide, raise or
    look at the clock: it runs again for every load.
    """
    setattr(handler, _MARK, True)
    return handler


class _Handlers(dict[str, object]):
    """A class body in which several handlers may share one name."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[FunctionType] = []

    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(value, FunctionType) and hasattr(value, _MARK):
            self.handlers.append(value)
        super().__setitem__(name, value)


class Handling(type):
    """Collects the handlers of a class and of those it extends."""

    _own_handlers: dict[type, FunctionType]
    _handlers: dict[type, FunctionType]

    @classmethod
    def __prepare__(cls, _name: str, _bases: tuple[type, ...], /, **_options: object) -> _Handlers:
        return _Handlers()

    def __new__(
        mcs, name: str, bases: tuple[type, ...], body: _Handlers, /, **options: object
    ) -> "Handling":
        """Make the class; refuse it if its handlers are not clear."""
        cls = super().__new__(mcs, name, bases, body, **options)
        cls._own_handlers = dict(_handled(name, body.handlers))
        # Own ones only, or what a base inherits would win over what another base overrides.
        all_handlers = (vars(base).get("_own_handlers", {}) for base in reversed(cls.__mro__))
        cls._handlers = {e: handler for own in all_handlers for e, handler in own.items()}
        return cls


def _handled(name: str, handlers: list[FunctionType]) -> Iterator[tuple[type, FunctionType]]:
    seen: set[type] = set()
    for handler in handlers:
        if (
            iscoroutinefunction(handler)
            or isgeneratorfunction(handler)
            or isasyncgenfunction(handler)
        ):
            raise AggregateError(
                name,
                "has a handler that is async or yields, so calling it would run nothing of it;"
                " make it a plain function",
            )
        for event in _events_of(name, handler):
            if event in seen:
                raise AggregateError(name, f"has two handlers for {event.__name__}; keep one")
            seen.add(event)
            yield event, handler


def _events_of(name: str, handler: FunctionType) -> tuple[type, ...]:
    try:
        parameters = list(signature(handler, eval_str=True).parameters.values())
    except NameError as error:
        raise AggregateError(
            name,
            f"has a handler whose event cannot be found ({error}); define it before, at the"
            " top of a module",
        ) from error
    hint = parameters[1].annotation if len(parameters) == 2 else None  # noqa: PLR2004 -- self, e
    events = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(isinstance(event, type) for event in events) or hint is parameters[0].empty:
        raise AggregateError(
            name,
            "has a handler without the class of its event; write @applies def _(self, e: Paid)",
        )
    return events

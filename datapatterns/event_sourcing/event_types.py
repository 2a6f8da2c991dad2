"""Which class stands for which type of event, and how older shapes become today's.

An upcaster is a pure function from the data of one version to that of the next. Stored events are
never rewritten: they are lifted, step by step, each time they are read.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Final, TypeVar

import msgspec

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing.events import check_event_type
from datapatterns.event_sourcing.payload import decode_stored, misfit

E = TypeVar("E", bound=type)

Upcaster = Callable[[dict[str, Any]], dict[str, Any] | list[dict[str, Any]] | None]
"""Takes the data of one version; returns that of the next, of several, or None to drop it."""


@dataclass(frozen=True, slots=True)
class EventType:
    """A declared type of event: its name, the version of its current shape, its class."""

    name: str
    schema_version: int
    cls: type
    decoder: msgspec.json.Decoder[Any] = field(repr=False, compare=False)


class EventTypes:
    """The types of events that a program knows.

    Most programs use the one that `event` and `upcast` fill; tests and programs that hold two
    releases of a model make their own.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, EventType] = {}
        self._by_class: dict[type, EventType] = {}
        self._upcasters: dict[tuple[str, int], Upcaster] = {}
        self.revision = 0
        """How often something was declared; what was derived before may be out of date."""

    def event(self, name: str, *, version: int = 1) -> Callable[[E], E]:
        """Declare that a frozen dataclass or msgspec Struct is the current shape of ``name``.

        Args:
            name: What happened, in the words of the domain: ``item.scanned``.
            version: Of the shape. Raise it when data that was stored no longer fits the class,
                and register an upcaster for each version before. A new field with a default
                needs neither.

        Raises:
            EventTypeError: The name belongs to another class, or the class cannot be an event.
            ValueError: The name or the version cannot be stored.
        """
        check_event_type(name, version)

        def declare(cls: E) -> E:
            _check_class(name, cls)
            known = self._by_name.get(name)
            # A module that is loaded again declares the same class again, as a new object.
            if known is not None and _place(known.cls) != _place(cls):
                raise EventTypeError(
                    name, f"is declared by {_place(known.cls)} and by {_place(cls)}; rename one"
                )
            declared = EventType(name, version, cls, msgspec.json.Decoder(cls))
            self._by_name[name] = declared
            self._by_class[cls] = declared
            self.revision += 1
            return cls

        return declare

    def upcast(self, name: str, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Register how data of ``name`` gets from ``from_version`` to the next version.

        The function must not do anything else: it runs each time an old event is read.

        Raises:
            EventTypeError: Another function is registered for this step.
            ValueError: The name or the version cannot be stored.
        """
        check_event_type(name, from_version)

        def register(function: Upcaster) -> Upcaster:
            known = self._upcasters.get((name, from_version))
            if known is not None and _place(known) != _place(function):
                raise EventTypeError(
                    name, f"has two upcasters from version {from_version}; keep one"
                )
            self._upcasters[name, from_version] = function
            self.revision += 1
            return function

        return register

    def of(self, cls: type) -> EventType:
        """Return the declaration of ``cls``.

        Raises:
            EventTypeError: There is none.
        """
        declared = self._by_class.get(cls)
        if declared is None:
            raise EventTypeError(_place(cls), 'is not an event; declare it with @event("its.name")')
        return declared

    def upcasters(self, cls: type) -> dict[int, Upcaster]:
        """Return the upcasters that lead to ``cls``, by the version they start from."""
        name = self.of(cls).name
        return {
            version: function
            for (of, version), function in sorted(self._upcasters.items(), key=lambda i: i[0])
            if of == name
        }

    def decode(self, name: str, schema_version: int, data: Mapping[str, Any]) -> list[object]:
        """Return what stored data says today: no, one or several typed events.

        Raises:
            EventShapeError: The data does not fit, or no upcaster leads from its version.
            EventTypeError: The type is not declared here.
        """
        declared = self._declared(name, schema_version)
        shapes = [dict(data)]
        if schema_version < declared.schema_version:
            shapes = [deepcopy(shapes[0])]  # upcasters may change what they are given
        for version in range(schema_version, declared.schema_version):
            shapes = [new for old in shapes for new in self._lift(name, version, old)]
        return [_convert(declared, schema_version, shape) for shape in shapes]

    def decode_json(self, name: str, schema_version: int, data: str) -> list[object]:
        """Return what stored JSON says today, without a detour if it has today's shape.

        Raises:
            EventShapeError: The data does not fit, or no upcaster leads from its version.
            EventTypeError: The type is not declared here.
        """
        declared = self._declared(name, schema_version)
        if declared.schema_version != schema_version:
            stored = decode_stored(data, event_type=name, schema_version=schema_version)
            return self.decode(name, schema_version, stored)
        try:
            return [declared.decoder.decode(data)]
        except msgspec.DecodeError as error:
            raise _misfit(name, schema_version, error) from None
        except RecursionError:
            raise EventShapeError(
                name, schema_version=schema_version, reason="it is nested too deep"
            ) from None

    def _declared(self, name: str, schema_version: int) -> EventType:
        declared = self._by_name.get(name)
        if declared is None:
            raise EventTypeError(
                name, f'is stored but not declared; declare a class with @event("{name}")'
            )
        if schema_version > declared.schema_version:
            raise EventShapeError(
                name,
                schema_version=schema_version,
                reason=f"this code knows versions up to {declared.schema_version}; deploy the"
                " code that wrote it",
            )
        return declared

    def _lift(self, name: str, version: int, data: dict[str, Any]) -> list[dict[str, Any]]:
        upcaster = self._upcasters.get((name, version))
        if upcaster is None:
            raise EventShapeError(name, schema_version=version, reason="no upcaster leads on")
        lifted = upcaster(data)
        if lifted is None:
            return []
        # [old] * 2 is one object twice: what the next upcaster changes in one, it must not find
        # changed in the other.
        return [deepcopy(one) for one in lifted] if isinstance(lifted, list) else [lifted]


def _check_class(name: str, cls: object) -> None:
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        frozen = cls.__struct_config__.frozen
    elif isinstance(cls, type) and is_dataclass(cls):
        frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined] # typeshed lacks it
    else:
        raise EventTypeError(
            name,
            f"{cls!r} is neither a dataclass nor a msgspec Struct; put @event above @dataclass",
        )
    if not frozen:
        raise EventTypeError(name, "what happened does not change; declare the class frozen=True")


def _convert(declared: EventType, schema_version: int, data: dict[str, Any]) -> object:
    try:
        return msgspec.convert(data, declared.cls, str_keys=True)
    except msgspec.ValidationError as error:
        raise _misfit(declared.name, schema_version, error) from None


def _misfit(name: str, schema_version: int, error: msgspec.MsgspecError) -> EventShapeError:
    return EventShapeError(name, schema_version=schema_version, reason=misfit(error))


def _place(code: Any) -> str:  # noqa: ANN401 -- a class or a function
    return f"{code.__module__}.{code.__qualname__}"


EVENT_TYPES: Final = EventTypes()
"""What `event` and `upcast` fill, and what a store uses unless it is given another."""

event = EVENT_TYPES.event
upcast = EVENT_TYPES.upcast

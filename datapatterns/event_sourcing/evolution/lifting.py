"""Compile what leads from a stored shape to typed events into one function."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final

import msgspec

from datapatterns.errors import EventShapeError
from datapatterns.event_sourcing.content.payload import decode_stored, misfit
from datapatterns.event_sourcing.content.shapes import Decoder, converter_of
from datapatterns.event_sourcing.evolution.evolving import Declarations, Fate, Shape, Step, Verdict
from datapatterns.event_sourcing.persons.personal import has_sealed, refuse_sealed

Lift = Callable[[dict[str, Any]], list[object]]
"""Takes data that nobody else holds; returns the events that it is today."""

_UNCHANGING: Final = frozenset({str, int, float, bool, type(None)})


class Reader:
    """Turns what is stored of one shape into events.

    Attributes:
        decoder: What reads stored JSON as the class of today, if nothing lies between.
    """

    __slots__ = ("_lift", "_stored", "decoder")

    def __init__(self, stored: Shape, lift: Lift, decoder: Decoder | None) -> None:
        self._stored = stored
        self._lift = lift
        self.decoder = decoder

    def from_data(self, data: Mapping[str, Any]) -> list[object]:
        """Return no, one or several events; ``data`` stays as it is."""
        if self.decoder is None:
            refuse_sealed(data)  # an upcaster might take it for something else
            return self._lift(private(dict(data)))
        return self._lift(dict(data))

    def from_json(self, data: str | bytes) -> list[object]:
        """Return no, one or several events, without a detour if the data has today's shape."""
        name, version = self._stored
        if self.decoder is None:
            stored = decode_stored(data, event_type=name, schema_version=version)
            if has_sealed(data):
                refuse_sealed(stored)
            return self._lift(stored)
        try:
            return [self.decoder.decode(data)]
        except msgspec.DecodeError as error:
            if has_sealed(data):
                refuse_sealed(decode_stored(data, event_type=name, schema_version=version))
            raise EventShapeError(name, schema_version=version, reason=misfit(error)) from None
        except RecursionError:
            raise EventShapeError(
                name, schema_version=version, reason="it is nested too deep"
            ) from None


def reader_of(declared: Declarations, stored: Shape) -> Reader:
    """Return what reads the stored shape.

    Raises:
        EventShapeError: An upcaster is missing, or newer code has stored it.
        EventTypeError: A name is not declared.
    """
    fate = declared.fate(stored)
    if fate.verdict not in {Verdict.READABLE, Verdict.DROPPED}:
        raise fate.error()
    end = declared.follow(declared.named_today(stored))
    decoder = end.classes[0].decoder if isinstance(end, Fate) and end.classes else None
    return Reader(stored, _compiled(declared, stored, stored), decoder)


def nothing_of(stored: Shape) -> Reader:
    """Return what reads the stored shape as nothing."""
    return Reader(stored, lambda _data: [], None)


def _compiled(declared: Declarations, shape: Shape, stored: Shape) -> Lift:
    # A chain of plain upcasters is a loop, not a nest of calls: it may be as long as it likes.
    chain: list[tuple[Shape, Step]] = []
    after = declared.follow(shape)
    while not isinstance(after, Fate):
        if isinstance(after, Step):
            if not after.is_plain:
                fork = _fork(declared, shape, after, stored)
                return _climb(tuple(chain), fork) if chain else fork
            chain.append((shape, after))
            after = after.targets[shape.name]
        shape = after
        after = declared.follow(shape)
    last = _ending(after, stored)
    return _climb(tuple(chain), last) if chain else last


def _ending(fate: Fate, stored: Shape) -> Lift:
    if not fate.classes:
        return lambda _data: []
    convert = converter_of(fate.classes[0].cls)

    def converted(data: dict[str, Any]) -> list[object]:
        try:
            return [convert(data)]
        except msgspec.ValidationError as error:
            refuse_sealed(data)
            raise EventShapeError(
                stored.name, schema_version=stored.version, reason=misfit(error)
            ) from None

    return converted


def _climb(chain: tuple[tuple[Shape, Step], ...], last: Lift) -> Lift:
    def lift(data: dict[str, Any]) -> list[object]:
        for place, (at, step) in enumerate(chain, 1):
            lifted = _called(at, step, data)
            if type(lifted) is not dict:
                return lift_many(_many(at, lifted), place)
            data = private(lifted)
        return last(data)

    def lift_many(shapes: list[dict[str, Any]], begin: int) -> list[object]:
        for at, step in chain[begin:]:
            shapes = [new for old in shapes for new in _many(at, _called(at, step, old))]
        return [event for one in shapes for event in last(one)]

    return lift


def _many(at: Shape, lifted: object) -> list[dict[str, Any]]:
    if lifted is None:
        return []
    many = lifted if isinstance(lifted, list) else [lifted]
    if not all(isinstance(one, dict) for one in many):
        raise _misbehaved(at, "returned something else than dicts; return a dict, a list or None")
    return [private(one) for one in many]


def _fork(declared: Declarations, at: Shape, step: Step, stored: Shape) -> Lift:
    ways = {
        name: _compiled(declared, target, stored) for name, target in sorted(step.targets.items())
    }

    def lift(data: dict[str, Any]) -> list[object]:
        lifted = _called(at, step, data)
        events: list[object] = []
        for one in lifted or ():
            if not _is_named(one):
                raise _misbehaved(at, "must return a list of names with their data")
            name, part = one
            if name not in ways:
                raise _misbehaved(at, f"returned a name that its `into` lacks; add one of {name!r}")
            events += ways[name](private(part))
        return events

    return lift


def _is_named(one: Any) -> bool:  # noqa: ANN401 -- user's code
    return isinstance(one, tuple) and [type(part) for part in one] == [str, dict]


def _called(at: Shape, step: Step, data: dict[str, Any]) -> Any:  # noqa: ANN401 -- user's code
    try:
        return step.function(data)
    except Exception as error:  # the application's code may raise anything
        # Without its message: that may quote the data.
        raise _misbehaved(at, f"raised {type(error).__name__}") from error


def _misbehaved(at: Shape, what: str) -> EventShapeError:
    return EventShapeError(at.name, schema_version=at.version, reason=f"its upcaster {what}")


def private(value: Any) -> Any:  # noqa: ANN401 -- JSON, and whatever upcasters put into it
    """Return a copy that shares nothing that can change.

    What an upcaster returns may be one object twice, or a default of its module: what the next
    upcaster changes in one, it must not find changed in another. Several times faster than
    deepcopy for what JSON holds.
    """
    kind = type(value)
    if kind is dict:
        return {
            name: part if type(part) in _UNCHANGING else private(part)
            for name, part in value.items()
        }
    if kind is list:
        return [part if type(part) in _UNCHANGING else private(part) for part in value]
    return value if kind in _UNCHANGING else deepcopy(value)

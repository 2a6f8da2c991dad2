"""What an aggregate's state consists of, and how it becomes JSON and comes back the same."""

from dataclasses import dataclass
from inspect import get_annotations
from types import MemberDescriptorType
from typing import Any, ClassVar, Final, Protocol, get_origin, get_type_hints

import msgspec

from datapatterns.errors import AggregateError, EventDataError
from datapatterns.event_sourcing.content.payload import encode_state, misfit
from datapatterns.event_sourcing.content.shapes import Decoder, decoder_of, schema_of
from datapatterns.event_sourcing.states.faithful import UnfaithfulError, check_faithful

UNCHANGING: Final = (type(None), bool, int, float, complex, str, bytes)
"""Values that objects can share."""

_GUESSED: Final = (bool, int, float, str)


def state_defaults(aggregate: type, *, above: type) -> dict[str, object]:
    """Return the state that classes above ``above`` declare with a default, by name."""
    defaults: dict[str, object] = {}
    for cls in _declaring(aggregate, above):
        constants = {name for name, hint in get_annotations(cls).items() if _is_constant(hint)}
        for name, value in vars(cls).items():
            is_code = callable(value) or hasattr(value, "__get__")
            if not (name.startswith("__") or name in constants or name in _OWN or is_code):
                defaults[name] = value
    return defaults


class StateShape(Protocol):
    """How the state of one aggregate or decider becomes JSON and comes back."""

    @property
    def hints(self) -> tuple[object, ...]:
        """The types that make up the state."""
        ...

    def schema(self) -> str:
        """Return a text that differs when the shape does."""
        ...

    def encode(self, sourced: Any, /) -> str:  # noqa: ANN401 -- of the class that the shape is of
        """Return the state as JSON, once it is sure that it comes back the same.

        Raises:
            AggregateError: Part of the state is not declared, or would come back changed.
        """
        ...

    def restore(self, sourced: Any, encoded: str, /) -> None:  # noqa: ANN401 -- as above
        """Give ``sourced`` the state that was encoded.

        Raises:
            msgspec.MsgspecError: It is not a state of this shape.
        """
        ...


@dataclass(frozen=True, slots=True)
class ValueShape:
    """The type of a decider's state, which is one value."""

    decider: str
    hint: Any
    decoder: Decoder

    @property
    def hints(self) -> tuple[object, ...]:
        """The type of the state."""
        return (self.hint,)

    def schema(self) -> str:
        """Return a text that differs when the shape does."""
        return schema_of(self.hint)

    def encode(self, folded: Any, /) -> str:  # noqa: ANN401 -- what the decider makes
        """Return the state as JSON; see `StateShape`."""
        return self.encode_value(folded.state)

    def encode_value(self, state: object) -> str:
        """Return a state as JSON; see `StateShape`."""
        encoded = self.write_value(state)
        try:
            check_faithful({"state": state}, {"state": self.decode_value(encoded)})
        except msgspec.ValidationError as error:
            raise AggregateError(
                self.decider, f"has state that differs from its type: {misfit(error)}"
            ) from None
        except UnfaithfulError as error:
            raise AggregateError(self.decider, str(error)) from None
        return encoded

    def write_value(self, state: object) -> str:
        """Return a state as JSON, which may come back changed."""
        return _encoded({"state": state}, self.decider)

    def restore(self, folded: Any, encoded: str, /) -> None:  # noqa: ANN401 -- as above
        """Give ``folded`` the state that was encoded; see `StateShape`."""
        folded.state = self.decode_value(encoded)

    def decode_value(self, encoded: str) -> Any:  # noqa: ANN401 -- whatever the state is
        """Return the state that was encoded."""
        return self.decoder.decode(encoded).state


def value_shape(decider: str, hint: Any) -> ValueShape:  # noqa: ANN401 -- a type
    """Return the shape of states of the type ``hint``.

    Raises:
        AggregateError: It cannot be decoded.
    """
    try:
        holder = msgspec.defstruct("Holder", [("state", hint)], forbid_unknown_fields=True)
        shape = ValueShape(decider, hint, decoder_of(holder))
        shape.schema()
    except TypeError as error:
        raise AggregateError(decider, f"has state that cannot be decoded: {error}") from error
    return shape


@dataclass(frozen=True, slots=True)
class AttributeShape:
    """The names and types of an aggregate's state."""

    aggregate: str
    struct: type[msgspec.Struct]
    decoder: Decoder

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes that make up the state."""
        return self.struct.__struct_fields__

    @property
    def hints(self) -> tuple[object, ...]:
        """The types of the attributes, in the order of their names."""
        return tuple(get_type_hints(self.struct).values())

    def schema(self) -> str:
        """Return a text that differs when the shape does."""
        return schema_of(self.struct)

    def encode(self, aggregate: Any, /) -> str:  # noqa: ANN401 -- an object of the class
        """Return the state as JSON; see `StateShape`."""
        state = self._state_of(aggregate)
        encoded = _encoded(state, self.aggregate)
        try:
            decoded = self.decoder.decode(encoded)
            check_faithful(state, {name: getattr(decoded, name) for name in state})
        except msgspec.ValidationError as error:
            raise AggregateError(
                self.aggregate, f"has state that differs from its annotation: {misfit(error)}"
            ) from None
        except UnfaithfulError as error:
            raise AggregateError(self.aggregate, str(error)) from None
        return encoded

    def write(self, aggregate: Any, /) -> str:  # noqa: ANN401 -- as above
        """Return the state as JSON, which may come back changed."""
        return _encoded(self._state_of(aggregate), self.aggregate)

    def _state_of(self, aggregate: Any) -> dict[str, Any]:  # noqa: ANN401 -- as above
        held = vars(aggregate).keys() | {
            n for n in _slots(type(aggregate)) if hasattr(aggregate, n)
        }
        for name in held - {"_history"} - set(self.names):
            raise AggregateError(
                self.aggregate,
                f"sets {name}, which means something in every aggregate; call it otherwise"
                if name in _OWN
                else f"sets {name}, which it does not declare; annotate it in the class",
            )
        return {n: getattr(aggregate, n) for n in self.names if hasattr(aggregate, n)}

    def restore(self, aggregate: Any, encoded: str, /) -> None:  # noqa: ANN401 -- as above
        """Give ``aggregate`` the state that was encoded; see `StateShape`."""
        state = self.decoder.decode(encoded)
        for name in self.names:
            value = getattr(state, name)
            if value is not msgspec.UNSET:
                setattr(aggregate, name, value)


def _encoded(state: dict[str, Any], name: str) -> str:
    try:
        return encode_state(state, aggregate=name)
    except EventDataError as error:
        raise AggregateError(name, f"has unstorable state: {error.reason}") from error


def state_shape(aggregate: type, *, above: type) -> AttributeShape:
    """Return the shape of the state that classes above ``above`` declare.

    Raises:
        AggregateError: A part has neither an annotation nor a plain default, or a type that
            cannot be decoded.
    """
    name = aggregate.__name__
    hints = {
        attribute: hint
        for cls in _declaring(aggregate, above)
        for attribute, hint in get_type_hints(cls, include_extras=True).items()
        if attribute not in _OWN and not _is_constant(hint)
    }
    defaults = state_defaults(aggregate, above=above)
    for attribute, default in defaults.items():
        if attribute not in hints and type(default) not in _GUESSED:
            raise AggregateError(name, f"has state of unknown type; annotate {attribute}")
        hints.setdefault(attribute, type(default))
    # What has a default is never missing, unless somebody has taken it out.
    fields: list[Any] = [
        (a, hint) if a in defaults else (a, hint | msgspec.UnsetType, msgspec.UNSET)
        for a, hint in sorted(hints.items())
    ]
    try:
        struct = msgspec.defstruct("State", fields, kw_only=True, forbid_unknown_fields=True)
        return AttributeShape(name, struct, decoder_of(struct))
    except TypeError as error:
        raise AggregateError(name, f"has state that cannot be decoded: {error}") from error


_OWN: Final = frozenset(
    {
        "category",
        "snapshot_policy",
        "snapshot_version",
        "_handlers",
        "_own_handlers",
        "_changing",
        "_history",
    }
)


def _slots(cls: type) -> set[str]:
    members = (vars(base).items() for base in cls.__mro__)
    return {n for some in members for n, m in some if isinstance(m, MemberDescriptorType)}


def _declaring(aggregate: type, above: type) -> list[type]:
    return [cls for cls in reversed(aggregate.__mro__) if cls not in above.__mro__]


def _is_constant(hint: object) -> bool:
    return get_origin(hint) is ClassVar or hint is ClassVar or str(hint).startswith("ClassVar")

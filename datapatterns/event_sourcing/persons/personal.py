"""Which fields of an event are about a person, and under whose key they are stored.

Declared in the class: ``email: Annotated[str, Personal(subject="customer_id")]``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from datapatterns.errors import EventDataError, SubjectKeyError

SEALED: Final = "$sealed"
"""The only key of the object that stands for an encrypted field."""

FORGOTTEN: Final = "[forgotten]"
"""What readers get for text, unless the field says something else."""

SUBJECT_FORGOTTEN: Final = "subject.forgotten"
"""The type of the event that tells readers of the log that somebody was forgotten."""

FORGOTTEN_CATEGORY: Final = "forgotten"
"""The category of the streams that hold those events; their key is the person."""

SUBJECT_BYTES_MAX: Final = 500
"""The longest name of a person."""

_TELLTALE: Final = f'"{SEALED}":'
_KEY_ENDS: Final = f'{SEALED}"'


class Redacted(msgspec.Struct, frozen=True, tag="redacted", tag_field="$personal"):
    """Stands for a personal value whose key is gone; for fields such as ``str | Redacted``."""


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field of an event: encrypted under the key of a person, unreadable once forgotten.

    Attributes:
        subject: The field that names the person: of the same object, or of one around it. What
            it holds is stored in the clear, so let it be a number, not a name.
        redacted: What readers get after the person was forgotten. Without it `Redacted` or None,
            where the field allows one of them, and ``[forgotten]`` for text.
    """

    subject: str
    redacted: object = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class SubjectForgotten:
    """Somebody was forgotten: delete what is known of them. Its stream names the tenant.

    Every `EventTypes` knows it, so projections can handle it like their own events.
    """

    subject: str


class PersonalPlan(NamedTuple):
    """Where personal fields lie in the JSON of one class.

    Attributes:
        root: Finds them.
        names: Of the personal fields of the class itself, for what must not use them.
    """

    root: "Fields"
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A personal value: who it is about, seen from here, and what stands for it later."""

    outward: int
    subject: str
    redacted: Any


@dataclass(frozen=True, slots=True)
class Each:
    """The items of an array, or the values of a mapping."""

    inner: "Node"


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of an object by their names in JSON."""

    inner: dict[str, "Node"]


Node = Leaf | Each | Fields


class Slot(NamedTuple):
    """A personal value in decoded JSON: where it hangs, and its path from the root."""

    holder: Any
    key: Any
    path: tuple[str | int, ...]
    subject: str
    redacted: Any


def slots(data: dict[str, Any], plan: PersonalPlan) -> Iterator[Slot]:
    """Return the personal values that ``data`` holds.

    Raises:
        LookupError: A value that should name a person does not.
    """
    return _slots(data, plan.root, (), ())


def _slots(
    value: Any,  # noqa: ANN401 -- JSON
    node: Node,
    path: tuple[str | int, ...],
    around: tuple[dict[str, Any], ...],
) -> Iterator[Slot]:
    if value is None:  # where its class allows it
        return
    places: list[tuple[Any, Node]]
    if isinstance(node, Fields) and isinstance(value, dict):
        places = [(name, inner) for name, inner in node.inner.items() if name in value]
        around = (*around, value)
    elif isinstance(node, Each) and isinstance(value, dict | list):
        places = [(key, node.inner) for key, _ in parts_of(value)]
    else:
        reason = f"{_place(path)} is stored otherwise than its class says"
        raise LookupError(reason)  # noqa: TRY004 -- as below
    for key, inner in places:
        here = (*path, key)
        if isinstance(inner, Leaf):
            yield Slot(value, key, here, _subject(around, inner, here), inner.redacted)
        else:
            yield from _slots(value[key], inner, here, around)


def _subject(around: tuple[dict[str, Any], ...], leaf: Leaf, path: tuple[str | int, ...]) -> str:
    named = around[-1 - leaf.outward].get(leaf.subject)
    if isinstance(named, bool) or not isinstance(named, str | int) or named == "":
        raise LookupError(f"{_place(path)} is about nobody: {leaf.subject} must name a person")
    if len(str(named).encode()) > SUBJECT_BYTES_MAX:
        raise LookupError(f"{leaf.subject} names a person in over {SUBJECT_BYTES_MAX} bytes")
    return str(named)


def _place(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path)) or "it"


def refuse_lookalike(event_type: str, data: str) -> None:
    """Refuse data that readers would take for an encrypted value.

    Raises:
        EventDataError: It has such a key.
    """
    # However it is spelled: whoever writes it again spells it as readers know it.
    is_suspect = _KEY_ENDS in data or "\\u" in data
    if is_suspect and _uses_our_key(msgspec.json.decode(data)):
        raise EventDataError(event_type, f"{SEALED!r} stands for encrypted values; rename that key")


def refuse_sealed(data: Any) -> None:  # noqa: ANN401 -- JSON
    """Say why data does not fit its class, if that is because the store has no keys.

    Raises:
        SubjectKeyError: It holds what a key would open.
    """
    if any(key == SEALED for key, _ in parts_of(data)):
        raise SubjectKeyError(
            None,
            "an event holds personal fields, and keys are needed to read it; give"
            " EventStore(keys=SubjectKeys(...)) them",
        )
    for _, part in parts_of(data):
        refuse_sealed(part)


def has_sealed(data: str | bytes) -> bool:
    """Return whether stored JSON may hold an encrypted value; that it does not is certain."""
    return _TELLTALE in data if isinstance(data, str) else _TELLTALE.encode() in data


def parts_of(value: Any) -> Iterable[tuple[str | int, Any]]:  # noqa: ANN401 -- JSON
    """Return what an object or an array holds, by its keys; nothing for other values."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _uses_our_key(value: Any) -> bool:  # noqa: ANN401 -- JSON
    return any(key == SEALED or _uses_our_key(part) for key, part in parts_of(value))

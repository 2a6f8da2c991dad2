"""Which fields of an event are about a person, and under whose key they are stored.

Declared in the class: ``email: Annotated[str, Personal(subject="customer_id")]``. Where a field
lies so that it could be missed, the declaration is refused.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

import msgspec

from datapatterns.errors import EventDataError, PersonalFieldError, SubjectKeyError

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
_ABSENT: Final = (type(None), msgspec.UnsetType)
_SUBJECTS: Final = (str, int, UUID)


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


def personal_plan(event_type: str, cls: type) -> PersonalPlan | None:
    """Return where ``cls`` has personal fields; None if it has none.

    Raises:
        PersonalFieldError: One lies where it could be missed, its person is not named by a field,
            or nothing can stand for it.
    """
    root = _Planning(event_type).node(cls, cls.__name__, ())
    if root is None:
        return None
    assert isinstance(root, Fields)
    by_json = {json_name: name for name, json_name, _ in fields_of(cls)}
    leaves = {by_json[name] for name, node in root.inner.items() if isinstance(node, Leaf)}
    return PersonalPlan(root, frozenset(leaves))


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
    places: list[tuple[Any, Node]]
    if isinstance(node, Fields):
        if not isinstance(value, dict):  # None, where that is allowed: its class has checked it
            return
        places = [(name, inner) for name, inner in node.inner.items() if name in value]
        around = (*around, value)
    elif isinstance(value, dict):
        places = [(key, node.inner) for key in value] if isinstance(node, Each) else []
    else:
        assert isinstance(node, Each)
        places = [(index, node.inner) for index in range(len(value or ()))]
    for key, inner in places:
        here = (*path, key)
        if isinstance(inner, Leaf):
            yield Slot(value, key, here, _subject(around, inner, here), inner.redacted)
        else:
            yield from _slots(value[key], inner, here, around)


def _subject(around: tuple[dict[str, Any], ...], leaf: Leaf, path: tuple[str | int, ...]) -> str:
    named = around[-1 - leaf.outward].get(leaf.subject)
    if isinstance(named, bool) or not isinstance(named, str | int) or named == "":
        place = ".".join(map(str, path))
        raise LookupError(f"{place} is about nobody: {leaf.subject} must name a person")
    if len(str(named).encode()) > SUBJECT_BYTES_MAX:
        raise LookupError(f"{leaf.subject} names a person in over {SUBJECT_BYTES_MAX} bytes")
    return str(named)


def refuse_lookalike(event_type: str, data: str) -> None:
    """Refuse data that readers would take for an encrypted value.

    Raises:
        EventDataError: It has such a key.
    """
    if _TELLTALE in data and _uses_our_key(msgspec.json.decode(data)):
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


class _Level(NamedTuple):
    cls: type
    json_names: dict[str, str]
    hints: dict[str, Any]


class _Planning:
    """Walks through type hints, and refuses what would be walked past."""

    def __init__(self, event_type: str) -> None:
        self._event_type = event_type
        self._nested: list[type] = []
        self._recursive: set[type] = set()

    def node(  # noqa: PLR0911 -- one for each kind of hint
        self,
        hint: Any,  # noqa: ANN401
        where: str,
        levels: tuple[_Level, ...],
    ) -> Node | None:
        hint = _without_alias(hint)
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._annotated(hint, where, levels)
        if origin in (Union, UnionType):
            return self._union(hint, where, levels)
        cls = origin or hint
        if not isinstance(cls, type):
            return self._refused(arguments, where, levels, "lies in something that is no class")
        if fields_of(cls):
            return self._object(cls, where, levels)
        if issubclass(cls, Mapping):
            self._refused(arguments[:1], where, levels, "is the key of a mapping")
            inner = self.node(arguments[1], f"{where}.*", levels) if arguments[1:] else None
            return inner and Each(inner)
        if issubclass(cls, tuple) and (len(arguments) != 2 or arguments[1] is not Ellipsis):  # noqa: PLR2004
            held = [*arguments, *getattr(cls, "__annotations__", {}).values()]
            return self._refused(held, where, levels, "lies in a tuple of parts; use a list")
        if issubclass(cls, Collection) and arguments:
            inner = self.node(arguments[0], f"{where}[]", levels)
            return inner and Each(inner)
        held = [*arguments, *getattr(cls, "__annotations__", {}).values()]
        return self._refused(held, where, levels, f"lies in a {cls.__name__}; use a dataclass")

    def _annotated(self, hint: Any, where: str, levels: tuple[_Level, ...]) -> Node | None:  # noqa: ANN401
        inner, *notes = get_args(hint)
        marks = [note for note in notes if isinstance(note, Personal)]
        if not marks and Personal not in notes:
            return self.node(inner, where, levels)
        if len(marks) != 1 or Personal in notes:
            raise self._error(where, 'needs one mark with its subject: Personal(subject="...")')
        self._refused([inner], where, levels, "lies in a field that is personal as a whole")
        return self._leaf(marks[0], inner, where, levels)

    def _union(self, hint: Any, where: str, levels: tuple[_Level, ...]) -> Node | None:  # noqa: ANN401
        arms = [arm for arm in get_args(hint) if arm not in (*_ABSENT, Redacted)]
        found = [(arm, node) for arm in arms if (node := self.node(arm, where, levels))]
        if not found:
            return None
        if len(arms) > 1:
            raise self._error(where, "lies in one of several alternatives; give each a field")
        if isinstance(found[0][1], Leaf):  # Annotated[str, Personal(...)] | None
            [mark] = [note for note in get_args(found[0][0]) if isinstance(note, Personal)]
            return self._leaf(mark, hint, where, levels)
        return found[0][1]

    def _object(self, cls: type, where: str, levels: tuple[_Level, ...]) -> Node | None:
        if cls in self._nested:
            self._recursive.add(cls)
            return None
        named = list(fields_of(cls))
        level = _Level(
            cls, {name: json for name, json, _ in named}, {name: hint for name, _, hint in named}
        )
        self._nested.append(cls)
        inner = {
            json_name: node
            for name, json_name, hint in named
            if (node := self.node(hint, f"{where}.{name}", (*levels, level)))
        }
        self._nested.pop()
        if inner and cls in self._recursive:
            raise self._error(where, "lies in a class that holds itself; use a flat list")
        if inner and getattr(getattr(cls, "__struct_config__", None), "array_like", False):
            raise self._error(where, "lies in a Struct that is array_like; leave that out")
        return Fields(inner) if inner else None

    def _refused(
        self,
        hints: Collection[Any],
        where: str,
        levels: tuple[_Level, ...],
        why: str,
    ) -> Node | None:
        for hint in hints:
            if not isinstance(hint, str) and self.node(hint, where, levels) is not None:
                raise self._error(where, why)
        return None

    def _leaf(self, mark: Personal, hint: Any, where: str, levels: tuple[_Level, ...]) -> Leaf:  # noqa: ANN401
        for outward, level in enumerate(reversed(levels)):
            if mark.subject in level.hints:
                self._check_subject(level.hints[mark.subject], mark, where)
                return Leaf(
                    outward, level.json_names[mark.subject], self._redacted(mark, hint, where)
                )
        raise self._error(where, f"is about {mark.subject!r}, which is no field beside it")

    def _check_subject(self, hint: Any, mark: Personal, where: str) -> None:  # noqa: ANN401
        hint = _without_alias(hint)
        while get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            hint = _without_alias(hint)
            if any(isinstance(note, Personal) for note in notes):
                raise self._error(where, f"is about {mark.subject!r}, which is personal itself")
        if hint not in _SUBJECTS:
            raise self._error(
                where, f"is about {mark.subject!r}, which must be a str, int or UUID, never None"
            )

    def _redacted(self, mark: Personal, hint: Any, where: str) -> Any:  # noqa: ANN401 -- JSON
        arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        redacted = mark.redacted
        if redacted is msgspec.UNSET:
            redacted = Redacted() if Redacted in arms else FORGOTTEN
            redacted = None if type(None) in arms and Redacted not in arms else redacted
        try:
            plain = msgspec.to_builtins(redacted, str_keys=True)
            msgspec.convert(plain, hint, str_keys=True)
        except (msgspec.ValidationError, TypeError):
            raise self._error(
                where,
                "has nothing that readers could get once the person is forgotten; give"
                " Personal(redacted=...) a value that fits, or allow None or Redacted",
            ) from None
        return plain

    def _error(self, where: str, why: str) -> PersonalFieldError:
        return PersonalFieldError(self._event_type, field=where, advice=why)


def fields_of(cls: Any) -> list[tuple[str, str, Any]]:  # noqa: ANN401 -- a class
    """Return name, name in JSON, and hint of each field of a class that can be an event."""
    json_names: dict[str, str]
    if not isinstance(cls, type):
        return []
    if issubclass(cls, msgspec.Struct):
        json_names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    elif dataclasses.is_dataclass(cls):
        json_names = {part.name: part.name for part in dataclasses.fields(cls)}
    elif hasattr(cls, "__attrs_attrs__"):
        json_names = {part.name: part.name for part in cls.__attrs_attrs__}
    elif hasattr(cls, "__pydantic_validator__"):
        fields: Mapping[str, Any] = cls.model_fields  # type: ignore[attr-defined] # of pydantic
        json_names = {n: f.serialization_alias or f.alias or n for n, f in fields.items()}
    else:
        return []
    hints = get_type_hints(cls, include_extras=True)
    return [(name, json_name, hints[name]) for name, json_name in json_names.items()]


def _without_alias(hint: Any) -> Any:  # noqa: ANN401 -- a type hint
    while isinstance(hint, NewType) or type(hint).__name__ == "TypeAliasType":
        hint = hint.__supertype__ if isinstance(hint, NewType) else hint.__value__
    return hint if get_origin(hint) is not ClassVar else object

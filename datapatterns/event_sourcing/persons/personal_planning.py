"""Find the personal fields of a class, or refuse where one could be missed."""

import dataclasses
from collections.abc import Collection, Mapping
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

from datapatterns.errors import PersonalFieldError
from datapatterns.event_sourcing.persons.personal import (
    FORGOTTEN,
    Each,
    Fields,
    Leaf,
    Node,
    Personal,
    PersonalPlan,
    Redacted,
)

_ABSENT: Final = (type(None), msgspec.UnsetType)
_SUBJECTS: Final = (str, int, UUID)


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
            self._refused(arguments, where, levels, "is a parameter of a class; give it a field")
            return self._object(cls, where, levels)
        if issubclass(cls, Mapping) and arguments:
            self._refused(arguments[:1], where, levels, "is the key of a mapping")
            inner = self.node(arguments[1], f"{where}.*", levels) if arguments[1:] else None
            return inner and Each(inner)
        is_list = not issubclass(cls, tuple) or arguments[1:] == (Ellipsis,)
        if issubclass(cls, Collection) and arguments and is_list:
            inner = self.node(arguments[0], f"{where}[]", levels)
            return inner and Each(inner)
        if cls in self._nested:
            return None
        self._nested.append(cls)
        held = [*arguments, *_hints_of(cls).values(), *getattr(cls, "__orig_bases__", ())]
        self._refused(held, where, levels, f"lies in a {cls.__name__}; use a dataclass or a list")
        self._nested.pop()
        return None

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
        if inner and _writes_itself(cls):
            raise self._error(where, "lies in a model that writes itself; use a plain model")
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


def _writes_itself(cls: Any) -> bool:  # noqa: ANN401 -- a class, perhaps of pydantic
    decorators = getattr(cls, "__pydantic_decorators__", None)
    return bool(
        getattr(decorators, "model_serializers", None)
        or getattr(cls, "__pydantic_root_model__", False)
    )


def fields_of(cls: Any) -> list[tuple[str, str, Any]]:  # noqa: ANN401 -- a class
    """Return name, name in JSON, and hint of each field of a class that can be an event."""
    json_names: dict[str, str]
    if not isinstance(cls, type):
        return []
    if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_fields"):
        # Not by get_type_hints: it knows nothing of what a generic model was made with.
        fields: Mapping[str, Any] = cls.model_fields
        return [
            (name, part.serialization_alias or part.alias or name, _hint_of(part))
            for name, part in fields.items()
        ]
    if issubclass(cls, msgspec.Struct):
        json_names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    elif dataclasses.is_dataclass(cls):
        json_names = {part.name: part.name for part in dataclasses.fields(cls)}
    elif hasattr(cls, "__attrs_attrs__"):
        json_names = {part.name: part.name for part in cls.__attrs_attrs__}
    else:
        return []
    hints = get_type_hints(cls, include_extras=True)
    return [(name, json_name, hints[name]) for name, json_name in json_names.items()]


def _hint_of(part: Any) -> Any:  # noqa: ANN401 -- a field of pydantic, and its hint
    hint = part.annotation
    for note in part.metadata:
        hint = Annotated[hint, note]
    return hint


def _hints_of(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # of a class that is no data; others cannot be decoded, either
        return {}


def _without_alias(hint: Any) -> Any:  # noqa: ANN401 -- a type hint
    while isinstance(hint, NewType) or type(hint).__name__ == "TypeAliasType":
        hint = hint.__supertype__ if isinstance(hint, NewType) else hint.__value__
    return hint if get_origin(hint) is not ClassVar else object

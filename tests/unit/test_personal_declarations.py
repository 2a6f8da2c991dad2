"""A personal field is found wherever it lies, or its declaration is refused by name."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, NewType, Optional, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from datapatterns.errors import PersonalFieldError
from datapatterns.event_sourcing import EventTypes, Personal, Redacted
from datapatterns.event_sourcing.content.encoding import encode
from datapatterns.event_sourcing.persons.personal import Slot, slots
from datapatterns.event_sourcing.persons.personal_planning import personal_plan

About = Personal(subject="customer_id")
Mail = NewType("Mail", str)


@dataclass(frozen=True)
class Guest:
    guest_id: int
    name: Annotated[str, Personal(subject="guest_id")]
    phone: Annotated[str, About]


@dataclass(frozen=True)
class Data:
    customer_id: str
    email: Annotated[str, About]
    nested: Guest
    several: list[Guest]
    named: dict[str, Guest]
    perhaps: Optional[Guest] = None  # noqa: UP045 -- both spellings


class Struct(msgspec.Struct, frozen=True, rename="camel"):
    customer_id: str
    email_address: Annotated[str, About]


@attrs.frozen
class Attrs:
    customer_id: str
    email: Annotated[str, About]


class Model(pydantic.BaseModel, frozen=True):
    customer_id: str = pydantic.Field(alias="customerId")
    email: Annotated[str, About]
    phone: Annotated[str, pydantic.Field(alias="tel"), About] = ""


class TwoAliases(pydantic.BaseModel, frozen=True):
    customer_id: str = pydantic.Field(validation_alias="id", serialization_alias="id")
    email: Annotated[
        str, pydantic.Field(validation_alias="mail", serialization_alias="mail"), About
    ]


MODEL = {"customerId": "c1", "email": "a", "tel": "1"}


def found_in(event: object) -> list[tuple[str, str]]:
    """Return path and person of each personal value, as an append finds them."""
    types = EventTypes()
    types.event("e")(type(event))
    encoded = encode(event, types=types)
    plan = types.personal_plan(encoded.name, encoded.schema_version)
    assert plan is not None
    found: list[Slot] = list(slots(msgspec.json.decode(encoded.data), plan))
    return [(".".join(map(str, slot.path)), slot.subject) for slot in found]


def test_personal_fields_are_found_in_nested_objects_lists_and_mappings() -> None:
    guest = Guest(7, "Ann", "1")

    assert found_in(Data("c1", "a@b", guest, [guest, guest], {"x": guest}, guest)) == [
        ("email", "c1"),
        ("nested.name", "7"),
        ("nested.phone", "c1"),
        ("several.0.name", "7"),
        ("several.0.phone", "c1"),
        ("several.1.name", "7"),
        ("several.1.phone", "c1"),
        ("named.x.name", "7"),
        ("named.x.phone", "c1"),
        ("perhaps.name", "7"),
        ("perhaps.phone", "c1"),
    ]


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (Struct("c1", "a@b"), [("emailAddress", "c1")]),
        (Attrs("c1", "a@b"), [("email", "c1")]),
        (Model.model_validate(MODEL), [("email", "c1"), ("tel", "c1")]),
        (TwoAliases.model_validate({"id": "c1", "mail": "a"}), [("mail", "c1")]),
    ],
)
def test_every_kind_of_class_can_have_them(event: object, found: list[tuple[str, str]]) -> None:
    assert found_in(event) == found


class InTuple(NamedTuple):
    name: Annotated[str, About]


class InDict(TypedDict):
    name: Annotated[str, About]


class InHiddenDict(TypedDict):
    inner: "list[InDict]"
    again: "InHiddenDict"


class ArrayLike(msgspec.Struct, array_like=True):
    name: Annotated[str, About]


@dataclass(frozen=True)
class Tree:
    name: Annotated[str, About]
    children: "list[Tree]"


class Writing(pydantic.BaseModel, frozen=True):
    customer_id: str
    email: Annotated[str, About]

    @pydantic.model_serializer
    def write(self) -> dict[str, str]:
        return {"customer_id": self.customer_id, "mail": self.email}


class Root(pydantic.RootModel[list[Annotated[str, Personal("root")]]], frozen=True):
    pass


class RootOfAnother(pydantic.RootModel[list[Annotated[str, About]]], frozen=True):
    pass


class Names(list[Annotated[str, About]]):
    pass


def declare(hint: Any, subject: Any = str) -> None:  # noqa: ANN401 -- a type hint
    cls = type("Event", (), {"__annotations__": {"customer_id": subject, "held": hint}})
    assert personal_plan("e", dataclass(frozen=True)(cls))


MARKED = Annotated[str, About]


@pytest.mark.parametrize(
    "hint",
    [
        MARKED,
        MARKED | None,
        Annotated[str | None, About],
        Annotated[str | Redacted, About],
        Annotated[Mail, About],
        Annotated[int, Personal("customer_id", redacted=0)],
        Annotated[list[str], Personal("customer_id", redacted=[])],
        Annotated[dict[str, int] | None, About],
        list[MARKED],
        set[MARKED],
        tuple[MARKED, ...],
        dict[str, list[MARKED]],
        list[Guest] | None,
        TypeAliasType("Alias", MARKED),
    ],
)
def test_where_it_is_sound_it_is_accepted(hint: object) -> None:
    declare(hint)


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        (InTuple, "use a dataclass or a list"),
        (tuple[int, MARKED], "use a dataclass or a list"),
        (InDict, "lies in a InDict"),
        (InHiddenDict, "lies in a InDict"),
        (Writing, "writes itself"),
        (Root, "must be a str"),
        (RootOfAnother, "writes itself"),
        (Names, "lies in a Names"),
        (Final[Annotated[str, About]], "lies in something that is no class"),
        (ArrayLike, "array_like"),
        (Tree, "holds itself"),
        (dict[MARKED, int], "key of a mapping"),
        (Guest | int, "one of several alternatives"),
        (MARKED | int, "one of several alternatives"),
        (Annotated[Guest, About], "personal as a whole"),
        (Annotated[int, About], "readers could get"),
        (Annotated[int, Personal("customer_id", redacted="gone")], "readers could get"),
        (Annotated[str, Personal], "needs one mark"),
        (Annotated[str, About, About], "needs one mark"),
        (Annotated[str, Personal("nobody")], "no field beside it"),
    ],
)
def test_where_it_could_be_missed_it_is_refused(hint: object, why: str) -> None:
    with pytest.raises(PersonalFieldError, match=why) as raised:
        declare(hint)
    assert raised.value.field.startswith("Event.held")
    assert raised.value.event_type == "e"


@pytest.mark.parametrize(
    ("hint", "redacted"),
    [
        (MARKED, "[forgotten]"),
        (MARKED | None, None),
        (MARKED | Redacted, {"$personal": "redacted"}),
        (Annotated[str | None, About], None),
        (Annotated[str | None, Personal("customer_id", redacted="gone")], "gone"),
    ],
)
def test_what_stands_for_it_later_is_what_the_whole_field_allows(
    hint: object, redacted: object
) -> None:
    cls = type("Event", (), {"__annotations__": {"customer_id": str, "held": hint}})
    plan = personal_plan("e", dataclass(frozen=True)(cls))

    assert plan is not None
    [slot] = slots({"customer_id": "c1", "held": "a@b"}, plan)
    assert slot.redacted == redacted


@pytest.mark.parametrize("subject", [str, int, UUID, Annotated[str, "id"], Mail])
def test_a_person_is_named_by_text_a_number_or_a_uuid(subject: object) -> None:
    declare(MARKED, subject)


@pytest.mark.parametrize("subject", [str | None, float, list[str], MARKED])
def test_nobody_is_named_by_anything_else(subject: object) -> None:
    with pytest.raises(PersonalFieldError, match=r"must be a str|is personal itself"):
        declare(MARKED, subject)


def test_tags_may_not_show_a_personal_field() -> None:
    types = EventTypes()

    with pytest.raises(PersonalFieldError, match="email is used in its tags"):
        types.event("attrs", tags=lambda e: (f"email:{e.email}",))(Attrs)
    types.event("attrs", tags=lambda e: (f"customer:{e.customer_id}",))(Attrs)


def test_classes_without_personal_fields_have_no_plan() -> None:
    @dataclass(frozen=True)
    class Plain:
        customer_id: str
        tree: dict[str, list[tuple[int, str]]]

    assert personal_plan("plain", Plain) is None


def test_data_that_is_stored_otherwise_is_refused_instead_of_passed_over() -> None:
    plan = personal_plan("e", Data)
    assert plan is not None
    whole = msgspec.to_builtins(Data("c1", "a@b", Guest(7, "Ann", "1"), [], {}))

    for part in ({"nested": "Ann"}, {"several": "Ann"}, {"named": 7}, {"perhaps": ["Ann"]}):
        with pytest.raises(LookupError, match="stored otherwise"):
            list(slots(whole | part, plan))
    assert list(slots(whole | {"perhaps": None}, plan))


@pytest.mark.parametrize("who", ["", True, None, 1.5, ["c1"], "x" * 501, "é" * 251])
def test_what_names_nobody_or_too_long_a_name_is_refused(who: object) -> None:
    plan = personal_plan("e", Attrs)
    assert plan is not None

    with pytest.raises(LookupError, match=r"is about nobody|in over 500 bytes"):
        list(slots({"customer_id": who, "email": "a@b"}, plan))
    assert list(slots({"customer_id": "é" * 250, "email": "a@b"}, plan))

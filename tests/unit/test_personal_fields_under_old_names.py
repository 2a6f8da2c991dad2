"""Personal fields are encrypted under whatever name, and found in whatever class, they come."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from uuid import uuid4

import pytest

from datapatterns.errors import EventDataError, PersonalFieldError
from datapatterns.event_sourcing import EventTypes, NewEvent, Personal
from datapatterns.event_sourcing.content.encoding import EncodedEvent, encode, with_plan

T = TypeVar("T")
DATA = {"customer": 1, "email": "ada@example.org"}

types = EventTypes()


@types.event("customer.registered", version=2, renamed_from="customer.signed_up")
@dataclass(frozen=True)
class Registered:
    customer: int
    email: Annotated[str, Personal(subject="customer")]


@types.upcast("customer.registered", 1)
def _with_customer(data: dict[str, Any]) -> dict[str, Any]:
    return {"customer": 0, **data}


@types.upcast("person.came", 1, into={"customer.registered": 2})
def _registered(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("customer.registered", data)]


@dataclass(frozen=True)
class Box(Generic[T]):
    content: T


def test_an_event_under_an_old_name_has_the_personal_fields_of_the_new_one() -> None:
    assert encode(NewEvent("customer.signed_up", DATA, 2), types=types).personal
    stored = EncodedEvent("customer.signed_up", 2, uuid4(), '{"customer":1,"email":"a"}', None)
    assert with_plan(stored, types).personal


@pytest.mark.parametrize(
    ("name", "version"), [("customer.signed_up", 1), ("customer.registered", 1), ("person.came", 1)]
)
def test_shapes_in_which_nobody_knows_where_they_lie_are_refused(name: str, version: int) -> None:
    with pytest.raises(EventDataError, match="where they lie is known of version 2 only"):
        encode(NewEvent(name, DATA, version), types=types)


def test_a_personal_parameter_of_a_class_is_refused() -> None:
    @dataclass(frozen=True)
    class Sent:
        customer: int
        parcel: Box[Annotated[str, Personal(subject="customer")]]

    with pytest.raises(PersonalFieldError, match="is a parameter of a class"):
        EventTypes().event("sent")(Sent)

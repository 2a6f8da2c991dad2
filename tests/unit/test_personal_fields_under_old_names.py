"""Personal fields are encrypted under whatever name, and found in whatever class, they come."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from uuid import uuid4

import msgspec
import pytest

from datapatterns.errors import EventDataError, PersonalFieldError, SubjectKeyError
from datapatterns.event_sourcing import EventTypes, NewEvent, Personal, StreamId
from datapatterns.event_sourcing.appending.appending import StreamBatch, append_call
from datapatterns.event_sourcing.content.encoding import EncodedEvent, encode, encode_batch
from datapatterns.event_sourcing.transfer.importing_encoding import encode_chunk
from datapatterns.event_sourcing.transfer.importing_parts import StreamPart
from datapatterns.event_sourcing.transfer.importing_rows import copied_rows

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
    plan = types.personal_plan("customer.signed_up", 2)

    assert plan is not None
    assert plan == types.personal_plan("customer.registered", 2)
    encode(NewEvent("customer.signed_up", DATA, 2), types=types)


@pytest.mark.parametrize(
    ("name", "version"), [("customer.signed_up", 1), ("customer.registered", 1), ("person.came", 1)]
)
def test_shapes_in_which_nobody_knows_where_they_lie_are_refused(name: str, version: int) -> None:
    with pytest.raises(EventDataError, match="where they lie is known of version 2 only"):
        encode(NewEvent(name, DATA, version), types=types)
    assert types.personal_plan(name, version) is None


def test_an_upcaster_is_not_given_what_only_a_key_can_open() -> None:
    sealed = {"mail": {"$sealed": ["1", "eA==", "[forgotten]"]}}
    ours = EventTypes()
    ours.event("customer.registered", version=2)(Registered)
    ours.upcast("customer.registered", 1)(lambda old: {"customer": 1, "email": str(old["mail"])})

    with pytest.raises(SubjectKeyError, match="keys are needed to read it"):
        ours.decode("customer.registered", 1, sealed)
    with pytest.raises(SubjectKeyError, match="keys are needed to read it"):
        ours.decode_json("customer.registered", 1, msgspec.json.encode(sealed))


def test_objects_of_a_class_whose_shape_is_no_longer_declared_are_refused() -> None:
    again = EventTypes()

    def declare(version: int) -> type:
        @again.event("customer.called", version=version)
        @dataclass(frozen=True)
        class Called:
            customer: int
            phone: Annotated[str, Personal(subject="customer")]

        return Called

    called, _ = declare(1), declare(2)  # as a module does that is changed and loaded again

    for events in ([called(1, "555")], [called(1, "555"), called(2, "556")]):
        with pytest.raises(EventDataError, match="where they lie is known of version 2 only"):
            encode_chunk(events, again)
        with pytest.raises(EventDataError, match="where they lie is known of version 2 only"):
            encode_batch(events, types=again, metadata=None)


def test_what_nobody_has_looked_through_for_personal_fields_is_not_stored() -> None:
    stored = [EncodedEvent("customer.signed_up", 2, uuid4(), '{"customer":1,"email":"a"}', None)]

    with pytest.raises(RuntimeError, match="may hold readable personal fields"):
        append_call(StreamBatch(StreamId("a", "b"), stored, 0), schema="datapatterns", guard=None)
    with pytest.raises(RuntimeError, match="may hold readable personal fields"):
        list(copied_rows(stored, [StreamPart(StreamId("a", "b"), "")], [], {}, "utf-8"))


def test_a_personal_parameter_of_a_class_is_refused() -> None:
    @dataclass(frozen=True)
    class Sent:
        customer: int
        parcel: Box[Annotated[str, Personal(subject="customer")]]

    with pytest.raises(PersonalFieldError, match="is a parameter of a class"):
        EventTypes().event("sent")(Sent)

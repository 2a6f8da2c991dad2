"""What is sealed opens where it belongs and nowhere else; nothing of it shows without the key."""

from dataclasses import dataclass, replace
from secrets import token_bytes
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datapatterns.errors import EventDataError, PayloadError, SubjectForgottenError
from datapatterns.event_sourcing import NewEvent, Personal
from datapatterns.event_sourcing.content.encoding import EncodedEvent, encode
from datapatterns.event_sourcing.content.encryption import Cipher
from datapatterns.event_sourcing.persons.personal import PersonalPlan
from datapatterns.event_sourcing.persons.personal_values import (
    Found,
    Keys,
    personal_values,
    seal,
    sealed_values,
    unseal,
    without_personal,
)
from tests.fixtures.people import Booked, Passenger, Registered, types

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
REGISTERED = st.builds(
    Registered,
    customer_id=st.uuids().map(str),
    email=TEXT,
    plan=TEXT,
    age=st.none() | st.integers(0, 150),
    phone=TEXT,
)
PASSENGERS = st.builds(Passenger, passenger_id=st.integers(1, 5), name=TEXT, seat=TEXT)
BOOKED = st.builds(Booked, flight=TEXT, passengers=st.lists(PASSENGERS, max_size=4))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@types.event("people.answered")
@dataclass(frozen=True)
class Answered:
    customer_id: int
    answers: Annotated[dict[str, Any] | None, Personal("customer_id")]


ANSWERED = st.builds(
    Answered,
    customer_id=st.integers(-(2**62), 2**62),
    answers=st.none() | st.dictionaries(TEXT, VALUES, max_size=4),
)
EVENTS = REGISTERED | BOOKED | ANSWERED


def encoded(event: object) -> EncodedEvent:
    return encode(event, types=types)


def plan_of(event: EncodedEvent) -> PersonalPlan:
    plan = types.personal_plan(event.name, event.schema_version)
    assert plan is not None
    return plan


def found_in(event: EncodedEvent) -> Found:
    return personal_values(event, plan_of(event))


def keys_for(event: EncodedEvent, tenant: str = "t") -> dict[tuple[str, str], Cipher]:
    return {(tenant, subject): Cipher(token_bytes(32)) for subject in found_in(event).subjects}


def sealed(event: EncodedEvent, keys: Keys, tenant: str = "t") -> EncodedEvent:
    return seal(event, found_in(event), tenant=tenant, keys=keys)


def opened(event: EncodedEvent, keys: Keys, tenant: str = "t") -> str:
    found = sealed_values(event.data)
    if found is None:
        return event.data
    return unseal(found, event_id=event.event_id.bytes, tenant=tenant, keys=keys)[0]


@given(EVENTS)
def test_what_is_sealed_comes_back_byte_for_byte(event: object) -> None:
    plain = encoded(event)
    keys = keys_for(plain)

    stored = sealed(plain, keys)

    assert opened(stored, keys) == plain.data


@given(EVENTS)
def test_without_keys_there_is_what_stands_for_it(event: object) -> None:
    plain = encoded(event)
    keys = keys_for(plain)
    stored = sealed(plain, keys)

    gone = opened(stored, dict.fromkeys(keys))

    assert gone == without_personal(plain, plan_of(plain))
    [again] = types.decode_json(plain.name, 1, gone)
    if isinstance(again, Registered):
        assert isinstance(event, Registered)
        expected = replace(event, email="[forgotten]", age=None, phone=again.phone)
        assert again == expected
    # And that can be written again without any key.
    assert opened(sealed(encoded(again), {}), {}) == gone


@given(EVENTS, st.data())
def test_a_changed_byte_is_refused(event: object, draw: st.DataObject) -> None:
    plain = encoded(event)
    keys = keys_for(plain)
    stored = sealed(plain, keys)
    data = msgspec.json.decode(stored.data)
    found = sealed_values(stored.data)
    assume(found is not None)
    assert found is not None
    slot = draw.draw(st.sampled_from(found.slots))
    text: str = slot.holder[slot.key]["$sealed"][1]
    at = draw.draw(st.integers(0, len(text) - 3))  # the last may hold bits that mean nothing
    changed = "A" if text[at] != "A" else "B"
    broken = stored.data.replace(text, text[:at] + changed + text[at + 1 :])
    assert msgspec.json.decode(broken) != data

    with pytest.raises(PayloadError, match="was changed"):
        opened(msgspec.structs.replace(stored, data=broken), keys)


@given(EVENTS, st.uuids())
def test_another_event_tenant_person_or_path_is_refused(event: object, other: UUID) -> None:
    plain = encoded(event)
    keys = keys_for(plain)
    stored = sealed(plain, keys)
    found = sealed_values(stored.data)
    assume(found is not None)
    assert found is not None
    assume(other != stored.event_id)

    with pytest.raises(PayloadError):
        opened(msgspec.structs.replace(stored, event_id=other), keys)
    with pytest.raises(PayloadError):
        opened(stored, {("x", who): key for (_, who), key in keys.items()}, tenant="x")
    with pytest.raises(PayloadError):
        opened(stored, {whose: Cipher(token_bytes(32)) for whose in keys})
    nested = msgspec.structs.replace(stored, data=f'{{"moved":{stored.data}}}')
    with pytest.raises(PayloadError):
        opened(nested, keys)
    slot = found.slots[0]
    before = msgspec.json.encode(slot.holder[slot.key]["$sealed"][2]).decode()
    forged = stored.data.replace(before, '"somebody else"')
    if forged != stored.data:
        with pytest.raises((PayloadError, KeyError)):
            opened(msgspec.structs.replace(stored, data=forged), keys)


@settings(max_examples=50)
@given(st.text("abcdefghij", min_size=8, max_size=20), st.integers(1, 5))
def test_no_plaintext_is_left(word: str, times: int) -> None:
    plain = encoded(Booked("LH1", [Passenger(n, word, "") for n in range(1, times + 1)]))

    stored = sealed(plain, keys_for(plain))

    assert word in plain.data
    assert word not in stored.data
    assert stored.data.count("$sealed") == times


@given(REGISTERED)
def test_nothing_is_sealed_for_who_was_forgotten(event: Registered) -> None:
    plain = encoded(event)
    assume(found_in(plain).slots)

    with pytest.raises(SubjectForgottenError):
        sealed(plain, {("t", event.customer_id): None})


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-5, 5) | st.sampled_from(["$sealed", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$sealed", "a", 'x"$sealed']), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["$sealed", "a", "b"]), JSON, max_size=3))
def test_what_users_append_is_never_taken_for_something_sealed(data: dict[str, Any]) -> None:
    try:
        stored = encode(NewEvent("any", data, event_id=uuid4()), types=types)
    except EventDataError:
        return
    assert sealed_values(stored.data) is None

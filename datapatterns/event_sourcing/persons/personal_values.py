"""Encrypt the personal values of an event under the keys of the persons, and back.

In the JSON, ``{"$sealed": [who, what only the key can read, what stands for it later]}`` takes the
place of a value. So it can be read without the class that it was written from, and all the other
fields stay what they are.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from datapatterns.errors import EventDataError, PayloadError, SubjectForgottenError
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.content.encryption import Cipher
from datapatterns.event_sourcing.content.payload import as_json
from datapatterns.event_sourcing.persons.personal import (
    SEALED,
    PersonalPlan,
    Slot,
    has_sealed,
    parts_of,
    slots,
)

Keys = Mapping[tuple[str, str], Cipher | None]
"""By tenant and person; None if the key is gone."""


class Found(NamedTuple):
    """Decoded JSON, and what in it needs a key."""

    data: dict[str, Any]
    slots: list[Slot]

    @property
    def subjects(self) -> set[str]:
        """Who it is about."""
        return {slot.subject for slot in self.slots}


def without_personal(event: EncodedEvent, plan: PersonalPlan) -> str:
    """Return the JSON of an event with what stands for its personal values later."""
    found = personal_values(event, plan)
    for slot in found.slots:
        slot.holder[slot.key] = slot.redacted
    return as_json(found.data).decode()


def personal_values(event: EncodedEvent, plan: PersonalPlan) -> Found:
    """Return the values to be encrypted: all but those that were forgotten before.

    Raises:
        EventDataError: A value is about nobody, or its event's tags show it.
    """
    data = msgspec.json.decode(event.data)
    try:
        found = list(slots(data, plan))
    except LookupError as error:
        raise EventDataError(event.name, str(error)) from None
    # What was read as forgotten may be written again, say by who copies a stream; and what comes
    # from a file may be encrypted already. Nobody else can give that, see `refuse_lookalike`.
    found = [slot for slot in found if slot.holder[slot.key] != slot.redacted]
    found = [slot for slot in found if not _is_sealed(slot.holder[slot.key])]
    for slot in found:
        value = slot.holder[slot.key]
        told = str(value) if isinstance(value, str | int) else ""
        if told and any(told in {tag, tag.partition(":")[2]} for tag in event.tags):
            place = ".".join(map(str, slot.path))
            raise EventDataError(
                event.name, f"a tag shows {place}, which is personal; tags cannot be forgotten"
            )
    return Found(data, found)


def seal(event: EncodedEvent, found: Found, *, tenant: str, keys: Keys) -> EncodedEvent:
    """Return the event with its personal values encrypted.

    Raises:
        SubjectForgottenError: A key is gone.
    """
    for slot in found.slots:
        key = keys.get((tenant, slot.subject))
        if key is None:
            raise SubjectForgottenError(slot.subject)
        bound_to = _bound_to(event.event_id.bytes, tenant, slot)
        sealed = key.encrypt(as_json(slot.holder[slot.key]), bound_to=bound_to)
        slot.holder[slot.key] = {SEALED: [slot.subject, b64encode(sealed).decode(), slot.redacted]}
    return replace(event, data=as_json(found.data).decode())


def sealed_values(text: str) -> Found | None:
    """Return the encrypted values of stored JSON; None if there is none."""
    if not has_sealed(text):
        return None
    data = msgspec.json.decode(text)
    found = list(_sealed(data, ()))
    return Found(data, found) if found else None


def unseal(found: Found, *, event_id: bytes, tenant: str, keys: Keys) -> tuple[str, set[str]]:
    """Return the JSON with its personal values, and whose of them it shows.

    Raises:
        PayloadError: A value was changed, or belongs to another field or event.
    """
    shown = set()
    for slot in found.slots:
        key = keys[tenant, slot.subject]
        sealed = slot.holder[slot.key][SEALED][1]
        slot.holder[slot.key] = slot.redacted
        if key is not None:
            shown.add(slot.subject)
            slot.holder[slot.key] = _opened(sealed, key, _bound_to(event_id, tenant, slot))
    return as_json(found.data).decode(), shown


def _opened(sealed: str, key: Cipher, bound_to: bytes) -> Any:  # noqa: ANN401 -- JSON
    try:
        return msgspec.json.decode(key.decrypt(b64decode(sealed, validate=True), bound_to=bound_to))
    except ValueError:
        raise PayloadError(
            "a personal field", "it was changed, or belongs to another field, event or person"
        ) from None


def _bound_to(event_id: bytes, tenant: str, slot: Slot) -> bytes:
    # The stream's version would be better still, but the server assigns it.
    return msgspec.json.encode((event_id.hex(), tenant, slot.subject, slot.redacted, slot.path))


def _sealed(value: Any, path: tuple[str | int, ...]) -> Iterator[Slot]:  # noqa: ANN401 -- JSON
    for key, part in parts_of(value):
        here = (*path, key)
        if not _is_sealed(part):
            yield from _sealed(part, here)
            continue
        match part[SEALED]:
            case [str() as subject, str(), redacted]:
                yield Slot(value, key, here, subject, redacted)
            case _:
                raise PayloadError("a personal field", "it is not made of three parts")


def _is_sealed(value: Any) -> bool:  # noqa: ANN401 -- JSON
    return isinstance(value, dict) and value.keys() == {SEALED}

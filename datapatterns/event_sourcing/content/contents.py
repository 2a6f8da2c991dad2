"""What events and snapshots say, on their way into the database and out of it.

Whatever is read as text is one column. Plain JSON begins with a brace; what needs work begins with
``#``, the codec, and the event's id where there is one. So reading plain JSON costs nothing more.
"""

import hmac
import logging
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Connection, FromClause, Text, case, cast, func, literal

from datapatterns.errors import PayloadError, SubjectKeyError
from datapatterns.event_sourcing.content.codecs import (
    EVENT_PAYLOAD_MAX,
    PLAIN,
    STATE_BYTES_MAX,
    Codecs,
)
from datapatterns.event_sourcing.content.encoding import EncodedEvent, StorableEvents
from datapatterns.event_sourcing.content.encryption import Cipher
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.persons.personal import PersonalPlan, has_sealed
from datapatterns.event_sourcing.persons.personal_values import (
    Found,
    personal_values,
    seal,
    sealed_values,
    unseal,
)
from datapatterns.event_sourcing.persons.subject_keys import SubjectKeys
from datapatterns.sql.metadata import DEFAULT_SCHEMA

logger = logging.getLogger(__name__)

SEALED_STATE: Final = 32
"""The codec of a state that is encrypted under the keys of all persons that it is about."""

PERSONS_MAX: Final = 10_000
"""About how many persons a stored state may be: the key of each is held and asked for."""

_BOUND_JSON: Final = "#0 "
_JSON_AT: Final = len(f"{_BOUND_JSON}{UUID(int=0)} ")
_FIRST: Final = itemgetter(0)
_SHAPE: Final = attrgetter("name", "schema_version")
_SEALED_STATE_NAME: Final = "a state with personal data"


class StoredEvent(NamedTuple):
    """What the database holds of an event: JSON if the codec is 0, else a payload."""

    tenant: str
    event_id: UUID
    codec: int
    content: str | bytes


class StoredState(NamedTuple):
    """What the database is to hold of a state; ``subjects`` says whom it is about."""

    codec: int
    state: str | None
    payload: bytes | None
    subjects: list[str] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """How one store writes and reads contents."""

    types: EventTypes
    codecs: Codecs = field(default=PLAIN)
    keys: SubjectKeys | None = None
    schema: str = DEFAULT_SCHEMA

    @property
    def is_plain(self) -> bool:
        """What is read needs no work: it is JSON, with nothing encrypted in it."""
        return self.codecs.is_plain and self.keys is None

    @property
    def needs_ids(self) -> bool:
        """Any event may hold encrypted fields, which are bound to its id."""
        return self.keys is not None

    def event_column(self, events: FromClause) -> ColumnElement[str]:
        """Return the data of an event for `incoming`."""
        return event_content(events, bound=self.needs_ids)

    def outgoing(
        self,
        conn: Connection,
        encoded: Sequence[EncodedEvent],
        *,
        tenant: str | Sequence[str],
        subjects: set[str] | None = None,
    ) -> StorableEvents:
        """Return events as they are stored. Their ids must be final: contents are bound to them.

        Args:
            conn: Its transaction then holds the keys of the persons that the events are about.
            encoded: What is to be stored. What a codec has made elsewhere stays as it is: its key
                may not be at hand.
            tenant: Whose log it is, of all or of each.
            subjects: Whoever's personal data is among it is added.

        Raises:
            CodecError: The codec does not give back what it was given.
            EventDataError: Data looks like an encrypted value, or a personal one is about nobody.
            IsolationLevelError: Keys cannot be held, as every statement commits by itself.
            SubjectForgottenError: The events hold personal data of somebody who was forgotten.
            SubjectKeyError: The store has no keys.
        """
        plans = self.personal_plans(encoded)
        if plans:
            encoded = self._sealed(conn, encoded, plans, tenant=tenant, subjects=subjects)
        return StorableEvents(self.codecs.encode_events(encoded))

    def personal_plans(self, encoded: Sequence[EncodedEvent]) -> Mapping[int, PersonalPlan]:
        """Return where personal fields lie, by the places of the events that can have some."""
        plan_of = self.types.personal_plan
        if len(encoded) == 1:
            plan = plan_of(*_SHAPE(encoded[0]))
            return {0: plan} if plan and not encoded[0].codec else {}
        plans = {shape: plan for shape in set(map(_SHAPE, encoded)) if (plan := plan_of(*shape))}
        if not plans:
            return {}
        return {
            place: plans[shape]
            for place, event in enumerate(encoded)
            if (shape := _SHAPE(event)) in plans and not event.codec
        }

    def incoming(
        self,
        conn: Connection,
        contents: Sequence[str],
        *,
        tenant: str | Sequence[str],
        subjects: set[str] | None = None,
    ) -> Sequence[str]:
        """Return the JSON of events that were read as `event_column`, for each its tenant.

        Raises:
            As `opened`.
        """
        # One look at each, at the speed of C: a store that knows no codec must say so.
        if self.is_plain and "#" not in map(_FIRST, contents):
            return contents
        texts = list(contents)
        stored: list[StoredEvent] = []
        places: list[int] = []
        for place, content in enumerate(contents):
            if content[0] != "#":
                continue
            if content.startswith(_BOUND_JSON):
                texts[place] = content[_JSON_AT:]
                if not has_sealed(content):
                    continue
            codec, event_id, rest = content[1:].split(" ", 2)
            whose = tenant if isinstance(tenant, str) else tenant[place]
            coded = rest if codec == "0" else b64decode(rest)
            stored.append(StoredEvent(whose, UUID(event_id), int(codec), coded))
            places.append(place)
        for place, text in zip(places, self.opened(conn, stored, subjects=subjects), strict=True):
            texts[place] = text
        return texts

    def opened(
        self,
        conn: Connection,
        stored: Sequence[StoredEvent],
        *,
        subjects: set[str] | None = None,
    ) -> list[str]:
        """Return the JSON of events, with what stands for forgotten values.

        Args:
            conn: To ask for keys, in one statement, if any is needed.
            stored: As the database holds them.
            subjects: Whoever's personal data is among it is added.

        Raises:
            CodecError: The store does not know a codec.
            EncryptionKeyError: A key is not at hand.
            PayloadError: A payload or an encrypted field is damaged, or is not this event's.
            SubjectKeyError: There is no trace of a person's key.
        """
        texts = [self._decoded(event) for event in stored]
        if self.keys is None:
            return texts
        found = [(place, found) for place, t in enumerate(texts) if (found := sealed_values(t))]
        if found:
            wanted = {(stored[place].tenant, s) for place, one in found for s in one.subjects}
            keys = _ciphers(self.keys.read(conn, wanted, schema=self.schema))
            for place, one in found:
                event = stored[place]
                texts[place], shown = unseal(
                    one, event_id=event.event_id.bytes, tenant=event.tenant, keys=keys
                )
                if subjects is not None:
                    subjects |= shown
        return texts

    def outgoing_state(
        self, conn: Connection, state: str, *, bound_to: bytes, tenant: str, subjects: set[str]
    ) -> StoredState | None:
        """Return a state as it is stored; None if somebody whom it is about was forgotten.

        None, too, if it is about more than `PERSONS_MAX`.

        Args:
            conn: Its transaction then holds the keys of these persons.
            state: JSON.
            bound_to: Which snapshot it is; elsewhere it cannot be read.
            tenant: Whose log it was made from.
            subjects: Whose personal data may be in it: without the key of any one, it is lost.
        """
        codec, payload = self.codecs.encode_state(state, bound_to=bound_to)
        if not subjects:
            return StoredState(codec, None if codec else state, payload, None)
        if self.keys is None:
            raise _keys_missing()
        if len(subjects) > PERSONS_MAX:
            logger.warning("state not stored: it is about too many persons")
            return None
        keys = self.keys.hold(conn, tenant, subjects, schema=self.schema, create=False)
        key = _joined(keys, tenant, subjects, bound_to)
        if key is None:
            return None
        named = sorted(subjects)
        head = msgspec.json.encode((codec, named))
        inner = payload if payload is not None else state.encode()
        sealed = (
            len(head).to_bytes(4, "big")
            + head
            + Cipher(key).encrypt(inner, bound_to=head + bound_to)
        )
        return StoredState(SEALED_STATE, None, sealed, named)

    def incoming_state(
        self, conn: Connection, content: str, *, bound_to: bytes, tenant: str, subjects: set[str]
    ) -> str | None:
        """Return the JSON of a state: itself, or after #, codec and blank a payload in base64.

        None if somebody whom it is about was forgotten; else they are added to ``subjects``.

        Raises:
            CodecError: The store does not know the codec.
            EncryptionKeyError: A key is not at hand.
            PayloadError: It was changed, or is another snapshot's.
            SubjectKeyError: There is no trace of a person's key, or the store has no keys.
        """
        if content[:1] != "#":
            return content
        number, coded = content[1:].split(" ", 1)
        codec, payload = int(number), b64decode(coded)
        if codec == SEALED_STATE:
            if self.keys is None:
                raise _keys_missing()
            head, sealed, inner_codec, named = _taken_apart(payload)
            wanted = {(tenant, subject) for subject in named}
            keys = self.keys.read(conn, wanted, schema=self.schema)
            key = _joined(keys, tenant, named, bound_to)
            if key is None:
                return None
            try:
                payload = Cipher(key).decrypt(sealed, bound_to=head + bound_to)
            except ValueError:
                raise PayloadError(_SEALED_STATE_NAME, "it was changed, or moved") from None
            subjects |= named
            codec = inner_codec
        if codec == 0:
            return payload.decode()
        return self.codecs.decode(codec, payload, bound_to=bound_to, bytes_max=STATE_BYTES_MAX)

    def _decoded(self, event: StoredEvent) -> str:
        content = event.content
        if event.codec == 0:
            return content if isinstance(content, str) else content.decode()
        assert isinstance(content, bytes)
        return self.codecs.decode(
            event.codec, content, bound_to=event.event_id.bytes, bytes_max=EVENT_PAYLOAD_MAX
        )

    def _sealed(
        self,
        conn: Connection,
        encoded: Sequence[EncodedEvent],
        plans: Mapping[int, PersonalPlan],
        *,
        tenant: str | Sequence[str],
        subjects: set[str] | None,
    ) -> list[EncodedEvent]:
        found: dict[int, tuple[str, Found]] = {}
        wanted: dict[str, set[str]] = {}
        for place, plan in plans.items():
            whose = tenant if isinstance(tenant, str) else tenant[place]
            one = personal_values(encoded[place], plan)
            found[place] = whose, one
            wanted.setdefault(whose, set()).update(one.subjects)
        keys: dict[tuple[str, str], Cipher | None] = {}
        for whose, named in sorted(wanted.items()):
            if named and self.keys is None:
                raise _keys_missing()
            if named and self.keys is not None:
                held = self.keys.hold(conn, whose, named, schema=self.schema, create=True)
                keys |= _ciphers(held)
            if subjects is not None:
                subjects |= named
        sealed = list(encoded)
        for place, (whose, one) in found.items():
            sealed[place] = seal(encoded[place], one, tenant=whose, keys=keys)
        return sealed


def event_content(events: FromClause, *, bound: bool) -> ColumnElement[str]:
    """Return the data of an event; always with its id, if that is ``bound``."""
    payload = func.encode(events.c.payload, "base64", type_=Text)
    head = [literal("#"), cast(events.c.codec, Text), literal(" ")]
    head += [cast(events.c.event_id, Text), literal(" ")]
    plain = cast(events.c.data, Text)
    if bound:
        return func.concat(*head, func.coalesce(plain, payload), type_=Text)
    return case((events.c.codec == 0, plain), else_=func.concat(*head, payload, type_=Text))


def _ciphers(
    keys: Mapping[tuple[str, str], bytes | None],
) -> dict[tuple[str, str], Cipher | None]:
    return {whose: None if key is None else Cipher(key) for whose, key in keys.items()}


def _joined(
    keys: Mapping[tuple[str, str], bytes | None], tenant: str, subjects: set[str], bound_to: bytes
) -> bytes | None:
    """Return a key that needs the keys of all these persons; None if one is gone or missing."""
    parts = []
    for subject in sorted(subjects):
        key = keys.get((tenant, subject))
        if key is None:
            return None
        parts.append(key)
    # Of one length each, so nothing can be taken for something else.
    return hmac.digest(sha256(b"".join(parts)).digest(), b"datapatterns state" + bound_to, "sha256")


def _taken_apart(payload: bytes) -> tuple[bytes, bytes, int, set[str]]:
    length = int.from_bytes(payload[:4], "big")
    head, sealed = payload[4 : 4 + length], payload[4 + length :]
    try:
        codec, named = msgspec.json.decode(head, type=tuple[int, list[str]])
    except msgspec.MsgspecError:
        raise PayloadError(_SEALED_STATE_NAME, "it has no known beginning") from None
    return head, sealed, codec, set(named)


def _keys_missing() -> SubjectKeyError:
    return SubjectKeyError(
        None,
        "events with personal fields need keys; give EventStore(keys=SubjectKeys(...)) them,"
        " see docs/how-to/forget-a-person.md",
    )

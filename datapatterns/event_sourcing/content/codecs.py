"""Codecs: what is stored in place of plain JSON, and how it becomes that JSON again.

The id of a codec is stored with every payload, so it means the same for ever. This library's own
are sums of 1 (MessagePack), 2 (Zstandard) and 4 (Encryption), which a chain applies in that order;
yours begin at `OWN_CODECS_FROM`.
"""

from base64 import b64encode
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from datapatterns.errors import CodecError, PayloadError
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.content.payload import EVENT_BYTES_MAX, as_json

OWN_CODECS_FROM: Final = 64
"""The lowest id of a codec that is not this library's."""

CODEC_ID_MAX: Final = 2**15 - 1

STATE_BYTES_MAX: Final = 67_108_864
"""The largest state that a snapshot is read back from, as JSON."""

EVENT_PAYLOAD_MAX: Final = 2 * EVENT_BYTES_MAX
"""The largest JSON of one event; encrypted fields are longer than what they hold."""

_STAGE_SLACK_BYTES: Final = 1_000  # what one stage adds to what it cannot make smaller


class Codec(Protocol):
    """Makes payloads of JSON, and that JSON of payloads.

    Attributes:
        id: Stored with each payload; never give it another meaning.
        name: For messages.
        optional: Plain JSON may be stored instead, where a payload is not smaller.
    """

    @property
    def id(self) -> int:  # noqa: D102 -- above
        ...

    @property
    def name(self) -> str:  # noqa: D102 -- above
        ...

    @property
    def optional(self) -> bool:  # noqa: D102 -- above
        ...

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return the payload; ``bound_to`` says whose it is, for codecs that authenticate."""
        ...

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        """Return what was encoded, without ever holding much more than ``bytes_max``.

        Raises:
            PayloadError: It is not what this codec made for ``bound_to``, or it is larger.
        """
        ...


class MessagePack:
    """JSON as MessagePack: a little smaller, and better to compress."""

    id: Final = 1
    name: Final = "MessagePack"
    optional: Final = True

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return ``data`` packed; or as it is if that is larger, or would be spelled otherwise."""
        del bound_to
        decoded = msgspec.json.decode(data)
        packed = msgspec.msgpack.encode(decoded)
        # Packed objects never begin with a brace, so the two can be told apart.
        return packed if len(packed) < len(data) and as_json(decoded) == data else data

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        """Return the JSON."""
        del bound_to
        if len(payload) > bytes_max:
            raise PayloadError(self.name, f"it is larger than {bytes_max} bytes")
        if payload.startswith(b"{"):
            return payload
        try:
            # Lengths that a header claims are not believed: what is not there is not made room for.
            return as_json(msgspec.msgpack.decode(payload))
        except (msgspec.MsgspecError, RecursionError, TypeError, ValueError, OverflowError):
            raise PayloadError(self.name, "it is not MessagePack, or nested too deep") from None


class CodecChain:
    """Several codecs, one after the other, as one.

    Args:
        stages: In the order in which they encode: pack, compress, encrypt.
        id: Needed if a stage is not this library's; from `OWN_CODECS_FROM`.

    Raises:
        CodecError: The order or the id is not possible.
    """

    def __init__(self, *stages: Codec, id: int | None = None) -> None:  # noqa: A002 -- as in Codec
        ids = [stage.id for stage in stages]
        if len(stages) < 2:  # noqa: PLR2004 -- or it is no chain
            raise CodecError(id, "a chain needs at least two codecs; use the only one by itself")
        if id is None:
            if max(ids) >= OWN_CODECS_FROM:
                raise CodecError(None, f"a chain with your own codecs needs id={OWN_CODECS_FROM}..")
            if any(above & -above <= below for below, above in pairwise(ids)):
                raise CodecError(
                    None, "codecs must be chained as MessagePack, Zstandard, Encryption, each once"
                )
        elif id < OWN_CODECS_FROM:
            raise CodecError(id, f"is this library's; choose one from {OWN_CODECS_FROM}")
        self.id = sum(ids) if id is None else id
        self.name = " + ".join(stage.name for stage in stages)
        self.optional = all(stage.optional for stage in stages)
        self._stages = stages

    def __repr__(self) -> str:
        return f"CodecChain({', '.join(map(repr, self._stages))}, id={self.id})"

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return what the last stage makes of it."""
        for stage in self._stages:
            data = stage.encode(data, bound_to=bound_to)
        return data

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        """Return what was given to the first stage."""
        first, *others = self._stages
        for stage in reversed(others):
            largest = 2 * bytes_max + _STAGE_SLACK_BYTES
            payload = stage.decode(payload, bound_to=bound_to, bytes_max=largest)
        return first.decode(payload, bound_to=bound_to, bytes_max=bytes_max)


class Codecs:
    """Which codec a store writes with, and which it can read.

    Args:
        writing: For appends and snapshots; None for plain JSON.
        reading: Those that earlier releases wrote with.

    Raises:
        CodecError: Two codecs have one id, or an id is out of bounds.
    """

    def __init__(self, writing: Codec | None = None, *, reading: Sequence[Codec] = ()) -> None:
        self.writing = writing
        self._known: dict[int, Codec] = {}
        for codec in (*reading, *([writing] if writing else ())):
            is_ours = type(codec).__module__.startswith("datapatterns.")
            if not (0 if is_ours else OWN_CODECS_FROM - 1) < codec.id <= CODEC_ID_MAX:
                raise CodecError(
                    codec.id, f"is out of bounds; use {OWN_CODECS_FROM} to {CODEC_ID_MAX}"
                )
            known = self._known.setdefault(codec.id, codec)
            if known is not codec:
                raise CodecError(
                    codec.id,
                    f"is both {known.name} and {codec.name}; payloads that were stored under an"
                    " id must keep their meaning, so give the new one an id of its own",
                )

    def __repr__(self) -> str:
        return f"Codecs({self.writing!r}, reading={sorted(self._known)})"

    @property
    def is_plain(self) -> bool:
        """There is nothing to do for what is read."""
        return not self._known

    def encode_events(self, encoded: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        """Return events as the codec makes them, or as they are where that is not smaller.

        What a codec has made already stays as it is.

        Call it when their ids are final: a payload is bound to the id of its event.

        Raises:
            CodecError: The codec does not give back what it was given.
        """
        codec = self.writing
        if codec is None:
            return encoded
        plain = {place: event for place, event in enumerate(encoded) if not event.codec}
        payloads = [
            _encode(codec, event.data, event.event_id.bytes, EVENT_PAYLOAD_MAX)
            for event in plain.values()
        ]
        if codec.optional and sum(map(len, payloads)) >= sum(len(e.data) for e in plain.values()):
            return encoded
        made = list(encoded)
        for (place, event), payload in zip(plain.items(), payloads, strict=True):
            made[place] = replace(event, data=b64encode(payload).decode(), codec=codec.id)
        return made

    def encode_state(self, state: str, *, bound_to: bytes) -> tuple[int, bytes | None]:
        """Return the id of the codec and the payload of a snapshot; 0 and None for plain JSON.

        Args:
            state: JSON.
            bound_to: Which snapshot it is. Elsewhere it can't be decoded, if it is encrypted.
        """
        codec = self.writing
        if codec is None:
            return 0, None
        payload = _encode(codec, state, bound_to, STATE_BYTES_MAX)
        if codec.optional and len(payload) >= len(state):
            return 0, None
        return codec.id, payload

    def decode(self, codec: int, payload: bytes, *, bound_to: bytes, bytes_max: int) -> str:
        """Return the JSON that ``payload`` was made of.

        Raises:
            CodecError: The store does not know the codec.
            EncryptionKeyError: The key is not at hand.
            PayloadError: It is not what the codec made for ``bound_to``, or too large.
        """
        known = self._known.get(codec)
        if known is None:
            raise CodecError(
                codec,
                "was used for stored data, but this store does not know it; give"
                " EventStore(codecs=Codecs(reading=[...])) the one that wrote it",
            )
        data = known.decode(payload, bound_to=bound_to, bytes_max=bytes_max)
        if len(data) > bytes_max:
            raise PayloadError(known.name, f"it is larger than {bytes_max} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise PayloadError(known.name, "it is not text") from None


PLAIN: Final = Codecs()
"""Plain JSON, which SQL can read, too."""


def _encode(codec: Codec, data: str, bound_to: bytes, bytes_max: int) -> bytes:
    plain = data.encode()
    payload = codec.encode(plain, bound_to=bound_to)
    # What cannot be read back is lost, so that is found out now: it costs about as much again.
    if codec.decode(payload, bound_to=bound_to, bytes_max=bytes_max) != plain:
        raise CodecError(
            codec.id, f"({codec.name}) does not give back what it was given; repair its decode"
        )
    return payload

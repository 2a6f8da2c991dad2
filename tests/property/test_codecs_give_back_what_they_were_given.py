"""Whatever a codec makes of JSON becomes that JSON again, and nothing else passes for it."""

from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from secrets import token_bytes
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datapatterns.errors import CodecError, DataPatternsError, EncryptionKeyError, PayloadError
from datapatterns.event_sourcing import Codec, CodecChain, Codecs, Encryption, KeyRing, MessagePack
from datapatterns.event_sourcing import Zstandard as Zstd
from datapatterns.event_sourcing.content.codecs import EVENT_PAYLOAD_MAX, STATE_BYTES_MAX
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.content.payload import EVENT_BYTES_MAX, encode_mapping

RING = KeyRing({"old": token_bytes(32), "new": token_bytes(32)}, writing="new")
DICTIONARY = zstandard.train_dictionary(
    2_000, [b'{"customer":"c%d","total":%d}' % (n, n * 7) for n in range(2_000)]
).as_bytes()
CODECS: list[Codec] = [
    MessagePack(),
    Zstd(above_bytes=0),
    Zstd(level=19, dictionary=DICTIONARY),
    Encryption(RING),
    CodecChain(MessagePack(), Zstd()),
    CodecChain(MessagePack(), Encryption(RING)),
    CodecChain(Zstd(dictionary=DICTIONARY), Encryption(RING)),
    CodecChain(MessagePack(), Zstd(above_bytes=0), Encryption(RING)),
    CodecChain(CodecChain(MessagePack(), Zstd()), Encryption(RING)),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)
ENCODED = st.dictionaries(TEXT, JSON, max_size=6).map(lambda d: encode_mapping(d, event_type="e"))


def event(data: str) -> EncodedEvent:
    return EncodedEvent("e", 1, uuid4(), data, None)


def read(codecs: Codecs, encoded: EncodedEvent) -> str:
    """Return what a reader of the database gets."""
    if encoded.codec == 0:
        return encoded.data
    return codecs.decode(
        encoded.codec,
        b64decode(encoded.data),
        bound_to=encoded.event_id.bytes,
        bytes_max=EVENT_PAYLOAD_MAX,
    )


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=40)
@given(batch=st.lists(ENCODED, min_size=1, max_size=3))
def test_an_event_comes_back_byte_for_byte(codec: Codec, batch: list[str]) -> None:
    codecs = Codecs(codec)

    encoded = codecs.encode_events([event(data) for data in batch])

    assert [read(codecs, one) for one in encoded] == batch
    assert len({one.codec for one in encoded}) == 1  # the database takes one for an append


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=40)
@given(state=ENCODED)
def test_a_state_comes_back_byte_for_byte(codec: Codec, state: str) -> None:
    codecs = Codecs(codec)

    id_, payload = codecs.encode_state(state, bound_to=b"basket 7")

    if payload is not None:
        decoded = codecs.decode(id_, payload, bound_to=b"basket 7", bytes_max=STATE_BYTES_MAX)
        assert decoded == state


@pytest.mark.parametrize("codec", [c for c in CODECS if not c.optional], ids=lambda c: c.name)
@settings(max_examples=40)
@given(data=ENCODED, choose=st.data())
def test_encrypted_payloads_are_refused_elsewhere_and_when_changed(
    codec: Codec, data: str, choose: st.DataObject
) -> None:
    codecs = Codecs(codec)
    [encoded] = codecs.encode_events([event(data)])
    moved = msgspec.structs.replace(encoded, event_id=uuid4())

    with pytest.raises(PayloadError, match="was changed, or belongs to another event"):
        read(codecs, moved)
    payload = bytearray(codec.encode(data.encode(), bound_to=b"a"))
    at = choose.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= 1 << choose.draw(st.integers(0, 7))
    with pytest.raises((PayloadError, EncryptionKeyError)):
        codec.decode(bytes(payload), bound_to=b"a", bytes_max=EVENT_BYTES_MAX)
    cut = payload[: choose.draw(st.integers(0, len(payload) - 1))]
    with pytest.raises((PayloadError, EncryptionKeyError)):
        codec.decode(bytes(cut), bound_to=b"a", bytes_max=EVENT_BYTES_MAX)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=40)
@given(payload=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x00", b"\x01", b"\x81"]))
def test_noise_is_answered_with_an_error_that_has_a_name(
    codec: Codec, payload: bytes, prefix: bytes
) -> None:
    noise = prefix + payload
    try:
        Codecs(codec).decode(codec.id, noise, bound_to=b"", bytes_max=10_000)
    except DataPatternsError as error:
        assert isinstance(error, CodecError | EncryptionKeyError | PayloadError)  # noqa: PT017


@settings(max_examples=40)
@given(data=ENCODED)
def test_keys_rotate_without_rewriting_what_was_written(data: str) -> None:
    before = KeyRing({"old": RING.key("old")}, writing="old")
    [written] = Codecs(Encryption(before)).encode_events([event(data)])

    after = Codecs(Encryption(RING))

    assert read(after, written) == data
    [rewritten] = after.encode_events([event(data)])
    with pytest.raises(EncryptionKeyError, match="'new' is not in the key ring"):
        read(Codecs(Encryption(before)), rewritten)


def test_plain_json_is_kept_where_a_payload_would_not_be_smaller() -> None:
    codecs = Codecs(Zstd())
    short, long = event('{"a":1}'), event(encode_mapping({"a": "b" * 5_000}, event_type="e"))

    assert codecs.encode_events([short]) == [short]
    assert {one.codec for one in codecs.encode_events([short, long])} == {2}
    assert Codecs(Encryption(RING)).encode_events([short])[0].codec == 4


def test_threads_can_share_a_codec() -> None:
    codec = CodecChain(MessagePack(), Zstd(above_bytes=0, dictionary=DICTIONARY), Encryption(RING))

    def there_and_back(n: int) -> bool:
        data = encode_mapping({"n": n, "text": f"{n} " * 500}, event_type="e").encode()
        payload = codec.encode(data, bound_to=b"a")
        return codec.decode(payload, bound_to=b"a", bytes_max=EVENT_BYTES_MAX) == data

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, range(400)))


@pytest.mark.parametrize("size", [EVENT_BYTES_MAX * 3, 2**31])
def test_a_frame_that_claims_to_be_large_is_not_begun(size: int) -> None:
    frame = zstandard.ZstdCompressor().compress(b"0" * EVENT_BYTES_MAX * 3)
    said = zstandard.get_frame_parameters(frame)
    assert said.content_size == EVENT_BYTES_MAX * 3
    bomb = frame.replace((EVENT_BYTES_MAX * 3).to_bytes(4, "little"), size.to_bytes(4, "little"))

    with pytest.raises(PayloadError, match="larger than"):
        Zstd().decode(b"\x01" + bomb, bound_to=b"", bytes_max=EVENT_BYTES_MAX)


def test_a_frame_that_does_not_say_its_size_or_lies_is_refused() -> None:
    content_size_unknown = zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * 999)
    two_frames = zstandard.ZstdCompressor().compress(b"a" * 999) * 2
    lies = (
        zstandard.ZstdCompressor()
        .compress(b"a" * 999)
        .replace((999 - 256).to_bytes(2, "little"), (300 - 256).to_bytes(2, "little"))
    )

    for frame in (content_size_unknown, two_frames, lies):
        with pytest.raises(PayloadError):
            Zstd().decode(b"\x01" + frame, bound_to=b"", bytes_max=10_000)


def test_nothing_shows_a_key_or_what_was_encrypted() -> None:
    ring = KeyRing({"k": b"0123456789abcdef0123456789abcdef"}, writing="k")

    for thing in (ring, Encryption(ring), Codecs(Encryption(ring))):
        assert "0123456789" not in repr(thing)
    with pytest.raises(TypeError, match="not pickled"):
        ring.__reduce__()
    payload = Encryption(ring).encode(b'{"name":"canary"}', bound_to=b"1")
    assert b"canary" not in payload


def test_ids_that_clash_and_orders_that_make_no_sense_are_refused() -> None:
    with pytest.raises(CodecError, match="is both Zstandard and Zstandard"):
        Codecs(Zstd(), reading=[Zstd(level=9)])
    with pytest.raises(CodecError, match="as MessagePack, Zstandard, Encryption"):
        CodecChain(Encryption(RING), Zstd())
    with pytest.raises(CodecError, match="as MessagePack, Zstandard, Encryption"):
        CodecChain(Zstd(), CodecChain(MessagePack(), Encryption(RING)))
    with pytest.raises(CodecError, match="at least two"):
        CodecChain(Zstd())
    with pytest.raises(CodecError, match="use 64 to"):
        Codecs(Reversing(9))
    with pytest.raises(CodecError, match="two dictionaries"):
        Zstd(dictionary=DICTIONARY, older_dictionaries=[DICTIONARY])
    with pytest.raises(CodecError, match="does not know"):
        Codecs().decode(77, b"", bound_to=b"", bytes_max=1)


class Reversing:
    """A codec of a user's own; it forgets the end of what is longer than it likes."""

    name = "reversing"
    optional = False

    def __init__(self, id_: int = 64, bytes_max: int = 100) -> None:
        self.id = id_
        self.bytes_max = bytes_max

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        del bound_to
        return data[: self.bytes_max][::-1]

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        del bound_to, bytes_max
        return payload[::-1]


def test_a_codec_that_loses_something_is_found_out_before_anything_is_stored() -> None:
    codecs = Codecs(CodecChain(Zstd(), Reversing(), id=65), reading=[Reversing()])
    long: Any = {"a": str(UUID(int=2**127)) * 9 + token_bytes(200).hex()}

    assert codecs.encode_events([event('{"a":1}')])[0].codec == 65
    with pytest.raises((CodecError, PayloadError)):
        codecs.encode_events([event(msgspec.json.encode(long).decode())])

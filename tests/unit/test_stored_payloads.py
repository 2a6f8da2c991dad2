"""What a codec has once stored, every later release reads; and no payload tells of another."""

from concurrent.futures import ThreadPoolExecutor
from secrets import token_bytes
from threading import Barrier

import pytest
import zstandard

from datapatterns.errors import CodecError, EncryptionKeyError, PayloadError
from datapatterns.event_sourcing import Codec, CodecChain, Codecs, Encryption, KeyRing, MessagePack
from datapatterns.event_sourcing import Zstandard as Zstd
from datapatterns.event_sourcing.content import codecs as codecs_module
from datapatterns.event_sourcing.content.encryption import Cipher

EVENT = b"event 7"
DATA = '{"customer":"ann","total":7}'
RING = KeyRing({"2024": bytes(range(32))}, writing="2024")
STORED: list[tuple[Codec, str, str]] = [
    (MessagePack(), DATA, "82a8637573746f6d6572a3616e6ea5746f74616c07"),
    (Zstd(), DATA, "007b22637573746f6d6572223a22616e6e222c22746f74616c223a377d"),
    (
        Zstd(),
        '{"customer":"' + "ann" * 9 + '"}',
        "0128b52ffd202ac50000907b22637573746f6d6572223a22616e6e227d010004dd12",
    ),
    (
        Encryption(RING),
        DATA,
        (
            "010432303234cb5ffce4acac58d41a74302e983acd836a9d17d32b9c84624cba06756d1576ae59e87d7984b9"
            "1e7548b309df3556d918e6a33e5c52d39d21d482278ecfe316d70a3ba8bdbfa6ea16"
        ),
    ),
    (
        CodecChain(MessagePack(), Zstd(), Encryption(RING)),
        DATA,
        (
            "010432303234486f0209452e8cfcbe9de1bbebe89901379e43ec98dd5235cc0df436a056a7967179f7a31cf0"
            "d0b366d7879c3dd1a8910ee85aee6c60ebc060967f14a37f91de2fee"
        ),
    ),
]


@pytest.mark.parametrize(
    ("codec", "data", "stored"), STORED, ids=["packed", "raw", "compressed", "encrypted", "chained"]
)
def test_what_was_stored_before_is_read(codec: Codec, data: str, stored: str) -> None:
    payload = bytes.fromhex(stored)

    assert Codecs(codec).decode(codec.id, payload, bound_to=EVENT, bytes_max=1_000) == data


def test_ids_of_codecs_mean_the_same_for_ever() -> None:
    assert [codec.id for codec, *_ in STORED] == [1, 2, 2, 4, 7]


def test_the_same_text_is_never_encrypted_alike() -> None:
    """A nonce that comes twice under one key gives the key away, a salt twice the same key."""
    codec, cipher = Encryption(RING), Cipher(bytes(32))
    payloads = [codec.encode(DATA.encode(), bound_to=EVENT) for _ in range(9)]
    sealed = [cipher.encrypt(DATA.encode(), bound_to=EVENT) for _ in range(9)]

    head = len(b"\x01\x042024")
    assert {payload[:head] for payload in payloads} == {b"\x01\x042024"}
    assert len({payload[head : head + 16] for payload in payloads}) == 9
    assert len({payload[head + 16 : head + 28] for payload in payloads}) == 9
    assert len({one[:12] for one in sealed}) == 9


def test_each_payload_has_a_key_of_its_own() -> None:
    """So the ring's own key opens none, and encrypts any number."""
    payload = Encryption(RING).encode(DATA.encode(), bound_to=EVENT)
    head, sealed = payload[:22], payload[22:]

    with pytest.raises(ValueError, match="not authentic"):
        Cipher(RING.key("2024")).decrypt(sealed, bound_to=head + EVENT)


def test_a_state_is_encrypted_although_that_makes_it_longer() -> None:
    """Plain JSON may stand in for a payload that is not smaller, but never for an encrypted one."""
    for codec in (Encryption(RING), CodecChain(MessagePack(), Encryption(RING))):
        codecs = Codecs(codec)
        id_, payload = codecs.encode_state(DATA, bound_to=EVENT)

        assert id_ == codec.id
        assert payload is not None
        assert b"ann" not in payload
        assert len(payload) > len(DATA)
        assert codecs.decode(id_, payload, bound_to=EVENT, bytes_max=1_000) == DATA
    assert Codecs(MessagePack()).encode_state('{"a":"b"}', bound_to=EVENT)[0] == 1
    assert Codecs(Zstd()).encode_state('{"a":"b"}', bound_to=EVENT) == (0, None)


def test_a_state_that_no_load_would_read_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs_module, "STATE_BYTES_MAX", 1_000)
    state = DATA.replace("ann", token_bytes(3_000).hex())

    for codec in (MessagePack(), Zstd(above_bytes=0), Encryption(RING)):
        with pytest.raises(PayloadError, match="larger than"):
            Codecs(codec).encode_state(state, bound_to=EVENT)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("", bytes(32)),
        ("k" * 101, bytes(32)),
        ("é" * 51, bytes(32)),  # stored in one byte is how many bytes it has
        ("a\nb", bytes(32)),
        ("short", bytes(31)),
        ("long", bytes(33)),
        ("aes128", bytes(16)),
    ],
    ids=["no name", "long name", "long in bytes", "unprintable", "short", "long", "of AES-128"],
)
def test_keys_that_are_none_are_refused(name: str, key: bytes) -> None:
    with pytest.raises(EncryptionKeyError):
        KeyRing({name: key}, writing=name)


def test_a_ring_keeps_its_keys_whatever_becomes_of_the_mapping() -> None:
    given = {"k": bytes(32)}
    ring = KeyRing(given, writing="k")
    payload = Encryption(ring).encode(DATA.encode(), bound_to=EVENT)
    given.clear()

    assert Encryption(ring).decode(payload, bound_to=EVENT, bytes_max=1_000) == DATA.encode()


def test_a_key_that_writes_is_in_the_ring() -> None:
    with pytest.raises(EncryptionKeyError, match="'new' is not in the key ring"):
        KeyRing({"old": bytes(32)}, writing="new")


def trained(word: bytes) -> bytes:
    return zstandard.train_dictionary(
        2_000, [b'{"%s":"c%d","total":%d}' % (word, n, n * 7) for n in range(2_000)]
    ).as_bytes()


def test_dictionaries_change_without_rewriting_what_was_written() -> None:
    old, new = trained(b"customer"), trained(b"passenger")
    data = DATA.encode() * 9
    before = Zstd(dictionary=old).encode(data, bound_to=b"")
    after = Zstd(dictionary=new, older_dictionaries=[old])
    written = after.encode(data, bound_to=b"")

    for payload in (before, written):
        assert after.decode(payload, bound_to=b"", bytes_max=1_000) == data
    assert Zstd(dictionary=new).decode(written, bound_to=b"", bytes_max=1_000) == data
    for stranger in (Zstd(dictionary=new), Zstd()):
        with pytest.raises(CodecError, match="needs dictionary"):
            stranger.decode(before, bound_to=b"", bytes_max=1_000)
    # Who only reads with it does not write with it.
    plain = Zstd(older_dictionaries=[old]).encode(data, bound_to=b"")
    assert Zstd().decode(plain, bound_to=b"", bytes_max=1_000) == data


def test_no_stage_of_a_chain_makes_more_than_the_bound_allows() -> None:
    """A small payload that would become large is stopped where it grows, not behind it."""
    grown: list[int] = []

    class Noting(MessagePack):
        def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
            grown.append(len(payload))
            return super().decode(payload, bound_to=bound_to, bytes_max=bytes_max)

    bomb = Zstd().encode(bytes(10_000_000), bound_to=b"")
    with pytest.raises(PayloadError, match="larger than"):
        CodecChain(Noting(), Zstd()).decode(bomb, bound_to=b"", bytes_max=10_000)
    assert grown == []


class Hexadecimal:
    """A codec of a user's own, whose payloads are twice as long."""

    name = "hexadecimal"
    optional = False

    def __init__(self, id_: int) -> None:
        self.id = id_

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        del bound_to
        return data.hex().encode()

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        del bound_to, bytes_max
        return bytes.fromhex(payload.decode())


def test_what_is_longer_on_its_way_may_be_as_long_as_any_in_the_end() -> None:
    data = b'{"a":"%s"}' % token_bytes(3_000).hex().encode()
    chain = CodecChain(Hexadecimal(64), Zstd(), id=65)
    payload = chain.encode(data, bound_to=EVENT)

    assert chain.decode(payload, bound_to=EVENT, bytes_max=len(data)) == data


def test_ids_that_would_not_be_stored_or_mean_two_things_are_refused() -> None:
    Codecs(Hexadecimal(64))
    Codecs(Hexadecimal(2**15 - 1))
    for id_ in (0, 1, 63, 2**15):
        with pytest.raises(CodecError, match="use 64 to 32767"):
            Codecs(Hexadecimal(id_))
    with pytest.raises(CodecError, match="needs id=64"):
        CodecChain(Zstd(), Hexadecimal(64))
    with pytest.raises(CodecError, match="choose one from 64"):
        CodecChain(MessagePack(), Zstd(), id=63)


@pytest.mark.parametrize("noise", ["81c001", "d60561626364", "819001", "a1ff", "91" * 100_000])
def test_message_pack_that_is_no_json_is_refused(noise: str) -> None:
    with pytest.raises(PayloadError, match="not MessagePack, or nested too deep"):
        MessagePack().decode(bytes.fromhex(noise), bound_to=EVENT, bytes_max=10**6)


def test_no_two_threads_share_what_zstandard_keeps_state_in() -> None:
    """It would damage what is stored, or end the process."""
    codec, both = Zstd(), Barrier(2)

    def own(_: int) -> tuple[object, object]:
        both.wait(30)
        return codec._compressor(), codec._decompressor(0)  # noqa: SLF001

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(own, range(2))

    assert one[0] is not other[0]
    assert one[1] is not other[1]


@pytest.mark.parametrize("codec", [MessagePack(), Encryption(RING)])
def test_what_is_too_large_is_not_begun(codec: Codec) -> None:
    payload = codec.encode(b'{"a":"%s"}' % (b"a" * 3_000), bound_to=EVENT)

    with pytest.raises(PayloadError, match="larger than"):
        codec.decode(payload, bound_to=EVENT, bytes_max=1_000)


@pytest.mark.parametrize("codec", [MessagePack(), Encryption(RING), Zstd(above_bytes=10**6)])
def test_what_is_larger_than_its_reader_bears_is_refused(codec: Codec) -> None:
    data = b'{"a":"%s"}' % token_bytes(3_000).hex().encode()
    payload = codec.encode(data, bound_to=EVENT)

    codecs = Codecs(codec)
    assert codecs.decode(codec.id, payload, bound_to=EVENT, bytes_max=len(data))
    with pytest.raises(PayloadError, match="larger than"):
        codecs.decode(codec.id, payload, bound_to=EVENT, bytes_max=len(data) - 1)

"""However the network cuts the streams, a proxy passes on what came, message by message."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.testing.faults.asking import asks_for, statements
from datapatterns.testing.faults.dialogues import Dialogue, UnknownProtocolError
from datapatterns.testing.faults.postgres_dialogue import PostgresDialogue
from datapatterns.testing.faults.redis_dialogue import RedisDialogue

GREETING = (8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big")
READY = b"Z\0\0\0\5I"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (4 + len(body)).to_bytes(4, "big") + body


def query(sql: str) -> bytes:
    return message(b"Q", sql.encode() + b"\0")


def prepared(sql: str) -> bytes:
    return (
        message(b"P", b"s\0" + sql.encode() + b"\0\0\0")
        + message(b"B", b"\0s\0\0\0\0\0\0\0")
        + message(b"E", b"\0\0\0\0\0")
    )


SYNC, FLUSH = message(b"S"), message(b"H")
DONE = message(b"C", b"X\0")
FAILED = message(b"E", b"\0")

bodies = st.binary(max_size=40)
postgres_requests = st.lists(
    st.one_of(
        bodies.map(lambda body: message(b"Q", body)),
        bodies.map(lambda body: message(b"P", body + b"\0\0\0")),
        bodies.map(lambda body: message(b"B", body + b"\0\0\0")),
        bodies.map(lambda body: message(b"E", body)),
        bodies.map(lambda body: message(b"d", body)),
        st.sampled_from([SYNC, FLUSH, message(b"X")]),
    ),
    min_size=1,
    max_size=12,
)
postgres_replies = st.lists(
    st.tuples(st.sampled_from(b"CIsEDTNZ123tnG"), bodies).map(
        lambda kind_and_body: message(bytes([kind_and_body[0]]), kind_and_body[1])
    ),
    min_size=1,
    max_size=12,
)


def bulk(content: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(content), content)


def array(kind: bytes, size: int, parts: list[bytes]) -> bytes:
    return b"%b%d\r\n%b" % (kind, size, b"".join(parts))


redis_requests = st.lists(
    st.lists(st.binary(max_size=300), min_size=1, max_size=12).map(
        lambda words: array(b"*", len(words), [bulk(word) for word in words])
    ),
    min_size=1,
    max_size=8,
)
redis_values = st.recursive(
    st.one_of(
        st.binary(max_size=40).map(bulk),
        st.binary(max_size=9).map(lambda text: b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text)),
        st.sampled_from(
            [b"+OK\r\n", b"-NO\r\n", b":7\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n"],
        ),
        st.sampled_from(
            [b"(9\r\n", b"$-1\r\n", b"*-1\r\n", b"!2\r\nno\r\n", b"*0\r\n", b"%0\r\n"],
        ),
    ),
    lambda values: st.one_of(
        st.tuples(st.sampled_from([b"*", b"~"]), st.lists(values, max_size=4)).map(
            lambda drawn: array(drawn[0], len(drawn[1]), drawn[1])
        ),
        st.lists(st.tuples(values, values).map(b"".join), max_size=3).map(
            lambda pairs: array(b"%", len(pairs), pairs)
        ),
        st.tuples(values, values, values).map(lambda three: array(b"|", 1, list(three))),
    ),
    max_leaves=8,
)
redis_pushes = st.lists(redis_values, min_size=1, max_size=3).map(
    lambda values: array(b">", len(values), values)
)
cuts = st.lists(st.integers(0, 4_000), max_size=12)


def cut_up(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


@given(postgres_requests, postgres_replies, cuts, cuts)
def test_postgres_messages_are_the_same_in_whatever_pieces_they_come(
    requests: list[bytes], replies: list[bytes], places: list[int], more_places: list[int]
) -> None:
    _check_pieces(PostgresDialogue, [GREETING, *requests], replies, places, more_places)


@given(redis_requests, st.lists(redis_values | redis_pushes, min_size=1), cuts, cuts)
def test_redis_messages_are_the_same_in_whatever_pieces_they_come(
    requests: list[bytes], replies: list[bytes], places: list[int], more_places: list[int]
) -> None:
    _check_pieces(RedisDialogue, requests, replies, places, more_places)


def _check_pieces(
    kind: type[PostgresDialogue | RedisDialogue],
    requests: list[bytes],
    replies: list[bytes],
    places: list[int],
    more_places: list[int],
) -> None:
    whole: Dialogue = kind()
    asked, answered = whole.requests(b"".join(requests)), whole.replies(b"".join(replies))
    torn: Dialogue = kind()
    asked_torn = [
        found for chunk in cut_up(b"".join(requests), places) for found in torn.requests(chunk)
    ]
    answered_torn = [
        found for chunk in cut_up(b"".join(replies), more_places) for found in torn.replies(chunk)
    ]

    assert [request.data for request in asked] == requests
    assert [reply.data for reply in answered] == replies
    assert asked_torn == asked
    assert answered_torn == answered


@given(redis_requests, st.data())
def test_each_redis_reply_but_a_push_answers_the_next_command(
    requests: list[bytes], data: st.DataObject
) -> None:
    dialogue = RedisDialogue()
    asked = dialogue.requests(b"".join(requests))
    expected = [request.number for request in asked if request.number is not None]

    answered = []
    for _ in expected:
        for push in data.draw(st.lists(redis_pushes, max_size=2)):
            assert [reply.completes for reply in dialogue.replies(push)] == [None]
        answered += [reply.completes for reply in dialogue.replies(data.draw(redis_values))]

    assert answered == expected


@pytest.mark.parametrize("bad", [b"PING\r\n", b"+OK\r\n", b"*x\r\n", b"\r\n"])
def test_what_is_no_redis_command_is_an_error(bad: bytes) -> None:
    with pytest.raises(UnknownProtocolError):
        RedisDialogue().requests(bad)


@pytest.mark.parametrize("bad", [b"\x16\x03\x01\x02\0\0\0\0", b"\0\0\0\x08\0\x02\0\0", b"\0\0\0\1"])
def test_what_does_not_begin_as_postgresql_is_an_error(bad: bytes) -> None:
    with pytest.raises(UnknownProtocolError):
        PostgresDialogue().requests(bad)


def begun() -> PostgresDialogue:
    dialogue = PostgresDialogue()
    dialogue.requests(GREETING)
    dialogue.replies(READY)
    return dialogue


def test_a_query_of_several_statements_ends_when_the_server_is_ready() -> None:
    dialogue = begun()
    (request,) = dialogue.requests(query("BEGIN; SELECT 1; COMMIT"))

    first, second, ready = dialogue.replies(DONE + DONE + READY)

    assert request.asks == ["BEGIN", "SELECT 1", "COMMIT"]
    assert (first.completes, second.completes) == (request.number, request.number)
    assert (first.ends, second.ends, ready.ends) == (None, None, request.number)


def test_statements_of_a_batch_complete_one_by_one_and_end_together() -> None:
    dialogue = begun()
    asked = dialogue.requests(prepared("INSERT") + prepared("COMMIT") + SYNC)
    numbers = [request.number for request in asked if request.number]

    replies = dialogue.replies(DONE + DONE + READY)

    assert [reply.completes for reply in replies] == [*numbers, None]
    assert [reply.ends for reply in replies] == [None, None, numbers[-1]]


def test_a_failed_statement_completes_and_those_after_it_do_not() -> None:
    dialogue = begun()
    asked = dialogue.requests(prepared("INSERT") + prepared("COMMIT") + SYNC + query("SELECT 1"))
    first, _, third = [request.number for request in asked if request.number]

    replies = dialogue.replies(FAILED + READY + DONE + READY)

    assert [reply.completes for reply in replies] == [first, None, third, None]


def test_a_client_that_only_flushes_gets_no_more_than_the_completion() -> None:
    dialogue = begun()
    asked = dialogue.requests(prepared("COMMIT") + FLUSH)
    (number,) = [request.number for request in asked if request.number]

    (reply,) = dialogue.replies(DONE)

    assert (reply.completes, reply.ends) == (number, number)


def test_encryption_is_declined_in_the_servers_place() -> None:
    dialogue = PostgresDialogue()
    for code in (80877103, 80877104):
        (request,) = dialogue.requests((8).to_bytes(4, "big") + code.to_bytes(4, "big"))
        assert (request.data, request.answer) == (b"", b"N")

    (greeting,) = dialogue.requests(GREETING)
    assert greeting.data == GREETING


quoted = st.sampled_from(["'; COMMIT'", "$a$; COMMIT $a$", '"; COMMIT"', "E'\\'; COMMIT'"])
blanks = st.sampled_from([" ", "\n", "/* ; COMMIT */", "-- ; COMMIT\n", "\t"])


@given(st.lists(st.tuples(blanks, quoted), max_size=4), blanks)
def test_what_is_quoted_or_remarked_is_no_statement(
    parts: list[tuple[str, str]], last: str
) -> None:
    sql = "SELECT " + ", ".join("".join(part) for part in parts) + last

    assert not any(asks_for(statement, "COMMIT") for statement in statements(sql))
    assert any(asks_for(statement, "COMMIT") for statement in statements(sql + ";commit work"))

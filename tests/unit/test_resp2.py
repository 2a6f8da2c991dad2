"""Replies are read as ``hiredis`` reads them, however they come."""

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse, ResponseError

from datapatterns.cache_aside.resp2 import NOT_ENOUGH, PlainReader

REPLIES = st.recursive(
    st.none()
    | st.integers(-(2**62), 2**62)
    | st.binary(max_size=60)
    | st.just(ResponseError("no")),
    lambda reply: st.lists(reply, max_size=4),
    max_leaves=12,
)


def written(reply: Any) -> bytes:  # noqa: ANN401 -- whatever Redis says
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(reply), reply)
        case ResponseError():
            return b"-%s\r\n" % str(reply).encode()
        case _:
            return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))


def read(reader: Any, pieces: list[bytes]) -> list[object]:  # noqa: ANN401 -- of two kinds
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.gets()) is not NOT_ENOUGH:
            found.append(reply)
    return found


@given(st.lists(REPLIES, min_size=1, max_size=5), st.data())
def test_replies_that_come_in_pieces_are_those_that_hiredis_reads(
    replies: list[Any], data: st.DataObject
) -> None:
    text = b"".join(map(written, replies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    ours = read(PlainReader(ResponseError), pieces)
    theirs = read(hiredis.Reader(replyError=ResponseError, notEnoughData=NOT_ENOUGH), pieces)
    assert repr(ours) == repr(theirs) == repr(replies)


def test_a_status_is_bytes() -> None:
    assert read(PlainReader(ResponseError), [b"+OK\r", b"\n"]) == [b"OK"]


@pytest.mark.parametrize("babble", [b"\x15\x03\x01\r\n", b"$x\r\n", b"HTTP/1.1 400\r\n"])
def test_what_is_no_reply_is_refused(babble: bytes) -> None:
    with pytest.raises(InvalidResponse):
        read(PlainReader(ResponseError), [babble])

"""Break a connection that another thread uses, and only that one."""

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from datapatterns.sharding.reaching.interrupting import Line

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def line_of(number: int) -> Line:
    driver = SimpleNamespace(pgconn=SimpleNamespace(socket=number))
    return Line(driver, os.fstat(number).st_ino)


def test_who_waits_for_an_answer_is_told_at_once(pair: Pair) -> None:
    ours, theirs = pair
    line_of(ours.fileno()).sever()

    assert (ours.recv(1), theirs.recv(1)) == (b"", b"")


def test_a_connection_that_has_got_the_number_of_a_closed_one_is_left_alone(pair: Pair) -> None:
    ours, theirs = pair
    closed, other = socket.socketpair()
    number = closed.fileno()
    line = line_of(number)
    with other:
        os.dup2(ours.fileno(), number)  # closes what it was
        line.sever()
        os.write(number, b"x")

        assert theirs.recv(1) == b"x"
        closed.close()

"""What gates, errors and tokens are called."""

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from datapatterns.errors import SearchTooLargeError
from datapatterns.testing.interleaving.resp import commands_of, label_of
from datapatterns.testing.interleaving.story import (
    Happening,
    Story,
    described,
    shortened,
    sqlstate_of,
)
from datapatterns.testing.interleaving.tokens import check_names, from_token


def packed(*arguments: bytes) -> bytes:
    parts = [b"$%d\r\n%s\r\n" % (len(each), each) for each in arguments]
    return b"*%d\r\n" % len(arguments) + b"".join(parts)


@pytest.mark.parametrize(
    ("command", "label"),
    [
        (packed(b"GET", b"x"), "redis GET x"),
        (packed(b"SET", b"x", b"a value"), "redis SET x"),
        (packed(b"SET", b"a\nkey  of\r\nlines", b""), "redis SET a key of lines"),
        (packed(b"GET", b"k" * 99), f"redis GET {'k' * 40}"),
        (packed(b"EVAL", b"return\n1", b"2", b"x", b"y", b"z"), "redis EVAL x y"),
        (packed(b"EVALSHA", b"abc", b"0", b"z"), "redis EVALSHA"),
        (packed(b"AUTH", b"secret"), "redis AUTH"),
        (packed(b"CONFIG", b"SET", b"requirepass", b"secret"), "redis CONFIG"),
        (packed(b"SET", b"x", b"\xff\xfe") + packed(b"GET", b"x"), "redis SET GET"),
        (packed(b"GET", b"\xff"), "redis GET \ufffd"),
    ],
)
def test_a_command_of_redis_is_told_by_its_name_and_keys(command: bytes, label: str) -> None:
    assert label_of(commands_of(command)) == label


def test_packed_commands_come_in_pieces() -> None:
    whole = packed(b"GET", b"x") + packed(b"DEL", b"y", b"z")

    assert commands_of([whole[:9], whole[9:]]) == [[b"GET", b"x"], [b"DEL", b"y", b"z"]]
    assert commands_of("*1\r\n$4\r\nPING\r\n") == [[b"PING"]]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (psycopg.errors.UniqueViolation("twice\nDETAIL: x"), "UniqueViolation: twice (23505)"),
        (
            OperationalError("SELECT 1", {}, psycopg.errors.DeadlockDetected("deadlock detected")),
            "deadlock, broken by the server: DeadlockDetected: deadlock detected (40P01)",
        ),
        (psycopg.OperationalError("gone"), "OperationalError: gone"),
        (
            psycopg.errors.SerializationFailure("could not serialize access"),
            "serialization failure: SerializationFailure: could not serialize access (40001)",
        ),
    ],
)
def test_an_error_is_told_by_the_servers_name_for_it(error: Exception, told: str) -> None:
    assert described(error) == told


def test_the_code_of_an_error_is_found_beneath_those_that_wrap_it() -> None:
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = OperationalError("SELECT 1", {}, psycopg.errors.LockNotAvailable("busy"))

    assert sqlstate_of(wrapped) == "55P03"
    assert sqlstate_of(ValueError()) is None


def test_a_story_says_who_did_what_in_order() -> None:
    story = Story(["a_rather_long_name", "bob"])
    story.add("a_rather_long_name", "SELECT 1", Happening.STEP)
    story.add("bob", "waits for a_rather_long_name", Happening.WAIT)
    story.add("bob", "goes on", Happening.RESUME)
    story.add("bob", "it broke", Happening.ERROR)
    story.add("bob", "failed", Happening.END)

    assert story.blocked_steps == 1
    assert str(story).splitlines() == [
        "     a_rather_long_name                bob",
        "     --------------------------------  --------------------------------",
        "  1  SELECT 1",
        "                                       ... waits for a_rather_long_name",
        "                                       ... goes on",
        "                                       ! it broke",
        "                                       (failed)",
    ]


def test_a_shortened_text_keeps_its_end() -> None:
    assert shortened("UPDATE seats SET free = 0 WHERE seat = 'a'", 21) == "UPDATE seat...t = 'a'"
    assert len(shortened("x" * 99, 20)) == 20
    assert shortened("x" * 20, 20) == "x" * 20


@pytest.mark.parametrize("name", ["", "1st", "a.b", "a*b", "a!b", "ä", "a" * 41, "a\n"])
def test_names_that_a_token_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        check_names([name])
    check_names(["_", "a1", "a" * 40])


@pytest.mark.parametrize(
    "token", ["a..b", "a*0", "a*", "a!", "a!flood", "a!crash*2", "ä", "a b", "a*999999.b*999999"]
)
def test_a_token_that_was_not_written_by_us_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="replay token"):
        from_token(token)


def test_a_token_without_end_is_refused_unread() -> None:
    with pytest.raises(ValueError, match="at most 100,000 characters"):
        from_token("a." * 50_001)


def test_a_search_that_is_too_large_says_what_to_do() -> None:
    error = SearchTooLargeError(explored=10_000, known=5)

    assert "max_preemptions" in str(error)
    assert (error.explored, error.known) == (10_000, 5)

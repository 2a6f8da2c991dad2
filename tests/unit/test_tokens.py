"""Tokens: texts that anybody may have sent, and what is made of several."""

import re
from http.cookies import SimpleCookie
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.cqrs import Token, latest_token
from datapatterns.errors import ConfigurationError, ForeignTokenError, TokenError
from datapatterns.event_sourcing import Position

LOGS = st.none() | st.text("0123456789abcdef", min_size=8, max_size=8)
TOKENS = st.builds(Token, st.integers(0, 2**63 - 1).map(Position), LOGS)


@given(TOKENS)
def test_a_token_comes_back_from_its_text_which_fits_everywhere(token: Token) -> None:
    text = str(token)
    cookie = SimpleCookie()
    cookie["token"] = text

    assert Token.parse(text) == token
    assert Token.parse_optional(f" {text}\t") == token
    assert re.fullmatch(r"[0-9a-f.]{1,28}", text)
    assert quote_plus(text) == text
    assert cookie["token"].OutputString() == f"token={text}"


@given(st.text() | st.from_regex(r"[0-9]{1,20}(\.[0-9a-f]{0,9})?"))
def test_whatever_is_parsed_is_refused_or_is_the_text_of_a_token(text: str) -> None:
    try:
        token = Token.parse(text)
    except TokenError:
        return
    assert str(token) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "01",
        "1.",
        "1.abc",
        "1.ABCDEF01",
        "1 ",
        "1\n",
        "1_0",
        "1e3",
        "\u0661",  # a digit elsewhere
        "9223372036854775808",
        "<script>alert(1)</script>",
        "1" * 1_000_000,
        "1.00000000.00000000",
        "\0",
        "\ud800",
    ],
)
def test_what_is_no_token_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(TokenError) as refused:
        Token.parse(text)

    assert isinstance(refused.value, ConfigurationError)
    assert len(str(refused.value)) < 200
    assert "script" not in str(refused.value)


@pytest.mark.parametrize("text", [None, "", "  ", "\t"])
def test_no_token_is_none(text: str | None) -> None:
    assert Token.parse_optional(text) is None


def test_tokens_of_one_log_are_compared_and_the_latest_shows_all() -> None:
    early, late = Token(Position(3), "0000000a"), Token(Position(5), "0000000a")
    unmarked = Token(Position(5))

    assert early < late
    assert late > early
    assert early <= early  # noqa: PLR0124 -- that it is
    assert max(early, late) == late
    assert latest_token(None, late, early) == late
    assert latest_token(unmarked, late) == latest_token(late, unmarked) == late
    assert latest_token(None) is latest_token() is None


def test_tokens_of_two_logs_are_not_put_together() -> None:
    ours, theirs = Token(Position(3), "0000000a"), Token(Position(5), "0000000b")

    with pytest.raises(ForeignTokenError):
        latest_token(ours, None, theirs)
    with pytest.raises(ForeignTokenError):
        assert ours < theirs
    with pytest.raises(ForeignTokenError):
        assert ours <= theirs


@pytest.mark.parametrize("position", [-1, 2**63])
def test_positions_that_no_log_has_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match="no log has"):
        Token(Position(position))
    with pytest.raises(ValueError, match="tells no log"):
        Token(Position(1), "../../..")

"""Tokens: what a write returns, and a later read waits for."""

import re
from dataclasses import dataclass
from typing import Final

from datapatterns.errors import ForeignTokenError, TokenError
from datapatterns.event_sourcing.events import Position

TOKEN_CHARS_MAX: Final = 28
"""No token is longer: 19 digits, a dot, and 8 for the log."""

_POSITION_MAX: Final = 2**63 - 1
_LOG = re.compile(r"[0-9a-f]{8}", re.ASCII)
_TOKEN = re.compile(r"(0|[1-9][0-9]{0,18})(?:\.([0-9a-f]{8}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A place in a log that a read model has to reach before it is read.

    As text it is digits, letters and a dot, so it fits a header, a cookie, a form and a URL. Who
    can read it learns how many events there are; who makes one up only waits.

    >>> str(Token(Position(1204), "5f3a9c21"))
    '1204.5f3a9c21'
    >>> Token.parse("1204.5f3a9c21") < Token.parse("1205.5f3a9c21")
    True

    Attributes:
        position: What a write returned as its position.
        log: Tells one log from another; None if nobody has asked which it is.

    Raises:
        ValueError: No log has such a position, or is told by such a mark.
    """

    position: Position
    log: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.position <= _POSITION_MAX:
            raise ValueError(f"no log has a position {self.position}")
        if self.log is not None and not _LOG.fullmatch(self.log):
            raise ValueError(f"{self.log!r} tells no log; it is 8 of 0-9 and a-f")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Return the token that ``text`` is.

        Raises:
            TokenError: It is none.
        """
        if len(text) > TOKEN_CHARS_MAX:
            raise TokenError(f"it has more than {TOKEN_CHARS_MAX} characters")
        found = _TOKEN.fullmatch(text)
        if found is None or int(found[1]) > _POSITION_MAX:
            raise TokenError("it is not a position, or a position, a dot and 8 of 0-9 and a-f")
        return cls(Position(int(found[1])), found[2])

    @classmethod
    def parse_optional(cls, text: str | None) -> "Token | None":
        """Return the token that a header, a cookie or a field holds; None if it is not there.

        Raises:
            TokenError: It holds something else.
        """
        stripped = None if text is None else text.strip(" \t")
        return cls.parse(stripped) if stripped else None

    def __str__(self) -> str:
        return str(self.position) if self.log is None else f"{self.position}.{self.log}"

    def __lt__(self, other: "Token") -> bool:
        self._check_same_log(other)
        return self.position < other.position

    def __le__(self, other: "Token") -> bool:
        self._check_same_log(other)
        return self.position <= other.position

    def _check_same_log(self, other: "Token") -> None:
        if None not in (self.log, other.log) and self.log != other.log:
            raise _of_two_logs(other)


def latest_token(*tokens: Token | None) -> Token | None:
    """Return the token that shows all the writes of ``tokens``; None if there are none.

    Raises:
        ForeignTokenError: They are of different logs.
    """
    given = [token for token in tokens if token is not None]
    if len({token.log for token in given} - {None}) > 1:
        raise _of_two_logs(given[-1])
    return max(given, key=lambda token: (token.position, token.log is not None), default=None)


def as_token(token: Token | Position) -> Token:
    """Return what everything that waits goes by."""
    return token if isinstance(token, Token) else Token(token)


def check_log(token: Token, mark: str | None) -> None:
    """Refuse a token that is of another log than that of ``mark``, unless one is not known.

    Raises:
        ForeignTokenError: It is.
    """
    if None not in (token.log, mark) and token.log != mark:
        raise ForeignTokenError(
            token.position, "it was given by another database, or before this one was restored"
        )


def check_end(position: Position, end: Position | None) -> None:
    """Refuse a position that the log has never had.

    Raises:
        ForeignTokenError: It lies beyond ``end``.
    """
    if end is not None and position > end:
        raise ForeignTokenError(position, f"this one has only got to {end}")


def _of_two_logs(token: Token) -> ForeignTokenError:
    return ForeignTokenError(token.position, "it came together with one that is not of the same")

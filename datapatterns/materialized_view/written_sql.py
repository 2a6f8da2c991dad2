"""SQL as text that is written down: in one form, whatever its line breaks, and by other names.

A migration shows SQL on lines that people can read. That must be the very same SQL as what the
code declares, or each comparison would find a difference.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<quoted>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<odd>-- | /\* | \$\w*\$)
    | (?P<word>[\w$]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME_BEFORE: Final = re.compile(r"[\w$\".]")


@dataclass(frozen=True, slots=True)
class Token:
    """A part of a statement: ``space``, ``quoted``, ``word``, ``other``, or ``odd``.

    What is odd begins a comment or a dollar-quoted text, and is not looked into.
    """

    kind: str
    text: str


def tokens_of(statement: str) -> Iterator[Token]:
    """Return the parts of ``statement``, which together are all of it."""
    for match in _TOKEN.finditer(statement):
        yield Token(str(match.lastgroup), match.group())


def is_plain(statement: str) -> bool:
    """Return whether white space outside of quotes means no more than that words end.

    It does where there are comments, dollar quotes, or texts on two lines that SQL makes one.
    """
    tokens = [*tokens_of(statement)]
    if any(token.kind == "odd" for token in tokens):
        return False
    return not any(
        before.text.endswith("'") and "\n" in between.text and after.text.startswith("'")
        for before, between, after in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if between.kind == "space"
    )


def canonical(statement: str) -> str:
    r"""Return the same SQL on one line.

    >>> canonical("SELECT a,\n  'b  c' \nFROM t\n")
    "SELECT a, 'b  c' FROM t"
    """
    if not is_plain(statement):
        return statement
    return "".join(
        " " if token.kind == "space" else token.text for token in tokens_of(statement)
    ).strip()


def renamed(statement: str, schema: str, names: Mapping[str, str]) -> str:
    """Return ``statement`` with other relations of ``schema`` in it.

    >>> renamed("SELECT s.a.x, 's.a' FROM s.a JOIN b.a", "s", {"a": "c"})
    "SELECT s.c.x, 's.a' FROM s.c JOIN b.a"

    Args:
        statement: SQL in which these relations are written with their schema, unquoted.
        schema: A name that needs no quotes.
        names: The new name of each relation; names that need no quotes.
    """
    tokens = [*tokens_of(statement)]
    for at, token in enumerate(tokens[2:], start=2):
        is_qualified = tokens[at - 1].text == "." and tokens[at - 2].text == schema
        before = tokens[at - 3].text if at > 2 else ""  # noqa: PLR2004
        if is_qualified and not _NAME_BEFORE.fullmatch(before[-1:]) and token.text in names:
            tokens[at] = Token("word", names[token.text])
    return "".join(token.text for token in tokens)

"""Recognise what a client asks for, be it written in whatever way SQL allows."""

import re

_QUOTED_OR_COMMENT = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?\*/ )
    | [eE]' (?: [^'\\] | '' | \\. )* '
    | ' (?: [^'] | '' )* '
    | " (?: [^"] | "" )* "
    | \$ (?P<tag> (?:[A-Za-z_]\w*)? ) \$ .*? \$ (?P=tag) \$
    """,
    re.VERBOSE | re.DOTALL,
)
_END = re.compile(r"^END\b", re.IGNORECASE)


def statements(sql: str) -> list[str]:
    """Return the statements of ``sql``, each in one line and without comments and constants.

    ``END`` is shown as the ``COMMIT`` that it is.

    >>> statements("/* shop */ insert into note values ('a;b');  end")
    ["insert into note values ('')", 'COMMIT']
    """
    bare = _QUOTED_OR_COMMENT.sub(_without_content, sql)
    lines = (" ".join(part.split()) for part in bare.split(";"))
    return [
        _END.sub("COMMIT", line, count=1) if _END.match(line) else line for line in lines if line
    ]


def asks_for(asked: str, wanted: str) -> bool:
    """Return whether ``asked`` begins with the words ``wanted``; case doesn't matter.

    >>> asks_for("commit and chain", "COMMIT"), asks_for("committed", "COMMIT")
    (True, False)
    """
    beginning = " ".join(wanted.split())
    return re.match(rf"{re.escape(beginning)}(?!\w)", asked, re.IGNORECASE) is not None


def _without_content(match: re.Match[str]) -> str:
    if match["comment"]:
        return " "
    found = match[0]
    # A quoted name says which table it is; a constant says nothing, and may hold a semicolon.
    return found.replace(";", ",") if found.startswith('"') else "''"

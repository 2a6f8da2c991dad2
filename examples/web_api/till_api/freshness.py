"""What a request says about freshness, and what a response does: only headers.

- ``Read-After``: the token of a write, in its response and in requests that are to show it.
- ``Cache-Control: max-stale`` in a request: rather an old answer than none.
- ``Cache-Control: max-age=5`` in a request: none that is more than 5 seconds behind.
- ``Age`` in a response: how many seconds it is behind; ``Read-Stale: 1`` if that is more than was
  asked for.
"""

import math
import re
from collections.abc import Mapping
from typing import TypeVar

from datapatterns.cqrs import Answer, Asked, Token

T = TypeVar("T")

READ_AFTER = "Read-After"
READ_STALE = "Read-Stale"

_MAX_AGE = re.compile(r"max-age\s*=\s*([0-9]{1,9})", re.ASCII)


def asked_for(headers: Mapping[str, str], *, wait_seconds: float) -> Asked:
    """Return what a request asks for.

    Raises:
        TokenError: Its token is none.
    """
    control = headers.get("cache-control", "")
    age = _MAX_AGE.search(control)
    return {
        "after": Token.parse_optional(headers.get(READ_AFTER.lower())),
        "max_staleness_seconds": None if age is None else float(age[1]),
        "stale": "serve" if "max-stale" in control else "refuse",
        "timeout_seconds": wait_seconds,
    }


def told_by(answer: Answer[T]) -> dict[str, str]:
    """Return the headers of a response with ``answer``.

    It has a token, too: who sends that with the next request never sees less than now.
    """
    headers = {
        READ_AFTER: str(answer.token),
        "Age": str(math.ceil(answer.seconds_behind)),
        "Cache-Control": "no-store",  # an answer is somebody's own
    }
    return headers | ({READ_STALE: "1"} if answer.is_stale else {})

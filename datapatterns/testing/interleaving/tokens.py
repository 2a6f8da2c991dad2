"""Schedules as text that a person can read, keep and hand on; pure."""

import re
from collections.abc import Iterable
from itertools import groupby

from datapatterns.testing.interleaving.choosing import Choice, Fault

_NAME = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
_STEP = re.compile(r"([A-Za-z_]\w*)(?:\*(\d{1,6})|!([a-z-]+))?", re.ASCII)
_CHARACTERS_MAX = 100_000
_STEPS_MAX = 1_000_000


def check_names(names: Iterable[str]) -> None:
    """Refuse names that a token cannot hold.

    Raises:
        ValueError: One isn't made of 1 to 40 letters, digits and underscores.
    """
    for name in names:
        if not _NAME.fullmatch(str(name)):
            raise ValueError(
                f"the task name {name!r} is not usable in a replay token; "
                "use up to 40 letters, digits and underscores, a letter first"
            )


def to_token(choices: Iterable[Choice]) -> str:
    """Write a schedule as text: ``alice*2.bob!crash``.

    >>> to_token([Choice("a"), Choice("a"), Choice("b", Fault.CRASH)])
    'a*2.b!crash'
    """
    parts = []
    for choice, same in groupby(choices):
        times = len(list(same))
        if choice.fault:
            parts += [f"{choice.task}!{choice.fault}"] * times
        else:
            parts.append(choice.task if times == 1 else f"{choice.task}*{times}")
    return ".".join(parts)


def from_token(token: str) -> list[Choice]:
    """Read what `to_token` wrote.

    Raises:
        ValueError: It is not such a text.
    """
    if len(token) > _CHARACTERS_MAX:
        raise ValueError(f"a replay token has at most {_CHARACTERS_MAX:,} characters")
    choices: list[Choice] = []
    for part in token.split(".") if token else []:
        match = _STEP.fullmatch(part)
        if not match or (match[3] and match[3] not in set(Fault)):
            raise ValueError(f"{part!r} is no step of a replay token such as 'alice*2.bob!crash'")
        times = 1 if match[2] is None else int(match[2])
        if not 0 < times <= _STEPS_MAX - len(choices):
            raise ValueError(f"{part!r}: a replay token has 1 to {_STEPS_MAX:,} steps")
        choices += [Choice(match[1], Fault(match[3]) if match[3] else None)] * times
    return choices

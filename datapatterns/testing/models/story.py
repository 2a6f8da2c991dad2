"""Failures as a person reads them: given, when, expected, got; one thing on each line."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher

from datapatterns.testing.models.sameness import same

_LABEL_CHARS = 10


class SpecError(AssertionError):
    """A spec does not hold; the message tells what was given, expected and got."""

    def __init__(self, claim: str, *story: str) -> None:
        super().__init__("\n".join([claim, *story]))


def told(label: str, things: Iterable[object], *, nothing: str = "nothing") -> list[str]:
    """Return a line for each of ``things``, the first behind ``label``.

    >>> told("given", ["opened", "paid"])
    ["given     'opened'", "          'paid'"]
    """
    lines = [repr(thing) for thing in things] or [nothing]
    labels = [label, *[""] * (len(lines) - 1)]
    return [f"{label:<{_LABEL_CHARS}}{line}" for label, line in zip(labels, lines, strict=True)]


def differing(expected: Sequence[object], got: Sequence[object]) -> list[str]:
    """Return lines that say where two sequences part, down to the fields of their values."""
    if not expected or not got:
        return []  # to see at a glance
    lines = []
    matcher = SequenceMatcher(
        None, [repr(value) for value in expected], [repr(value) for value in got], autojunk=False
    )
    for verb, begin, end, got_begin, got_end in matcher.get_opcodes():
        if verb == "equal":
            alike = zip(expected[begin:end], got[got_begin:got_end], strict=True)
            lines += [line for a, b in alike if not same(a, b) for line in _of_values(a, b)]
            continue
        missing, surplus = expected[begin:end], got[got_begin:got_end]
        pairs = list(zip(missing, surplus, strict=False))
        for wanted, found in pairs:
            lines += _of_values(wanted, found)
        lines += [f"missing   {value!r}" for value in missing[len(pairs) :]]
        lines += [f"surplus   {value!r}" for value in surplus[len(pairs) :]]
    return lines


def _of_values(expected: object, got: object) -> list[str]:
    names = _names(expected)
    name, other_name = type(expected).__name__, type(got).__name__
    if type(expected) is not type(got) or not names:
        alike = repr(expected) == repr(got)
        of = (f" of {name}", f" of {other_name}") if alike else ("", "")
        return [f"differs   expected {expected!r}{of[0]}, got {got!r}{of[1]}"]
    return [
        f"differs   {name}.{field}: expected {one!r}, got {other!r}"
        for field in names
        if not same(one := getattr(expected, field), other := getattr(got, field))
    ] or [f"differs   two {name} print alike and are not equal; do they define __eq__?"]


def _names(value: object) -> tuple[str, ...]:
    if is_dataclass(value):
        return tuple(field.name for field in fields(value))
    return tuple(getattr(value, "__struct_fields__", ()))

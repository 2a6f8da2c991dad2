"""Another process is sent data, and answers with data: or the reason why it does not is told."""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from datapatterns.cqrs import Projection
from datapatterns.cqrs.determinism.exchange import Answer, carry_rows
from datapatterns.cqrs.determinism.in_memory import Decoded, State
from datapatterns.cqrs.determinism.other_process import OtherProcess, UntriedError, other_process
from datapatterns.cqrs.determinism.piping import send
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.parts import row_digest
from datapatterns.event_sourcing import EventTypes, Position, RecordedEvent, StreamId
from datapatterns.event_sourcing.log.decoding import decode_each
from tests.fixtures.elsewhere import (
    Colour,
    Held,
    Ignored,
    Misbehaving,
    Money,
    Noted,
    Telling,
    Word,
)

TYPES = EventTypes()
TYPES.event("test.noted", version=3)(Noted)
TYPES.event("test.ignored")(Ignored)


@TYPES.upcast("test.noted", 2)
def _twice(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [data, {**data, "words": ["again"]}]


@TYPES.upcast("test.noted", 1)
def _named_otherwise(data: dict[str, Any]) -> dict[str, Any]:
    return {"name": data["title"]}


def recorded(stored: bytes, version: int = 3, position: int = 1) -> RecordedEvent:
    return RecordedEvent(
        Position(position),
        StreamId("notes", "ä", "tenant"),
        7,
        "test.noted",
        version,
        stored,  # type: ignore[arg-type] # as readers of the log give it
        {"who": [None, 1.5]},
        UUID(int=5),
        datetime(2024, 2, 29, 12, 0, 0, 1, UTC),
        ("a:b",),
    )


def noted(*names: str) -> Decoded:
    stored = [msgspec.json.encode({"name": name}) for name in names]
    events = [recorded(one, position=n) for n, one in enumerate(stored, 1)]
    return list(decode_each(TYPES, events))


def rows(
    other: OtherProcess,
    decoded: Decoded,
    before: State | None = None,
    *,
    of: type[Projection] = Telling,
) -> State:
    return other.rows(decoded, before or {}, LeftOut(of))


@pytest.fixture(scope="module")
def telling() -> Iterator[OtherProcess]:
    with other_process(Telling, TYPES) as other:
        yield other


@pytest.mark.parametrize(
    ("stored", "version"),
    [
        (b'{"name": "n", "words": ["x"], "unknown": 1}', 3),
        (b'{"name":"n"}', 2),
        (b'{"title":"n"}', 1),
    ],
)
def test_events_and_their_records_get_there_as_they_are(
    telling: OtherProcess, stored: bytes, version: int
) -> None:
    decoded = list(decode_each(TYPES, [recorded(stored, version)]))

    found = rows(telling, decoded)

    assert found == {("held", "n"): ("n", [repr(one) for one in decoded])}


def test_rows_get_there_and_back_as_they_are(telling: OtherProcess) -> None:
    values = [
        *(None, 1, 1.0, "t", b"b", Decimal("1.10"), Colour.BLUE, Money(5, Word.YES)),
        datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
        {"a": [{"b": (1, {2})}]},
    ]
    before: State = {("held", "untouched"): ("untouched", values), ("held", "gone"): None}

    found = rows(telling, noted("untouched", "gone"), before)

    assert repr(found[("held", "untouched")]) == repr(("untouched", values))
    assert found[("held", "gone")] is None


def test_what_meets_no_handler_stays_here(telling: OtherProcess) -> None:
    ignored = [(Ignored("n"), recorded(b"{}"))]

    assert rows(telling, ignored) == {}


def test_what_is_left_out_of_a_row_is_not_folded_there(telling: OtherProcess) -> None:
    decoded = noted("n", "n", "m")
    left_out = LeftOut(Telling, parts=frozenset({(Position(2), row_digest(Telling, Held, "n"))}))

    found = telling.rows(decoded, {}, left_out)

    assert found == rows(telling, [decoded[0], decoded[2]])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", r"ValueError: half a pair: \ud800"),
        ("holds code", "builtin_function_or_method cannot be carried"),
        ("holds another class", "Made cannot be carried"),
        ("exits", "it has ended"),
    ],
)
def test_what_cannot_be_answered_is_told(name: str, reason: str) -> None:
    with other_process(Misbehaving, TYPES) as other, pytest.raises(UntriedError) as untried:
        rows(other, noted(name), of=Misbehaving)

    assert reason in str(untried.value)


@pytest.mark.parametrize("letters", [1, 10**6])  # in the pipe's buffer, and beyond it
def test_a_process_that_does_not_read_to_the_end_has_ended(letters: int) -> None:
    with other_process(Misbehaving, TYPES) as other:
        rows(other, noted("hears nothing more"), of=Misbehaving)

        with pytest.raises(UntriedError, match="it has ended"):
            rows(other, noted("n" * letters), of=Misbehaving)


@pytest.mark.parametrize("value", [print, "\ud800", Word])
def test_what_cannot_be_sent_is_told(telling: OtherProcess, value: object) -> None:
    with pytest.raises(UntriedError):
        rows(telling, noted("n"), {("held", "n"): ("n", [value])})

    assert rows(telling, noted("gone")) == {("held", "gone"): None}


def test_what_the_other_process_cannot_import_is_told() -> None:
    class Local(Telling, into=Held, version=1):
        pass

    scripts = type("Scripts", (Telling,), {"__module__": "__main__"}, into=Held, version=1)
    for projection in Local, scripts:
        told = pytest.raises(UntriedError, match="cannot be imported by its name")
        with other_process(projection, TYPES) as other, told:
            rows(other, noted("n"), of=projection)


def framed(answer: object) -> bytes:
    pipe = io.BytesIO()
    send(pipe, msgspec.msgpack.encode(answer))
    return pipe.getvalue()


WHOLE = framed(Answer(rows=carry_rows({("held", "n"): ("n", 1)})))
GARBLED = {
    "text": (b"Traceback (most recent call last)", "no answer"),
    "nothing": (b"", "ended"),
    "half a head": (WHOLE[:7], "ended"),
    "half an answer": (WHOLE[:-1], "ended"),
    "another mark": (b"x" + WHOLE[1:], "no answer"),
    "another thing": (framed({"rows": 1}), "no answer"),
    "no MessagePack": (WHOLE.replace(WHOLE[12:], b"\xc1" * len(WHOLE[12:])), "no answer"),
    "another table": (framed(Answer(rows=[("users", "n", None)])), "declared here"),
    "other columns": (framed(Answer(rows=[("held", "n", ["tuple", [1]])])), "declared here"),
    "no row": (framed(Answer(rows=[("held", "n", 5)])), "TypeError"),
    "no value": (framed(Answer(rows=[("held", "n", ["call", ["os", "system"]])])), "KeyError"),
    "a failure": (framed(Answer(failure="it is tired")), "it is tired"),
}


@contextmanager
def answering(answer: bytes, projection: type[Projection] = Telling) -> Iterator[OtherProcess]:
    script = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({answer!r})"
    with subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        yield OtherProcess(child, projection, TYPES)


@pytest.mark.parametrize("case", GARBLED)
def test_what_is_no_answer_is_not_taken_for_one(case: str) -> None:
    answer, reason = GARBLED[case]

    with answering(answer) as other, pytest.raises(UntriedError, match=reason):
        rows(other, noted("n"))


def test_what_is_an_answer_is_taken() -> None:
    """The control."""
    with answering(WHOLE) as other:
        assert rows(other, noted("n")) == {("held", "n"): ("n", 1)}

"""Histories as JSON lines, under Elle's names, so that other checkers read the same file."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import msgspec

from datapatterns.errors import HistoryError
from datapatterns.testing.histories.events import HistoryEvent
from datapatterns.testing.histories.pairing import Pairing

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(HistoryEvent)


def dump_history(history: Iterable[HistoryEvent], path: str | PathLike[str]) -> None:
    """Write one JSON object for each event; what is at ``path`` is replaced."""
    with Path(path).open("wb") as file:
        file.writelines(_ENCODER.encode(event) + b"\n" for event in history)


def load_history(
    path: str | PathLike[str], *, events_max: int = 2_000_000, line_bytes_max: int = 1_000_000
) -> list[HistoryEvent]:
    """Read what :func:`dump_history`, or a tool with the same format, has written.

    Keys and values are integers or strings.

    Raises:
        HistoryError: A line is not an event, does not fit to those before, or a limit is passed.
            It names the line.
    """
    pairing, events = Pairing(), []
    with Path(path).open("rb") as file:
        for number, line in enumerate(_lines(file, line_bytes_max), 1):
            if number > events_max:
                raise HistoryError(f"more than {events_max} events; raise events_max", line=number)
            try:
                event = _DECODER.decode(line)
                pairing.add(event)
            # Bytes that are no UTF-8 are a plain ValueError, deep nesting is a RecursionError.
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise HistoryError(f"it is not an event: {error}", line=number) from error
            except HistoryError as error:
                raise HistoryError(error.reason, line=number, event=error.event) from None
            events.append(event)
    return events


def _lines(file: BinaryIO, line_bytes_max: int) -> Iterator[bytes]:
    number = 0
    while line := file.readline(line_bytes_max + 1):
        number += 1
        if len(line) > line_bytes_max:
            raise HistoryError(
                f"it has more than {line_bytes_max} bytes; raise line_bytes_max", line=number
            )
        yield line

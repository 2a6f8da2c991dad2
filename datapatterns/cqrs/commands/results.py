"""What a handler returns: stored as JSON, so that a repetition gets it, too."""

from typing import Any, Final

import msgspec

from datapatterns.errors import CommandResultError, EventDataError
from datapatterns.event_sourcing.content.likeness import unlike_at
from datapatterns.event_sourcing.content.payload import encode_state, misfit
from datapatterns.event_sourcing.content.shapes import Decoder

RESULT_BYTES_MAX: Final = 65_536
"""The largest result, as JSON in UTF-8."""

_OPENING: Final = '{"value":'


def encode_result(command: str, value: object) -> str:
    """Return ``value`` as JSON.

    Raises:
        CommandResultError: JSON or PostgreSQL cannot hold it, or it is too large.
    """
    try:
        # As part of an object: whatever is stored is checked as one.
        text = encode_state({"value": value}, aggregate=command)
    except EventDataError as error:
        raise CommandResultError(command, f"{error.reason}; return plain data") from error
    stored = text[len(_OPENING) : -1]
    size = len(stored.encode())
    if size > RESULT_BYTES_MAX:
        raise CommandResultError(
            command,
            f"it is {size} bytes of JSON and {RESULT_BYTES_MAX} is most; return the key of it",
        )
    return stored


def decode_result(command: str, stored: str, decoder: Decoder) -> Any:  # noqa: ANN401 -- what it was
    """Return what ``stored`` says.

    Raises:
        CommandResultError: It does not fit what the handler says that it returns.
    """
    try:
        return decoder.decode(stored)
    except msgspec.DecodeError as error:
        raise CommandResultError(
            command,
            f"it does not fit what the handler says that it returns: {misfit(error)}; annotate"
            " what it returns, and let a new shape take what was stored before",
        ) from None


def kept(command: str, value: object, decoder: Decoder) -> tuple[str, Any]:
    """Return ``value`` as JSON, and as everybody gets it who executes or repeats the command.

    Raises:
        CommandResultError: It cannot be stored, or would come back as something else.
    """
    stored = encode_result(command, value)
    copy = decode_result(command, stored, decoder)
    where = unlike_at(value, copy)
    if where is not None:
        raise CommandResultError(
            command,
            f"{where} would come back as something else; annotate the handler with the class that"
            " it returns, or return plain data",
        )
    return stored, copy

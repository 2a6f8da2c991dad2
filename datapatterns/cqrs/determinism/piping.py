"""Messages in a pipe between two processes, each as a whole or not at all."""

from typing import IO, Final

_MARK: Final = b"dp1\n"
"""Before the length of each message: what else gets into the pipe is not taken for one."""

_HEAD_BYTES: Final = len(_MARK) + 8


class GarbledError(Exception):
    """Something else than a message was written into the pipe."""


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write ``message``.

    Raises:
        OSError: Nobody reads the pipe any more.
    """
    pipe.write(_MARK + len(message).to_bytes(8, "big") + message)
    pipe.flush()


def received(pipe: IO[bytes]) -> bytes | None:
    """Return the next message; None if the pipe ends before it has come whole.

    Raises:
        GarbledError: No message begins here.
    """
    head = pipe.read(_HEAD_BYTES)
    if not head.startswith(_MARK[: len(head)]):
        raise GarbledError
    if len(head) < _HEAD_BYTES:
        return None
    size = int.from_bytes(head[len(_MARK) :], "big")
    message = pipe.read(size)
    return message if len(message) == size else None

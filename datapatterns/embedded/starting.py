"""Wait for a server that was just started."""

from collections.abc import Callable

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.embedded.processes import ServerProcess
from datapatterns.errors import EmbeddedStartError, EmbeddedTimeoutError

START_SECONDS = 60.0
"""How long a server may take to answer; recovery after a crash is part of it."""

_POLL_SECONDS = 0.02
_LOG_TAIL = 2_000


def wait_until_it_answers(server: str, process: ServerProcess, answers: Callable[[], bool]) -> None:
    """Return when a server that was just started answers.

    Raises:
        EmbeddedStartError: It ended; the message has the end of its log.
        EmbeddedTimeoutError: It doesn't answer in ``START_SECONDS``; it is killed.
    """
    deadline = SYSTEM_CLOCK.monotonic() + START_SECONDS
    while not answers():
        if process.pid is None:
            log = process.log.read_text(encoding="utf-8", errors="replace")
            raise EmbeddedStartError(server, "it ended at once:\n" + log.strip()[-_LOG_TAIL:])
        if SYSTEM_CLOCK.monotonic() > deadline:
            process.kill()
            raise EmbeddedTimeoutError(server, seconds=START_SECONDS)
        SYSTEM_CLOCK.sleep(_POLL_SECONDS)

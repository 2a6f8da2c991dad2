"""PostgreSQL's backends as processes of this machine: stop one, continue it, kill it."""

import os
import signal
import subprocess

from datapatterns.embedded.processes import process_table
from datapatterns.errors import FaultRefusedError
from datapatterns.testing.waiting import wait_until

_PS_SECONDS = 10.0


def find_backend(pid: int, *, sibling: int, fault: str) -> int:
    """Return ``pid`` if it is a backend of this machine, of the same server as ``sibling``.

    A server in a container counts its processes otherwise: its number may be anybody's here. So
    both must be children of one parent, and look like PostgreSQL's.

    Raises:
        FaultRefusedError: It isn't, or this account may not send it signals.
    """
    found = {process.pid: process for process in process_table() if process.pid in {pid, sibling}}
    looks_right = len(found) == len({pid, sibling}) and all(
        "postgres" in process.command for process in found.values()
    )
    if not looks_right or len({process.parent for process in found.values()}) != 1:
        raise FaultRefusedError(
            fault, "the server doesn't run on this machine; use an embedded one for this"
        )
    try:
        os.kill(pid, 0)
    except PermissionError:
        raise FaultRefusedError(
            fault, "the server runs under another account; use an embedded one for this"
        ) from None
    return pid


def stop_backend(pid: int) -> None:
    """Freeze it, and return when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _is_stopped(pid))


def continue_backend(pid: int) -> None:
    """Let it go on; nothing happens if it is gone."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def continue_backends(pids: set[int]) -> None:
    """Let all of them go on, and forget them."""
    while pids:
        continue_backend(pids.pop())


def _is_stopped(pid: int) -> bool:
    asked = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(asked, capture_output=True, check=False, timeout=_PS_SECONDS)  # noqa: S603 -- our own command
    return state.stdout.startswith((b"T", b"t"))

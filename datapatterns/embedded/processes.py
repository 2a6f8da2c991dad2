"""Server processes: start one, stop it for certain, find those that a dead owner left."""

import os
import re
import signal
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.embedded.accounts import ServerAccount, server_environment

STOP_SECONDS = 20.0
"""How long a server may take to stop in good order before it is killed."""

_POLL_SECONDS = 0.02
_PROC = Path("/proc")
_HAS_PROC = (_PROC / "self" / "stat").exists()
_SERVER_PROGRAM = re.compile(r"(?:^|/)(?:postgres|initdb|valkey-server)(?=\s|\0)")


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A line of the process table; those that wait to be reaped are not in it."""

    pid: int
    parent: int
    command: str


class ServerProcess:
    """One server program that this process starts, pauses, stops, kills, and starts again."""

    def __init__(
        self, command: Sequence[str | Path], *, folder: Path, account: ServerAccount
    ) -> None:
        self.log = folder / "server.log"
        self._command = [str(part) for part in command]
        self._folder = folder
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None unless it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else None

    def start(self) -> None:
        """Start the program; its output goes to ``log``, which begins anew."""
        with self.log.open("wb") as log:
            self.log.chmod(0o600)
            self._process = subprocess.Popen(  # noqa: S603 -- our own command
                self._command,
                cwd=self._folder,
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal is for the owner, who stops the server after its clients.
                start_new_session=True,
                umask=0o077,
                user=self._account.user,
                group=self._account.group,
                extra_groups=self._account.extra_groups,
            )

    def stop(self) -> None:
        """Stop in good order: finish what is being written, disconnect clients."""
        if (pid := self.pid) is not None:
            stop_processes([pid])
        self._reap()

    def kill(self) -> None:
        """Stop as a crash does: the program and its children, at once."""
        if (pid := self.pid) is not None:
            tree = _signal_trees([pid], signal.SIGKILL)
            self._reap()
            # A child that is slow to go holds memory without which the next start is refused.
            _gone_within(tree, STOP_SECONDS)
        self._reap()

    def pause(self) -> None:
        """Freeze: connections stay open, nothing answers."""
        if (pid := self.pid) is not None:
            _signal_trees([pid], signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        if (pid := self.pid) is not None:
            _signal_trees([pid], signal.SIGCONT)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_SECONDS)


def stop_processes(pids: Collection[int], *, seconds: float = STOP_SECONDS) -> None:
    """Stop servers in good order; kill what still runs after ``seconds``, with its children."""
    if not pids:
        return
    _signal_trees(pids, signal.SIGCONT)
    # To PostgreSQL this is a fast shutdown (SIGTERM would wait for clients), to Valkey just an end.
    _signal_all(pids, signal.SIGINT)
    if not _gone_within(pids, seconds):
        _signal_trees(pids, signal.SIGKILL)
        _gone_within(pids, seconds)


def servers_in(folder: Path) -> list[int]:
    """Return the process ids of the servers whose command line names something in ``folder``.

    The command line says whose server it is; a process id from a file may by now be anyone's.
    """
    return [
        process.pid
        for process in process_table()
        if f"{folder}/" in process.command and _SERVER_PROGRAM.search(process.command)
    ]


def process_table() -> list[RunningProcess]:
    """Return what runs on this machine, as far as this process may see it."""
    if not _HAS_PROC:
        return listed_processes()
    found = [_read_proc(folder) for folder in _PROC.iterdir() if folder.name.isdigit()]
    return [process for process in found if process is not None]


def listed_processes() -> list[RunningProcess]:
    """Return what ``ps`` lists, for systems without ``/proc/<pid>``."""
    listed = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        check=True,
        timeout=STOP_SECONDS,
    )
    rows = [line.split(None, 3) for line in listed.stdout.decode(errors="replace").splitlines()]
    return [
        RunningProcess(int(row[0]), int(row[1]), row[3])
        for row in rows
        if len(row) == 4 and not row[2].startswith("Z")  # noqa: PLR2004 -- the columns asked for
    ]


def _read_proc(folder: Path) -> RunningProcess | None:
    try:
        # The second field, the program's name, is in parentheses and may hold anything.
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (folder / "cmdline").read_bytes().decode(errors="surrogateescape")
    except (OSError, ValueError):
        return None  # it ended meanwhile, or is hidden from this account
    return None if state in "ZX" else RunningProcess(int(folder.name), int(parent), command)


def _signal_trees(pids: Collection[int], number: signal.Signals) -> list[int]:
    # PostgreSQL's children lead sessions of their own, so a signal to the group misses them.
    table = process_table()
    tree = list(pids)
    for parent in tree:
        tree.extend(process.pid for process in table if process.parent == parent)
    _signal_all(tree, number)
    return tree


def _signal_all(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _gone_within(pids: Collection[int], seconds: float) -> bool:
    deadline = SYSTEM_CLOCK.monotonic() + seconds
    while _still_running(pids):
        if SYSTEM_CLOCK.monotonic() > deadline:
            return False
        SYSTEM_CLOCK.sleep(_POLL_SECONDS)
    return True


def _still_running(pids: Collection[int]) -> bool:
    if _HAS_PROC:  # asked often while servers stop, so not for the whole table
        return any(_read_proc(_PROC / str(pid)) for pid in pids)
    return bool(set(pids) & {process.pid for process in listed_processes()})

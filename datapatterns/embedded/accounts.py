"""Which operating-system account the servers run under: PostgreSQL refuses to run as root."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datapatterns.errors import EmbeddedStartError

UNPRIVILEGED_ACCOUNT = "nobody"
"""Whom root's servers run as; it owns their folders and nothing else."""


@dataclass(frozen=True, slots=True)
class ServerAccount:
    """The account that runs the servers.

    Attributes:
        uid: Its user id.
        gid: Its group id.
        other: Whether it is another account than that of this process.
    """

    uid: int
    gid: int
    other: bool

    def run(self, arguments: Sequence[str | Path], *, folder: Path | None = None) -> str | None:
        """Run a short command under this account; return its error output, None if it went well."""
        try:
            result = subprocess.run(  # noqa: S603 -- our own commands
                arguments,
                cwd=folder or "/",
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=120,
                umask=0o077,
                user=self.user,
                group=self.group,
                extra_groups=self.extra_groups,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if result.returncode == 0:
            return None
        return result.stderr.decode(errors="replace").strip() or f"exit {result.returncode}"

    # What subprocess is told; None keeps the account of this process, which needs no rights.
    @property
    def user(self) -> int | None:
        """The user id to change to."""
        return self.uid if self.other else None

    @property
    def group(self) -> int | None:
        """The group id to change to."""
        return self.gid if self.other else None

    @property
    def extra_groups(self) -> list[int] | None:
        """The further groups to change to."""
        return [] if self.other else None

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may look things up in ``folder``."""
        return self.run(["/bin/sh", "-c", 'cd "$0"', folder]) is None

    def write_file(self, path: Path, content: str) -> None:
        """Write a file that this account may read, and nobody else but its owner."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if self.other:
                os.fchown(descriptor, -1, self.gid)
                os.fchmod(descriptor, 0o640)
            file.write(content)

    def make_folder(self, folder: Path) -> None:
        """Create a folder that only this account (and root) may use, unless it exists."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.other:
            os.chown(folder, self.uid, self.gid)


def server_account() -> ServerAccount:
    """Return the account to run servers under: this one, or nobody's if this is root's.

    Raises:
        EmbeddedStartError: This is root, and there is no account to change to.
    """
    if os.geteuid() != 0:
        return ServerAccount(os.geteuid(), os.getegid(), other=False)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_ACCOUNT)
    except KeyError as error:
        raise EmbeddedStartError(
            "embedded servers",
            f"PostgreSQL refuses to run as root and there is no account {UNPRIVILEGED_ACCOUNT!r};"
            " run this as an ordinary user",
        ) from error
    account = ServerAccount(entry.pw_uid, entry.pw_gid, other=True)
    if problem := account.run(["/bin/sh", "-c", "exit 0"]):
        raise EmbeddedStartError(
            "embedded servers",
            f"PostgreSQL refuses to run as root, and changing to {UNPRIVILEGED_ACCOUNT!r} failed"
            f" ({problem}); run this as an ordinary user",
        )
    return account


def server_environment() -> dict[str, str]:
    """Return this environment without what would change a server's or a client's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def make_passable_folder(folder: Path) -> None:
    """Create a folder of ours, unless it exists, through which servers reach theirs."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)  # whatever the umask is

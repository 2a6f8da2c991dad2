"""`datapatterns migrate`, as people and programs run it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, func, select, text

from datapatterns.sql.migrating import turn_key
from datapatterns.sql.migration_status import revisions
from datapatterns.testing import wait_until
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.commands import COMMAND, Run, ended, environment_without_servers, start
from tests.fixtures.empty_database import CreateDatabase, shown

pytestmark = pytest.mark.postgres
NEWEST = revisions()[-1].revision


def test_a_database_is_migrated_looked_at_checked_and_emptied(run: Run, empty_url: URL) -> None:
    at = ("--database-url", shown(empty_url))

    behind = run("migrate", "check", *at)
    dry = run("migrate", "upgrade", "--dry-run", *at)
    before = run("migrate", "status", "--json", *at)
    upgraded = run("migrate", "upgrade", *at)
    status = run("migrate", "status", *at)
    checked = run("migrate", "check", *at)
    would_undo = run("migrate", "downgrade", "base", "--dry-run", *at)
    undone = run("migrate", "downgrade", "base", "--yes", *at)

    assert behind.code == 2
    assert "run: datapatterns migrate upgrade" in behind.err
    assert f"main: would upgrade dp0001, {revisions()[1].revision}" in dry.out
    assert json.loads(before.out)["revision"] is None
    assert f"main: upgraded dp0001, {revisions()[1].revision}" in upgraded.out
    assert NEWEST in status.out
    assert (checked.code, checked.out) == (0, "")
    assert f"main: would undo {NEWEST}" in would_undo.out
    assert f"main: undid {NEWEST}" in undone.out
    assert json.loads(run("migrate", "status", "--json", *at).out)["state"] == "behind"


def test_the_schema_is_an_option_and_a_variable(
    run: Run, empty_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--database-url", shown(empty_url))

    assert run("migrate", "upgrade", "--schema", "shop", *at).code == 0
    monkeypatch.setenv("DATAPATTERNS_SCHEMA", "shop")
    assert run("migrate", "check", *at).code == 0
    assert run("migrate", "check", "--schema", "datapatterns", *at).code == 2


def test_main_database_and_shards_are_migrated_and_named(
    run: Run, new_empty_url: CreateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, shard = new_empty_url(), new_empty_url()
    monkeypatch.setenv("DATAPATTERNS_DATABASE_URL", shown(main))
    monkeypatch.setenv("DATAPATTERNS_SHARDS", f"s0={shown(shard)}")

    only_main = run("migrate", "upgrade", "--database-url", shown(main))
    upgraded = run("migrate", "upgrade", "--json")
    found = run("migrate", "status", "--json")

    assert only_main.out.startswith("main: upgraded dp0001")
    assert "s0" not in only_main.out
    assert {json.loads(line)["database"] for line in upgraded.out.splitlines()} == {"s0"}
    states = [json.loads(line) for line in found.out.splitlines()]
    assert [(row["database"], row["state"]) for row in states] == [
        ("main", "current"),
        ("s0", "current"),
    ]


def test_data_are_not_dropped_unasked(run: Run, database_url: URL) -> None:
    refused = run("migrate", "downgrade", "base", "--database-url", shown(database_url))

    assert refused.code == 2
    assert "--yes" in refused.err
    assert run("migrate", "check", "--database-url", shown(database_url)).code == 0


def test_nothing_is_migrated_on_a_server_that_goes_away(run: Run) -> None:
    refused = run("migrate", "upgrade")

    assert refused.code == 2
    assert "DATAPATTERNS_DATABASE_URL" in refused.err


def test_tables_that_were_changed_by_hand_exit_with_5(run: Run, database_url: URL) -> None:
    engine = create_engine(database_url)
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE datapatterns.library_migration ADD extra int"))
    engine.dispose()

    found = run("migrate", "check", "--json", "--database-url", shown(database_url))

    assert found.code == 5
    assert json.loads(found.err)["error"] == "SchemaDriftError"


def test_the_printed_sql_runs_without_the_library(run: Run, empty_url: URL) -> None:
    printed = run("migrate", "sql", "--schema", "shop")
    engine = create_engine(empty_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(printed.out, execution_options={"no_parameters": True})
    engine.dispose()

    at = ("--database-url", shown(empty_url), "--schema", "shop")
    assert run("migrate", "check", *at).code == 0
    assert run("migrate", "sql", "--from", "dp9999").code == 2


def test_two_processes_migrate_at_once_and_one_finds_it_done(
    empty_url: URL, tmp_path: Path
) -> None:
    engine = create_engine(empty_url)
    with engine.begin() as gate:
        gate.execute(select(func.pg_advisory_xact_lock(turn_key("datapatterns"))))
        at = ("migrate", "upgrade", "--database-url", shown(empty_url))
        processes = [start(*at, cwd=tmp_path) for _ in range(2)]
        waiting = select(func.count()).select_from(text("pg_locks WHERE NOT granted"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            wait_until(lambda: watcher.scalar(waiting) == 2, deadline_seconds=30)
    ran = [ended(process) for process in processes]

    assert [one.code for one in ran] == [0, 0], ran
    assert sorted("nothing" in one.out for one in ran) == [False, True]
    assert ended(start("migrate", "check", *at[2:], cwd=tmp_path)).code == 0
    engine.dispose()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_migration_leaves_nothing_and_runs_again(
    empty_url: URL, tmp_path: Path, number: signal.Signals
) -> None:
    at = ("--database-url", shown(empty_url))
    engine = create_engine(empty_url)
    with engine.begin() as gate:
        # The first revision gets through; the second waits for a name that is being taken.
        gate.execute(text("CREATE SCHEMA datapatterns"))
        process = start("migrate", "upgrade", *at, cwd=tmp_path)
        until_blocked_by(engine, gate)
        process.send_signal(number)
        ran = ended(process)
        gate.rollback()

    assert ran.code == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in ran.err
    assert ended(start("migrate", "check", *at, cwd=tmp_path)).code == 2
    assert ended(start("migrate", "upgrade", *at, cwd=tmp_path)).code == 0
    assert ended(start("migrate", "check", *at, cwd=tmp_path)).code == 0
    engine.dispose()


def test_a_reader_who_left_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:  # noqa: PTH123 -- a descriptor
        ran = subprocess.run(  # noqa: S603 -- our own command
            [*COMMAND, "migrate", "sql"],
            cwd=tmp_path,
            env=environment_without_servers(),
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (ran.returncode, ran.stderr) == (141, "")

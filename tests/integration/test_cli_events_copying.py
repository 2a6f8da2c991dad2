"""`datapatterns events export|import`, as people and programs run them."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from datapatterns.testing import wait_until
from tests.fixtures.commands import COMMAND, Run, ended, environment_without_servers, rows, start
from tests.fixtures.doors import append, opened
from tests.fixtures.empty_database import CreateDatabase, shown

pytestmark = pytest.mark.postgres


def test_an_export_is_imported_elsewhere_once(
    run: Run, engine: Engine, at: tuple[str, str], new_empty_url: CreateDatabase, tmp_path: Path
) -> None:
    append(engine, "1", opened(), opened())
    elsewhere = ("--database-url", shown(new_empty_url()))
    run("migrate", "upgrade", *elsewhere)
    path = str(tmp_path / "events.jsonl.gz")

    exported = run("events", "export", path, "--json", *at)
    refused = run("events", "export", path, *at)
    append(engine, "2", opened())
    continued = run("events", "export", path, "--continue", "--json", *at)
    checked = run("events", "import", path, "--dry-run", "--json", *elsewhere)
    first = run("events", "import", path, "--json", *elsewhere)
    again = run("events", "import", path, "--json", *elsewhere)

    assert rows(exported)[0]["events"] == 2
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert rows(continued)[0]["events"] == 3
    assert rows(checked)[0] == {"would_import": 3, "lines": 6}
    assert rows(first)[0] == {"imported": 3, "there_before": 0, "lines": 6}
    assert rows(again)[0] == {"imported": 0, "there_before": 3, "lines": 6}
    theirs, ours = (
        rows(run("events", "tail", "--after", "0", "--once", "--json", *where))
        for where in (elsewhere, at)
    )
    assert [{**row, "position": 0} for row in theirs] == [{**row, "position": 0} for row in ours]


@pytest.mark.parametrize("option", ["--type", "--category"])
@pytest.mark.parametrize("command", ["export", "tail"])
def test_a_variable_that_is_not_set_asks_for_no_events_by_mistake(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path, command: str, option: str
) -> None:
    append(engine, "1", opened())
    path = tmp_path / "events.jsonl"
    words = {"export": ("export", str(path)), "tail": ("tail", "--after", "0", "--once")}[command]

    ran = run("events", *words, option, "", *at)  # as "$UNSET" leaves it

    assert (ran.code, ran.out, path.exists()) == (2, "", False)
    assert f"Invalid value for '{option}'" in ran.err


def test_no_address_is_not_that_of_the_environment(run: Run, at: tuple[str, str]) -> None:
    ran = run("events", "import-eventsourcing", "--from-url", "", *at)  # as "$UNSET" leaves it

    assert (ran.code, "Invalid value for '--from-url'" in ran.err) == (2, True)


def test_bad_lines_are_named_by_number_and_nothing_is_written(
    run: Run, at: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    line = '{"category":"door","key":"1","type":"a","data":{}}\n'
    header = '{"format":"datapatterns.events","format_version":1}\n'
    path.write_text(header + line + '{"category":"\x1b"}\n' + line + "[]\n")

    checked = run("events", "import", str(path), "--source", "s", "--dry-run", *at)
    refused = run("events", "import", str(path), "--source", "s", *at)
    unnamed = run("events", "import", str(path), *at)
    absent = run("events", "import", str(tmp_path / "nothing"), *at)

    assert (checked.code, "2 of 5 lines are bad" in checked.err) == (2, True)
    assert "3" in checked.out
    assert (refused.code, "line 3: " in refused.err) == (2, True)
    assert (unnamed.code, "--source" in unnamed.err) == (2, True)
    assert (absent.code, "there is no file" in absent.err) == (2, True)
    assert rows(run("events", "tail", "--after", "0", "--once", "--json", *at)) == []


def test_events_go_through_a_pipe(
    engine: Engine, at: tuple[str, str], new_empty_url: CreateDatabase, run: Run, tmp_path: Path
) -> None:
    append(engine, "1", *[opened() for _ in range(500)])
    elsewhere = ("--database-url", shown(new_empty_url()))
    run("migrate", "upgrade", *elsewhere)
    exporting = start("events", "export", "-", *at, cwd=tmp_path)
    importing = subprocess.run(  # noqa: S603 -- our own command
        [*COMMAND, "events", "import", "-", "--json", *elsewhere],
        cwd=tmp_path,
        env=environment_without_servers(),
        stdin=exporting.stdout,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert json.loads(importing.stdout)["imported"] == 500
    assert ended(exporting).code == 0


def test_an_export_that_is_interrupted_goes_on_when_it_is_run_again(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", *[opened("x" * 500) for _ in range(500)])
    path, partial = tmp_path / "events.jsonl", tmp_path / "events.jsonl.partial"
    half = json.dumps({"format": "datapatterns.events", "format_version": 1}).encode() + b"\n"
    partial.write_bytes(half)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND backend_type = 'client backend'"
    )
    with engine.begin() as holder:  # until it has been interrupted, nobody can read the events
        holder.execute(text("LOCK TABLE datapatterns.event"))
        process = start("events", "export", str(path), *at, cwd=tmp_path)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            wait_until(  # not for autovacuum, which waits as well
                lambda: bool(conn.scalar(waiting)), deadline_seconds=60
            )
        process.send_signal(signal.SIGINT)
        ran = ended(process)

    assert (ran.code, "Interrupted" in ran.err, path.exists()) == (130, True, False), ran
    assert partial.read_bytes() == half
    assert rows(run("events", "export", str(path), "--json", *at))[0]["events"] == 500
    versions = [json.loads(x).get("version") for x in path.read_text().splitlines()[1:-1]]
    assert versions == [*range(1, 501)]


def test_progress_of_an_export_shows_where_somebody_looks(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(engine, "1", opened())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    assert run("events", "export", str(tmp_path / "a"), *at).code == 0
    assert run("events", "import", str(tmp_path / "a"), "--renumber", *at).code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("export", "{folder}/none/log.jsonl"),
        ("export", "{folder}/file/log.jsonl"),
        ("seal", "--anchor", "{folder}/none/seals"),
    ],
)
def test_a_path_that_leads_nowhere_is_wrong_usage(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    append(engine, "1", opened())
    (tmp_path / "file").touch()

    ran = run("events", *(word.format(folder=tmp_path) for word in command), *at)

    assert (ran.code, "not foreseen" in ran.err) == (2, False)
    assert "look at the path" in ran.err

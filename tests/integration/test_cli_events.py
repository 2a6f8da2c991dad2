"""`datapatterns events`, as people and programs run it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.event_sourcing import (
    ANY,
    ChainReport,
    Codecs,
    EventStore,
    EventTypes,
    HashChain,
    MessagePack,
    NewEvent,
    Seal,
    Searched,
    StoredEvents,
    StreamId,
)
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.event_sourcing.transfer import stored_events
from datapatterns.testing import wait_until
from tests.fixtures.commands import COMMAND, Ran, Run, ended, environment_without_servers, start
from tests.fixtures.empty_database import CreateDatabase, shown

pytestmark = pytest.mark.postgres
store = EventStore()

APP = """
from dataclasses import dataclass
from datapatterns import DataLayer
from datapatterns.event_sourcing import event

layer = DataLayer({url!r})


@event("door.opened", version={version})
@dataclass(frozen=True)
class Opened:
    by: str
"""


def append(engine: Engine, key: str, *events: NewEvent, category: str = "door") -> int:
    with engine.begin() as conn:
        return store.append(
            conn, StreamId(category, key), list(events), expected_version=ANY
        ).position


def opened(by: str = "ann", tags: tuple[str, ...] = ()) -> NewEvent:
    return NewEvent("door.opened", {"by": by}, tags=tags)


@pytest.fixture
def at(database_url: URL) -> tuple[str, str]:
    return ("--database-url", shown(database_url))


@pytest.fixture
def app(database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    name = f"doors_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url), version=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for part, declared in vars(EventTypes()).items():  # as in a process of its own
        monkeypatch.setattr(EVENT_TYPES, part, declared)
    return ("--app", f"{name}:layer")


def rows(ran: Ran) -> list[dict[str, Any]]:
    assert ran.code == 0, ran
    return [json.loads(line) for line in ran.out.split("\n")[:-1]]


def test_every_command_of_events_teaches(run: Run) -> None:
    names = ["blockers", "check", "export", "import", "import-eventsourcing", "seal", "show"]
    listing = run("events", "--help").out
    for name in [*names, "stream", "tail", "verify-chain"]:
        assert f"\n  {name}" in listing
        taught = run("events", name, "--help")
        assert (taught.code, f"datapatterns events {name}" in taught.out) == (0, True)


def test_help_of_events_loads_no_database_library(tmp_path: Path) -> None:
    code = (
        "import sys, datapatterns_cli.main as m; m.main(['events', 'tail', '--help']);"
        "print({'sqlalchemy', 'redis', 'alembic', 'rich', 'psycopg'} & sys.modules.keys())"
    )
    ran = subprocess.run(  # noqa: S603 -- our own command
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment_without_servers(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "set()"


def test_a_stream_is_shown_forwards_and_backwards(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    append(engine, "1", opened(), NewEvent("door.closed", {}, 2))

    table = run("events", "stream", "door", "1", *at)
    newest = run("events", "stream", "door", "1", "--backwards", "--limit", "1", "--json", *at)
    later = run("events", "stream", "door", "1", "--after-version", "1", "--json", *at)
    none = run("events", "stream", "door", "2", *at)
    wrong = run("events", "stream", "no door", "1", *at)

    assert table.out.index("door.opened") < table.out.index("door.closed v2")
    assert [row["version"] for row in rows(newest)] == [row["version"] for row in rows(later)]
    assert (rows(newest)[0]["type"], rows(newest)[0]["data"]) == ("door.closed", {})
    assert (none.code, none.out, none.err) == (0, "", "door-2 has no events\n")
    assert (wrong.code, "cannot name a category" in wrong.err) == (2, True)


def test_one_event_is_shown_in_full_by_position_and_by_id(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    long = "x" * 10_000
    event = NewEvent("door.opened", {"by": long}, metadata={"request": "r-1"}, tags=("hall:1",))
    position = append(engine, "1", event)

    by_position = run("events", "show", str(position), *at)
    by_id = run("events", "show", str(event.event_id), "--json", *at)
    absent = run("events", "show", "99", *at)
    nonsense = run("events", "show", "x-x", *at)

    assert long in by_position.out
    assert "r-1" in by_position.out
    [row] = rows(by_id)
    assert (row["data"], row["metadata"], row["tags"]) == (
        {"by": long},
        {"request": "r-1"},
        ["hall:1"],
    )
    assert (absent.code, "there is no event 99" in absent.err) == (2, True)
    assert (nonsense.code, "no position and no id" in nonsense.err) == (2, True)


def test_with_an_app_an_event_is_shown_as_it_reads_today(
    run: Run, engine: Engine, app: tuple[str, str], at: tuple[str, str]
) -> None:
    fitting = append(engine, "1", opened("bob"))
    misfit = append(engine, "1", NewEvent("door.opened", {"by": 7}))

    today = run("events", "show", str(fitting), *app)
    broken = run("events", "show", str(misfit), *app)
    without = run("events", "show", str(fitting), *at)

    assert "Opened(by='bob')" in today.out
    assert (broken.code, "cannot be read" in broken.out) == (0, True)
    assert "today" not in without.out


def test_what_a_codec_made_is_shown_as_it_is(run: Run, engine: Engine, at: tuple[str, str]) -> None:
    packing = EventStore(codecs=Codecs(MessagePack()))
    with engine.begin() as conn:
        packing.append(conn, StreamId("door", "1"), [opened("x" * 9)], expected_version=0)

    ran = run("events", "stream", "door", "1", *at)

    assert (ran.code, "made by codec 1" in ran.out) == (0, True)


def test_no_event_steers_the_terminal_or_breaks_the_lines(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    hostile = "\x1b[2J\x07\u202e\u2028\r" + "y" * 100_000
    append(engine, "a\nb\x1b", NewEvent("door.opened", {"by": hostile}))

    tailed = run("events", "tail", "--after", "0", "--once", *at)
    table = run("events", "stream", "door", "a\nb\x1b", *at)
    full = run("events", "show", "0", *at)
    whole = run("events", "tail", "--after", "0", "--once", "--json", *at)

    assert len(tailed.out.splitlines()) == 1
    assert len(tailed.out) < 400
    for ran in (tailed, table, full):
        assert ran.code in (0, 2)
        assert not set("\x1b\x07\u202e\u2028\r") & set(ran.out)
    assert rows(whole)[0]["data"]["by"] == hostile


def test_the_tail_is_filtered_limited_and_begins_at_the_end_unless_told(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    first = append(engine, "1", opened(), opened(tags=("hall:1",)))
    append(engine, "2", NewEvent("car.left", {}), category="car")

    def found(*options: str) -> list[int]:
        return [row["position"] for row in rows(run("events", "tail", *options, "--json", *at))]

    every = found("--after", "0", "--once")
    assert len(every) == 3
    assert found("--once") == []
    assert found("--after", "0", "--limit", "2") == every[:2]
    assert found("--after", "0", "--once", "--type", "car.left") == every[2:]
    assert found("--after", "0", "--once", "--category", "door") == every[:2]
    assert found("--after", "0", "--once", "--tag", "hall:1") == [first]
    assert found("--after", "0", "--once", "--tenant", "x") == []
    assert found("--after", str(first), "--once", "--tenant", "") == every[2:]
    assert found("--after", "0", "--once", "--until", "2026-01-01T00:00Z") == []
    assert found("--after", "0", "--once", "--since", "2026-01-01T00:00Z") == every
    for wrong in (("--since", "noon"), ("--until", "2026-01-01"), ("--tag", "\x07")):
        assert run("events", "tail", *wrong, *at).code == 2


def test_the_tail_shows_what_comes_in_until_it_is_interrupted(
    engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    following = start("events", "tail", "--after", "0", "--json", *at, cwd=tmp_path)
    assert following.stdout is not None
    for n in range(3):
        append(engine, "1", opened(str(n)))
        assert json.loads(following.stdout.readline())["data"] == {"by": str(n)}
    following.send_signal(signal.SIGINT)

    ran = ended(following)
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_a_reader_who_leaves_ends_the_tail_and_the_export(
    engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", *[opened("x" * 200) for _ in range(2_000)])
    for command in (("tail", "--after", "0"), ("export", "-")):
        process = start("events", *command, *at, cwd=tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None

        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()


def test_blockers_are_named(run: Run, engine: Engine, at: tuple[str, str]) -> None:
    assert run("events", "blockers", *at).err == "nobody holds readers back\n"
    with engine.connect() as writer:
        store.append(writer, StreamId("door", "1"), [opened()], expected_version=0)
        pid = writer.scalar(text("SELECT pg_backend_pid()"))

        [row] = rows(run("events", "blockers", "--json", *at))

        assert (row["pid"], row["state"]) == (pid, "idle in transaction")


def test_a_deployment_that_cannot_read_what_is_stored_is_stopped(
    run: Run, engine: Engine, app: tuple[str, str], at: tuple[str, str]
) -> None:
    append(engine, "1", opened())

    good = run("events", "check", "--count", *app)
    nobody = run("events", "check", *at)
    append(engine, "1", NewEvent("door.painted", {}))
    bad = run("events", "check", "--json", *app)

    assert (good.code, "door.opened" in good.out) == (0, True)
    assert (nobody.code, "Give --app" in nobody.err) == (2, True)
    assert bad.code == 2
    told = json.loads(bad.err)
    assert any("door.painted version 1" in note for note in told["notes"])


def test_events_are_sealed_and_a_change_is_found(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", opened(), opened(), opened())
    anchor = ("--anchor", str(tmp_path / "seals"))

    sealed = run("events", "seal", "--segment-events", "2", *anchor, "--json", *at)
    intact = run("events", "verify-chain", *anchor, "--json", *at)
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("UPDATE datapatterns.event SET data = '{}' WHERE version = 3"))
    broken = run("events", "verify-chain", *anchor, *at)
    later = run("events", "verify-chain", "--after-segment", "99", *at)

    assert rows(sealed)[0]["sealed_segments"] == 2
    assert (rows(intact)[0]["intact"], rows(intact)[0]["anchored"]) == (True, 2)
    assert broken.code == 5
    assert "segment 2" in broken.err
    assert (later.code, "no segment 99" in later.err) == (2, True)


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


def test_a_server_that_is_away_exits_with_4(run: Run) -> None:
    nowhere = ("--database-url", "postgresql://ann:hidden@127.0.0.1:1/shop")
    for command in (("tail",), ("show", "1"), ("blockers",), ("export", "-"), ("seal",)):
        ran = run("events", *command, *nowhere)
        assert (ran.code, "hidden" in ran.err) == (4, False)


def test_tables_that_are_not_there_say_what_to_do(run: Run, empty_url: URL) -> None:
    ran = run("events", "tail", "--database-url", shown(empty_url))

    assert (ran.code, "migrate" in ran.err) == (2, True)


def test_an_event_is_found_by_its_id_wherever_it_is(
    run: Run, engine: Engine, at: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [opened(str(n)) for n in range(7)]
    for event in events:
        append(engine, "1", event)
    with engine.begin() as conn:  # a wide gap, as a restored log has it
        conn.execute(text("SELECT setval('datapatterns.event_position', 5000000)"))
    events.append(opened("late"))
    append(engine, "1", events[-1])
    monkeypatch.setattr(stored_events, "_SEARCHED_AT_ONCE", 3)
    reports: list[Searched] = []

    with engine.connect() as conn:
        found = [StoredEvents(store).find(conn, event.event_id) for event in events]
        gone = StoredEvents(store).find(conn, UUID(int=7), report=reports.append)
    shown_event = run("events", "show", str(events[0].event_id), "--json", *at)

    assert [one and one.event_id for one in found] == [event.event_id for event in events]
    assert gone is None
    assert 3 <= len(reports) <= 5
    assert reports[-1].positions == reports[-1].total
    assert rows(shown_event)[0]["data"] == {"by": "0"}


def test_a_place_beyond_the_log_is_no_place_to_begin(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    append(engine, "1", opened())

    ran = run("events", "tail", "--after", "99999", "--once", *at)

    assert (ran.code, ran.out, "lies beyond the log" in ran.err) == (5, "", True)


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


def test_a_chain_is_not_called_intact_by_an_anchor_that_is_not_there(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", opened())
    run("events", "seal", "--anchor", str(tmp_path / "seals"), *at)

    there = run("events", "verify-chain", "--anchor", str(tmp_path / "seals"), *at)
    absent = run("events", "verify-chain", "--anchor", str(tmp_path / "seal"), *at)

    assert there.code == 0
    assert (absent.code, absent.out, "there is no anchor" in absent.err) == (2, "", True)


def test_sealing_and_verifying_tell_how_far_they_have_come(engine: Engine) -> None:
    last = 0
    for n in range(5):
        last = append(engine, str(n), opened())
    sealed: list[Seal] = []
    seen: list[ChainReport] = []
    chain = HashChain(store)

    assert chain.seal_all(engine, limit=2, report=sealed.append) == len(sealed) == 3
    with engine.connect() as conn:
        found = chain.verify(conn, report=seen.append)

    assert sealed[-1].last_position >= last
    assert [one.segments for one in seen] == [1, 2, 3]
    assert seen[-1] == found


def test_a_doctor_tells_who_could_change_events(
    run: Run, engine: Engine, at: tuple[str, str], database_url: URL
) -> None:
    healthy = run("doctor", *at)
    with engine.begin() as conn:
        conn.execute(text("GRANT DELETE ON datapatterns.event TO public"))
    ill = run("doctor", "--json", *at)

    assert healthy.code == 0, healthy
    assert (ill.code, json.loads(ill.out)["name"]) == (2, "main")
    error = json.loads(ill.err.splitlines()[-1])
    assert any("everybody may DELETE" in note for note in error["notes"]), error
    assert (database_url.password or "\0") not in ill.err


def test_what_functions_in_the_database_advise_is_passed_on(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    with engine.begin() as conn:
        conn.execute(text("ALTER SEQUENCE datapatterns.event_position RESTART"))

    ran = run("events", "tail", "--once", "--json", *at)

    assert ran.code == 2, ran
    assert json.loads(ran.err)["notes"] == [
        "Grant SELECT and USAGE on it; use setval(..., n), not RESTART."
    ]


@pytest.mark.parametrize(
    ("command", "closed", "said"),
    [
        (("export", "-"), "1>&-", "stdout is closed"),
        (("tail", "--once"), "1>&-", "stdout is closed"),
        (("import", "-"), "0<&-", "it is no header"),
        (("import", "-"), "2>&-", ""),
    ],
)
def test_streams_that_are_closed_are_no_crash(
    at: tuple[str, str], command: tuple[str, ...], closed: str, said: str
) -> None:
    ran = subprocess.run(  # noqa: S603 -- our own command
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "events", *command, *at],
        env=environment_without_servers(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, said in ran.stderr, "Traceback" in ran.stderr) == (2, True, False), ran


def test_a_pause_that_is_no_number_is_refused(run: Run, at: tuple[str, str]) -> None:
    ran = run("events", "tail", "--poll-seconds", "nan", *at)

    assert (ran.code, "is no time" in ran.err) == (2, True)

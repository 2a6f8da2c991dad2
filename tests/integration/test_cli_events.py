"""`datapatterns events tail|stream|show|blockers`, as people and programs run them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.event_sourcing import (
    Codecs,
    EventStore,
    MessagePack,
    NewEvent,
    Searched,
    StoredEvents,
    StreamId,
)
from datapatterns.event_sourcing.transfer import stored_events
from tests.fixtures.commands import Run, ended, environment_without_servers, rows, start
from tests.fixtures.doors import append, opened, store
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres


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


def test_a_stream_that_goes_on_says_so_and_how(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    append(engine, "1", *(NewEvent("door.closed", {"n": n}) for n in range(1, 5)))

    first = run("events", "stream", "door", "1", "--limit", "2", "--json", *at)
    second = run(
        "events", "stream", "door", "1", "--limit", "2", "--after-version", "2", "--json", *at
    )
    newest = run("events", "stream", "door", "1", "--limit", "3", "--backwards", "--json", *at)
    whole = run("events", "stream", "door", "1", "--limit", "4", "--json", *at)

    assert [row["version"] for row in rows(first) + rows(second)] == [1, 2, 3, 4]
    assert [row["version"] for row in rows(newest)] == [4, 3, 2]
    assert "more than these 2: go on with --after-version 2, or give a higher --lim" in first.err
    assert "more than these 3: give a higher --limit" in newest.err
    assert (len(rows(whole)), second.err, whole.err) == (4, "", "")


def test_where_a_stream_goes_on_is_told_by_what_was_shown(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    append(engine, "1", *(NewEvent("door.closed", {"n": n}) for n in range(1, 7)))
    with engine.begin() as conn:  # as a purge leaves it; who deletes by hand is refused
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("DELETE FROM datapatterns.event WHERE version <= 3"))

    ran = run("events", "stream", "door", "1", "--limit", "2", "--json", *at)

    assert [row["version"] for row in rows(ran)] == [4, 5]
    assert "go on with --after-version 5, or" in ran.err


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
    run: Run, engine: Engine, doors: tuple[str, str], at: tuple[str, str]
) -> None:
    fitting = append(engine, "1", opened("bob"))
    misfit = append(engine, "1", NewEvent("door.opened", {"by": 7}))

    today = run("events", "show", str(fitting), *doors)
    broken = run("events", "show", str(misfit), *doors)
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


def test_blockers_are_named(run: Run, engine: Engine, at: tuple[str, str]) -> None:
    assert run("events", "blockers", *at).err == "nobody holds readers back\n"
    with engine.connect() as writer:
        store.append(writer, StreamId("door", "1"), [opened()], expected_version=0)
        pid = writer.scalar(text("SELECT pg_backend_pid()"))

        [row] = rows(run("events", "blockers", "--json", *at))

        assert (row["pid"], row["state"]) == (pid, "idle in transaction")


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


def test_a_pause_that_is_no_number_is_refused(run: Run, at: tuple[str, str]) -> None:
    ran = run("events", "tail", "--poll-seconds", "nan", *at)

    assert (ran.code, "is no time" in ran.err) == (2, True)


def test_numbers_and_depths_that_python_cannot_hold_are_shown_as_they_are_stored(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    position = append(engine, "1", opened())
    stored = f"{1:0<5000}", "1e400", "0.10000000000000000001", "[" * 2_000 + "]" * 2_000, '"ß"'
    shown_by = [
        ("tail", "--after", "0", "--once"),
        ("stream", "door", "1"),
        ("show", str(position)),
    ]
    for value in stored:
        data = f'{{"by": {value}}}'
        with engine.begin() as conn:  # as another program can have written it
            conn.execute(text("SET LOCAL session_replication_role = replica"))  # no guard
            conn.execute(
                text("UPDATE datapatterns.event SET data = CAST(:data AS json)"), {"data": data}
            )
        for command in shown_by:
            ran = run("events", *command, "--json", *at)
            assert (ran.code, data in ran.out, len(ran.out.splitlines())) == (0, True, 1), command
            assert run("events", *command, *at).code == 0


def test_a_type_that_nobody_has_stored_or_declared_is_named_once(
    run: Run, engine: Engine, at: tuple[str, str], doors: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", NewEvent("door.closed", {}))
    tail = ("events", "tail", "--after", "0", "--once")

    mistyped = run(*tail, "--type", "door.clsoed", "--type", "door.closed", *at)
    for_programs = run(*tail, "--type", "door.clsoed", "--json", *at)
    stored = run(*tail, "--type", "door.closed", *at)
    declared = run(*tail, "--type", "door.opened", *doors)
    exported = run("events", "export", str(tmp_path / "log"), "--type", "door.clsoed", *at)

    told = "no type 'door.clsoed' is stored or declared yet; did you mean door.closed?"
    assert (mistyped.code, mistyped.err, len(mistyped.out.splitlines())) == (0, f"{told}\n", 1)
    assert [json.loads(line) for line in for_programs.err.splitlines()] == [{"note": told}]
    assert (stored.err, declared.err) == ("", "")
    assert (exported.code, exported.err) == (0, f"{told}\n")

"""`datapatterns events check|seal|verify-chain` and `doctor`, as people and programs run them."""

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.event_sourcing import ANY, ChainReport, HashChain, NewEvent, Seal, StreamId
from tests.fixtures.commands import Run, rows
from tests.fixtures.doors import append, opened, store

pytestmark = pytest.mark.postgres


def test_a_deployment_that_cannot_read_what_is_stored_is_stopped(
    run: Run, engine: Engine, doors: tuple[str, str], at: tuple[str, str]
) -> None:
    append(engine, "1", opened())

    good = run("events", "check", "--count", *doors)
    nobody = run("events", "check", *at)
    append(engine, "1", NewEvent("door.painted", {}))
    bad = run("events", "check", "--json", *doors)

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


def test_a_chain_is_not_called_intact_by_an_anchor_that_is_not_there(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", opened())
    run("events", "seal", "--anchor", str(tmp_path / "seals"), *at)

    there = run("events", "verify-chain", "--anchor", str(tmp_path / "seals"), *at)
    absent = run("events", "verify-chain", "--anchor", str(tmp_path / "seal"), *at)

    assert there.code == 0
    assert (absent.code, absent.out, "there is no anchor" in absent.err) == (2, "", True)


@pytest.mark.parametrize("command", ["seal", "verify-chain"])
def test_a_device_is_no_anchor(run: Run, engine: Engine, at: tuple[str, str], command: str) -> None:
    append(engine, "1", opened())

    ran = run("events", command, "--anchor", os.devnull, *at)  # others can be read for ever

    assert (ran.code, ran.out, "is no file" in ran.err) == (2, "", True)
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.event_seal")) == 0


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


def test_what_would_be_sealed_is_what_is_sealed(
    run: Run, engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    anchor = ("--anchor", str(tmp_path / "seals"))
    seal = ("events", "seal", "--segment-events", "2", "--json", *anchor, *at)
    for count in (3, 0, 2, 1):
        for n in range(count):
            append(engine, str(n), opened())

        would = rows(run(*seal, "--dry-run"))
        assert would == rows(run(*seal, "--dry-run"))
        sealed = rows(run(*seal))

        segments = -(-count // 2)
        assert would == [{"would_seal_segments": segments, "would_seal_events": count}]
        assert sealed == [{"sealed_segments": segments}]


def test_an_event_that_is_not_final_would_not_be_sealed(
    run: Run, engine: Engine, at: tuple[str, str]
) -> None:
    append(engine, "1", opened())
    with engine.connect() as writer:
        store.append(writer, StreamId("door", "2"), [opened()], expected_version=ANY)
        append(engine, "3", opened())

        would = rows(run("events", "seal", "--dry-run", "--json", *at))

    assert would[0]["would_seal_events"] == 1

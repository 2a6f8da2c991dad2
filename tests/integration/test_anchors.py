"""An anchor outside of the database finds what the chain alone cannot tell."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import AnchorError
from datapatterns.event_sourcing import ANY, EventStore, FileAnchor, HashChain, NewEvent, StreamId

store = EventStore()
chain = HashChain(store)


def append(conn: Connection, key: str, *, count: int = 1) -> None:
    events = [NewEvent("thing.happened", {"n": n}) for n in range(count)]
    store.append(conn, StreamId("s", key), events, expected_version=ANY)


def test_an_anchor_gets_each_seal_once_and_finds_a_chain_that_was_made_anew(
    engine: Engine, tmp_path: Path
) -> None:
    anchored = HashChain(store, FileAnchor(tmp_path / "anchor.jsonl"))
    with engine.begin() as conn:
        append(conn, "a", count=6)
    sealed = [anchored.seal_all(engine, limit=2) for _ in range(2)]
    lines = (tmp_path / "anchor.jsonl").read_text().splitlines()
    with engine.begin() as conn:
        before = anchored.verify(conn)
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("UPDATE datapatterns.event SET data = '{}' WHERE position = 4"))
        conn.execute(text("DELETE FROM datapatterns.event_seal"))
    made_anew = chain.seal_all(engine, limit=2)
    with engine.begin() as conn:
        without, found = chain.verify(conn), anchored.verify(conn)
        with pytest.raises(AnchorError, match="another segment 3"):
            anchored.publish(conn)

    assert (sealed, [json.loads(line)["segment"] for line in lines]) == ([3, 0], [1, 2, 3])
    assert (before.intact, before.anchored) == (True, 3)
    assert (made_anew, without.intact) == (3, True)  # the control: the chain alone can't tell
    assert found.broken is not None
    assert (found.broken.segment, found.broken.reason) == (2, "the anchor knows another digest")


def test_who_can_only_add_to_an_anchor_does_not_replace_what_it_says(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "anchor.jsonl"
    anchored = HashChain(store, FileAnchor(path))
    with engine.begin() as conn:
        append(conn, "a")
    anchored.seal_all(engine)
    path.write_bytes(path.read_bytes() * 2)  # as two who publish at once may leave it
    with engine.begin() as conn:
        twice = anchored.verify(conn)
    known = json.loads(path.read_text().splitlines()[0])
    forged = known | {"digest": "00" * 32}
    with path.open("a") as lines:
        lines.write(json.dumps(forged) + "\n" + json.dumps(known) + "\n")

    assert twice.intact
    with engine.begin() as conn:
        with pytest.raises(AnchorError, match=r"anchor\.jsonl: it knows two digests of segment 1"):
            anchored.verify(conn)
        with pytest.raises(AnchorError, match="two digests"):
            anchored.publish(conn)


def test_an_anchor_misses_the_end_that_was_cut_off(engine: Engine, tmp_path: Path) -> None:
    anchored = HashChain(store, FileAnchor(tmp_path / "anchor.jsonl"))
    with engine.begin() as conn:
        append(conn, "a", count=4)
    anchored.seal_all(engine, limit=2)
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("DELETE FROM datapatterns.event WHERE position > 2"))
        conn.execute(text("DELETE FROM datapatterns.event_seal WHERE segment = 2"))
        without, found = chain.verify(conn), anchored.verify(conn)

    assert without.intact
    assert found.broken is not None
    assert (found.broken.segment, found.segments) == (2, 1)


def test_seals_that_a_crash_kept_from_the_anchor_are_handed_over_later(
    engine: Engine, tmp_path: Path
) -> None:
    anchored = HashChain(store, FileAnchor(tmp_path / "anchor.jsonl"))
    with engine.begin() as conn:
        append(conn, "a", count=4)
    chain.seal_all(engine, limit=2)  # and then nothing was published

    with engine.begin() as conn:
        handed = [anchored.publish(conn), anchored.publish(conn), chain.publish(conn)]
        report = anchored.verify(conn)

    assert handed == [2, 0, 0]
    assert report.anchored == 2


@pytest.mark.parametrize("damage", ["{}", "not JSON", '{"segment": 1, "digest": "xy"}', "7"])
def test_an_anchor_that_cannot_be_read_is_named(
    conn: Connection, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "anchor.jsonl"
    path.write_text(damage)
    anchor = FileAnchor(path)
    append(conn, "a")
    conn.commit()
    seal = chain.seal(conn)
    assert seal is not None

    with pytest.raises(AnchorError, match="line 1"):
        HashChain(store, anchor).verify(conn)
    with pytest.raises(AnchorError, match="not whole"):
        anchor.publish([seal])

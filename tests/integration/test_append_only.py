"""What takes the guards of events away is named; where they are in place, nothing is."""

import secrets

import pytest
from sqlalchemy import Connection, text

from datapatterns.event_sourcing import AppendOnlyFinding, check_append_only

SETTINGS = {"fsync", "full_page_writes", "synchronous_commit"}  # test servers needn't be durable
AGAIN = "DROP TRIGGER append_only ON {s}.event; CREATE TRIGGER append_only"
WHERE = "ON {s}.event FOR EACH STATEMENT"
OTHER = "EXECUTE FUNCTION {s}.raise_fence_before_insert()"
REFUSE = "EXECUTE FUNCTION {s}.refuse_change_of_events()"


@pytest.fixture
def role(conn: Connection) -> str:
    """A role without any right, which goes with the test's transaction."""
    name = f"dp_{secrets.token_hex(4)}"
    conn.execute(text(f"CREATE ROLE {name}"))
    return name


def found(conn: Connection) -> list[AppendOnlyFinding]:
    return [each for each in check_append_only(conn) if each.subject not in SETTINGS]


def test_where_all_is_in_place_nothing_is_found(conn: Connection) -> None:
    assert found(conn) == []


@pytest.mark.parametrize(
    ("change", "subject", "told"),
    [
        ("ALTER TABLE {s}.event DISABLE TRIGGER append_only", "event", "append_only"),
        ("DROP TRIGGER moves_only ON {s}.event", "event", "moves_only"),
        ("ALTER TABLE {s}.event ENABLE TRIGGER raise_fence", "event", "raise_fence"),
        ("ALTER TABLE {s}.event_archive DISABLE TRIGGER ALL", "event_archive", "one_place"),
        ("ALTER TABLE {s}.event_seal ENABLE REPLICA TRIGGER append_only", "event_seal", "append"),
        ("DROP TRIGGER append_only ON {s}.event_tombstone", "event_tombstone", "append_only"),
        ("CREATE RULE r AS ON INSERT TO {s}.event DO INSTEAD NOTHING", "event", "rule r"),
        ("ALTER SEQUENCE {s}.event_position CACHE 20", "event_position", "CACHE 1"),
        ("GRANT UPDATE ON SEQUENCE {s}.event_position TO {r}", "event_position", "UPDATE"),
        ("GRANT INSERT ON {s}.event TO {r}", "event", "INSERT"),
        ("GRANT UPDATE (at) ON {s}.event_archive TO {r}", "event_archive", "UPDATE"),
        ("GRANT UPDATE, DELETE ON {s}.stream TO PUBLIC", "stream", "everybody may DELETE, UPDATE"),
        ("GRANT TRUNCATE ON {s}.event_purge TO {r}", "event_purge", "TRUNCATE"),
        ("GRANT TRIGGER ON {s}.event TO {r}", "event", "TRIGGER"),
        ("GRANT DELETE ON {s}.event_seal TO {r}", "event_seal", "DELETE"),
        ("GRANT pg_write_all_data TO {r}", "{r}", "pg_write_all_data"),
        ("DROP TABLE {s}.event_seal", "event_seal", "not there"),
        ("GRANT UPDATE (position) ON {s}.mark TO {r}", "mark", "UPDATE"),
        ("GRANT DELETE ON {s}.event_tag TO {r}", "event_tag", "DELETE"),
        ("GRANT INSERT ON {s}.append_request TO {r}", "append_request", "INSERT"),
        ("ALTER TABLE {s}.event ENABLE ROW LEVEL SECURITY", "event", "row security"),
        ("ALTER TABLE {s}.event ADD CONSTRAINT ck_event_bound CHECK (true)", "event", "undo"),
        ("ALTER TABLE {s}.event SET UNLOGGED", "event", "SET LOGGED"),
        (f"{AGAIN} BEFORE UPDATE OR TRUNCATE {WHERE} WHEN (false) {REFUSE}", "event", "changed"),
        (f"{AGAIN} BEFORE UPDATE OF at {WHERE} {REFUSE}", "event", "changed"),
        (f"{AGAIN} AFTER UPDATE OR TRUNCATE {WHERE} {REFUSE}", "event", "changed"),
        (f"{AGAIN} BEFORE UPDATE OR TRUNCATE {WHERE} {OTHER}", "event", "changed"),
    ],
)
def test_what_is_open_is_an_error(
    conn: Connection, role: str, change: str, subject: str, told: str
) -> None:
    names = {"s": "datapatterns", "r": role}
    conn.execute(text(change.format_map(names)))

    findings = found(conn)

    assert findings
    assert {each.subject for each in findings} == {subject.format_map(names)}
    assert told in " ".join(map(str, findings))
    assert all(each.is_error for each in findings)


def test_a_partition_is_looked_at_as_well(conn: Connection) -> None:
    conn.execute(
        text(
            "ALTER TABLE datapatterns.event ADD CONSTRAINT ck_event_bound CHECK (position < 9);"
            " SELECT datapatterns.partition_events(9, 9)"
        )
    )
    before = found(conn)
    conn.execute(text("ALTER TABLE datapatterns.event_p18 DISABLE TRIGGER raise_fence"))

    assert before == []
    assert [(each.subject, each.is_error) for each in found(conn)] == [("event_p18", True)]


def test_who_may_be_the_owner_is_worth_a_look(conn: Connection, role: str) -> None:
    conn.execute(text(f"CREATE ROLE {role}_owner"))
    conn.execute(text(f"ALTER TABLE datapatterns.event OWNER TO {role}_owner"))
    conn.execute(text(f"GRANT {role}_owner TO {role}"))

    findings = found(conn)

    assert [(each.subject, each.is_error) for each in findings] == [(role, False)]


@pytest.mark.parametrize(
    ("setting", "subject"),
    [
        ("SET LOCAL synchronous_commit = off", "synchronous_commit"),
        ("SET LOCAL session_replication_role = replica", "session_replication_role"),
    ],
)
def test_settings_that_lose_events_are_warned_about(
    conn: Connection, setting: str, subject: str
) -> None:
    before = {each.subject for each in check_append_only(conn)}
    conn.execute(text(setting))

    after = {each.subject: each for each in check_append_only(conn)}

    assert subject not in before - SETTINGS
    assert not after[subject].is_error


def test_sealing_is_what_a_worker_may_do(conn: Connection, role: str) -> None:
    conn.execute(text(f"GRANT INSERT ON datapatterns.event_seal TO {role}"))

    assert found(conn) == []

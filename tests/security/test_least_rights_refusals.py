"""What the roles of the documentation may not do, tried one by one."""

import secrets
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.event_sourcing import ANY, NEW_STREAM, EventStore, NewEvent, StreamId
from datapatterns.sql.migrating import downgrade, upgrade
from datapatterns_migrations.versions.dp0009_least_rights import FENCE_BEFORE
from datapatterns_migrations.versions.dp0010_append import FENCE_BEFORE as FENCE_AS_A_FUNCTION
from tests.fixtures.least_rights import LeastRights, execute, run

store = EventStore()
COLUMNS = "stream_id, version, at, event_id, type_id, data"
VALUES = "1, 9, '2001-01-01', gen_random_uuid(), 1, '{}'"
FORBIDDEN = [
    f"INSERT INTO datapatterns.event ({COLUMNS}) VALUES ({VALUES})",  # noqa: S608 -- constants
    f"INSERT INTO datapatterns.event (position, {COLUMNS}) VALUES (999, {VALUES})",  # noqa: S608
    "INSERT INTO datapatterns.event (position) OVERRIDING SYSTEM VALUE VALUES (999)",
    "UPDATE datapatterns.event SET at = '2001-01-01'",
    "UPDATE datapatterns.event SET data = '{}'",
    "DELETE FROM datapatterns.event",
    "TRUNCATE datapatterns.event",
    "COPY datapatterns.event (position, stream_id) FROM STDIN",
    "SELECT nextval('datapatterns.event_position')",
    "SELECT setval('datapatterns.event_position', 1)",
    "UPDATE datapatterns.stream SET version = 1",
    "INSERT INTO datapatterns.stream (category, key, version) VALUES ('a', 'b', 7)",
    "INSERT INTO datapatterns.event_type (name, schema_version) VALUES ('a', 1)",
    "SELECT datapatterns.event_type_ids('{a}', '{1}')",
    "INSERT INTO datapatterns.import_chunk (source, chunk, events, digest) VALUES ('a', 1, 1, '')",
    "DELETE FROM datapatterns.event_archive",
    "INSERT INTO datapatterns.event_archive SELECT * FROM datapatterns.event",
    "UPDATE datapatterns.event_seal SET digest = sha256('')",
    "DELETE FROM datapatterns.event_seal",
    "INSERT INTO datapatterns.event_tombstone VALUES (1, 1, 1, 1, sha256(''))",
    "SELECT datapatterns.protect_events('datapatterns.event')",
    "SELECT datapatterns.partition_events(9, 9)",
    "SELECT datapatterns.add_event_partition('x', 1, 2)",
    "SELECT datapatterns.drop_empty_event_partitions()",
    "SELECT datapatterns.unpartition_events()",
    "ALTER TABLE datapatterns.event DISABLE TRIGGER ALL",
    "ALTER TABLE datapatterns.event DISABLE TRIGGER append_only",
    "DROP TRIGGER raise_fence ON datapatterns.event",
    "CREATE OR REPLACE FUNCTION datapatterns.raise_fence_before_insert() RETURNS trigger AS ''",
    "CREATE TABLE datapatterns.mine ()",
    "CREATE TABLE public.mine ()",
    "SET session_replication_role = replica",
    "SET ROLE {prefix}owner",
    "SET SESSION AUTHORIZATION {prefix}owner",
    "GRANT {prefix}owner TO {prefix}app",
    "ALTER ROLE {prefix}app SUPERUSER",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "SELECT pg_read_file('/etc/passwd')",
    "UPDATE datapatterns.bucket SET state = 'owned'",
    "UPDATE datapatterns.bucket_map SET shard_id = 's1'",
    "UPDATE datapatterns.library_migration SET revision = 'dp0001'",
]
OF_THE_APPLICATION = [
    "INSERT INTO datapatterns.event_seal VALUES (1, 0, 1, 1, sha256(''))",
    "SELECT datapatterns.extend_event_partitions(1)",
    "INSERT INTO datapatterns.cache_outbox (xid, cache_keys) VALUES ('1', '{a}')",
    "INSERT INTO datapatterns.cache_outbox (id) OVERRIDING SYSTEM VALUE VALUES (1)",
    "UPDATE datapatterns.cache_outbox SET xid = '1'",
    "UPDATE datapatterns.projection_shard SET position = 1",
    "UPDATE datapatterns.command_execution SET key = 'another'",
    "UPDATE datapatterns.command_execution SET digest = sha256('')",
    "DELETE FROM datapatterns.command_execution",
    "UPDATE datapatterns.change_consumer SET populated = true",
]
OF_THE_WORKER = [
    "SELECT datapatterns.append_events('', 'a', 'b', 0, NULL, 'x 1', NULL, '', '', '')",
    "INSERT INTO datapatterns.cache_outbox (cache_keys) VALUES ('{a}')",
    "INSERT INTO datapatterns.snapshot DEFAULT VALUES",
    "INSERT INTO datapatterns.command_execution DEFAULT VALUES",
    "UPDATE datapatterns.command_execution SET result = '1'",
    "SELECT datapatterns.claim_shard(1, '')",
]
OF_THE_READER = [
    *OF_THE_APPLICATION,
    *OF_THE_WORKER,
    "DELETE FROM datapatterns.snapshot",
    "DELETE FROM datapatterns.cache_outbox",
    "UPDATE datapatterns.cache_target SET snapshot = pg_current_snapshot()",
    "UPDATE datapatterns.projection SET status = 'retired'",
]


@pytest.fixture(autouse=True, scope="module")
def some_event(least_rights: LeastRights) -> None:
    with least_rights.app.begin() as conn:
        happened = [NewEvent("a.b", {})]
        store.append(conn, StreamId("a", "b"), happened, expected_version=NEW_STREAM)


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *((role, statement) for role in ("app", "worker", "reader") for statement in FORBIDDEN),
        *(("app", statement) for statement in OF_THE_APPLICATION),
        *(("worker", statement) for statement in OF_THE_WORKER),
        *(("reader", statement) for statement in OF_THE_READER),
    ],
)
def test_a_role_is_refused_what_is_not_its_business(
    least_rights: LeastRights, role: str, statement: str
) -> None:
    engine: Engine = getattr(least_rights, role)

    with engine.connect() as conn, pytest.raises(DBAPIError) as refused:
        execute(conn, statement.replace("{prefix}", least_rights.prefix))

    assert isinstance(refused.value.orig, InsufficientPrivilege), refused.value.orig


def test_who_may_insert_chooses_positions_and_times(least_rights: LeastRights) -> None:
    """The control: that is why the application may not."""
    for statement in FORBIDDEN[:2]:
        with least_rights.superuser.connect() as conn:
            execute(conn, statement)
            conn.rollback()


@pytest.fixture
def forged(least_rights: LeastRights) -> Iterator[psycopg.Connection]:
    """A session of the application that says of itself that its fence stands already."""
    url = least_rights.app.url.set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as conn:
        yield conn


@pytest.mark.parametrize("bound", ["", ":", ":{drawn}", ":0", ":-3000000000", ":{later}"])
def test_no_reader_passes_over_an_event_whose_writer_forged_the_note_of_the_fence(
    least_rights: LeastRights, forged: psycopg.Connection, bound: str
) -> None:
    seen, behind = _read_past(least_rights, forged, bound)

    assert behind <= seen


def test_before_dp0009_a_forged_note_hid_an_event_from_readers(least_rights: LeastRights) -> None:
    """The control: with the fence as it was, the same attack succeeds."""
    schema = f"old_{secrets.token_hex(4)}"
    with least_rights.superuser.begin() as conn:
        upgrade(conn, schema=schema)
        for fence in (FENCE_AS_A_FUNCTION, FENCE_BEFORE):
            execute(conn, fence.replace("{schema}", schema))
    old = EventStore(schema=schema)
    with least_rights.superuser.connect() as writer, least_rights.superuser.connect() as other:
        _forge(writer.connection.dbapi_connection, "", schema)
        happened = [NewEvent("a.b", {})]
        hidden = old.append(writer, StreamId("a", "x"), happened, expected_version=ANY)
        old.append(other, StreamId("a", "y"), happened, expected_version=ANY)
        other.commit()
        mark = old.high_water_mark(other)
        writer.rollback()
    assert mark > hidden.position


def test_who_could_append_or_claim_before_still_can_and_nobody_else(
    least_rights: LeastRights,
) -> None:
    schema = f"old_{secrets.token_hex(4)}"
    app, reader = f"{least_rights.prefix}app", f"{least_rights.prefix}reader"
    roles = [app, reader, f"{least_rights.prefix}worker"]
    with least_rights.superuser.begin() as conn:
        upgrade(conn, "dp0008", schema=schema)
        execute(
            conn,
            f"GRANT USAGE ON SCHEMA {schema} TO {app}, {reader};"
            f" GRANT INSERT ON {schema}.event TO {app};",
        )
        upgrade(conn, schema=schema)
        functions = (
            "append_events",
            "append_to_streams",
            "claim_buckets",
            "lock_stream",
            "lock_tags",
        )
        first = _who_may(conn, schema, functions, roles)
        downgrade(conn, "dp0009", schema=schema)
        before = _who_may(conn, schema, functions, roles)
        upgrade(conn, schema=schema)
        again = _who_may(conn, schema, functions, roles)
        downgrade(conn, "dp0008", schema=schema)
        upgrade(conn, schema=schema)

    assert first == again
    assert first == [
        ("append_events", app),
        ("append_to_streams", app),
        ("claim_buckets", app),
        ("claim_buckets", reader),
        ("lock_stream", app),
        ("lock_tags", app),
    ]
    assert before == [
        ("append_events", app),
        ("claim_buckets", app),
        ("claim_buckets", reader),
    ]


def test_what_everybody_could_execute_everybody_still_can(least_rights: LeastRights) -> None:
    schema = f"old_{secrets.token_hex(4)}"
    reader = f"{least_rights.prefix}reader"
    functions = ("append_events", "append_to_streams", "lock_stream", "lock_tags")
    with least_rights.superuser.begin() as conn:
        upgrade(conn, "dp0009", schema=schema)
        execute(conn, f"GRANT EXECUTE ON FUNCTION {schema}.append_events TO PUBLIC")
        upgrade(conn, schema=schema)
        after = _who_may(conn, schema, functions, [reader])
        downgrade(conn, "dp0009", schema=schema)
        before = _who_may(conn, schema, functions, [reader])

    assert after == [(name, reader) for name in functions]
    assert before == [("append_events", reader)]


def _who_may(
    conn: Connection, schema: str, functions: Sequence[str], roles: Sequence[str]
) -> list[tuple[str, str]]:
    """Return those of ``functions`` and ``roles`` that may execute them."""
    rows = conn.execute(
        text(
            "SELECT proname, role FROM pg_proc, unnest(CAST(:roles AS text[])) AS u (role)"
            " WHERE proname = ANY (:names) AND pronamespace = CAST(:schema AS regnamespace)"
            " AND has_function_privilege(role, oid, 'EXECUTE') ORDER BY proname, role"
        ),
        {"roles": list(roles), "names": list(functions), "schema": schema},
    )
    return [(row.proname, row.role) for row in rows]


ASKED_BY_ALL_READERS = {"capture_changed", "capture_shape", "consumed_snapshot"}
"""A plain view calls functions with its reader's rights, and that of a view as of now calls these;
they answer with a snapshot, a digest, and whether that has changed."""


def test_functions_that_run_as_their_owner_fix_their_path_and_are_not_for_everybody(
    least_rights: LeastRights,
) -> None:
    run(least_rights.owner, "CREATE TABLE IF NOT EXISTS public.captured (id int PRIMARY KEY)")
    with least_rights.superuser.begin() as conn:
        rows = conn.execute(
            text("""
            SELECT p.proname,
                   coalesce(p.proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}' AS is_fixed,
                   has_function_privilege('public', p.oid, 'EXECUTE') AS is_public
              FROM pg_proc AS p
             WHERE p.prosecdef AND p.pronamespace = 'datapatterns'::regnamespace
            """)
        ).all()

    assert {row.proname for row in rows} >= {"append_events", "claim_buckets", "claim_shard"}
    assert [row.proname for row in rows if not row.is_fixed] == []
    assert {row.proname for row in rows if row.is_public} == ASKED_BY_ALL_READERS


def _read_past(rights: LeastRights, forged: psycopg.Connection, bound: str) -> tuple[int, int]:
    """Append in a session that forged its note; return the position, and the mark of readers."""
    with rights.reader.begin() as conn:
        drawn = store.high_water_mark(conn)
    _forge(forged, bound.format(drawn=drawn, later=drawn + 1_000), "datapatterns")
    [position] = forged.execute(
        "SELECT last_position FROM datapatterns.append_events('', 'a', %s, NULL, NULL,"
        " 'a.b 1', NULL, gen_random_uuid()::text, '{}', NULL)",
        [secrets.token_hex(4)],
    ).fetchone() or [0]
    with rights.app.begin() as conn:
        store.append(conn, StreamId("a", "other"), [NewEvent("a.b", {})], expected_version=ANY)
    with rights.reader.begin() as conn:
        mark = store.high_water_mark(conn)
    forged.rollback()
    return position - 1, mark


def _forge(conn: object, bound: str, schema: str) -> None:
    assert isinstance(conn, psycopg.Connection)
    conn.execute(
        "SELECT set_config('datapatterns.fence_' || %s::regclass::oid,"
        " pg_current_xact_id()::text || %s, true)",
        [f"{schema}.event_position", bound],
    )

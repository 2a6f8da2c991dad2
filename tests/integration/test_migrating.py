"""Migrations in one database: turns, refusals, limits, and what is left after a failure."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, func, select, text

from datapatterns.errors import (
    IsolationLevelError,
    MigrationBlockedError,
    MissingRightsError,
    ReadOnlyServerError,
    SchemaDriftError,
    SchemaManagedElsewhereError,
    SchemaNameError,
    SchemaOccupiedError,
    ServerTooOldError,
    ServerUnavailableError,
    SettingsError,
    UnknownRevisionError,
)
from datapatterns.migrations import Migrations
from datapatterns.sql.migrating import downgrade, turn_key, upgrade
from datapatterns.sql.migration_status import migration_status, revisions
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.empty_database import CreateDatabase, told

pytestmark = pytest.mark.postgres
NEWEST = revisions()[-1].revision


@pytest.fixture
def empty_migrations(empty_url: URL) -> Migrations:
    return Migrations({"main": empty_url})


@pytest.fixture
def migrations(engine: Engine) -> Migrations:
    return Migrations({"main": engine.url})


def test_the_librarys_schema_exists_after_the_migrations(conn: Connection) -> None:
    assert conn.scalar(text("SELECT to_regnamespace('datapatterns') IS NOT NULL"))


def test_a_second_upgrade_finds_nothing_to_do(engine: Engine) -> None:
    with engine.begin() as conn:
        assert upgrade(conn) == ()
        assert upgrade(conn, "dp0002") == ()

        assert migration_status(conn).state == "current"


def test_tables_go_up_and_down_and_the_record_follows(engine: Engine) -> None:
    with engine.begin() as conn:
        undone = downgrade(conn, "dp0002")
        at_two = migration_status(conn)
        assert downgrade(conn, "head") == ()
        downgrade(conn, "base")
        at_base = migration_status(conn)
        ran = upgrade(conn)

        assert undone[0].revision == NEWEST
        assert (at_two.revision, at_two.state) == ("dp0002", "behind")
        assert (at_base.revision, at_base.occupied_by) == (None, ())
        assert ran == revisions()
        assert migration_status(conn).state == "current"


def test_one_database_holds_the_tables_in_several_schemas(migrations: Migrations) -> None:
    other = Migrations(migrations.databases, schema="shop")
    other.upgrade()

    other.check()
    other.downgrade("base")
    migrations.check()


def test_an_upgrade_in_a_transaction_that_is_rolled_back_leaves_nothing(empty_url: URL) -> None:
    engine = create_engine(empty_url)
    with engine.connect() as conn:
        upgrade(conn)
        conn.rollback()

        assert not conn.scalar(text("SELECT to_regnamespace('datapatterns') IS NOT NULL"))
    engine.dispose()


def test_the_callers_limits_are_the_callers_again_afterwards(empty_url: URL) -> None:
    engine = create_engine(told(empty_url, statement_timeout="47s", lock_timeout="11s"))
    with engine.connect() as conn:
        upgrade(conn)

        for name, value in {"statement_timeout": "47s", "lock_timeout": "11s"}.items():
            assert conn.scalar(select(func.current_setting(name))) == value
    engine.dispose()


@pytest.mark.parametrize("default", ["read committed", "repeatable read", "serializable"])
def test_a_second_migration_waits_its_turn_and_sees_what_the_first_did(
    empty_url: URL, default: str
) -> None:
    url = told(empty_url, default_transaction_isolation=default)
    migrations = Migrations({"main": url})
    engine = create_engine(empty_url)
    told_of: list[int] = []

    with ThreadPoolExecutor() as pool, engine.begin() as first:
        upgrade(first)
        second = pool.submit(migrations.upgrade, report=lambda _, ran: told_of.append(len(ran)))
        until_blocked_by(engine, first)
        first.commit()
        second.result(30)

    assert told_of == [0]
    migrations.check()
    engine.dispose()


def test_a_migration_that_does_not_get_its_turn_says_who_has_it(engine: Engine) -> None:
    with engine.begin() as holder, engine.begin() as conn:
        holder.execute(select(func.pg_advisory_xact_lock(turn_key("datapatterns"))))
        holder_pid = holder.scalar(select(func.pg_backend_pid()))

        with pytest.raises(MigrationBlockedError, match=f"session {holder_pid}"):
            upgrade(conn, wait_seconds=0.05)
        assert conn.scalar(select(1)) == 1  # the caller's transaction is alive


def test_schemas_do_not_wait_for_each_other(engine: Engine) -> None:
    with engine.begin() as holder, engine.begin() as conn:
        holder.execute(select(func.pg_advisory_xact_lock(turn_key("datapatterns"))))

        assert upgrade(conn, schema="shop", wait_seconds=0.05)


@pytest.mark.parametrize("wait_seconds", [0, 0.0001, -1])
def test_a_migration_that_may_not_wait_gives_up_at_once(
    engine: Engine, wait_seconds: float
) -> None:
    with engine.begin() as first, engine.begin() as second:
        first.execute(select(func.pg_advisory_xact_lock(turn_key("datapatterns"))))
        second.execute(text("SET LOCAL statement_timeout = 0"))

        with pytest.raises(MigrationBlockedError):
            upgrade(second, wait_seconds=wait_seconds)


def test_a_migration_may_wait_for_longer_than_a_setting_can_say(engine: Engine) -> None:
    with engine.begin() as conn:
        assert upgrade(conn, wait_seconds=float("inf")) == ()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM datapatterns.library_version",
        "DROP TABLE datapatterns.library_version",
        "UPDATE datapatterns.library_version SET version_num = 'dp0002'",
        "UPDATE datapatterns.library_version SET version_num = 'dp9999'",
    ],
)
def test_the_record_decides_where_the_tables_stand_whatever_alembics_table_says(
    engine: Engine, migrations: Migrations, damage: str
) -> None:
    migrations.downgrade("dp0004")
    with engine.begin() as conn:
        conn.execute(text(damage))

    migrations.upgrade()
    migrations.check()
    with engine.begin() as conn:
        conn.execute(text(damage))
    migrations.downgrade("base")

    with engine.connect() as conn:
        left = conn.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'datapatterns'")
        ).all()
    assert left == ["library_version"]


def test_a_table_in_use_stops_a_migration_soon_instead_of_stopping_everybody(
    engine: Engine, migrations: Migrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.sql.migrating.TABLE_LOCK_SECONDS", 0.05)
    with engine.begin() as reader:
        reader.execute(text("SELECT FROM datapatterns.library_migration"))

        with pytest.raises(MigrationBlockedError, match="uses a table"):
            migrations.downgrade("base")

    migrations.check()


def test_a_transaction_that_keeps_its_snapshot_is_refused(engine: Engine) -> None:
    careful = engine.execution_options(isolation_level="REPEATABLE READ")

    with careful.begin() as conn, pytest.raises(IsolationLevelError):
        upgrade(conn)


def test_autocommit_is_refused_before_half_of_it_is_done(empty_url: URL) -> None:
    engine = create_engine(empty_url, isolation_level="AUTOCOMMIT")

    with engine.connect() as conn:
        with pytest.raises(IsolationLevelError, match="autocommit"):
            upgrade(conn)
        assert migration_status(conn).revision is None
    engine.dispose()


def test_a_server_that_only_allows_reading_is_refused(database_url: URL) -> None:
    url = told(database_url, default_transaction_read_only="on")

    with pytest.raises(ReadOnlyServerError):
        Migrations({"main": url}).downgrade("base")


def test_a_server_that_is_too_old_is_refused(engine: Engine) -> None:
    with engine.begin() as conn:
        engine.dialect.server_version_info = (13, 22)

        with pytest.raises(ServerTooOldError, match=r"PostgreSQL 13\.22.*14 or newer"):
            upgrade(conn)


@pytest.mark.parametrize("table", ["TABLE datapatterns.events ()", "VIEW datapatterns.v AS SELECT"])
def test_a_schema_of_somebody_else_is_refused(empty_migrations: Migrations, table: str) -> None:
    engine = create_engine(empty_migrations.databases["main"])
    with engine.begin() as conn:
        conn.execute(text(f"CREATE SCHEMA datapatterns; CREATE {table}"))
    engine.dispose()

    assert empty_migrations.status()["main"].state == "occupied"
    for refused in (empty_migrations.upgrade, empty_migrations.plan, empty_migrations.check):
        with pytest.raises(SchemaOccupiedError, match="--schema"):
            refused()


def test_an_empty_schema_that_somebody_prepared_is_used_without_the_right_to_create_one(
    limited_role: str, empty_url: URL
) -> None:
    engine = create_engine(empty_url)
    migrations = Migrations({"main": told(empty_url, role=limited_role)})

    with pytest.raises(MissingRightsError, match="permission denied for database"):
        migrations.upgrade()
    with engine.begin() as conn:
        conn.execute(text(f"CREATE SCHEMA datapatterns AUTHORIZATION {limited_role}"))
    migrations.upgrade()

    migrations.check(revision_only=True)
    with pytest.raises(MissingRightsError):
        migrations.check()
    engine.dispose()


def test_tables_of_a_newer_library_are_left_alone(engine: Engine, migrations: Migrations) -> None:
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO datapatterns.library_migration (revision, version_table)"
                " VALUES ('dp9999', 'datapatterns.library_version')"
            )
        )

    assert migrations.status()["main"].state == "unknown"
    for refused in (migrations.upgrade, migrations.check):
        with pytest.raises(UnknownRevisionError, match="upgrade the package"):
            refused()
    with pytest.raises(UnknownRevisionError):
        migrations.downgrade("base")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("DROP TABLE datapatterns.library_migration", SchemaOccupiedError),
        ("DELETE FROM datapatterns.library_migration", SchemaOccupiedError),
        ("UPDATE datapatterns.library_migration SET revision = 'dp9999'", UnknownRevisionError),
        (
            "UPDATE datapatterns.library_migration SET version_table = 'public.alembic_version'",
            SchemaManagedElsewhereError,
        ),
    ],
)
def test_an_application_that_upgrades_by_itself_is_refused_alike(
    engine: Engine, change: str, refusal: type[Exception]
) -> None:
    with engine.begin() as conn:
        conn.execute(text(change))

        with pytest.raises(refusal):
            upgrade(conn)
        with pytest.raises(refusal):
            downgrade(conn, "base")


def test_a_revision_that_does_not_exist_is_refused_before_anything_happens(
    migrations: Migrations,
) -> None:
    with pytest.raises(UnknownRevisionError):
        migrations.upgrade("dp4711")
    with pytest.raises(UnknownRevisionError):
        migrations.sql("dp4711")
    with pytest.raises(SchemaNameError):
        Migrations(migrations.databases, schema="a;b").status()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ALTER TABLE datapatterns.library_migration ADD extra int", "+ column"),
        ("ALTER TABLE datapatterns.library_migration ALTER migrated_at DROP NOT NULL", "- column"),
        ("ALTER TABLE datapatterns.library_migration ALTER migrated_at DROP DEFAULT", "- column"),
        (
            "ALTER TABLE datapatterns.library_migration DROP CONSTRAINT pk_library_migration",
            "- con",
        ),
        ("CREATE UNIQUE INDEX ON datapatterns.library_migration (revision)", "+ index"),
        ("ALTER TABLE datapatterns.library_migration SET UNLOGGED", "- table"),
    ],
)
def test_what_was_changed_by_hand_is_found(
    engine: Engine, migrations: Migrations, change: str, named: str
) -> None:
    with engine.begin() as conn:
        conn.execute(text(change))

    with pytest.raises(SchemaDriftError) as found:
        migrations.check()

    assert found.value.differences[0].startswith(named)


def test_what_operators_may_add_is_no_difference(engine: Engine, migrations: Migrations) -> None:
    with engine.begin() as conn:
        conn.execute(
            text(
                "CREATE INDEX ON datapatterns.library_migration (migrated_at);"
                "CREATE TABLE datapatterns.notes (); GRANT USAGE ON SCHEMA datapatterns TO PUBLIC;"
                "ALTER TABLE datapatterns.library_migration SET (fillfactor = 50)"
            )
        )

    migrations.check()


def test_comparing_leaves_nothing_behind(engine: Engine, migrations: Migrations) -> None:
    migrations.check()

    with engine.connect() as conn:
        left = conn.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'dp_check%'"))
        assert not left.all()


@pytest.mark.parametrize("schema", ["datapatterns", "shop"])
def test_the_printed_sql_makes_the_same_tables(empty_url: URL, schema: str) -> None:
    migrations = Migrations({"main": empty_url}, schema=schema)
    engine = create_engine(empty_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(migrations.sql("dp0003"), execution_options={"no_parameters": True})
        conn.exec_driver_sql(
            migrations.sql(start="dp0003"), execution_options={"no_parameters": True}
        )
        migrations.check()

        conn.exec_driver_sql(
            migrations.sql("base", start="head"), execution_options={"no_parameters": True}
        )
        assert migration_status(conn, schema=schema).revision is None
    migrations.upgrade()
    engine.dispose()


def test_every_database_is_looked_at_before_the_first_is_changed(
    new_empty_url: CreateDatabase,
) -> None:
    first, second = new_empty_url(), new_empty_url()
    away = second.set(host="127.0.0.1", port=1, query={}, password="hidden")
    migrations = Migrations({"main": first, "s0": away})

    with pytest.raises(ServerUnavailableError) as refused:
        migrations.upgrade()

    assert refused.value.__notes__[0].startswith("in database s0 (postgresql://")
    assert "hidden" not in f"{refused.value}{refused.value.__notes__}"
    assert Migrations({"main": first}).status()["main"].revision is None


def test_a_run_that_stopped_between_two_databases_goes_on_from_there(
    new_empty_url: CreateDatabase,
) -> None:
    databases = {"main": new_empty_url(), "s0": new_empty_url()}
    migrations = Migrations(databases)
    engine = create_engine(databases["s0"])
    ran: list[tuple[str, int]] = []

    with engine.begin() as holder:
        holder.execute(select(func.pg_advisory_xact_lock(turn_key("datapatterns"))))
        with pytest.raises(MigrationBlockedError):
            migrations.upgrade(wait_seconds=0.05)
    between = {name: status.state for name, status in migrations.status().items()}
    migrations.upgrade(report=lambda name, steps: ran.append((name, len(steps))))

    assert between == {"main": "current", "s0": "behind"}
    assert ran == [("main", 0), ("s0", len(revisions()))]
    engine.dispose()


def test_without_a_database_there_is_nothing_to_migrate() -> None:
    with pytest.raises(SettingsError, match="DATAPATTERNS_DATABASE_URL"):
        Migrations({}).upgrade()

"""Keys of persons under every kind of transaction, in migrations, and without their packages."""

import sys
from dataclasses import dataclass
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MissingExtraError, SubjectForgottenError
from datapatterns.event_sourcing import (
    ANY,
    Decider,
    Encryption,
    LocalKeyWrapper,
    StreamId,
    SubjectKeys,
    Subjects,
    Zstandard,
    every,
)
from datapatterns.event_sourcing.content.encryption import load_aes_gcm
from datapatterns.sql.migrating import downgrade, upgrade
from tests.fixtures.people import MASTER, Registered, Secret, forgotten, store

pytestmark = pytest.mark.postgres

subjects = Subjects(store)


def append(conn: Connection, who: str, word: str = "a@b") -> None:
    at = StreamId("customer", who)
    store.append(conn, at, [Registered(who, word)], expected_version=ANY)


def read(conn: Connection, who: str) -> list[object]:
    recorded = store.read_stream(conn, StreamId("customer", who))
    return [event for one in recorded for event in store.decode(one)]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_stricter_transactions_lose_to_who_forgets_or_makes_a_key_meanwhile(
    engine: Engine, level: str
) -> None:
    known, new = uuid4().hex, uuid4().hex
    with engine.begin() as conn:
        append(conn, known)
    strict = engine.execution_options(isolation_level=level)

    for who, meanwhile in ((known, subjects.forget), (new, append)):
        with strict.connect() as conn:
            conn.execute(text("SELECT count(*) FROM datapatterns.event"))  # its snapshot
            with engine.begin() as other:
                meanwhile(other, who)
            with pytest.raises(DBAPIError) as raised:
                append(conn, who)
            assert getattr(raised.value.orig, "sqlstate", None) == "40001"

    with strict.begin() as conn:
        with pytest.raises(SubjectForgottenError):
            append(conn, known)
        append(conn, new)  # the transaction stays usable
        assert len(read(conn, new)) == 2


def test_a_savepoint_takes_the_key_back(engine: Engine) -> None:
    who = uuid4().hex
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        append(conn, who)
        savepoint.rollback()
        with engine.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = '5s'"))
            assert subjects.forget(other, who).position is not None
        with pytest.raises(SubjectForgottenError):
            append(conn, who)

    with engine.begin() as conn:
        assert read(conn, who) == []


def test_a_prepared_append_is_waited_for(engine: Engine) -> None:
    who, name = uuid4().hex, uuid4().hex
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
        append(conn, who)
        conn.exec_driver_sql(f"PREPARE TRANSACTION '{name}'")
        conn.rollback()

    with engine.connect() as conn:
        conn.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            subjects.forget(conn, who)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql(f"COMMIT PREPARED '{name}'")

    with engine.begin() as conn:
        subjects.forget(conn, who)
        assert read(conn, who) == [forgotten(who)]


@dataclass(frozen=True)
class State:
    email: str = ""


def test_states_of_deciders_are_encrypted_and_forgotten_too(engine: Engine) -> None:
    customers: Decider[Registered, State, Registered] = Decider(
        "customer",
        State(),
        lambda command, _state: [command],
        lambda _state, e: State(e.email),
        state=State,
        events=(Registered,),
        snapshot=every(1),
    )
    who, secret = uuid4().hex, Secret()
    with engine.begin() as conn:
        append(conn, who, secret.word)
        loaded = store.load(conn, customers, who)
        assert store.save_snapshot(conn, loaded)
    with engine.begin() as conn:
        assert secret.found_in(conn) == []
        assert store.load(conn, customers, who).state == State(secret.word)

    with engine.begin() as conn:
        assert subjects.forget(conn, who).snapshots == 1

    with engine.begin() as conn:
        assert store.load(conn, customers, who).state == State("[forgotten]")


def test_keys_are_not_lost_by_going_back(engine: Engine) -> None:
    with engine.begin() as conn:
        append(conn, uuid4().hex)
    with engine.begin() as conn, pytest.raises(DBAPIError, match="keys of persons would be lost"):
        downgrade(conn, "dp0012")

    with engine.begin() as conn:
        conn.execute(text("DELETE FROM datapatterns.subject_key"))
        downgrade(conn, "dp0012")
        upgrade(conn)


def test_roles_that_may_read_every_new_table_do_not_get_the_keys(engine: Engine) -> None:
    role = f"dp_{uuid4().hex[:8]}"
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM datapatterns.subject_key"))
        downgrade(conn, "dp0012")
        conn.execute(text(f"CREATE ROLE {role}"))
        conn.execute(
            text(
                f"ALTER DEFAULT PRIVILEGES IN SCHEMA datapatterns GRANT SELECT ON TABLES TO {role}"
            )
        )
        upgrade(conn)
        may = "SELECT has_table_privilege(:role, 'datapatterns.subject_key', 'SELECT')"
        assert conn.scalar(text(may), {"role": role}) is False
        conn.rollback()  # the role belongs to the whole server


def test_what_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    load_aes_gcm.cache_clear()
    for package in ("zstandard", "cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError, match=r'pip install "datapatterns\[compression\]"'):
        Zstandard()
    with pytest.raises(MissingExtraError, match=r'pip install "datapatterns\[encryption\]"'):
        Encryption(MASTER)
    with pytest.raises(MissingExtraError, match=r'pip install "datapatterns\[encryption\]"'):
        SubjectKeys(LocalKeyWrapper(MASTER))

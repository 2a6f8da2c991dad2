"""What is asked and written while the server of an index's entries is down."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, select

from datapatterns.embedded import EmbeddedServers
from datapatterns.errors import ScatterRefusedError, ShardUnavailableError
from datapatterns.index_table import ShardIndexes
from datapatterns.sharding import ShardCluster
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import Databases
from tests.fixtures.sharded_accounts import (
    Account,
    accounts,
    all_of_them,
    by_email,
    email_on,
    put,
    tenant_on,
)

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("policy", ["scatter", "raise"])
def test_reads_ask_all_shards_if_they_may_and_writes_fail(
    databases: Databases, policy: str
) -> None:
    with EmbeddedServers(durable=False) as servers:
        server = servers.postgres("doomed")
        engine = create_engine(server.url)
        with engine.begin() as conn:
            upgrade(conn)
        engine.dispose()
        url = databases.new()
        indexes = ShardIndexes(all_of_them.declared, on_index_down=policy)  # type: ignore[arg-type] # one of both
        with accounts([url, server.url], indexes=indexes) as cluster:
            tenant, here, there = (
                tenant_on(cluster, "s0"),
                email_on(cluster, "s0"),
                email_on(cluster, "s1"),
            )
            put(cluster, Account(tenant_id=tenant, id=1, email=here))
            put(cluster, Account(tenant_id=tenant, id=2, email=there))
            server.stop()

            with cluster.session() as session:  # its entry and its row are on the other one
                found = select(Account.id).where(Account.email == here)
                assert session.scalars(found).all() == [1]
                with pytest.raises(ShardUnavailableError) as caught:
                    session.scalars(select(Account.id).where(Account.email == there))
                assert caught.value.shard == "s1"
            with cluster.session() as session, pytest.raises(ShardUnavailableError):
                by_email.lookup(session, there)
            with cluster.session(scatter=True) as session, pytest.raises(ShardUnavailableError):
                session.scalars(select(Account.id).where(Account.email == there))
            with cluster.session() as session:
                session.add(Account(tenant_id=tenant, id=3, email=email_on(cluster, "s1", nth=1)))
                with pytest.raises(ShardUnavailableError):
                    session.commit()
            with cluster.session() as session, session.begin():
                session.get_one(Account, (tenant, 1)).balance = 5
        databases.drop(url)


@contextmanager
def connections_of_indexes_refused(cluster: ShardCluster, shard: str) -> Iterator[None]:
    """Those beside transactions go where nobody listens; those of sessions are as they were."""
    engine = cluster.session().shard_access.companions.side_engines[shard]
    with socket.socket() as nobody:  # bound, and so nobody else's, but it does not listen
        nobody.bind(("127.0.0.1", 0))

        def astray(*arguments: Any) -> None:  # noqa: ANN401 -- as SQLAlchemy calls it
            arguments[3].update(host="127.0.0.1", port=nobody.getsockname()[1])

        event.listen(engine, "do_connect", astray)
        engine.dispose()
        try:
            yield
        finally:
            event.remove(engine, "do_connect", astray)


@pytest.mark.parametrize("policy", ["scatter", "raise"])
def test_all_shards_are_asked_if_only_the_connections_of_indexes_fail(
    databases: Databases, policy: str
) -> None:
    """As when a server has room for no more: the shard itself answers."""
    urls = [databases.new() for _ in range(2)]
    indexes = ShardIndexes(all_of_them.declared, on_index_down=policy)  # type: ignore[arg-type] # one of both
    with accounts(urls, indexes=indexes) as cluster:
        email = email_on(cluster, "s1")
        put(cluster, Account(tenant_id=tenant_on(cluster, "s0"), id=1, email=email))
        found = select(Account.id).where(Account.email == email)

        with connections_of_indexes_refused(cluster, "s1"):
            with cluster.session() as session, pytest.raises(ShardUnavailableError) as caught:
                session.scalars(found)
            assert caught.value.shard == "s1"
            with cluster.session(scatter=True) as session:
                if policy == "scatter":
                    assert session.scalars(found).all() == [1]
                else:
                    with pytest.raises(ShardUnavailableError):
                        session.scalars(found)
        with cluster.session() as session:
            assert session.scalars(found).all() == [1]
    for url in urls:
        databases.drop(url)


def test_a_plan_names_the_index(databases: Databases) -> None:
    urls = [databases.new() for _ in range(2)]
    with accounts(urls) as cluster:
        statement = select(Account.id).where(Account.email == "a")
        plan = cluster.explain(statement)

        assert plan.index == "account_by_email"
        assert str(plan).startswith("the shards of rows that account_by_email finds: SELECT")
        assert cluster.explain(statement.execution_options(index=None)).index is None
        assert cluster.explain(statement.where(Account.tenant_id == 1)).index is None
        with cluster.session() as session, pytest.raises(ScatterRefusedError):
            session.execute(statement.execution_options(index=None))
    for url in urls:
        databases.drop(url)

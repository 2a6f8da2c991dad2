"""What is asked and written while the server of an index's entries is down."""

import pytest
from sqlalchemy import create_engine, select

from datapatterns.embedded import EmbeddedServers
from datapatterns.errors import ScatterRefusedError, ShardUnavailableError
from datapatterns.index_table import ShardIndexes
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

"""Whatever the tables, rows and statement: shards say what one database says, or refuse."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from random import Random

import pytest
from sqlalchemy import URL, Engine, create_engine, delete, insert, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.any_scatter import AnySchema, AnyStatement, Asked, Row, any_schema
from tests.fixtures.effort import at_most
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres

STATEMENTS = 25
SCHEMAS = 4


class Shops:
    """The same tables on four shards and in one database."""

    def __init__(self, cluster: ShardCluster, whole: Engine, schemas: list[AnySchema]) -> None:
        self.cluster, self.whole, self.schemas = cluster, whole, schemas

    def fill(self, schema: AnySchema, random: Random) -> None:
        tables = schema.rows(random, random.choice([0, 2, 40, 40, 80]))
        with self.whole.begin() as conn:
            for table in reversed(tables):
                conn.execute(delete(table))
            for table, rows in tables.items():
                if rows:
                    conn.execute(insert(table), rows)
        placed = {
            table: self.cluster.placed(schema.group, rows, key=_key)
            for table, rows in tables.items()
        }
        for shard in self.cluster.engines:
            with self.cluster.begin_bulk(schema.group, shard) as conn:
                for table in reversed(placed):
                    conn.execute(delete(table))
                for table, by_shard in placed.items():
                    if mine := by_shard.get(shard):
                        conn.execute(insert(table), mine)

    def said_by_one(self, asked: Asked) -> list[str] | None:
        """None if not even one database can tell."""
        with Session(self.whole) as session:
            try:
                # By their text: NaN does not equal itself, and 1.0 would equal 1.00.
                return [repr(tuple(row)) for row in session.execute(asked.statement)]
            except DBAPIError:
                return None

    def said_by_shards(self, asked: Asked) -> list[str] | None:
        """None if they refuse."""
        with self.cluster.session(scatter=True) as session:
            try:
                return [repr(tuple(row)) for row in session.execute(asked.statement)]
            except UnmergeableQueryError:
                return None


def _key(row: Row) -> int:
    return int(row["key"])


def has_languages(url: URL) -> bool:
    """Servers from wheels know no language's order."""
    engine = create_engine(url)
    with engine.connect() as conn:
        found = conn.scalar(text("SELECT count(*) FROM pg_collation WHERE collname = 'de-x-icu'"))
    engine.dispose()
    return bool(found)


@pytest.fixture(scope="module")
def shops(databases: Databases) -> Iterator[Shops]:
    group = EntityGroup("thing", strategy=Hash(buckets=64))
    random = Random(8)  # noqa: S311 -- test data
    urls = [databases.new() for _ in range(5)]
    without = frozenset() if has_languages(urls[0]) else frozenset(["german"])
    schemas = [any_schema(random, f"thing_{n}", group, without=without) for n in range(SCHEMAS)]
    with ExitStack() as stack:
        for url in urls:
            stack.callback(databases.drop, url)
            engine = create_engine(url)
            for schema in schemas:
                schema.parent.metadata.create_all(engine)
            engine.dispose()
        whole = create_engine(urls[0], connect_args={"options": "-c TimeZone=UTC"})
        stack.callback(whole.dispose)
        cluster = ShardCluster(control=urls[1], shards=named(urls[1:]), groups=[group])
        stack.enter_context(cluster)
        cluster.create_map()
        yield Shops(cluster, whole, schemas)


def test_any_statement_is_answered_as_by_one_database_or_refused(shops: Shops) -> None:
    seen: Counter[str] = Counter()
    for seed in range(at_most(6)):
        random = Random(seed)  # noqa: S311 -- test data
        schema = shops.schemas[seed % SCHEMAS]
        shops.fill(schema, random)
        for number in range(STATEMENTS):
            asked = AnyStatement(schema, random).drawn()
            expected = shops.said_by_one(asked)
            found = shops.said_by_shards(asked) if expected is not None else None
            seen["no answer" if expected is None else "refused" if found is None else "same"] += 1
            if found is None or expected is None:
                continue
            if not asked.is_ordered:
                found, expected = sorted(found), sorted(expected)
            sql = asked.statement.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
            assert found == expected, f"seed {seed}, statement {number}: {sql} {sql.params}"

    assert seen["same"] > 0.7 * seen.total(), seen

"""What cannot be moved rightly is refused before anything has changed."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, make_url, text

from datapatterns.errors import DataPatternsError, MoveRefusedError, ShardedTableError
from datapatterns.sharding import EntityGroup, MoveProgress, ShardCluster
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import Basket, households, named, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET = 5
NAMED_LIKE_OURS = (
    "CREATE TRIGGER zz_datapatterns_x BEFORE UPDATE ON line FOR EACH ROW EXECUTE FUNCTION f()"
)


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        put(cluster, keys_in(BUCKET, 1)[0], lines=2)
        yield cluster


def on_each(cluster: ShardCluster, *statements: str) -> None:
    for shard in cluster.engines:
        on_one(cluster, shard, *statements)


def on_one(cluster: ShardCluster, shard: str, *statements: str) -> None:
    with cluster.engines[shard].begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


def source_and_target(cluster: ShardCluster) -> tuple[str, str]:
    source = cluster.router.map_of(households).owners[BUCKET]
    return source, "s1" if source == "s0" else "s0"


def check_refused(cluster: ShardCluster, kind: type[DataPatternsError], match: str) -> None:
    source, target = source_and_target(cluster)

    with pytest.raises(kind, match=match):
        cluster.move(households, BUCKET, to=target, clean_after_seconds=0)

    check_nothing_has_changed(cluster, source, target)


def check_nothing_has_changed(cluster: ShardCluster, source: str, target: str) -> None:
    assert states_of(cluster, BUCKET) == {source: "owned"}
    assert bucket_rows(cluster, source, BUCKET) == (1, 2)
    assert bucket_rows(cluster, target, BUCKET) == (0, 0)
    assert [move.state for move in cluster.moves(live=False)] == ["aborted"]
    put(cluster, keys_in(BUCKET, 2)[1])


@pytest.mark.parametrize(
    ("statements", "match"),
    [
        (["ALTER TABLE basket SET UNLOGGED"], "unlogged"),
        (["CREATE TABLE heir () INHERITS (basket)"], "inherit"),
        (["CREATE SEQUENCE n", "ALTER TABLE basket ALTER id SET DEFAULT nextval('n')"], "sequence"),
        (["ALTER TABLE line ADD picture oid"], "large objects"),
        (["CREATE DOMAIN lo AS oid", "ALTER TABLE line ADD picture lo"], "large objects"),
        (["ALTER TABLE line ADD pictures oid[]"], "large objects"),
        (["ALTER TABLE basket ADD number int GENERATED ALWAYS AS IDENTITY"], "sequence"),
        (
            [
                "CREATE TABLE note (household_id bigint, id int)",
                "ALTER TABLE note ADD FOREIGN KEY (household_id, id) REFERENCES basket",
            ],
            "foreign key",
        ),
        (
            [
                "CREATE TABLE shop (id int PRIMARY KEY)",
                "ALTER TABLE basket ADD shop_id int REFERENCES shop",
            ],
            "foreign key",
        ),
        (["CREATE UNIQUE INDEX ON basket (code)"], "unique without household_id"),
        (
            ["CREATE UNIQUE INDEX ON basket (code) INCLUDE (household_id)"],
            "unique without household_id",
        ),
        (
            [
                "ALTER TABLE line ADD twice int GENERATED ALWAYS AS (number * 2) STORED",
                "ALTER TABLE line DROP CONSTRAINT line_pkey",
                "ALTER TABLE line ADD PRIMARY KEY (household_id, basket_id, twice)",
            ],
            "generated and in the primary key",
        ),
        (
            [
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
                "CREATE TRIGGER zzz BEFORE UPDATE ON basket FOR EACH ROW EXECUTE FUNCTION f()",
            ],
            "comes after",
        ),
        (
            [
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
                NAMED_LIKE_OURS,
            ],
            "comes after",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_that_cannot_be_moved_are_refused_with_advice(
    cluster: ShardCluster, statements: list[str], match: str
) -> None:
    if "unlogged" in match:
        statements = ["ALTER TABLE line SET UNLOGGED", *statements]
    on_each(cluster, *statements)

    check_refused(cluster, MoveRefusedError, match)


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("ALTER TABLE basket ADD extra int", "column extra of public.basket"),
        ("CREATE INDEX extra ON line (quantity)", "index extra of public.line"),
        ("ALTER TABLE line ADD CHECK (quantity >= 0)", "constraint"),
        ("ALTER TABLE basket ALTER price TYPE numeric(14, 2)", "numeric"),
    ],
)
def test_shards_whose_tables_differ_are_refused(
    cluster: ShardCluster, statement: str, match: str
) -> None:
    on_one(cluster, "s1", statement)

    check_refused(cluster, MoveRefusedError, match)


def test_a_table_that_the_target_lacks_is_refused(cluster: ShardCluster) -> None:
    _, target = source_and_target(cluster)
    on_one(cluster, target, "DROP TABLE line")

    with pytest.raises(ShardedTableError, match="does not exist on every shard"):
        cluster.move(households, BUCKET, to=target)

    assert [move.state for move in cluster.moves(live=False)] == ["aborted"]


def test_a_process_that_declares_no_table_of_the_group_moves_nothing(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    bare = EntityGroup("household", strategy=households.strategy)
    source, target = source_and_target(cluster)
    urls = shard_urls[:2]

    with (
        ShardCluster(control=urls[0], shards=named(urls), groups=[bare]) as without_models,
        pytest.raises(MoveRefusedError, match="import the models"),
    ):
        without_models.move(bare, BUCKET, to=target)

    check_nothing_has_changed(cluster, source, target)


def test_a_role_that_may_not_silence_triggers_is_refused(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    role = f"mover_{shard_urls[0].database}"[:60]
    on_one(cluster, "s0", f"CREATE ROLE {role} LOGIN PASSWORD 'm'")
    try:
        on_each(
            cluster,
            f"GRANT ALL ON SCHEMA datapatterns, public TO {role}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA datapatterns, public TO {role}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA datapatterns TO {role}",
        )
        urls = [make_url(url).set(username=role, password="m") for url in shard_urls[:2]]
        source, target = source_and_target(cluster)
        with (
            ShardCluster(control=urls[0], shards=named(urls), groups=[households]) as weak,
            pytest.raises(MoveRefusedError, match="session_replication_role"),
        ):
            weak.move(households, BUCKET, to=target)
        assert states_of(cluster, BUCKET) == {source: "owned"}
    finally:
        on_each(cluster, f"DROP OWNED BY {role}")
        on_one(cluster, "s0", f"DROP ROLE {role}")


def test_a_table_that_changes_on_both_shards_after_the_copy_stops_the_cut(
    cluster: ShardCluster,
) -> None:
    source, target = source_and_target(cluster)

    def add_column(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up" and not added:
            added.append(True)
            on_each(cluster, "ALTER TABLE basket ADD extra int DEFAULT 7")

    added: list[bool] = []
    with pytest.raises(MoveRefusedError, match="changed while a bucket moved"):
        cluster.move(households, BUCKET, to=target, progress=add_column)

    assert states_of(cluster, BUCKET) == {source: "owned", target: "cleaned"}
    assert bucket_rows(cluster, target, BUCKET) == (0, 0)
    assert cluster.move(households, BUCKET, to=target, clean_after_seconds=0).state == "cleaned"
    with cluster.session() as session:
        assert session.get(Basket, (keys_in(BUCKET, 1)[0], 1)) is not None

"""Keys of two columns: a region whose data lies in its own buckets, and tenants within it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, delete, func, insert, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload

from datapatterns.errors import (
    CitusUnfitError,
    GroupMismatchError,
    MapChangeRefusedError,
    MoveRefusedError,
    MultiShardWriteError,
    RowHasDependantsError,
    ScatterRefusedError,
    ShardKeyChangedError,
    ShardKeyError,
    StaleShardMapError,
    UnmergeableQueryError,
    UnroutableKeyError,
)
from datapatterns.sharding import (
    Composite,
    EntityGroup,
    Hash,
    ListMap,
    ShardCluster,
    parts_of_id,
)
from datapatterns.sharding.routing.footprint import footprint_of
from datapatterns.sharding.routing.placements import Placements
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.commands import Run
from tests.fixtures.empty_database import shown
from tests.fixtures.regional_model import Base, Invoice, Item, regional_shop, tenants
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres

EU = frozenset(range(8))


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with regional_shop(shard_urls[:3], watch_load=True) as cluster:
        yield cluster


def tenants_on_each(cluster: ShardCluster, region: str = "eu") -> list[int]:
    """Return a tenant of a region on each shard."""
    shard_map = cluster.router.map_of(tenants)
    first: dict[str, int] = {}
    for tenant in range(100):
        first.setdefault(shard_map.shard_of((region, tenant)), tenant)
    return [tenant for _, tenant in sorted(first.items())]


def put(cluster: ShardCluster, region: str, tenant: int, *, invoices: int = 1) -> None:
    with cluster.session() as session, session.begin():
        for number in range(invoices):
            items = [Item(place=1), Item(place=2)]
            session.add(
                Invoice(region=region, tenant_id=tenant, id=number, cents=tenant, items=items)
            )


def rows_on(cluster: ShardCluster, shard: str) -> list[tuple[str, int, int]]:
    with cluster.engines[shard].connect() as conn:
        keys = select(Invoice.region, Invoice.tenant_id, Invoice.id)
        return sorted((region, tenant, number) for region, tenant, number in conn.execute(keys))


# Sessions ------------------------------------------------------------------------------------


def test_objects_are_written_and_found_by_both_columns(cluster: ShardCluster) -> None:
    here, there, _ = tenants_on_each(cluster)
    put(cluster, "eu", here)
    put(cluster, "eu", there)

    for tenant in (here, there):
        shard = cluster.router.map_of(tenants).shard_of(("eu", tenant))
        assert rows_on(cluster, shard) == [("eu", tenant, 0)]
    with cluster.session() as session:
        found = session.get(Invoice, ("eu", there, 0))
        assert found is not None
        assert [item.place for item in found.items] == [1, 2]
        assert session.get(Invoice, ("us", there, 0)) is None
        loaded = session.scalars(
            select(Invoice)
            .options(joinedload(Invoice.items))
            .where(Invoice.tenant_id == here, Invoice.region == "eu")
        ).unique()
        assert [len(invoice.items) for invoice in loaded] == [2]


def test_the_first_column_alone_goes_to_its_block(cluster: ShardCluster) -> None:
    for tenant in range(6):
        put(cluster, "eu", tenant)
        put(cluster, "us", tenant)
    count = select(func.count()).select_from(Invoice)

    with cluster.session() as session:
        assert session.scalar(count.where(Invoice.region == "eu")) == 6
        assert session.scalar(count.where(Invoice.region.in_(["us", "xx"]))) == 6
        assert session.scalar(count.where(Invoice.region == "xx")) == 0
        with pytest.raises(ScatterRefusedError):
            session.scalar(select(func.count()).select_from(Invoice))
    of_region = footprint_of(count.where(Invoice.region == "eu"), Placements([tenants]))
    assert of_region.buckets({}, tenants.strategy) == EU
    one = count.where(Invoice.region == "eu", Invoice.tenant_id == 7)
    assert cluster.explain(one).shards == (cluster.router.map_of(tenants).shard_of(("eu", 7)),)


def test_groups_within_a_part_of_the_key_are_merged(cluster: ShardCluster) -> None:
    for tenant in range(6):
        put(cluster, "eu", tenant, invoices=2)
        put(cluster, "us", tenant)

    with cluster.session(scatter=True) as session:
        by_region = select(Invoice.region, func.count()).group_by(Invoice.region)
        assert {tuple(row) for row in session.execute(by_region)} == {("eu", 12), ("us", 6)}
        by_tenant = select(Invoice.tenant_id, func.count()).group_by(Invoice.tenant_id)
        assert {tuple(row) for row in session.execute(by_tenant)} == {(n, 3) for n in range(6)}


def test_a_join_must_tie_both_columns(cluster: ShardCluster) -> None:
    put(cluster, "eu", 1)
    put(cluster, "us", 1)
    count = select(func.count()).select_from(Invoice)
    both = (Item.area == Invoice.region) & (Item.tenant == Invoice.tenant_id)

    with cluster.session(scatter=True) as session:
        assert session.scalar(count.join(Item, both)) == 4
        assert session.scalar(count.outerjoin(Item, both).where(Invoice.region == "eu")) == 2
        for half in (Item.tenant == Invoice.tenant_id, Item.area == Invoice.region):
            for outer in (False, True):
                with pytest.raises(UnmergeableQueryError, match="compare the shard keys"):
                    session.scalar(count.join(Item, half, isouter=outer))


def test_what_names_no_whole_key_is_not_changed(cluster: ShardCluster) -> None:
    here, there, _ = tenants_on_each(cluster)
    for tenant in (here, there):
        put(cluster, "eu", tenant)
    dear = update(Invoice).values(cents=1)

    with cluster.session() as session:
        with pytest.raises(ScatterRefusedError):
            session.execute(dear)
        with pytest.raises(MultiShardWriteError):
            session.execute(dear.where(Invoice.region == "eu"))
        by_tenant = dear.where(Invoice.tenant_id == here, Invoice.region == "eu")
        assert session.execute(by_tenant).rowcount == 1  # type: ignore[attr-defined]
        session.rollback()
    needs_prepared_transactions(cluster.engines["s0"].url)
    with cluster.session(atomic=True) as session, session.begin():
        of_region = dear.where(Invoice.region == "eu").returning(Invoice.tenant_id)
        assert set(session.scalars(of_region)) == {here, there}
        keys = tuple_(Invoice.region, Invoice.tenant_id).in_([("eu", here), ("eu", there)])
        session.execute(delete(Item).where(tuple_(Item.area, Item.tenant).in_([("eu", here)])))
        assert len(session.scalars(dear.where(keys).returning(Invoice.id)).all()) == 2


def test_rows_are_inserted_each_on_its_shard(cluster: ShardCluster) -> None:
    needs_prepared_transactions(cluster.engines["s0"].url)
    here, there, _ = tenants_on_each(cluster)
    rows = [
        {"region": "eu", "tenant_id": tenant, "id": number, "cents": 1}
        for number in range(3)
        for tenant in (here, there)
    ]

    with cluster.session(atomic=True) as session, session.begin():
        made = session.scalars(insert(Invoice).returning(Invoice), rows).all()
        assert [(each.tenant_id, each.id) for each in made] == [
            (row["tenant_id"], row["id"]) for row in rows
        ]
    shard_map = cluster.router.map_of(tenants)
    for tenant in (here, there):
        found = rows_on(cluster, shard_map.shard_of(("eu", tenant)))
        assert found == [("eu", tenant, number) for number in range(3)]
    with cluster.session() as session:
        with pytest.raises(MultiShardWriteError):
            session.execute(insert(Invoice), rows)
        with pytest.raises(ShardKeyError, match="tenant"):
            session.execute(insert(Invoice).values(region="eu", id=1))
        with pytest.raises(UnroutableKeyError, match="'xx'"):
            session.execute(insert(Invoice).values(region="xx", tenant_id=1, id=1))
        with pytest.raises(ShardKeyError, match="longer"):
            session.execute(insert(Invoice).values(region="eu     ", tenant_id=1, id=1))


def test_neither_column_changes_in_place(cluster: ShardCluster) -> None:
    put(cluster, "eu", 1)
    mine = (Invoice.region == "eu") & (Invoice.tenant_id == 1)
    for changed in ({"region": "us"}, {"tenant_id": 2}):
        with cluster.session() as session:
            invoice = session.get_one(Invoice, ("eu", 1, 0))
            for name, value in changed.items():
                setattr(invoice, name, value)
            with pytest.raises(ShardKeyChangedError, match="move_row"):
                session.flush()
        with cluster.session() as session, pytest.raises(ShardKeyChangedError):
            session.execute(update(Invoice).where(mine).values(**changed))
    with cluster.session() as session:
        session.add(Invoice(region="eu", id=5))
        with pytest.raises(ShardKeyError, match="region, tenant_id of a new object"):
            session.flush()


def test_a_row_gets_another_key(cluster: ShardCluster) -> None:
    needs_prepared_transactions(cluster.engines["s0"].url)
    here, there, _ = tenants_on_each(cluster)
    put(cluster, "eu", here)

    with pytest.raises(RowHasDependantsError):
        cluster.move_row(
            Invoice, {"region": "eu", "tenant_id": here, "id": 0}, region="us", tenant_id=here
        )
    moved = cluster.move_row(
        Invoice,
        {"region": "eu", "tenant_id": here, "id": 0},
        with_children=True,
        region="eu",
        tenant_id=there,
    )
    with cluster.session() as session, session.begin():
        invoice = session.get_one(Invoice, ("eu", there, 0))
        assert len(invoice.items) == 2
        again = session.move_row(invoice, with_children=True, region="us", tenant_id=here)
        assert (again.region, again.tenant_id, len(again.items)) == ("us", here, 2)

    assert moved.rows == {"invoice": 1, "item": 2}
    home = cluster.router.map_of(tenants).shard_of(("us", here))
    assert rows_on(cluster, home) == [("us", here, 0)]
    with pytest.raises(TypeError, match="region='eu', tenant_id=42"):
        cluster.move_row(Invoice, {"region": "us", "tenant_id": here, "id": 0}, region="eu")


def test_a_pinned_session_sees_both_parts_only(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(tenants)
    one = next(iter(tenants_on_each(cluster)))
    beside = next(
        tenant
        for tenant in range(one + 1, 999)
        if shard_map.strategy.bucket(("eu", tenant)) == shard_map.strategy.bucket(("eu", one))
    )
    abroad = next(
        tenant
        for tenant in range(999)
        if shard_map.shard_of(("us", tenant)) == shard_map.shard_of(("eu", one))
    )
    for region, tenant in (("eu", one), ("eu", beside), ("us", abroad), ("us", one)):
        put(cluster, region, tenant)

    with cluster.on(tenants, region="eu", tenant_id=one) as session:
        assert [(i.region, i.tenant_id) for i in session.scalars(select(Invoice))] == [("eu", one)]
        pairs = select(Invoice.id, Item.place).join(Invoice.items)
        assert len(session.execute(pairs).all()) == 2
        assert session.get(Invoice, ("eu", beside, 0)) is None
        changed: Any = session.execute(update(Invoice).values(cents=77))
        assert changed.rowcount == 1
        session.commit()
        with pytest.raises(ShardKeyError, match="pinned"):
            session.execute(insert(Invoice).values(region="us", tenant_id=one, id=9))
        session.add(Invoice(region="us", tenant_id=one, id=9))
        with pytest.raises(ShardKeyError, match="pinned"):
            session.flush()
    with cluster.on(tenants, area="eu", tenant=beside) as session:
        assert session.scalars(select(Invoice.cents)).all() == [beside]
        with pytest.raises(ScatterRefusedError):
            session.execute(select(Item.__table__).where(Item.__table__.c.tenant == beside))
    with pytest.raises(TypeError, match="area, tenant"):
        cluster.on(tenants, region="eu", tenant=1)
    with pytest.raises(ShardKeyError, match="str where int"):
        cluster.on(tenants, region="eu", tenant_id="7")


def test_core_and_asyncio_reach_the_shard_of_a_key(cluster: ShardCluster) -> None:
    put(cluster, "us", 3)
    with cluster.connect(tenants, region="us", tenant_id=3) as conn:
        assert conn.scalar(select(func.count()).select_from(Invoice)) == 1

    async def read() -> int | None:
        async with cluster.async_on(tenants, region="us", tenant_id=3) as session:
            first = await session.scalar(select(Invoice.cents))
        async with cluster.async_session() as over_all:
            second = await over_all.scalar(
                select(Invoice.cents).where(Invoice.region == "us", Invoice.tenant_id == 3)
            )
        await cluster.aclose()
        return first if first == second else None

    assert asyncio.run(read()) == 3


# Maps and moves ------------------------------------------------------------------------------


def test_a_bucket_moves_with_the_rows_of_its_keys_alone(cluster: ShardCluster) -> None:
    for region in ("eu", "us"):
        for tenant in range(40):
            put(cluster, region, tenant)
    shard_map = cluster.router.map_of(tenants)
    bucket = shard_map.strategy.bucket(("eu", 7))
    moving = {n for n in range(40) if shard_map.strategy.bucket(("eu", n)) == bucket}
    source = shard_map.owners[bucket]
    target = next(shard for shard in cluster.engines if shard != source)
    stale = cluster.on(tenants, region="eu", tenant_id=7)
    with stale, stale.begin():
        stale.execute(update(Invoice).values(cents=1))
    with ShardCluster(
        control=cluster._urls["s0"],  # noqa: SLF001 -- as the fixture has them
        shards=cluster._urls,  # noqa: SLF001 -- as above
        groups=[tenants],
        poll_seconds=3600,
    ) as other:
        other.router.map_of(tenants)

        move = cluster.move(tenants, bucket, to=target, clean_after_seconds=0)

        with (
            pytest.raises(StaleShardMapError),
            other.connect(tenants, region="eu", tenant_id=7) as conn,
            conn.begin(),
        ):
            conn.execute(update(Invoice).values(cents=2))
    assert move.copied_rows == 3 * len(moving)
    assert {(r, t) for r, t, _ in rows_on(cluster, target)} >= {("eu", t) for t in moving}
    assert not {("eu", t) for t in moving} & {(r, t) for r, t, _ in rows_on(cluster, source)}
    with cluster.session(scatter=True) as session:
        assert session.scalar(select(func.count()).select_from(Invoice)) == 80
        assert session.get_one(Invoice, ("eu", 7, 0)).cents == 1
    counted = [bucket for shard in cluster.stats() for bucket in shard.buckets]
    assert sum(each.rows for each in counted) == 80 * 3
    assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)


def test_a_table_whose_uniqueness_leaves_a_part_out_does_not_move(cluster: ShardCluster) -> None:
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(text("CREATE UNIQUE INDEX lone ON invoice (tenant_id, id)"))

    source = cluster.router.map_of(tenants).owners[0]
    target = next(shard for shard in cluster.engines if shard != source)
    with pytest.raises(MoveRefusedError, match="without region"):
        cluster.move(tenants, 0, to=target)
    told = [each for each in cluster.lint() if each.rule == "unique"]
    assert {(each.table, each.advice.split(",")[0]) for each in told} == {("invoice", "add region")}


def test_lint_makes_the_index_by_which_a_bucket_is_found(cluster: ShardCluster) -> None:
    wanted = [each for each in cluster.lint() if each.rule == "bucket-index"]
    assert {each.table for each in wanted} == {"invoice", "item"}
    for each in wanted:
        assert each.sql is not None
        assert each.shard is not None
        engine = cluster.engines[each.shard].execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            conn.exec_driver_sql(each.sql)

    assert cluster.lint() == []


def test_what_keys_of_two_columns_cannot_do_is_refused(cluster: ShardCluster) -> None:
    for change in (
        lambda: cluster.pin(tenants, ("eu", 7)),
        lambda: cluster.unpin(tenants, ("eu", 7)),
        lambda: cluster.assign(tenants, ("eu", 7), 3),
        lambda: cluster.split_range(tenants, at="f"),
        lambda: cluster.merge_ranges(tenants, at="f"),
        lambda: cluster.advise_pins(tenants),
    ):
        with pytest.raises(MapChangeRefusedError, match="move the whole bucket"):
            change()
    (finding,) = cluster.check_citus()
    assert "two columns" in finding.problem
    with pytest.raises(CitusUnfitError, match="two columns"):
        cluster.citus_ddl()
    with pytest.raises(ShardKeyError, match="two columns"):
        _ = Invoice.__shard__.column


def test_another_list_of_regions_is_another_placement(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    more = Composite(ListMap({"eu": 0, "us": 1, "apac": 1}), Hash(buckets=8))
    other = EntityGroup("tenant", strategy=more, key=tenants.key)
    cluster.router.map_of(tenants)

    with (
        ShardCluster(
            control=shard_urls[0], shards=named(shard_urls[:3]), groups=[other]
        ) as mistaken,
        pytest.raises(GroupMismatchError, match="composite of text,bigint keys"),
    ):
        mistaken.router.map_of(other)


def test_ids_carry_the_bucket_of_both_parts(cluster: ShardCluster) -> None:
    ids = cluster.ids(tenants)

    made = ids.next(("us", 7))

    assert parts_of_id(made).bucket == tenants.strategy.bucket(("us", 7))
    with pytest.raises(UnroutableKeyError, match="two parts"):
        ids.next(7)
    ids.close()


def test_hot_keys_are_told_with_both_parts(cluster: ShardCluster) -> None:
    put(cluster, "eu", 7)
    for _ in range(20):
        with cluster.session() as session:
            session.get_one(Invoice, ("eu", 7, 0))
    assert cluster.load is not None
    cluster.load.flush()

    hottest = cluster.hot_keys(tenants, limit=1)[0]

    assert hottest.key == ("eu", 7)
    assert hottest.bucket == tenants.strategy.bucket(("eu", 7))


def test_a_key_is_routed_by_the_command(
    run: Run, cluster: ShardCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {shard: shown(engine.url) for shard, engine in cluster.engines.items()}
    name = f"regions_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from datapatterns.sharding import ShardCluster\n"
        "from tests.fixtures.regional_model import tenants\n"
        f"cluster = ShardCluster(control={urls['s0']!r}, shards={urls!r}, groups=[tenants])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    route = ("shards", "route", "tenant", "--cluster", f"{name}:cluster", "--json")

    found = json.loads(run(*route, "eu", "7").out)
    refused = run(*route, "eu")

    shard_map = cluster.router.map_of(tenants)
    assert found == {
        "group": "tenant",
        "key": ["eu", 7],
        "bucket": shard_map.strategy.bucket(("eu", 7)),
        "shard": shard_map.shard_of(("eu", 7)),
    }
    assert refused.code == 2
    assert "text,bigint" in refused.err


def test_foreign_keys_keep_both_columns_together(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.add(Item(area="us", tenant=7, number=1, place=1))
        with pytest.raises(IntegrityError):
            session.flush()
    assert {table.name for table in Base.metadata.sorted_tables} == {"invoice", "item"}

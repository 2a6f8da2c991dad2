"""A row gets another shard key: it is on one shard or on the other, whole, and never on both."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import pytest
from sqlalchemy import URL, Engine, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from datapatterns.errors import (
    AbortedTransactionError,
    RowHasDependantsError,
    RowMissingError,
    ShardedTableError,
    ShardKeyChangedError,
    ShardKeyError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.rekeying import rows
from tests.fixtures.atomic import Died, decisions, needs_prepared_transactions, prepared
from tests.fixtures.blocking import until_waiting
from tests.fixtures.broadcast_model import (
    Cart,
    Country,
    Item,
    broadcast_shop,
    families,
    family_on_each,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with broadcast_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert (prepared(cluster), decisions(cluster)) == ([], [])
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


@pytest.fixture
def homes(cluster: ShardCluster) -> tuple[int, int]:
    """Two families on two shards; the first has two carts, one with items."""
    here, there, _ = family_on_each(cluster)
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Country(code="de", name="ü"))
        items = [Item(number=number, quantity=number) for number in (1, 2)]
        session.add(Cart(family_id=here, id=1, country_code="de", cents=5, items=items))
        session.add(Cart(family_id=here, id=2))
        session.add(Cart(family_id=there, id=2, cents=9))
    return here, there


def carts(cluster: ShardCluster) -> dict[str, list[tuple[int, int, int | None]]]:
    """Return all carts, by the shard that they lie on."""
    return {
        shard: rows
        for shard, engine in sorted(cluster.engines.items())
        if (rows := carts_on(engine))
    }


def carts_on(engine: Engine) -> list[tuple[int, int, int | None]]:
    with engine.connect() as conn:
        found = conn.execute(select(Cart.family_id, Cart.id, Cart.cents).order_by(Cart.id))
        return [(family, number, cents) for family, number, cents in found]


def items(cluster: ShardCluster, family: int) -> list[int]:
    with cluster.session() as session:
        statement = select(Item.quantity).where(Item.family_id == family).order_by(Item.number)
        return list(session.scalars(statement))


def test_an_object_moves_to_the_shard_of_its_new_key(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    with cluster.session() as session, session.begin():
        old = session.get_one(Cart, (here, 1))
        old.cents = 6
        new = session.move_row(old, with_children=True, family_id=there)

        assert (new.family_id, new.id, new.cents, new.country_code) == (there, 1, 6, "de")
        assert [item.quantity for item in new.items] == [1, 2]
        assert old not in session
        new.cents = 7

    assert carts(cluster) == {"s0": [(here, 2, None)], "s1": [(there, 1, 7), (there, 2, 9)]}
    assert (items(cluster, here), items(cluster, there)) == ([], [1, 2])


def test_a_row_is_moved_by_its_primary_key(cluster: ShardCluster, homes: tuple[int, int]) -> None:
    here, there = homes

    moved = cluster.move_row(
        Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there
    )

    assert (moved.source, moved.target, moved.rows) == ("s0", "s1", {"cart": 1, "item": 2})
    assert items(cluster, there) == [1, 2]


def test_a_row_that_nothing_refers_to_moves_alone(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes

    moved = cluster.move_row(Item, {"family_id": here, "cart_id": 1, "number": 1}, family_id=here)
    assert moved.rows == {}
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Cart(family_id=here, id=3))
    assert cluster.move_row(Cart, {"family_id": here, "id": 3}, family_id=there).rows == {"cart": 1}


def test_a_key_on_the_same_shard_needs_no_other(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, _ = homes
    shard_map = cluster.router.map_of(families)
    near = next(key for key in range(1_000) if key != here and shard_map.shard_of(key) == "s0")

    moved = cluster.move_row(
        Cart.__table__,  # type: ignore[arg-type]  # a Table
        {"family_id": here, "id": 1},
        with_children=True,
        family_id=near,
    )
    nowhere = cluster.move_row(Cart, {"family_id": near, "id": 1}, family_id=near)

    assert (moved.source, moved.target, nowhere.rows) == ("s0", "s0", {})
    assert items(cluster, near) == [1, 2]


def test_what_refers_to_a_row_is_named_unless_it_may_move_along(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    before = carts(cluster)

    with pytest.raises(RowHasDependantsError, match="item") as caught:
        cluster.move_row(Cart, {"family_id": here, "id": 1}, family_id=there)

    assert caught.value.dependants == ("item",)
    assert carts(cluster) == before


def test_a_cascade_that_nobody_has_declared_deletes_nothing(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    with cluster.engines["s0"].begin() as conn:
        conn.execute(
            text(
                "CREATE TABLE note (f bigint, c int,"
                " FOREIGN KEY (f, c) REFERENCES cart ON DELETE CASCADE)"
            )
        )
        conn.execute(text("INSERT INTO note VALUES (:family, 2)"), {"family": here})

    with pytest.raises(RowHasDependantsError, match="none of group"):
        cluster.move_row(Cart, {"family_id": here, "id": 2}, with_children=True, family_id=there)
    with cluster.engines["s0"].begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM note")) == 1
        conn.execute(text("DROP TABLE note"))


def test_a_row_that_is_in_the_way_stops_a_move(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    before = carts(cluster)

    with pytest.raises(IntegrityError):
        cluster.move_row(Cart, {"family_id": here, "id": 2}, family_id=there)

    with cluster.session() as session:
        cart = session.get_one(Cart, (here, 2))
        with pytest.raises(IntegrityError):
            session.move_row(cart, family_id=there)

    assert carts(cluster) == before


def test_a_trigger_that_changes_a_row_stops_a_move_even_if_that_is_caught(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    before = carts(cluster)
    with cluster.engines["s1"].begin() as conn:
        conn.execute(
            text(
                "CREATE FUNCTION dear() RETURNS trigger LANGUAGE plpgsql"
                " AS 'BEGIN NEW.cents := 1; RETURN NEW; END'"
            )
        )
        conn.execute(
            text("CREATE TRIGGER dear BEFORE INSERT ON cart FOR EACH ROW EXECUTE FUNCTION dear()")
        )

    with cluster.session() as session:
        cart = session.get_one(Cart, (here, 1))
        with suppress(ShardedTableError):
            session.move_row(cart, with_children=True, family_id=there)
        with pytest.raises(AbortedTransactionError):
            session.commit()

    assert carts(cluster) == before


def test_rollbacks_and_savepoints_undo_a_move(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    before = carts(cluster)

    with cluster.session() as session:
        session.move_row(session.get_one(Cart, (here, 1)), with_children=True, family_id=there)
        session.rollback()
        with suppress(LookupError), session.begin_nested():
            session.move_row(session.get_one(Cart, (here, 1)), with_children=True, family_id=there)
            raise LookupError
        session.commit()

    assert carts(cluster) == before
    assert items(cluster, here) == [1, 2]


def test_what_is_gone_or_no_key_is_refused(cluster: ShardCluster, homes: tuple[int, int]) -> None:
    here, there = homes
    with pytest.raises(RowMissingError):
        cluster.move_row(Cart, {"family_id": here, "id": 77}, family_id=there)
    with pytest.raises(ShardKeyError):
        cluster.move_row(Cart, {"family_id": here, "id": 2}, family_id="7")
    with cluster.session() as session:
        session.get_one(Cart, (here, 2)).family_id = there
        with pytest.raises(ShardKeyChangedError, match="move_row"):
            session.flush()
    with cluster.session() as session, pytest.raises(ValueError, match="stored"):
        session.move_row(Cart(family_id=here, id=9), family_id=there)


def test_a_move_waits_for_a_writer_and_takes_what_he_wrote(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    written, begun = Event(), Event()

    def move() -> None:
        begun.set()
        cluster.move_row(Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there)

    def write() -> None:
        with cluster.session() as session, session.begin():
            session.execute(
                update(Cart).where(Cart.family_id == here, Cart.id == 1).values(cents=8)
            )
            session.add(Item(family_id=here, cart_id=1, number=3, quantity=3))
            session.flush()
            written.set()
            assert begun.wait(30)
            until_waiting(cluster.engines["s0"], 1)

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        assert written.wait(30)
        pool.submit(move).result(timeout=60)
        writing.result(timeout=60)

    assert (there, 1, 8) in carts(cluster)["s1"]
    assert items(cluster, there) == [1, 2, 3]


@pytest.mark.parametrize(
    ("failpoint", "happened"),
    [
        ("atomic.branch-prepared", False),
        ("atomic.decision-written", False),
        ("atomic.decided", True),
    ],
)
def test_a_move_that_dies_leaves_the_row_here_or_there(
    cluster: ShardCluster, homes: tuple[int, int], failpoint: str, *, happened: bool
) -> None:
    def die() -> None:
        raise Died

    here, there = homes
    with armed(failpoint, die), pytest.raises(Died):
        cluster.move_row(Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there)
    for _ in range(2):
        cluster.recover(grace_seconds=0)

    moved = [shard for shard, rows in carts(cluster).items() if any(r[1] == 1 for r in rows)]
    assert moved == (["s1"] if happened else ["s0"])
    assert items(cluster, there if happened else here) == [1, 2]


def test_a_trigger_that_keeps_a_row_stops_a_move(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    """As one that only marks as deleted; the row would be on two shards."""
    here, there = homes
    before = carts(cluster)
    with cluster.engines["s0"].begin() as conn:
        conn.execute(
            text(
                "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql"
                " AS 'BEGIN UPDATE item SET quantity = -1 WHERE number = OLD.number; RETURN NULL;"
                " END'"
            )
        )
        conn.execute(
            text("CREATE TRIGGER keep BEFORE DELETE ON item FOR EACH ROW EXECUTE FUNCTION keep()")
        )

    with pytest.raises(ShardedTableError, match="stayed"):
        cluster.move_row(Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there)

    assert carts(cluster) == before
    assert items(cluster, here) == [1, 2]


def test_more_rows_move_than_one_statement_has_parameters_for(
    cluster: ShardCluster, homes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = homes
    monkeypatch.setattr(rows, "_PARAMETERS_MAX", 100)
    count = 99
    with cluster.session() as session, session.begin():
        session.add_all(
            Item(family_id=here, cart_id=1, number=n, quantity=n) for n in range(3, count + 1)
        )

    moved = cluster.move_row(
        Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there
    )

    assert moved.rows == {"cart": 1, "item": count}
    assert items(cluster, there) == [*range(1, count + 1)]


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE"])
def test_rows_that_refer_to_several_of_their_own_table_move_along(
    cluster: ShardCluster, homes: tuple[int, int], action: str
) -> None:
    """3 refers to 1 and to 2, and 2 to 1: whichever is found first, none is deleted too early."""
    here, there = homes
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            for column in ("parent", "friend"):
                conn.execute(text(f"ALTER TABLE cart ADD {column} int"))
                conn.execute(
                    text(
                        f"ALTER TABLE cart ADD FOREIGN KEY (family_id, {column})"
                        f" REFERENCES cart (family_id, id) ON DELETE {action}"
                    )
                )
    with cluster.session() as session, session.begin():
        session.add(Cart(family_id=here, id=3))
        session.add(Cart(family_id=here, id=4))
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("UPDATE cart SET parent = 1 WHERE id IN (3, 4)"))
        conn.execute(text("UPDATE cart SET friend = 4 WHERE id = 3"))
        conn.execute(text("UPDATE cart SET friend = 3 WHERE id = 4"))

    moved = cluster.move_row(
        Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there
    )

    assert moved.rows == {"cart": 3, "item": 2}
    with cluster.engines["s1"].connect() as conn:
        found = conn.execute(text("SELECT id, parent, friend FROM cart WHERE id <> 2 ORDER BY id"))
        assert [*map(tuple, found)] == [(1, None, None), (3, 1, 4), (4, 1, 3)]


def test_a_row_that_came_after_the_snapshot_is_not_lost_by_a_cascade(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("ALTER TABLE item DROP CONSTRAINT item_family_id_cart_id_fkey"))
        conn.execute(
            text(
                "ALTER TABLE item ADD FOREIGN KEY (family_id, cart_id) REFERENCES cart"
                " ON DELETE CASCADE"
            )
        )
    cluster.engines["s0"].update_execution_options(isolation_level="REPEATABLE READ")
    with cluster.session() as session:
        cart = session.get_one(Cart, (here, 1))
        with cluster.session() as other, other.begin():
            other.add(Item(family_id=here, cart_id=1, number=3, quantity=3))
        with pytest.raises(DBAPIError, match="serialize"):
            session.move_row(cart, with_children=True, family_id=there)

    assert items(cluster, here) == [1, 2, 3]
    assert items(cluster, there) == []


def test_of_two_who_move_a_row_one_finds_it_gone(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    begun = Event()

    def second() -> None:
        begun.set()
        cluster.move_row(Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there)

    with ThreadPoolExecutor(1) as pool:
        with cluster.atomically() as work:
            work.move_row(Cart, {"family_id": here, "id": 1}, with_children=True, family_id=there)
            waiting = pool.submit(second)
            assert begun.wait(30)
            until_waiting(cluster.engines["s0"], 1)
        with pytest.raises(RowMissingError):
            waiting.result(timeout=60)

    assert carts(cluster)["s1"] == [(there, 1, 5), (there, 2, 9)]


def test_a_generated_column_that_is_referred_to_is_refused(
    cluster: ShardCluster, homes: tuple[int, int]
) -> None:
    here, there = homes
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("ALTER TABLE cart ADD t int GENERATED ALWAYS AS (id * 2) STORED"))
        conn.execute(text("ALTER TABLE cart ADD UNIQUE (family_id, t)"))
        conn.execute(
            text(
                "CREATE TABLE ticket (f bigint, t int,"
                " FOREIGN KEY (f, t) REFERENCES cart (family_id, t) ON DELETE CASCADE)"
            )
        )
        conn.execute(text("INSERT INTO ticket VALUES (:family, 4)"), {"family": here})

    with pytest.raises(ShardedTableError, match="generated"):
        cluster.move_row(Cart, {"family_id": here, "id": 2}, with_children=True, family_id=there)
    with cluster.engines["s0"].begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM ticket")) == 1
        conn.execute(text("DROP TABLE ticket"))

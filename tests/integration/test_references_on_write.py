"""References over shards: no row refers to what is not there, whichever way it is written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Table, bindparam, delete, event, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from datapatterns.errors import (
    DataPatternsError,
    IsolationLevelError,
    ParentInUseError,
    ParentMissingError,
    ReferenceWriteError,
)
from datapatterns.sharding import AllShards, ShardCluster
from datapatterns.sharding.references import questions
from datapatterns.sharding.sessions.reference_writing import ReferenceWriting
from tests.fixtures.atomic import decisions, needs_prepared_transactions, prepared
from tests.fixtures.referring import (
    Account,
    Base,
    Branch,
    Customer,
    Order,
    add_customers,
    add_order,
    all_customers,
    all_orders,
    customers,
    keys_on,
    referring_cluster,
    referring_shop,
    stores,
)

pytestmark = pytest.mark.postgres

MISSING = 999_999


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert prepared(cluster) == []
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


@pytest.fixture
def known(cluster: ShardCluster) -> list[int]:
    """A customer on each shard."""
    found = keys_on(cluster, customers)
    add_customers(cluster, *found)
    return found


@pytest.fixture
def shops(cluster: ShardCluster) -> list[int]:
    return keys_on(cluster, stores)


def commits(session: Session) -> bool:
    """Commit all the same; return whether that went well."""
    try:
        session.commit()
    except (DataPatternsError, SQLAlchemyError):
        return False
    return True


def flushing(session: Session, write: Callable[[Session, Any], object], what: object) -> None:
    write(session, what)
    session.flush()


# Children ------------------------------------------------------------------------------------


def test_a_row_refers_to_one_of_another_shard(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1], payer=known[2]))

    assert all_orders(cluster) == [(shops[0], known[1])]
    assert decisions(cluster) == []


def _then_set(session: Session, row: dict[str, Any], customer: Any) -> None:  # noqa: ANN401 -- or what computes it
    order = Order(**{**row, "customer_id": None})
    session.add(order)
    session.flush()
    order.customer_id = customer


def _table(of: type[Base]) -> Table:
    assert isinstance(of.__table__, Table)
    return of.__table__


WAYS: dict[str, Callable[[Session, dict[str, Any]], object]] = {
    "an object": lambda session, row: session.add(Order(**row)),
    "insert of a class": lambda session, row: session.execute(insert(Order).values(row)),
    "a list of a class": lambda session, row: session.execute(insert(Order), [row]),
    "a table": lambda session, row: session.execute(insert(_table(Order)).values(row)),
    "a list of a table": lambda session, row: session.execute(insert(_table(Order)), [row]),
    "several VALUES": lambda session, row: session.execute(insert(Order).values([row])),
    "a parameter": lambda session, row: session.execute(
        insert(Order).values({**row, "customer_id": bindparam("whose")}),
        {"whose": row["customer_id"]},
    ),
    "ON CONFLICT": lambda session, row: session.execute(
        upsert(Order).values(row).on_conflict_do_nothing()
    ),
    "an update": lambda session, row: [
        session.execute(insert(Order).values({**row, "customer_id": None})),
        session.execute(
            update(Order)
            .where(Order.store_id == row["store_id"])
            .values(customer_id=row["customer_id"])
        ),
    ],
    "an update by primary key": lambda session, row: [
        session.execute(insert(Order).values({**row, "customer_id": None})),
        session.execute(update(Order), [row]),
    ],
    "an update of an object": lambda session, row: _then_set(session, row, row["customer_id"]),
    "an expression": lambda session, row: [
        session.execute(insert(Order).values({**row, "customer_id": None})),
        session.execute(
            update(Order)
            .where(Order.store_id == row["store_id"])
            .values(customer_id=func.coalesce(Order.customer_id, row["customer_id"]))
        ),
    ],
    "an expression of an object": lambda session, row: _then_set(
        session, row, func.abs(row["customer_id"])
    ),
    "ON CONFLICT DO UPDATE": lambda session, row: [
        session.execute(insert(Order).values({**row, "customer_id": None})),
        session.execute(
            (new := upsert(Order).values(row)).on_conflict_do_update(
                index_elements=["store_id", "id"],
                set_={
                    "customer_id": new.excluded.customer_id,
                    "branch_code": new.excluded.branch_code,
                },
            )
        ),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_it_is_written_a_missing_parent_is_an_error(
    cluster: ShardCluster, known: list[int], shops: list[int], way: str
) -> None:
    write = WAYS[way]
    with cluster.session(atomic=True) as session, session.begin():
        write(session, {"store_id": shops[0], "id": 1, "customer_id": known[1]})
    with cluster.session(atomic=True) as session:
        with pytest.raises(ParentMissingError, match="store_order_customer_id") as refused:
            flushing(session, write, {"store_id": shops[1], "id": 1, "customer_id": MISSING})
        assert not commits(session)

    assert refused.value.keys == ((MISSING,),)
    assert all_orders(cluster) == [(shops[0], known[1])]


def test_all_references_of_a_row_count(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    add_order(cluster, shops[0], known[0])
    with cluster.session(atomic=True) as session:
        session.add(Order(store_id=shops[0], id=2, customer_id=known[0], payer=MISSING))
        with pytest.raises(ParentMissingError, match="'payer'"):
            session.commit()


def test_null_refers_to_nothing(cluster: ShardCluster, shops: list[int]) -> None:
    add_order(cluster, shops[0], None)

    with cluster.session(atomic=True) as session, session.begin():
        session.add(Order(store_id=shops[0], id=2, branch_code="half of a reference"))

    assert all_orders(cluster) == [(shops[0], None), (shops[0], None)]


def test_two_columns_refer_to_two(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Branch(customer_id=known[1], id=1, code="ö'\" 漢"))
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1], branch_code="ö'\" 漢"))

    with cluster.session(atomic=True) as session:
        session.add(Order(store_id=shops[0], id=2, customer_id=known[2], branch_code="ö'\" 漢"))
        with pytest.raises(ParentMissingError, match="branch has no row"):
            session.commit()


def test_half_of_a_reference_is_changed(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(Branch(customer_id=known[1], id=n, code=c) for n, c in enumerate("ab"))
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1], branch_code="a"))
    to_b = update(Order).where(Order.store_id == shops[0]).values(branch_code="b")

    with cluster.session(atomic=True) as session, session.begin():
        session.execute(to_b)
    with cluster.session(atomic=True) as session:
        with pytest.raises(ParentMissingError):
            session.execute(to_b.values(branch_code="c"))
        session.rollback()
        session.get_one(Order, (shops[0], 1)).branch_code = "c"
        with pytest.raises(ParentMissingError):
            session.commit()
    with cluster.session(atomic=True) as session, pytest.raises(ParentMissingError):
        session.execute(update(Order), [{"store_id": shops[0], "id": 1, "branch_code": "c"}])


def test_parent_and_child_are_written_in_one_transaction(
    cluster: ShardCluster, shops: list[int]
) -> None:
    customer = keys_on(cluster, customers)[1]

    with cluster.session(atomic=True) as session, session.begin():
        session.add(Order(store_id=shops[0], id=1, customer_id=customer))
        session.add(Customer(id=customer, referred_by=customer))

    assert all_customers(cluster) == [customer]


def test_a_batch_asks_each_shard_once_for_all_rows(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    locks: list[str] = []
    for engine in cluster.engines.values():
        event.listen(
            engine,
            "before_cursor_execute",
            lambda _c, _cur, statement, *_: (
                locks.append(statement) if "FOR KEY SHARE" in statement else None
            ),
        )
    rows = [
        {"store_id": shop, "id": number, "customer_id": customer}
        for number in range(50)
        for shop in shops
        for customer in [known[number % 3]]
    ]
    with cluster.session(atomic=True) as session, session.begin():
        session.execute(insert(Order), rows)
        session.execute(update(Order).where(Order.store_id.in_(shops)).values(payer=known[0]))

    assert len(all_orders(cluster)) == 150
    assert len(locks) == 4


def test_what_is_locked_already_is_not_asked_for_again(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        for number in range(3):
            session.add(Order(store_id=shops[0], id=number, customer_id=known[1]))
            session.flush()
        session.execute(delete(Order).where(Order.store_id == shops[0]))
        session.delete(session.get_one(Customer, known[1]))
        session.flush()
        session.add(Order(store_id=shops[0], id=7, customer_id=known[1]))
        with pytest.raises(ParentMissingError):
            session.flush()
        session.rollback()


def test_a_lock_that_a_savepoint_has_given_back_is_taken_again(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session:
        savepoint = session.begin_nested()
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1]))
        session.flush()
        savepoint.rollback()
        session.add(Order(store_id=shops[0], id=2, customer_id=known[1]))
        session.flush()
        nowait = select(Customer).where(Customer.id == known[1]).with_for_update(nowait=True)
        with (
            cluster.session() as other,
            pytest.raises(DBAPIError, match="could not obtain lock"),
        ):
            other.execute(nowait)
        session.commit()


def test_a_savepoint_brings_back_what_a_transaction_had_before(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        savepoint = session.begin_nested()
        session.add(Order(store_id=shops[0], id=1, customer_id=MISSING))
        with pytest.raises(ParentMissingError):
            session.flush()
        savepoint.rollback()
        session.add(Order(store_id=shops[0], id=2, customer_id=known[1]))

    assert all_orders(cluster) == [(shops[0], known[1])]


def test_together_on_one_shard_they_need_no_session_for_several(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session() as session, session.begin():
        session.add(Order(store_id=shops[1], id=1, customer_id=known[1]))
    with cluster.session() as session, session.begin():
        session.execute(insert(Order).values(store_id=shops[1], id=2, customer_id=known[1]))

    assert len(all_orders(cluster)) == 2


def test_a_session_for_one_shard_is_told_to_be_one_for_several(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    with cluster.session() as session:
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1]))
        with pytest.raises(ReferenceWriteError, match="atomic=True"):
            session.commit()
        session.rollback()
        with pytest.raises(ReferenceWriteError, match="atomic=True"):
            session.execute(insert(Order).values(store_id=shops[0], id=2, customer_id=known[1]))
        assert not commits(session)

    assert all_orders(cluster) == []


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_stricter_transaction_may_refer(
    shard_urls: list[URL], known: list[int], shops: list[int], level: str
) -> None:
    strict = {"isolation_level": level}
    with referring_cluster(shard_urls[:3], engine_options=strict) as same:
        add_order(same, shops[0], known[1])
        with same.session(atomic=True) as session:
            session.delete(session.get_one(Customer, known[2]))
            with pytest.raises(IsolationLevelError, match="read committed"):
                session.commit()


@pytest.mark.parametrize("value", ["7", 7.0])
def test_nothing_is_converted(cluster: ShardCluster, shops: list[int], value: object) -> None:
    with (
        cluster.session(atomic=True) as session,
        pytest.raises(ReferenceWriteError, match="has to be int"),
    ):
        session.execute(insert(Order).values(store_id=shops[0], id=1, customer_id=value))


# Parents -------------------------------------------------------------------------------------


GOING: dict[str, Callable[[Session, int], object]] = {
    "an object": lambda session, key: session.delete(session.get_one(Customer, key)),
    "delete of a class": lambda session, key: session.execute(
        delete(Customer).where(Customer.id == key)
    ),
    "delete of a table": lambda session, key: session.execute(
        delete(_table(Customer)).where(_table(Customer).c.id == key)
    ),
    "delete of all": lambda session, _key: session.execute(
        delete(Customer), execution_options={"shard": AllShards()}
    ),
    "delete on a shard": lambda session, _key: session.execute(
        delete(Customer).where(Customer.name.is_(None)),
        execution_options={"shard": "s1"},
    ),
    "move_row": lambda session, key: session.move_row(  # type: ignore[attr-defined]
        session.get_one(Customer, key), id=MISSING
    ),
}


@pytest.mark.parametrize("way", GOING)
def test_a_row_that_is_referred_to_stays_whichever_way_it_is_to_go(
    cluster: ShardCluster, known: list[int], shops: list[int], way: str
) -> None:
    add_order(cluster, shops[0], known[1])

    with cluster.session(atomic=True) as session:
        with pytest.raises(ParentInUseError, match="store_order refer to customer") as refused:
            flushing(session, GOING[way], known[1])
        assert not commits(session)
    assert refused.value.keys == ((known[1],),)
    assert all_customers(cluster) == sorted(known)

    with cluster.session(atomic=True) as session, session.begin():
        session.execute(delete(Order).where(Order.store_id == shops[0]))
        GOING[way](session, known[1])
    assert known[1] not in all_customers(cluster)


def test_a_row_goes_in_the_transaction_in_which_the_last_one_refers_to_another(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    add_order(cluster, shops[0], known[1])

    with cluster.session(atomic=True) as session, session.begin():
        session.get_one(Order, (shops[0], 1)).customer_id = known[2]
        session.delete(session.get_one(Customer, known[1]))

    assert all_orders(cluster) == [(shops[0], known[2])]


def test_a_session_for_one_shard_may_delete_what_nobody_refers_to(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    add_order(cluster, shops[0], known[1])

    with cluster.session() as session, session.begin():
        session.delete(session.get_one(Customer, known[2]))
    with cluster.session() as session:
        session.delete(session.get_one(Customer, known[1]))
        with pytest.raises(ParentInUseError):
            session.commit()

    assert all_customers(cluster) == sorted(known[:2])


def test_a_row_is_its_own_parent(cluster: ShardCluster, known: list[int]) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.get_one(Customer, known[0]).referred_by = known[0]
        session.get_one(Customer, known[1]).referred_by = known[2]
    with cluster.session(atomic=True) as session, session.begin():
        session.delete(session.get_one(Customer, known[0]))
    with cluster.session(atomic=True) as session:
        session.delete(session.get_one(Customer, known[2]))
        with pytest.raises(ParentInUseError, match="customer_referred_by"):
            session.commit()

    assert all_customers(cluster) == sorted(known[1:])


def test_who_refers_by_his_own_shard_key_is_looked_for_on_one_shard(
    cluster: ShardCluster, known: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Account(customer_id=known[0], number=1))

    with cluster.session(atomic=True) as session:
        session.delete(session.get_one(Customer, known[0]))
        with pytest.raises(ParentInUseError, match="account"):
            session.commit()


@pytest.fixture
def branches(cluster: ShardCluster, known: list[int], shops: list[int]) -> list[int]:
    """Of one customer: `a`, to which an order refers, and `b`."""
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(Branch(customer_id=known[1], id=n, code=c) for n, c in enumerate("ab"))
        session.add(Order(store_id=shops[0], id=1, customer_id=known[1], branch_code="a"))
    return known


CHANGING: dict[str, Callable[[Session, int], object]] = {
    "an object": lambda session, key: setattr(session.get_one(Branch, (key, 0)), "code", "c"),
    "an object and an expression": lambda session, key: setattr(
        session.get_one(Branch, (key, 0)), "code", func.upper("c")
    ),
    "an object and nothing": lambda session, key: setattr(
        session.get_one(Branch, (key, 0)), "code", None
    ),
    "an update": lambda session, key: session.execute(
        update(Branch).where(Branch.customer_id == key, Branch.code == "a").values(code="c")
    ),
    "a deletion": lambda session, key: session.delete(session.get_one(Branch, (key, 0))),
}


@pytest.mark.parametrize("way", CHANGING)
def test_a_key_that_is_referred_to_stays(
    cluster: ShardCluster, branches: list[int], way: str
) -> None:
    with (
        cluster.session(atomic=True) as session,
        pytest.raises(ParentInUseError, match="branch"),
    ):
        flushing(session, CHANGING[way], branches[1])


def test_what_nobody_refers_to_may_get_another_key(
    cluster: ShardCluster, branches: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.get_one(Branch, (branches[1], 1)).code = "c"
        session.get_one(Branch, (branches[1], 0)).code = "a"
        session.execute(
            update(Branch).where(Branch.customer_id == branches[1]).values(code=Branch.code)
        )


def test_a_key_that_another_row_gets_is_not_gone(
    cluster: ShardCluster, branches: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        first, second = (session.get_one(Branch, (branches[1], number)) for number in (0, 1))
        first.code, second.code = "z", "a"


def test_an_object_that_was_loaded_long_ago_gives_up_the_key_that_it_has_now(
    cluster: ShardCluster, branches: list[int], shops: list[int]
) -> None:
    with cluster.session(atomic=True) as session:
        old = session.get_one(Branch, (branches[1], 1))
        assert old.code == "b"
        with cluster.session(atomic=True) as other, other.begin():
            other.get_one(Branch, (branches[1], 1)).code = "d"
            other.flush()
            other.add(Order(store_id=shops[2], id=1, customer_id=branches[1], branch_code="d"))
        session.delete(old)
        with pytest.raises(ParentInUseError, match="'d'"):
            session.commit()


REFUSED: list[tuple[str, Callable[[Session, int], object]]] = [
    (
        "list of rows",
        lambda session, key: session.execute(
            update(Branch), [{"customer_id": key, "id": 0, "code": "c"}]
        ),
    ),
    (
        "several sets",
        lambda session, key: session.execute(
            delete(_table(Branch)).where(_table(Branch).c.customer_id == bindparam("key")),
            [{"key": key}, {"key": key}],
        ),
    ),
    (
        "ON CONFLICT changes code",
        lambda session, key: session.execute(
            upsert(Branch)
            .values(customer_id=key, id=0)
            .on_conflict_do_update(index_elements=["customer_id", "id"], set_={"code": "c"})
        ),
    ),
    (
        "is computed",
        lambda session, key: session.execute(
            insert(Order).values(store_id=1, id=1, customer_id=func.abs(key))
        ),
    ),
    (
        "not known before",
        lambda session, key: session.execute(
            upsert(Order)
            .values(store_id=1, id=1)
            .on_conflict_do_update(
                index_elements=["store_id", "id"], set_={"payer_id": func.abs(key)}
            )
        ),
    ),
]


@pytest.mark.parametrize(("reason", "write"), REFUSED, ids=[reason for reason, _ in REFUSED])
def test_what_cannot_be_checked_is_refused(
    cluster: ShardCluster,
    branches: list[int],
    reason: str,
    write: Callable[[Session, int], object],
) -> None:
    with cluster.session(atomic=True) as session, pytest.raises(ReferenceWriteError, match=reason):
        write(session, branches[1])


def test_too_many_rows_at_once_are_refused(
    cluster: ShardCluster, known: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "datapatterns.sharding.sessions.reference_writing.CHOSEN_ROWS_MAX", len(known) - 1
    )
    with (
        cluster.session(atomic=True) as session,
        pytest.raises(ReferenceWriteError, match="at most 2 at once"),
    ):
        session.execute(delete(Customer), execution_options={"shard": AllShards()})


def test_keys_are_asked_for_in_parts(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_KEYS_AT_ONCE", 3)
    add_customers(cluster, *range(1, 30))
    rows = [{"store_id": n, "id": 1, "customer_id": n} for n in range(1, 30)]
    with cluster.session(atomic=True) as session, session.begin():
        session.execute(insert(Order), rows)

    with cluster.session(atomic=True) as session:
        with pytest.raises(ParentInUseError) as refused:
            session.execute(delete(Customer), execution_options={"shard": AllShards()})
        session.rollback()
        with pytest.raises(ParentMissingError) as missing:
            session.execute(insert(Order), [{**r, "id": 2, "customer_id": 99} for r in rows])

    assert len(refused.value.keys) == 29
    assert missing.value.keys == ((99,),)


def test_a_statement_takes_no_row_that_it_has_not_locked(
    cluster: ShardCluster, known: list[int], shops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes to match in between, and is referred to, would go unseen."""
    choose = ReferenceWriting._choose  # noqa: SLF001 -- what is behind it comes later
    late = next(
        key
        for key in range(max(known) + 1, 999)
        if cluster.router.map_of(customers).shard_of(key) == "s1"
    )

    def add_another(self: ReferenceWriting, *arguments: Any) -> Any:  # noqa: ANN401 -- private
        chosen = choose(self, *arguments)
        add_customers(cluster, late)
        add_order(cluster, shops[0], late)
        return chosen

    monkeypatch.setattr(ReferenceWriting, "_choose", add_another)
    with cluster.session() as session, session.begin():
        unnamed = delete(Customer).where(Customer.name.is_(None))
        session.execute(unnamed, execution_options={"shard": "s1"})

    assert all_customers(cluster) == sorted([known[0], known[2], late])


def test_no_row_is_chosen(cluster: ShardCluster, known: list[int], shops: list[int]) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        nobody = delete(Customer).where(Customer.id == known[0], Customer.name == "nobody")
        assert session.execute(nobody).rowcount == 0  # type: ignore[attr-defined]
        nothing = update(Order).where(Order.store_id == shops[0]).values(customer_id=MISSING)
        assert session.execute(nothing).rowcount == 0  # type: ignore[attr-defined]


# Rows that move ------------------------------------------------------------------------------


def test_a_row_that_refers_gets_another_key(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    add_order(cluster, shops[0], known[1])

    cluster.move_row(Order, {"store_id": shops[0], "id": 1}, store_id=shops[1])
    with cluster.session(atomic=True) as session, session.begin():
        session.move_row(session.get_one(Order, (shops[1], 1)), store_id=shops[2])

    assert all_orders(cluster) == [(shops[2], known[1])]


def test_a_row_that_moves_to_a_key_without_its_parent_does_not(
    cluster: ShardCluster, known: list[int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Account(customer_id=known[0], number=1))

    with pytest.raises(ParentMissingError):
        cluster.move_row(Account, {"customer_id": known[0], "number": 1}, customer_id=MISSING)
    cluster.move_row(Account, {"customer_id": known[0], "number": 1}, customer_id=known[1])


def test_a_row_that_is_referred_to_keeps_its_key(
    cluster: ShardCluster, known: list[int], shops: list[int]
) -> None:
    add_order(cluster, shops[0], known[1])

    with pytest.raises(ParentInUseError):
        cluster.move_row(Customer, {"id": known[1]}, id=MISSING)
    cluster.move_row(Customer, {"id": known[2]}, id=MISSING)

    assert all_customers(cluster) == sorted([*known[:2], MISSING])

"""With indexes over shards, statements answer what they answer without: also beside writers."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import ColumnElement, Select, and_, func, not_, or_, select

from datapatterns.errors import ConflictError, DataPatternsError, UnavailableError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.sharded_accounts import Account, Payment, accounts, empty, put, tenant_on

pytestmark = pytest.mark.postgres

EMAILS = ["", "a", "A", "ä", "b@example.org", "e\u0301", "\U0001f600"]
NUMBERS = [0, 1, -1, 2**31 - 1]
NAMES = ["Ann", "ANN", "bob", ""]
DAYS = [date(2026, 1, 1), date(1, 1, 1)]
TOKENS = [UUID(int=number) for number in range(4)]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls = [databases.new() for _ in range(3)]
    with accounts(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@st.composite
def filled(draw: st.DrawFn) -> list[Account | Payment]:
    emails = draw(st.permutations([*EMAILS, None, None]))
    tokens = draw(st.permutations([*TOKENS, None, None, None, None, None]))
    some = [
        Account(
            tenant_id=draw(st.integers(0, 9)),
            id=number,
            email=email,
            token=token,
            number=draw(st.sampled_from([*NUMBERS, None])),
            name=draw(st.sampled_from([*NAMES, None])),
            opened_on=draw(st.sampled_from([*DAYS, None])),
            status=draw(st.sampled_from(["live", "dead"])),
            balance=draw(st.integers(-5, 5)),
        )
        for number, (email, token) in enumerate(zip(emails, tokens, strict=True))
    ]
    paid = draw(st.lists(st.sampled_from(some), max_size=5))
    return [
        *some,
        *(
            Payment(tenant_id=each.tenant_id, id=number, account_id=each.id, amount=number)
            for number, each in enumerate(paid)
        ),
    ]


def compared(column: Any, values: list[Any]) -> st.SearchStrategy[ColumnElement[bool]]:  # noqa: ANN401 -- any column
    either = st.sampled_from([*values, None])
    return st.one_of(
        either.map(lambda value: column == value),
        st.lists(either, max_size=4).map(column.in_),
        st.lists(either, max_size=4).map(column.not_in),
    )


conditions = st.one_of(
    compared(Account.email, [*EMAILS, "nobody"]),
    compared(Account.number, [*NUMBERS, 7, 1.5]),
    compared(Account.token, [*TOKENS, UUID(int=99)]),
    compared(func.lower(Account.name), ["ann", "bob", "Ann"]),
    compared(Account.opened_on, DAYS),
    compared(Account.status, ["live", "dead"]),
    compared(Account.balance, [0, 1]),
)
clauses = st.recursive(
    conditions,
    lambda some: st.one_of(
        st.tuples(some, some).map(lambda pair: or_(*pair)),
        st.tuples(some, some).map(lambda pair: and_(*pair)),
        some.map(not_),
    ),
    max_leaves=4,
)
by_whole_keys = st.tuples(
    compared(func.lower(Account.name), ["ann", "bob"]),
    compared(Account.opened_on, DAYS),
    st.just(Account.status == "live"),
).map(lambda parts: and_(*parts))

plain = select(Account.tenant_id, Account.id, Account.email)
joined = select(Account.id, Payment.id).join(
    Payment, and_(Payment.tenant_id == Account.tenant_id, Payment.account_id == Account.id)
)
left = select(Account.id, Payment.id).outerjoin(
    Payment, and_(Payment.tenant_id == Account.tenant_id, Payment.account_id == Account.id)
)
shapes: list[Select[*tuple[Any, ...]]] = [
    plain,
    joined,
    left,
    plain.order_by(Account.id.desc()).limit(2),
    joined.order_by(Account.id, Payment.id).limit(2).offset(1),
    select(func.count()).select_from(Account),
    select(func.count(), func.sum(Account.balance), func.min(Account.email)),
    select(Account.status, func.count()).group_by(Account.status),
    select(Account.number).distinct(),
]
statements = st.builds(
    lambda shape, wheres: shape.where(*wheres),
    st.sampled_from(shapes),
    st.lists(st.one_of(clauses, by_whole_keys), min_size=1, max_size=3),
)


def answer(cluster: ShardCluster, statement: Select[*tuple[Any, ...]], **options: Any) -> Any:  # noqa: ANN401 -- rows or an error
    with cluster.session(scatter=True) as session:
        try:
            found = [tuple(row) for row in session.execute(statement, execution_options=options)]
        except DataPatternsError as error:
            return type(error)
    return found if "ORDER BY" in str(statement) else sorted(found, key=repr)


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=filled(), asked=st.lists(statements, min_size=8, max_size=12))
def test_an_answer_is_that_of_all_shards(
    shop: ShardCluster, rows: list[Account | Payment], asked: list[Select[*tuple[Any, ...]]]
) -> None:
    empty(shop)
    put(shop, *rows)
    for statement in asked:
        assert answer(shop, statement) == answer(shop, statement, index=None)


@contextmanager
def handing_on(
    cluster: ShardCluster, email: str, owner: tuple[int, int], heir: tuple[int, int]
) -> Iterator["count[int]"]:
    """Let two rows hand an email to and fro, each time as two commits."""
    done, errors, swaps = Event(), list[BaseException](), count()

    def hand_on(owner: tuple[int, int], heir: tuple[int, int]) -> None:
        try:
            while not done.is_set():
                for row, its in ((owner, None), (heir, email)):
                    with (
                        suppress(ConflictError, UnavailableError),
                        cluster.session() as session,
                        session.begin(),
                    ):
                        session.get_one(Account, row).email = its
                owner, heir = heir, owner
                next(swaps)
        except BaseException as error:  # noqa: BLE001 -- told below
            errors.append(error)

    writer = Thread(target=hand_on, args=(owner, heir))
    writer.start()
    try:
        yield swaps
    finally:
        done.set()
        writer.join(60)
    assert not errors


def test_rows_that_keep_their_keys_are_found_beside_writers(shop: ShardCluster) -> None:
    """One key goes from row to row; who has another is found all the time."""
    empty(shop)
    here = [tenant_on(shop, shard) for shard in ("s0", "s1", "s2")]
    put(
        shop,
        *(Account(tenant_id=t, id=1, email=f"stays-{t}", number=1, balance=1) for t in here),
        *(Account(tenant_id=t, id=2, email=f"goes-{t}", number=2) for t in here[:1]),
        *(Account(tenant_id=t, id=3, number=2) for t in here),
    )
    with handing_on(shop, f"goes-{here[0]}", (here[0], 2), (here[1], 3)) as swaps:
        for _ in range(60):
            with shop.session() as session:
                stays = select(Account.id).where(Account.email.in_([f"stays-{t}" for t in here]))
                assert session.scalars(stays).all() == [1, 1, 1]
                total = select(func.sum(Account.balance)).where(Account.number == 1)
                assert session.scalar(total) == 3
                several = select(Account.id, Account.email).where(Account.number == 2)
                assert len(session.execute(several).all()) == 4
                goes = select(Account.email).where(Account.email == f"goes-{here[0]}")
                with suppress(UnavailableError):  # it never rested
                    assert session.scalars(goes).all() in ([], [f"goes-{here[0]}"])
    assert next(swaps) > 0

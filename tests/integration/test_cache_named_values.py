"""Readers, sessions and the relay call a value alike, or are told that they cannot."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import (
    CHAR,
    Column,
    Computed,
    Engine,
    Enum,
    Integer,
    Interval,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    Uuid,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT, INET
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeEngine

from datapatterns.cache_aside import TAGGED, Cache, tag
from datapatterns.cache_aside.keys import KeyPart
from datapatterns.errors import CacheKeyError
from tests.fixtures.caches import open_cache

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

UPPER = "AAAAAAAA-0000-0000-0000-00000000000B"


class Folded(TypeDecorator[str]):
    """Names whose case does not matter."""

    impl = CITEXT
    cache_ok = True


class Cents(TypeDecorator[int]):
    """An amount that is stored in the main unit."""

    impl = Numeric
    cache_ok = True


class Code(TypeDecorator[str]):
    """Short texts, padded."""

    impl = CHAR(5)
    cache_ok = True


class Number(TypeDecorator[int]):
    """A number with a meaning."""

    impl = Integer
    cache_ok = True


def lot(*columns: Column[Any]) -> Table:
    return Table("lot", MetaData(), *columns, Column("amount", Integer, nullable=False))


def lot_of(of: TypeEngine[Any]) -> Table:
    """Return a table with a key and another column of this type, whose values are tags."""
    return lot(Column("id", of, primary_key=True), Column("owner", of, info=TAGGED))


def amounts(
    cache: Cache, table: Table, owner: object, by: Callable[[], str] | None = None
) -> list[tuple[int]]:
    wanted = select(table.c.amount).where(table.c.owner == owner)
    tags = None if by is None else [by()]
    return cache.query(wanted, tags=tags)


def test_texts_of_one_uuid_are_one_value(engine: Engine, redis_client: Redis) -> None:
    table = lot_of(Uuid(as_uuid=False))
    table.create(engine)
    asked: list[Callable[[], str] | None] = [
        None,
        lambda: tag(table.c.owner == UPPER),
        lambda: tag(table, UPPER),
    ]
    for by in asked:
        with open_cache(redis_client, engine, name="lot") as cache:
            with engine.begin() as conn:
                cache.capture(conn, table, by_key=False)
                conn.execute(text("DELETE FROM lot"))
                row = {"id": UPPER, "owner": UPPER.lower(), "amount": 1}
                conn.execute(table.insert().values(row))
            cache.relay()
            assert amounts(cache, table, UPPER, by) == [(1,)]
            with engine.begin() as conn:
                conn.execute(text("UPDATE lot SET amount = 2"))
            cache.relay()

            assert amounts(cache, table, UPPER, by) == [(2,)]


@pytest.mark.parametrize("value", ["5", True, b"5"], ids=repr)
def test_a_value_of_a_type_of_ones_own_is_what_is_stored(
    value: KeyPart,
) -> None:
    table = lot_of(Number())

    assert tag(table, 5) == "lot:i5"
    with pytest.raises(CacheKeyError):
        tag(table, value)


@pytest.mark.parametrize("of", [Folded(), Cents(), CHAR(5), Code(), INET(), Interval()], ids=repr)
def test_what_has_no_certain_name_is_no_tag(of: TypeEngine[Any]) -> None:
    value: Any = timedelta(1) if isinstance(of, Interval) else "10.0.0.1"
    with pytest.raises(CacheKeyError, match="equal values"):
        tag(lot_of(of).c.owner == value)


UNTOLD: dict[str, tuple[Table, str]] = {
    "amounts": (
        lot(Column("id", Integer, primary_key=True), Column("n", Numeric, info=TAGGED)),
        "",
    ),
    "addresses": (lot(Column("id", Integer, primary_key=True), Column("n", INET, info=TAGGED)), ""),
    "a virtual column": (
        lot(
            Column("id", Integer, primary_key=True),
            Column("n", Integer, Computed("id + 1", persisted=False), info=TAGGED),
        ),
        "",
    ),
    "padded texts that the model takes for others": (
        lot(Column("id", Integer, primary_key=True), Column("n", String(5), info=TAGGED)),
        "ALTER TABLE lot ALTER n TYPE char(5)",
    ),
    "padded texts as a key": (
        lot(Column("id", String(5), primary_key=True)),
        "ALTER TABLE lot ALTER id TYPE char(5)",
    ),
}


@pytest.mark.parametrize("untold", UNTOLD.values(), ids=UNTOLD)
def test_what_the_relay_could_not_name_is_not_captured(
    untold: tuple[Table, str], engine: Engine, redis_client: Redis
) -> None:
    table, alteration = untold
    table.create(engine)
    with open_cache(redis_client, engine, name="lot") as cache, engine.begin() as conn:
        if alteration:
            conn.execute(text(alteration))
        with pytest.raises(CacheKeyError, match="may differ"):
            cache.capture(conn, table, by_key=False)


@pytest.mark.parametrize(
    "of", [Uuid(as_uuid=False), Number(), Enum("a", "b", name="letter")], ids=repr
)
def test_entries_are_not_named_by_what_python_has_otherwise(
    of: TypeEngine[Any], engine: Engine, redis_client: Redis
) -> None:
    table = lot(Column("id", of, primary_key=True))
    table.create(engine)
    with open_cache(redis_client, engine, name="lot") as cache, engine.begin() as conn:
        with pytest.raises(CacheKeyError, match="other values"):
            cache.capture(conn, table)
        cache.capture(conn, table, by_key=False)


@pytest.mark.parametrize("of", [Uuid(as_uuid=False), CITEXT(), CHAR(5), Numeric()], ids=repr)
def test_sessions_whose_keys_readers_may_write_otherwise_are_not_watched(
    of: TypeEngine[Any], engine: Engine, redis_client: Redis
) -> None:
    class Base(DeclarativeBase):
        pass

    class Lot(Base):
        __tablename__ = "lot"
        id: Mapped[Any] = mapped_column(of, primary_key=True)

    class OwnSession(Session):
        pass

    with (
        open_cache(redis_client, engine, name="lot") as cache,
        pytest.raises(CacheKeyError, match="several ways"),
    ):
        cache.watch(OwnSession, Lot)


def test_a_uuid_is_called_by_its_value() -> None:
    tags = {tag(lot_of(Uuid(as_uuid=False)), each) for each in (UPPER, UPPER.lower())}

    assert tags == {tag(lot_of(Uuid()), UUID(UPPER))}

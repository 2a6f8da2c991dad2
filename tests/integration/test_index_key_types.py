"""Keys of many types are found one by one, together and in order."""

import datetime as dt
import enum
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Boolean,
    Column,
    Date,
    DateTime,
    Engine,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    delete,
    insert,
    update,
)
from sqlalchemy.types import TypeEngine

from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import build

pytestmark = pytest.mark.postgres


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "it's bad"


KEYS: dict[str, tuple[TypeEngine[Any], Sequence[Any]]] = {
    "bool": (Boolean(), [False, True]),
    "bytea": (LargeBinary(), [b"\0a", b"\xff"]),
    "char": (CHAR(5), ["ab   ", "b    "]),
    "date": (Date(), [dt.date.min, dt.date.max]),
    "enum": (Enum(Mood, name="mood"), [Mood.GOOD, Mood.BAD]),
    "float": (Float(), [0.1 + 0.2, float("inf")]),
    "interval": (Interval(), [dt.timedelta(seconds=5), dt.timedelta(days=1)]),
    "numeric": (Numeric(), [Decimal(-5), Decimal("1.00")]),
    "text": (Text(), ["a'b\\%s :x {}", "漢字\u2028"]),
    "timestamptz": (
        DateTime(timezone=True),
        [dt.datetime(year, 1, 1, 0, 0, 0, 1, dt.UTC) for year in (2020, 2021)],
    ),
    "uuid": (Uuid(), [uuid.UUID(int=1), uuid.UUID(int=2)]),
}


@pytest.mark.parametrize(("own_type", "keys"), KEYS.values(), ids=KEYS.keys())
def test_a_key_of_this_type_is_found(
    engine: Engine, own_type: TypeEngine[Any], keys: Sequence[Any]
) -> None:
    base = Table(
        "thing",
        MetaData(),
        Column("id", own_type, primary_key=True),
        Column("key", own_type),
        Column("number", Integer),
    )
    index = IndexTable("thing_by_key", on=[base.c.key], include=[base.c.number])
    base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(base), [{"id": key, "key": key, "number": 0} for key in keys])
    build(engine, index, limit=1)

    with engine.begin() as conn:
        assert [entry.key for entry in index.keys(conn)] == [(key,) for key in keys]
        assert [row.key for key in keys for row in index.lookup(conn, key)] == list(keys)
        assert all(len(rows) == 1 for rows in index.lookup_many(conn, keys).values())
        assert len(index.lookup_range(conn, low=keys[0], high=keys[1])) == 1
        assert len(index.keys(conn, after=index.keys(conn, limit=1)[0])) == 1

        conn.execute(update(base).values(number=1))
        conn.execute(delete(base).where(base.c.id == keys[0]))
        assert index.verify(conn).clean

"""What is packed arrives as what was given, or is refused as the driver and the server would."""

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from psycopg import ClientCursor
from psycopg.adapt import PyFormat
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Connection,
    Date,
    DateTime,
    Dialect,
    Engine,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    Uuid,
    bindparam,
    create_engine,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT, JSONB
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.types import TypeDecorator, TypeEngine

from datapatterns.sql.packing import PackedArray, is_packable, pack_on


class Shouted(TypeDecorator[str]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return "nothing" if value is None else value.upper()


def arrived(conn: Connection, item: TypeEngine[Any], values: list[Any]) -> list[Any]:
    pack_on(conn)
    rows = (
        func.unnest(bindparam("v", type_=PackedArray(item))).table_valued("value").render_derived()
    )
    return list(conn.scalars(select(rows.c.value), {"v": values}))


@pytest.mark.parametrize(
    ("item", "values"),
    [
        (SmallInteger(), [-(2**15), 0, 2**15 - 1]),
        (Integer(), [-(2**31), -1, 2**31 - 1]),
        (BigInteger(), [-(2**63), 1, 2**63 - 1]),
        (BigInteger(), [*range(10_000)]),
        (BigInteger(), [1, None, 3]),
        (BigInteger(), [None]),
        (Text(), ["", 'NULL {,"\\}', "%s:x", "é\U0001f600", "m" * 100_000]),
        (Text(), [None, "NULL", None]),
        (Text(), []),
        (Boolean(), [True, None, False]),
        (Float(), [0.1, float("inf"), None, -0.0]),
        (Uuid(), [UUID(int=0), UUID(int=2**128 - 1), None]),
        (Date(), [date.min, None, date.max]),
        (DateTime(), [datetime.min, None, datetime.max]),  # noqa: DTZ901 -- as the column has none
        (DateTime(timezone=True), [datetime(2026, 1, 1, 1, tzinfo=UTC), None]),
        (DateTime(timezone=True), [datetime(2026, 6, 1, tzinfo=ZoneInfo("Europe/Berlin"))]),
        (LargeBinary(), [b"", b"\0\xff{,}", None]),
        (JSON(), [{"a": [1, None]}, "text", [[1], [2]]]),
        (JSONB(), [{"a": "é"}, [], None]),
        (JSONB(none_as_null=True), [{}, None]),
        (BigInteger(), []),
    ],
)
def test_values_arrive(engine: Engine, item: TypeEngine[Any], values: list[Any]) -> None:
    with engine.connect() as conn:
        assert arrived(conn, item, values) == values


def test_moments_with_a_zone_may_stand_beside_such_without(engine: Engine) -> None:
    moments = [datetime(2026, 1, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 2)]  # noqa: DTZ001

    with engine.connect() as conn:
        conn.execute(text("SET TIME ZONE 'UTC'"))
        arrived_at = arrived(conn, DateTime(timezone=True), moments)

    assert arrived_at == [moment.replace(tzinfo=UTC) for moment in moments]


def test_a_decorator_of_the_application_has_its_say(engine: Engine) -> None:
    with engine.connect() as conn:
        assert arrived(conn, Shouted(), ["milk", None]) == ["MILK", "nothing"]


def test_a_session_may_speak_another_encoding(engine: Engine) -> None:
    other = create_engine(engine.url, connect_args={"client_encoding": "LATIN1"})

    with other.connect() as conn:
        pack_on(conn)
        text = func.array_to_string(bindparam("v", type_=PackedArray(Text())), "")
        assert conn.scalar(select(func.length(text)), {"v": ["é", "ü"]}) == 2
    other.dispose()


@pytest.mark.parametrize(
    ("item", "values"),
    [
        (SmallInteger(), [2**15]),
        (Integer(), [-(2**31) - 1]),
        (BigInteger(), [2**63]),
        (Text(), ["a\0b"]),
    ],
)
def test_what_does_not_fit_is_refused(
    engine: Engine, item: TypeEngine[Any], values: list[Any]
) -> None:
    with engine.connect() as conn, pytest.raises(DataError):
        arrived(conn, item, values)


@pytest.mark.parametrize("values", [[True], [1, True], [1, 1.5]])
def test_what_no_column_of_integers_takes_is_refused(engine: Engine, values: list[object]) -> None:
    with engine.connect() as conn, pytest.raises(DBAPIError):
        arrived(conn, BigInteger(), values)


def test_a_cursor_that_writes_values_into_its_statements_gets_text(engine: Engine) -> None:
    other = create_engine(engine.url, connect_args={"cursor_factory": ClientCursor})

    with other.connect() as conn:
        assert arrived(conn, BigInteger(), [1, 2]) == [1, 2]
        assert arrived(conn, Text(), ["it's", None]) == ["it's", None]
    other.dispose()


def test_other_lists_are_sent_as_ever(engine: Engine) -> None:
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        before = [driver.adapters.get_dumper(kind, PyFormat.AUTO) for kind in (list, int, str)]
        pack_on(conn)

        after = [driver.adapters.get_dumper(kind, PyFormat.AUTO) for kind in (list, int, str)]

    assert after == before


def test_only_what_is_plain_in_postgresql_is_packed() -> None:
    assert is_packable(BigInteger())
    assert is_packable(Shouted())
    assert is_packable(BigInteger().with_variant(Integer(), "sqlite"))
    assert not is_packable(Text().with_variant(Numeric(), "postgresql"))
    assert not is_packable(Enum("a", "b"))
    assert not is_packable(CITEXT())
    assert not is_packable(Numeric())

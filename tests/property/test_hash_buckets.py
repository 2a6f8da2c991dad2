"""Python and PostgreSQL place every key in the same bucket. PostgreSQL is the oracle."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Connection, Text, Uuid, cast, func, select, text
from sqlalchemy.types import TypeEngine

from datapatterns.sharding import Hash, Key

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
bigints = st.integers(-(2**63), 2**63 - 1)
keys = st.one_of(bigints, texts, st.uuids())
strategies = st.integers(0, 16).map(lambda bits: Hash(buckets=2**bits))
# `conn` serves all examples: they only ask it questions.
asks_the_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

TYPES: dict[type, tuple[TypeEngine[Any], str]] = {
    int: (BigInteger(), "bigint"),
    str: (Text(), "text"),
    UUID: (Uuid(), "uuid"),
}


@pytest.mark.postgres
@asks_the_server
@given(strategy=strategies, key=keys)
@example(strategy=Hash(), key="")
@example(strategy=Hash(), key="twelve bytes")
@example(strategy=Hash(), key="Äpfel und Öl, 13 €")
@example(strategy=Hash(), key=-1)
@example(strategy=Hash(), key=2**31)
@example(strategy=Hash(), key=-(2**63))
def test_a_key_goes_to_the_bucket_that_the_server_computes(
    conn: Connection, strategy: Hash, key: Key
) -> None:
    sql_type, _ = TYPES[type(key)]
    on_server = func.datapatterns.hash_bucket(cast(key, sql_type), strategy.buckets)

    assert strategy.bucket(key) == conn.scalar(select(on_server))


@pytest.mark.postgres
@asks_the_server
@given(strategy=strategies, key=keys)
def test_a_bucket_is_the_partition_that_postgresql_would_choose(
    conn: Connection, strategy: Hash, key: Key
) -> None:
    sql_type, name = TYPES[type(key)]
    conn.execute(
        text(
            f"""
        CREATE TEMPORARY TABLE IF NOT EXISTS part_{name} (key {name} COLLATE "C")
        PARTITION BY HASH (key)""".replace('COLLATE "C"', 'COLLATE "C"' * (name == "text"))
        )
    )

    bucket = strategy.bucket(key)

    satisfied = func.satisfies_hash_partition(
        func.to_regclass(f"pg_temp.part_{name}").op("::")(text("oid")),
        strategy.buckets,
        bucket,
        cast(key, sql_type),
    )
    assert conn.scalar(select(satisfied)) is True


@pytest.mark.postgres
@asks_the_server
@given(key=bigints.filter(lambda key: -(2**31) <= key < 2**31))
def test_an_integer_and_a_bigint_of_equal_value_share_a_bucket(conn: Connection, key: int) -> None:
    on_server = func.datapatterns.hash_bucket(text(f"({key})::int"), 1024)

    assert conn.scalar(select(on_server)) == Hash().bucket(key)

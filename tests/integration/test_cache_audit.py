"""What an audit calls wrong is wrong, and nothing else."""

from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from datapatterns.cache_aside import (
    Cache,
    CacheAudit,
    CachedFunction,
    CacheViolation,
)
from datapatterns.errors import ServerUnavailableError, SettingsError
from tests.fixtures.caches import (
    PATIENT,
    Product,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

Read = CachedFunction[[int], Product | None]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


@pytest.fixture
def product(cache: Cache) -> Read:
    return cache.cached(load_product)


def test_an_empty_cache_has_nothing_wrong(product: Read) -> None:
    assert product.audit() == CacheAudit(0, 0, ())


def test_what_nobody_was_told_of_is_found_and_mended(product: Read, engine: Engine) -> None:
    product.get_many([1, 2, 99])
    with engine.begin() as conn:
        rename(conn, 2, "second")

    wrong = CacheViolation(2, Product(2, "first"), Product(2, "second"))
    assert product.audit() == CacheAudit(3, 0, (wrong,))
    assert product(2) == Product(2, "first")  # to look mends nothing
    assert product.audit(repair=True).violations == (wrong,)
    assert product(2) == Product(2, "second")
    assert product.audit().violations == ()


def test_a_row_that_came_and_one_that_went_are_found(product: Read, engine: Engine) -> None:
    product.get_many([1, 99])
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM product WHERE id = 1"))
        conn.execute(text("INSERT INTO product VALUES (99, 'new')"))

    found = {each.key: each for each in product.audit().violations}
    assert found == {
        1: CacheViolation(1, Product(1, "first"), None),
        99: CacheViolation(99, None, Product(99, "new")),
    }


def test_an_invalidation_on_its_way_is_no_violation(
    cache: Cache, product: Read, engine: Engine
) -> None:
    product(1)
    with engine.begin() as conn:  # its writer dies before it tells Redis
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)

    assert product.audit() == CacheAudit(1, 0, ())
    assert product(1) == Product(1, "second")


def test_a_write_while_it_looks_is_no_violation(cache: Cache, engine: Engine) -> None:
    """The row changes after the entry was fetched, and again after it was loaded."""
    writes: list[Callable[[], None]] = []

    @cache.cached
    def name(conn: Connection, product_id: int) -> str | None:
        if writes:
            writes.pop()()
        return name_of(conn, product_id)

    def write(value: str) -> None:
        with cache.writes() as conn:
            rename(conn, 1, value)
            cache.invalidate_in(conn, 1)

    name(1)
    writes.append(lambda: write("second"))
    assert name.audit() == CacheAudit(1, 0, ())
    name(1)
    with engine.begin() as conn:
        rename(conn, 1, "third")
    writes.append(lambda: write("fourth"))
    assert name.audit().violations == ()


def test_what_is_unequal_to_itself_is_no_violation(cache: Cache) -> None:
    @cache.cached
    def odd(_: Connection, number: int) -> list[float]:
        return [float("nan"), number]

    odd(1)
    assert odd.audit() == CacheAudit(1, 0, ())


def test_what_has_all_been_forgotten_meanwhile_is_no_violation(
    product: Read, engine: Engine
) -> None:
    """The round that makes sure draws a new generation; the old entries lie where nobody reads."""
    product(1)
    with engine.begin() as conn:
        rename(conn, 1, "second")
        conn.execute(text("UPDATE datapatterns.cache_target SET identity = 'another'"))

    assert product.audit() == CacheAudit(1, 0, ())
    assert product(1) == Product(1, "second")


def test_what_would_not_be_served_is_skipped(product: Read, redis_client: Redis) -> None:
    product(1)
    key: bytes = redis_client.keys("*:value:*")[0]  # type: ignore[assignment]  # as this client answers
    raw: bytes = redis_client.get(key)  # type: ignore[assignment]  # the same
    redis_client.set(key, raw[:4] + bytes(8) + raw[12:])  # past its time since 1970
    redis_client.set(key.replace(b"i1", b"i2"), b"foreign")

    assert product.audit() == CacheAudit(0, 2, ())


def test_keys_of_all_kinds_come_back(cache: Cache) -> None:
    @cache.cached
    def joined(_: Connection, first: str, second: int | None = None) -> str:
        return f"{first}-{second}"

    for first in ("a:b", "%41", "Ä ü🥐", "", "*?[x]"):
        joined(first)
        joined(first, -5)
    assert joined.audit() == CacheAudit(10, 0, ())
    joined("x" * 300)

    assert joined.audit() == CacheAudit(10, 1, ())


def test_a_cache_whose_name_another_begins_with_is_left_alone(
    product: Read, engine: Engine, redis_client: Redis
) -> None:
    product(1)
    with open_cache(redis_client, engine, name="product-page") as longer:
        longer.cached(load_product)(1)

    assert product.audit().checked == 1


def test_a_limit_is_kept(product: Read) -> None:
    product.get_many(range(1, 21))

    assert product.audit(limit=5).checked == 5


def test_thousands_of_entries_are_looked_at(cache: Cache) -> None:
    @cache.cached
    def double(_: Connection, number: int) -> int:
        return 2 * number

    double.many(lambda _, numbers: {number: 2 * number for number in numbers})
    double.get_many(range(3_000))

    assert double.audit(limit=10_000).checked == 3_000


def test_a_function_whose_keys_do_not_tell_its_arguments_is_refused(cache: Cache) -> None:
    @cache.cached
    def total(_: Connection, *numbers: int) -> int:
        return sum(numbers)

    total(1, 2)
    with pytest.raises(SettingsError, match="without a fixed place"):
        total.audit()


def test_a_redis_that_is_away_cannot_be_audited(engine: Engine) -> None:
    create_products(engine)
    with open_cache("redis://127.0.0.1:1/0", engine, PATIENT) as cache:
        product = cache.cached(load_product)
        with pytest.raises(ServerUnavailableError):
            product.audit()

"""Product pages, read again and again, written now and then."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

from sqlalchemy import Connection, select, update

from datapatterns.cache_aside import Cache, CachedFunction, CachePolicy
from datapatterns_grocer.chapters.redis_away import take_redis_away
from datapatterns_grocer.model import Product, ProductSales
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds
from datapatterns_grocer.truth import Check, compare

VISITS = 5_000
PAGES_SHOWN = 400
READERS = 200


@dataclass(frozen=True, slots=True)
class ProductPage:
    """What a visitor sees."""

    product_id: int
    department: str | None
    category: str | None
    on_offer: bool
    sold: int
    sold_cents: int


def load_page(conn: Connection, product_id: int) -> ProductPage | None:
    """Read a page from the catalogue and the read model of sales."""
    row = conn.execute(
        select(
            Product.product_id,
            Product.department,
            Product.category,
            Product.on_offer,
            ProductSales.quantity,
            ProductSales.cents,
        )
        .join(ProductSales, ProductSales.product_id == Product.product_id, isouter=True)
        .where(Product.product_id == product_id)
    ).one_or_none()
    if row is None:
        return None
    return ProductPage(*row[:4], sold=row[4] or 0, sold_cents=row[5] or 0)


def play(stage: Stage) -> None:
    """Visit, write, stampede, and take Redis away."""
    stage.screen.heading(
        "Cache-aside",
        "Product pages through Redis: one load for each miss, none stale after a write.",
    )
    cache = stage.layer.cache("product_page", policy=CachePolicy(ttl_seconds=3_600))
    try:
        cache.relay()
        page = cache.cached(load_page)
        sellers = _best_sellers(stage)
        _visit(stage, cache, page, sellers)
        _write(stage, cache, page, sellers[0])
        _stampede(stage, cache, page, sellers[0])
        take_redis_away(stage, cache, page, sellers, _turning_offers(cache, page))
        _audit(stage, page, sellers)
    finally:
        cache.close()


def verify(stage: Stage) -> Iterator[Check]:
    """Compare pages as a visitor gets them with the files."""
    cache = stage.layer.cache("product_page", policy=CachePolicy(ttl_seconds=3_600))
    try:
        cache.relay()
        page = cache.cached(load_page)
        sellers = _best_sellers(stage)
        page_by_id = {product_id: page(product_id) for product_id in sellers}
        served = [page(product_id) for product_id in sellers]
    finally:
        cache.close()
    assert served == list(page_by_id.values())
    listed = ", ".join(map(str, sellers))
    yield compare(
        "cache: product pages as served",
        derived=[(p.product_id, p.department, p.sold, p.sold_cents) for p in served if p],
        truth=stage.dataset.rows(
            "SELECT product_id, department, sum(quantity), sum(cents) FROM sold"  # noqa: S608
            f" JOIN listed USING (product_id) WHERE product_id IN ({listed}) GROUP BY ALL"
        ),
    )


def _visit(
    stage: Stage, cache: Cache, page: CachedFunction[[int], ProductPage | None], sellers: list[int]
) -> None:
    # Popular pages are visited more often, as everywhere.
    weights = [1 / rank for rank in range(1, len(sellers) + 1)]
    visits = random.Random(84).choices(sellers, weights, k=VISITS)  # noqa: S311 -- a story
    for product_id in stage.screen.track(visits, "visiting pages", total=VISITS):
        page(product_id)
    stats = cache.stats()
    with stage.layer.engine.connect() as conn:
        uncached = median_seconds(lambda: load_page(conn, sellers[0]), times=200)
    hit = median_seconds(lambda: page(sellers[0]), times=200)
    stage.screen.table(
        ["visits", "loads", "hit ratio", "a hit", "the query"],
        [
            [
                VISITS,
                stats.loads,
                f"{stats.hit_ratio:.1%}",
                milliseconds(hit),
                milliseconds(uncached),
            ]
        ],
    )


def _write(
    stage: Stage,
    cache: Cache,
    page: CachedFunction[[int], ProductPage | None],
    product_id: int,
) -> None:
    before = page(product_id)
    with cache.writes() as conn:
        _set_offer(conn, page, product_id, on_offer=True)
    after = page(product_id)
    stage.screen.say(
        f"a write: on_offer was {before and before.on_offer}, the next visitor sees"
        f" {after and after.on_offer}"
    )


def _set_offer(
    conn: Connection,
    page: CachedFunction[[int], ProductPage | None],
    product_id: int,
    *,
    on_offer: bool,
) -> None:
    conn.execute(update(Product).where(Product.product_id == product_id).values(on_offer=on_offer))
    page.invalidate_in(conn, product_id)


def _turning_offers(
    cache: Cache, page: CachedFunction[[int], ProductPage | None]
) -> Callable[[int], None]:
    """Return what puts a product on offer, and the next time takes it off again."""
    on_offer: set[int] = set()

    def turn(product_id: int) -> None:
        on_offer.symmetric_difference_update({product_id})
        with cache.writes() as conn:
            _set_offer(conn, page, product_id, on_offer=product_id in on_offer)

    return turn


def _stampede(
    stage: Stage,
    cache: Cache,
    page: CachedFunction[[int], ProductPage | None],
    product_id: int,
) -> None:
    page.invalidate(product_id)
    loads = cache.stats().loads
    barrier = Barrier(READERS)

    def read() -> ProductPage | None:
        barrier.wait()
        return page(product_id)

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        answers = [future.result() for future in [pool.submit(read) for _ in range(READERS)]]
    assert all(answer == answers[0] for answer in answers)
    stage.screen.say(
        f"{READERS} readers missed the same page at once: {cache.stats().loads - loads} load"
    )


def _audit(
    stage: Stage, page: CachedFunction[[int], ProductPage | None], sellers: list[int]
) -> None:
    for product_id in sellers:
        page(product_id)
    audit = page.audit()
    stage.screen.say(
        f"an audit compared {audit.checked} pages with the database: {len(audit.violations)} stale"
    )


def _best_sellers(stage: Stage) -> list[int]:
    return [
        row[0]
        for row in stage.dataset.rows(
            "SELECT product_id FROM sold GROUP BY ALL ORDER BY sum(quantity) DESC, 1"  # noqa: S608
            f" LIMIT {PAGES_SHOWN}"
        )
    ]

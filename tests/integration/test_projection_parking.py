"""What cannot be applied waits, is left out, or stops all; and everything else goes on."""

import pytest
from sqlalchemy import Engine, event, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.cqrs.tables import poison
from datapatterns.errors import ProjectionModeError, ProjectionStoppedError
from datapatterns.event_sourcing import EventStore
from tests.fixtures.poisoned import (
    Base,
    Best,
    Sold,
    contents,
    folded,
    nothing_refused,
    projection_of,
    two_tables,
)
from tests.fixtures.read_models import append_all

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
PARKS, MENDED = projection_of("park"), projection_of("park", mended=True)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


def sold(*products: str, cents: int = 1, bad: tuple[str, ...] = ()) -> Sold:
    return Sold(list(products), cents, list(bad))


def waiting(engine: Engine) -> dict[bytes, int]:
    with engine.begin() as conn:
        parked = PROJECTIONS.parked(conn)
        counts = conn.scalars(
            text("SELECT parked FROM datapatterns.projection_shard ORDER BY shard")
        ).all()
        assert sum(one.events for one in parked) == sum(counts)
        return {one.key_digest: one.events for one in parked}


def by_digest(counts: dict[str, int]) -> dict[bytes, int]:
    return {key_digest(product): count for product, count in counts.items()}


def test_a_key_is_parked_with_all_that_follows_and_others_go_on(shop: Engine) -> None:
    events = [
        sold("milk"),
        sold("milk", "tea", cents=5, bad=("milk",)),
        sold("milk"),
        sold("tea"),
    ]
    append_all(shop, STORE, events)

    done = PROJECTIONS.catch_up(shop, PARKS)
    append_all(shop, STORE, [sold("milk"), sold("tea")])
    PROJECTIONS.catch_up(shop, PARKS)

    assert done.caught_up
    assert contents(shop) == {"milk": (1, 1), "tea": (3, 7)}
    assert waiting(shop) == by_digest({"milk": 3})
    with shop.begin() as conn:
        (parked,) = PROJECTIONS.parked(conn, PARKS)
        (status,) = PROJECTIONS.status(conn)
    assert (parked.position, parked.event_type) == (2, "test.sold")
    assert (parked.error, parked.message) == ("PriceError", "milk")
    assert status.segments[0].parked == 3


def test_what_was_parked_is_applied_in_order_once_it_is_mended(shop: Engine) -> None:
    events = [sold("milk", bad=("milk",)), sold("milk", "tea"), sold("milk", bad=("milk",))]
    append_all(shop, STORE, events)
    PROJECTIONS.catch_up(shop, PARKS)

    done = PROJECTIONS.retry(shop, MENDED)

    assert (done.events, done.keys, done.refused) == (3, 1, ())
    assert contents(shop) == folded(events, nothing_refused)[0]
    assert waiting(shop) == {}
    assert PROJECTIONS.verify(shop, MENDED).matches


def test_a_retry_stops_at_what_is_still_refused_and_says_why_anew(shop: Engine) -> None:
    append_all(
        shop, STORE, [sold("milk", bad=("milk",)), sold("milk", cents=10**6), sold("milk"), sold()]
    )
    PROJECTIONS.catch_up(shop, PARKS)

    done = PROJECTIONS.retry(shop, MENDED, "milk")

    assert (done.events, done.keys) == (1, 0)
    (refused,) = done.refused
    assert (refused.position, refused.error) == (2, "IntegrityError")
    assert contents(shop) == {"milk": (1, 1)}
    with shop.begin() as conn:
        (parked,) = PROJECTIONS.parked(conn)
    assert (parked.events, parked.position, parked.error) == (2, 2, "IntegrityError")


@pytest.mark.parametrize("page_events", [1, 2, 1_000])
def test_a_retry_in_pages_is_the_same(shop: Engine, page_events: int) -> None:
    events = [sold("milk", bad=("milk",))] + [sold("milk", "tea")] * 4
    append_all(shop, STORE, events)
    PROJECTIONS.catch_up(shop, PARKS)

    done = PROJECTIONS.retry(shop, MENDED, page_events=page_events)

    assert (done.events, done.keys) == (5, 1)
    assert contents(shop) == folded(events, nothing_refused)[0]


def test_only_the_row_that_is_asked_for_is_retried(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", "tea", bad=("milk", "tea"))])
    PROJECTIONS.catch_up(shop, PARKS)

    PROJECTIONS.retry(shop, MENDED, "milk")

    assert waiting(shop) == by_digest({"tea": 1})
    PROJECTIONS.retry(shop, MENDED, key_digest=key_digest("tea"))
    assert waiting(shop) == {}
    assert PROJECTIONS.retry(shop, MENDED).events == 0


def test_what_is_given_up_is_on_record_and_its_row_goes_on(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk"), sold("milk", bad=("milk",)), sold("milk")])
    PROJECTIONS.catch_up(shop, PARKS)

    done = PROJECTIONS.discard(shop, PARKS, "milk")
    append_all(shop, STORE, [sold("milk", cents=7)])
    PROJECTIONS.catch_up(shop, PARKS)

    assert (done.events, waiting(shop)) == (2, {})
    assert contents(shop) == {"milk": (2, 8)}
    with shop.begin() as conn:
        gone = PROJECTIONS.skipped(conn, PARKS)
    assert [(one.position, one.error) for one in gone] == [(2, "PriceError"), (3, None)]
    verified = PROJECTIONS.verify(shop, PARKS)
    assert (verified.matches, verified.skipped) == (True, 2)


def test_skipped_events_are_left_out_of_their_row_only_and_recorded(shop: Engine) -> None:
    skips = projection_of("skip")
    append_all(shop, STORE, [sold("milk", "tea", bad=("milk",)), sold("milk", cents=4)])

    PROJECTIONS.catch_up(shop, skips)

    assert contents(shop) == {"milk": (1, 4), "tea": (1, 1)}
    with shop.begin() as conn:
        (gone,) = PROJECTIONS.skipped(conn)
    assert (gone.position, gone.event_type, gone.error) == (1, "test.sold", "PriceError")
    assert (gone.key_digest, gone.message) == (key_digest("milk"), "milk")
    verified = PROJECTIONS.verify(shop, skips)
    assert (verified.matches, verified.skipped, verified.parked) == (True, 1, 0)


def test_verify_says_nothing_about_rows_whose_events_wait(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk"), sold("milk", bad=("milk",)), sold("tea")])
    PROJECTIONS.catch_up(shop, PARKS)

    for projection in (PARKS, MENDED):
        verified = PROJECTIONS.verify(shop, projection)
        sampled = PROJECTIONS.verify(shop, projection, sample=1.0)
        assert (verified.matches, verified.parked) == (True, 1)
        assert (sampled.matches, sampled.parked) == (True, 1)

    with shop.begin() as conn:
        conn.execute(text("UPDATE sales SET cents = 99"))
    for sample in (None, 1.0):
        differing = PROJECTIONS.verify(shop, PARKS, limit=1, sample=sample)
        assert [one.key for one in differing.differences] == [("tea",)]


def test_of_an_event_for_two_tables_only_the_refused_row_waits(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", "tea", cents=3, bad=("milk",)), sold("milk")])
    parks, mended = two_tables("park"), two_tables("park", mended=True)

    PROJECTIONS.catch_up(shop, parks)

    assert contents(shop) == {"milk": (2, 4), "tea": (1, 3)}
    assert contents(shop, Best) == {"tea": (3,)}
    assert sum(waiting(shop).values()) == 2
    assert PROJECTIONS.verify(shop, parks).matches
    PROJECTIONS.retry(shop, mended, "milk")
    assert contents(shop, Best) == {"tea": (3,), "milk": (3,)}
    assert PROJECTIONS.verify(shop, mended).matches


def test_a_row_waits_for_the_one_that_it_refers_to_and_both_are_retried(shop: Engine) -> None:
    parks = two_tables("park")
    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE sales ADD CHECK (product <> 'milk')"))
    append_all(shop, STORE, [sold("milk"), sold("tea"), sold("milk")])
    PROJECTIONS.catch_up(shop, parks)
    assert sum(waiting(shop).values()) == 4

    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE sales DROP CONSTRAINT sales_product_check"))
    done = PROJECTIONS.retry(shop, parks)

    assert (done.events, done.keys) == (4, 2)
    assert contents(shop) == {"milk": (2, 2), "tea": (1, 1)}
    assert contents(shop, Best) == {"milk": (1,), "tea": (1,)}


@pytest.mark.parametrize("deferred", [False, True])
def test_of_two_rows_that_exclude_each_other_the_later_one_waits(
    shop: Engine, *, deferred: bool
) -> None:
    when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    with shop.begin() as conn:
        conn.execute(text(f"ALTER TABLE sales ADD UNIQUE (cents) {when}"))
    append_all(shop, STORE, [sold("milk", cents=3), sold("tea", cents=3), sold("gin", cents=4)])

    PROJECTIONS.catch_up(shop, PARKS)

    assert contents(shop) == {"milk": (1, 3), "gin": (1, 4)}
    assert waiting(shop) == by_digest({"tea": 1})


def test_rows_that_refer_to_each_other_are_checked_when_both_are_there(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(
            text(
                "ALTER TABLE sales ADD FOREIGN KEY (product) REFERENCES best"
                " DEFERRABLE INITIALLY DEFERRED"
            )
        )
    fine = [sold(product) for product in ("a", "b", "c", "d", "e")]
    append_all(shop, STORE, [*fine[:2], sold("x", cents=10**6), *fine[2:]])

    PROJECTIONS.catch_up(shop, two_tables("park"))

    assert set(contents(shop)) == set(contents(shop, Best)) == {"a", "b", "c", "d", "e"}
    assert sum(waiting(shop).values()) == 2


@pytest.mark.parametrize("on_poison", ["park", "stop"])
def test_an_event_that_nobody_can_read_stops_what_does_not_skip(
    shop: Engine, on_poison: str
) -> None:
    append_all(shop, STORE, [sold("milk"), sold("tea", bad=("tea",)), sold("milk"), sold("milk")])
    unreadable(shop, 3)
    projection = projection_of("park" if on_poison == "park" else "stop")

    for _ in range(2):
        with pytest.raises(ProjectionStoppedError) as stopped:
            PROJECTIONS.catch_up(shop, projection)

        assert stopped.value.position == (3 if on_poison == "park" else 2)
        assert contents(shop) == {"milk": (1, 1)}
    assert waiting(shop) == (by_digest({"tea": 1}) if on_poison == "park" else {})


def test_an_event_that_nobody_can_read_is_skipped_as_a_whole(shop: Engine) -> None:
    skips = projection_of("skip")
    append_all(shop, STORE, [sold("milk"), sold("milk"), sold("tea"), sold("tea", bad=("tea",))])
    unreadable(shop, 2)

    PROJECTIONS.catch_up(shop, skips)

    assert contents(shop) == {"milk": (1, 1), "tea": (1, 1)}
    with shop.begin() as conn:
        gone = PROJECTIONS.skipped(conn)
    assert [(one.position, one.key_digest) for one in gone] == [(2, None), (4, key_digest("tea"))]
    assert PROJECTIONS.verify(shop, skips).matches


def unreadable(engine: Engine, position: int) -> None:
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        changed = conn.execute(
            text("UPDATE datapatterns.event SET data = '{\"products\": 7}' WHERE position = :p"),
            {"p": position},
        )
        assert changed.rowcount == 1


def test_a_page_full_of_poison_ends_early_and_the_rest_follows(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison, "ATTEMPTS_MAX", 10)
    events = [sold(f"p{n}", bad=(f"p{n}",) if n % 2 else ()) for n in range(60)]
    append_all(shop, STORE, events)

    first = PROJECTIONS.run(shop, PARKS)
    PROJECTIONS.catch_up(shop, PARKS)

    assert 0 < first.events < 60
    assert not first.caught_up
    sales, refused = folded(events)
    assert contents(shop) == sales
    assert waiting(shop) == by_digest(refused)


def test_while_nothing_is_parked_no_page_asks_what_is(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk")])
    asked = []
    event.listen(shop, "before_cursor_execute", lambda *args: asked.append(args[2]))

    PROJECTIONS.catch_up(shop, PARKS)
    quiet = [one for one in asked if "projection_parked" in one]
    append_all(shop, STORE, [sold("tea", bad=("tea",))])
    PROJECTIONS.catch_up(shop, PARKS)

    assert quiet == []
    assert any("projection_parked" in one for one in asked)


def test_parked_rows_wait_although_the_policy_is_another_now(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",)), sold("tea")])
    PROJECTIONS.catch_up(shop, PARKS)
    append_all(shop, STORE, [sold("milk"), sold("tea"), sold("gin", "tea", bad=("gin",))])

    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(shop, projection_of("stop"))
    stopped = contents(shop), waiting(shop)
    PROJECTIONS.catch_up(shop, projection_of("skip"))

    assert stopped == ({"tea": (2, 2)}, by_digest({"milk": 2}))
    assert contents(shop) == {"tea": (3, 3)}
    assert waiting(shop) == by_digest({"milk": 2})


def test_a_rebuild_parks_what_is_refused_and_forgets_what_was(shop: Engine) -> None:
    events = [sold("milk", bad=("milk",)), sold("milk", "tea"), sold("tea", bad=("tea",))]
    append_all(shop, STORE, events)
    PROJECTIONS.catch_up(shop, PARKS)

    PROJECTIONS.rebuild(shop, PARKS, page_events=1)
    again = contents(shop), waiting(shop)
    PROJECTIONS.rebuild(shop, MENDED)

    assert again == ({"tea": (1, 1)}, by_digest({"milk": 2, "tea": 1}))
    assert contents(shop) == folded(events, nothing_refused)[0]
    assert waiting(shop) == {}


def test_a_rebuild_for_the_next_version_clears_what_the_last_one_parked(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",))])
    PROJECTIONS.catch_up(shop, PARKS)
    with shop.begin() as conn:
        conn.execute(text("DROP TABLE best"))  # whose foreign key would stay with the old table

    PROJECTIONS.rebuild(shop, projection_of("park", mended=True, version=2))
    PROJECTIONS.retire(shop, PARKS)

    assert waiting(shop) == {}
    assert contents(shop) == {"milk": (1, 1)}


def test_a_rebuild_in_place_leaves_to_another_version_what_that_has_parked(shop: Engine) -> None:
    second = projection_of("park", version=2)
    bad, good = sold("milk", "tea", bad=("milk",)), sold("milk", "tea")
    with shop.begin() as conn:
        conn.execute(text("DROP TABLE best"))  # whose foreign key would stay with the old table
    append_all(shop, STORE, [bad])
    PROJECTIONS.catch_up(shop, PARKS)
    PROJECTIONS.rebuild(shop, second)
    standby = PROJECTIONS.verify(shop, PARKS).matches

    PROJECTIONS.rebuild(shop, second)  # which is live now
    append_all(shop, STORE, [good])
    PROJECTIONS.catch_up(shop, PARKS)
    PROJECTIONS.catch_up(shop, second)

    with shop.begin() as conn:
        parked = {(one.version, one.events) for one in PROJECTIONS.parked(conn)}
    assert parked == {(1, 2), (2, 2)}
    PROJECTIONS.promote(shop, PARKS)
    assert contents(shop) == {"tea": (2, 2)}
    assert (standby, PROJECTIONS.verify(shop, PARKS).matches) == (True, True)
    PROJECTIONS.retry(shop, MENDED)
    assert contents(shop) == {"milk": (2, 2), "tea": (2, 2)}


def test_segments_park_their_own_rows(shop: Engine) -> None:
    with shop.begin() as conn:
        append_all(shop, STORE, [sold("nothing")])
    PROJECTIONS.catch_up(shop, PARKS)
    with shop.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
                " SELECT name, version, 1, 1, position FROM datapatterns.projection_shard"
            )
        )
        conn.execute(text("UPDATE datapatterns.projection_shard SET mask = 1"))
    products = [f"p{n}" for n in range(12)]
    events = [sold(*products, bad=tuple(products[::2])), sold(*products)]
    append_all(shop, STORE, events)

    PROJECTIONS.catch_up(shop, PARKS)
    sales, refused = folded([sold("nothing"), *events])
    assert contents(shop) == sales
    assert waiting(shop) == by_digest(refused)
    PROJECTIONS.retry(shop, MENDED, products[0])
    assert len(waiting(shop)) == len(refused) - 1
    PROJECTIONS.retry(shop, MENDED)

    assert contents(shop) == folded([sold("nothing"), *events], nothing_refused)[0]
    assert waiting(shop) == {}


def test_an_event_that_the_log_has_no_more_keeps_its_row_waiting(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",)), sold("milk")])
    PROJECTIONS.catch_up(shop, PARKS)
    with shop.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("DELETE FROM datapatterns.event WHERE position = 1"))

    done = PROJECTIONS.retry(shop, MENDED)

    assert (done.events, done.refused[0].error) == (0, "EventGone")
    assert waiting(shop) == by_digest({"milk": 2})


def test_what_has_parked_events_is_not_made_inline(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",))])
    PROJECTIONS.catch_up(shop, PARKS)

    with pytest.raises(ProjectionModeError, match="parked"):
        PROJECTIONS.make_inline(shop, PARKS)

    PROJECTIONS.retry(shop, MENDED)
    PROJECTIONS.make_inline(shop, MENDED)

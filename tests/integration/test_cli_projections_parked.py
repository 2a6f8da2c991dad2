"""`datapatterns projections parked|retry|discard|skipped`, as people and programs run them."""

import pytest
from sqlalchemy import URL, Engine

from datapatterns import DataLayer
from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.event_sourcing import EventStore
from datapatterns.testing import Databases
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.poisoned import Base, Sold, contents, projection_of
from tests.fixtures.read_models import append_all

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
PARKS = projection_of("park")
MILK = key_digest("milk").hex()


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    events = [Sold(["milk"], 1, ["milk"]), Sold(["milk", "tea"], 1, ["tea"])]
    append_all(engine, STORE, events)
    PROJECTIONS.catch_up(engine, PARKS)
    return engine


@pytest.fixture
def app(database_url: URL, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The option that names an application whose projection is mended."""
    mended = projection_of("park", mended=True)
    monkeypatch.setattr(
        "tests.fixtures.poisoned.layer",
        lambda: DataLayer(shown(database_url), projections=[mended]),
        raising=False,
    )
    return ("--app", "tests.fixtures.poisoned:layer")


def test_what_waits_is_listed_by_row(run: Run, shop: Engine, at: tuple[str, str]) -> None:
    milk, tea = rows(run("projections", "parked", "--json", *at))
    told = run("projections", "parked", "selling", *at)

    assert (milk["key_digest"], milk["events"], milk["position"]) == (MILK, 2, 1)
    assert (tea["name"], tea["version"], tea["error"]) == ("selling", 1, "PriceError")
    assert "PriceError" in told.out
    assert "nothing is parked" in run("projections", "parked", "another", *at).err
    del shop


def test_a_retry_tells_what_it_has_done(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    (one,) = rows(run("projections", "retry", "selling", "--key-digest", MILK, "--json", *app))
    (rest,) = rows(run("projections", "retry", "selling", "--json", *app))

    assert one == {"events": 2, "keys": 1, "refused": 0}
    assert rest == {"events": 1, "keys": 1, "refused": 0}
    assert contents(shop) == {"milk": (2, 2), "tea": (1, 1)}


def test_a_retry_of_what_is_refused_again_exits_with_2(
    run: Run, shop: Engine, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.fixtures.poisoned.layer",
        lambda: DataLayer(shown(database_url), projections=[PARKS]),
        raising=False,
    )

    ran = run("projections", "retry", "selling", "--app", "tests.fixtures.poisoned:layer")

    assert ran.code == 2
    assert f"{MILK} stays at position 1: PriceError: milk" in ran.err
    assert contents(shop) == {}


def test_what_is_given_up_is_listed_as_skipped(
    run: Run, shop: Engine, app: tuple[str, str], at: tuple[str, str]
) -> None:
    asked = run("projections", "discard", "selling", "--key-digest", MILK, *app)
    done = run("projections", "discard", "selling", "--key-digest", MILK, "--yes", *app)
    first, second = rows(run("projections", "skipped", "--json", *at))

    assert asked.code == 2
    assert "add --yes" in asked.err
    assert done.code == 0
    assert (first["position"], first["error"], first["key_digest"]) == (1, "PriceError", MILK)
    assert (second["position"], second["error"]) == (2, None)
    del shop


def test_what_waits_is_where_the_read_models_are_not_where_the_events_are(
    run: Run,
    engine: Engine,
    database_url: URL,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Base.metadata.create_all(engine)
    app = ("--app", "tests.fixtures.poisoned:layer", "--json")
    with databases.lend() as events:
        layer = DataLayer(events, read_models_url=database_url, projections=[PARKS])
        monkeypatch.setattr("tests.fixtures.poisoned.layer", lambda: layer, raising=False)
        append_all(layer.engine, STORE, [Sold([p], 1, [p]) for p in ("milk", "tea")])
        layer.projections.catch_up(layer.read_engine, PARKS)

        milk, _ = rows(run("projections", "parked", *app))
        given_up = ("--key-digest", MILK, "--yes", *app)
        (gone,) = rows(run("projections", "discard", "selling", *given_up))
        (skipped,) = rows(run("projections", "skipped", *app))
        refused = run("projections", "retry", "selling", *app)

    assert (milk["key_digest"], gone, skipped["key_digest"]) == (MILK, {"discarded": 1}, MILK)
    assert (refused.code, refused.out) == (2, '{"events": 0, "keys": 0, "refused": 1}\n')


def test_what_is_no_digest_is_refused(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    ran = run("projections", "retry", "selling", "--key-digest", "milk", *app)

    assert ran.code == 2
    assert "it is no key digest" in ran.err
    del shop

"""The example of a web API: who has written reads what they wrote, from real servers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from threading import Thread

import httpx
import pytest
import uvicorn
from sqlalchemy import URL, text

from datapatterns import DataLayer
from datapatterns.cqrs import Token
from till_api import SALES_TABLE, SalesByProduct, create_app, declare_layer

WAIT_SECONDS = 30.0
"""More than any request takes that is answered."""

Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture
def layer(database_url: URL) -> Iterator[DataLayer]:
    with closing(declare_layer(database_url.render_as_string(hide_password=False))) as layer:
        SALES_TABLE.create_all(layer.engine)
        yield layer


@pytest.fixture(params=["", "/async"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def play(
    layer: DataLayer,
    scenario: Scenario,
    *,
    wait_seconds: float = WAIT_SECONDS,
    runs_projections: bool = True,
) -> None:
    async def played() -> None:
        app = create_app(layer, wait_seconds=wait_seconds, runs_projections=runs_projections)
        async with app.router.lifespan_context(app), client_of(app) as client:
            await scenario(client)

    asyncio.run(played())


@asynccontextmanager
async def client_of(app: object) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type] # FastAPI's is an Any
    async with httpx.AsyncClient(transport=transport, base_url="http://till") as client:
        yield client


async def scan(client: httpx.AsyncClient, prefix: str, product: str, **headers: str) -> str:
    response = await client.post(
        f"{prefix}/items", json={"product": product, "cents": 120}, headers=headers
    )
    assert response.status_code == 201, response.text
    return response.headers["read-after"]


def test_who_has_written_reads_it_in_the_next_request(layer: DataLayer, prefix: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for number in range(1, 6):
            token = await scan(client, prefix, "milk")
            response = await client.get(f"{prefix}/sales/milk", headers={"Read-After": token})

            assert response.status_code == 200
            assert response.json() == {"product": "milk", "items": number, "cents": 120 * number}
            assert Token.parse(response.headers["read-after"]) >= Token.parse(token)
            assert "read-stale" not in response.headers

    play(layer, scenario)


def test_two_clients_read_each_their_own_and_by_each_others_token(
    layer: DataLayer, prefix: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        async def customer(product: str) -> str:
            token = ""
            for number in range(1, 8):
                token = await scan(client, prefix, product)
                own = await client.get(f"{prefix}/sales/{product}", headers={"Read-After": token})
                assert own.json()["items"] == number
            return token

        milk, bread = await asyncio.gather(customer("milk"), customer("bread"))
        other = await client.get(f"{prefix}/sales/milk", headers={"Read-After": milk})
        nobody = await client.get(f"{prefix}/sales/caviar", headers={"Read-After": bread})

        assert other.json()["items"] == 7
        assert nobody.json() == {"product": "caviar", "items": 0, "cents": 0}

    play(layer, scenario)


@pytest.mark.parametrize("header", ["yesterday", "-1", "1.zzzzzzzz", "9" * 100, "1, 2"])
def test_what_is_no_token_is_a_bad_request(layer: DataLayer, prefix: str, header: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        response = await client.get(f"{prefix}/sales/milk", headers={"Read-After": header})

        assert response.status_code == 400
        assert header not in response.text

    play(layer, scenario, runs_projections=False)


def test_a_token_of_another_database_is_a_conflict(layer: DataLayer, prefix: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        token = Token.parse(await scan(client, prefix, "milk"))
        for foreign in (f"{token.position}.00000000", str(token.position + 1_000)):
            response = await client.get(f"{prefix}/sales/milk", headers={"Read-After": foreign})

            assert response.status_code == 409

    play(layer, scenario)


def test_a_read_model_behind_is_refused_or_served_with_its_age(
    layer: DataLayer, prefix: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        shown = await scan(client, prefix, "milk")
        layer.projections.run(layer.engine, SalesByProduct)
        token = await scan(client, prefix, "milk")
        url, after = f"{prefix}/sales/milk", {"Read-After": token}
        refused = await client.get(url, headers=after)
        served = await client.get(url, headers={**after, "Cache-Control": "max-stale"})
        too_old = await client.get(url, headers={"Cache-Control": "max-age=0"})
        young = await client.get(url, headers={"Cache-Control": "max-age=3600"})
        whatever = await client.get(url)
        layer.projections.run(layer.engine, SalesByProduct)
        fresh = await client.get(url, headers=after)

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "nobody runs it" in refused.json()["detail"]
        assert (served.status_code, served.json()["items"]) == (200, 1)
        assert int(served.headers["age"]) >= 1
        assert served.headers["read-stale"] == "1"
        assert served.headers["read-after"] == shown
        assert too_old.status_code == 503
        assert (young.status_code, "read-stale" in young.headers) == (200, False)
        assert whatever.json()["items"] == 1
        assert (fresh.json()["items"], fresh.headers["age"]) == (2, "0")

    play(layer, scenario, wait_seconds=0.01, runs_projections=False)


def test_a_read_model_that_cannot_go_on_is_not_waited_for(layer: DataLayer, prefix: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        with layer.engine.begin() as conn:
            conn.execute(text("ALTER TABLE till_sales ADD CHECK (product <> 'caviar')"))
        token = await scan(client, prefix, "caviar")
        response = await client.get(f"{prefix}/sales/milk", headers={"Read-After": token})

        assert response.status_code == 503
        assert "stopped before till.item_scanned" in response.json()["detail"]

    play(layer, scenario, wait_seconds=86_400)


def test_a_request_that_is_sent_again_has_the_token_of_the_first(
    layer: DataLayer, prefix: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        key = {"Idempotency-Key": "basket-7-line-1"}
        first = await scan(client, prefix, "milk", **key)
        await scan(client, prefix, "milk")
        again = await scan(client, prefix, "milk", **key)
        sales = await client.get(f"{prefix}/sales/milk", headers={"Read-After": again})
        other = await client.post(
            f"{prefix}/items", json={"product": "bread", "cents": 1}, headers=key
        )

        assert again == first
        assert sales.json()["items"] in {1, 2}
        assert other.status_code == 422

    play(layer, scenario)


@pytest.mark.parametrize("item", [{"product": " ", "cents": 1}, {"product": "milk", "cents": -1}])
def test_a_command_that_says_what_it_may_not_is_refused(
    layer: DataLayer, prefix: str, item: dict[str, object]
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        response = await client.post(f"{prefix}/items", json=item)

        assert response.status_code == 422

    play(layer, scenario, runs_projections=False)


def test_it_runs_on_a_socket(layer: DataLayer) -> None:
    server = uvicorn.Server(uvicorn.Config(create_app(layer), log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who comes before the server accepts waits in line
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
                answers = [bought(client, prefix) for prefix in ("", "/async")]
        finally:
            server.should_exit = True
            thread.join()

    assert [answer.json()["items"] for answer in answers] == [1, 2]


def bought(client: httpx.Client, prefix: str) -> httpx.Response:
    written = client.post(f"{prefix}/items", json={"product": "milk", "cents": 5})
    after = {"Read-After": written.headers["read-after"]}
    return client.get(f"{prefix}/sales/milk", headers=after)

"""The web API of the till, its endpoints once in threads and once in tasks."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from datapatterns import DataLayer
from datapatterns.cqrs import Answer
from datapatterns.errors import (
    CommandInvalidError,
    ConflictError,
    DataPatternsError,
    ForeignTokenError,
    IdempotencyKeyReusedError,
    OutcomeUnknownError,
    TokenError,
    UnavailableError,
)
from till_api.freshness import READ_AFTER, asked_for, told_by
from till_api.shop import Sales, SalesByProduct, ScanItem
from till_api.worker import running

Key = Annotated[str | None, Header()]

RETRY_AFTER_SECONDS = 1
STATUS = {
    TokenError: 400,
    ForeignTokenError: 409,
    IdempotencyKeyReusedError: 422,
    CommandInvalidError: 422,
    ConflictError: 409,
    UnavailableError: 503,
    OutcomeUnknownError: 503,  # with an Idempotency-Key, sending it again is safe
}

logger = logging.getLogger(__name__)


def create_app(
    layer: DataLayer, *, wait_seconds: float = 2.0, runs_projections: bool = True
) -> FastAPI:
    """Return the application.

    Args:
        layer: What `declare_layer` has returned.
        wait_seconds: How long a request waits for a read model.
        runs_projections: Whether this process moves the read model on; in a larger system
            workers do, and this only reads.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(layer, SalesByProduct, wanted=runs_projections):
            yield
        await layer.aclose()

    app = FastAPI(title="Till", lifespan=lifespan)
    app.add_exception_handler(DataPatternsError, refuse)
    add_endpoints(app, layer, wait_seconds)
    add_async_endpoints(app, layer, wait_seconds)
    return app


def add_endpoints(app: FastAPI, layer: DataLayer, wait_seconds: float) -> None:
    """Add endpoints that run in threads."""

    @app.post("/items", status_code=201)
    def scan(command: ScanItem, response: Response, idempotency_key: Key = None) -> None:
        executed = layer.execute(command, idempotency_key=idempotency_key)
        with layer.engine.connect() as conn:
            token = layer.projections.token(conn, executed.position)
        response.headers[READ_AFTER] = str(token)

    @app.get("/sales/{product}")
    def sales(product: str, request: Request) -> Response:
        asked = asked_for(request.headers, wait_seconds=wait_seconds)
        return told(layer.query(SalesByProduct, sales_of(product), **asked))


def add_async_endpoints(app: FastAPI, layer: DataLayer, wait_seconds: float) -> None:
    """Add the same endpoints, as tasks: a request that waits takes no thread."""

    @app.post("/async/items", status_code=201)
    async def scan(command: ScanItem, response: Response, idempotency_key: Key = None) -> None:
        executed = await layer.execute_async(command, idempotency_key=idempotency_key)
        async with layer.async_engine.connect() as conn:
            token = await conn.run_sync(layer.projections.token, executed.position)
        response.headers[READ_AFTER] = str(token)

    @app.get("/async/sales/{product}")
    async def sales(product: str, request: Request) -> Response:
        asked = asked_for(request.headers, wait_seconds=wait_seconds)
        return told(await layer.query_async(SalesByProduct, sales_of(product), **asked))


def sales_of(product: str) -> Callable[[Connection], dict[str, object]]:
    """Return the question what was sold of ``product``."""

    def ask(conn: Connection) -> dict[str, object]:
        table = Sales.__table__
        row = conn.execute(table.select().where(table.c.product == product)).one_or_none()
        items, cents = (0, 0) if row is None else (row.items, row.cents)
        return {"product": product, "items": items, "cents": cents}

    return ask


def told(answer: Answer[dict[str, object]]) -> Response:
    """Return the response with an answer and its age."""
    return JSONResponse(answer.value, headers=told_by(answer))


async def refuse(_: Request, error: Exception) -> Response:
    """Say what the client can do about an error; what is ours to mend stays in our log."""
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("a request failed", exc_info=error)
        return JSONResponse({"detail": "this is our fault"}, status)
    unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if unavailable else {}
    return JSONResponse({"detail": str(error)}, status, headers)

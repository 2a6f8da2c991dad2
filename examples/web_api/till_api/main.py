"""What a server of ASGI loads: ``uvicorn --factory till_api.main:app``."""

from fastapi import FastAPI

from till_api.app import create_app
from till_api.shop import SALES_TABLE, declare_layer


def app() -> FastAPI:
    """Return the application on the database that the environment names."""
    layer = declare_layer()
    layer.migrations.upgrade()
    SALES_TABLE.create_all(layer.engine)
    return create_app(layer)

"""What one run of the command was told: where the servers are, and how to print."""

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.application import load_app
from datapatterns_cli.output import Output
from datapatterns_cli.shared_options import given

if TYPE_CHECKING:
    from datapatterns import DataLayer

_URLS = ("database_url", "redis_url")


class Invocation:
    """What one run of the command was told."""

    def __init__(self, ctx: click.Context) -> None:
        self._ctx = ctx

    @cached_property
    def output(self) -> Output:
        """Where to print."""
        return Output(as_json=self.option("as_json") is True)

    def layer(self, *, or_embedded: bool = False, needs_server: bool = True) -> "DataLayer":
        """Return the data layer that options and environment name; it is closed at the end.

        Options count before the environment, an application before single URLs.

        Args:
            or_embedded: Start servers from wheels when none is named. Not for commands whose
                result is meant to stay.
            needs_server: Refuse to go on when no server is named.

        Raises:
            click.UsageError: No server is named, or options contradict each other.
            SettingsError: A URL cannot be used.
        """
        urls, schema = self._urls(), self.option("schema")
        if self.option("app") and urls:
            raise _usage_error("give --app or URLs, not both")
        app = self._app()
        if app and schema:
            raise _usage_error("the app says which schema; leave out --schema")
        layer = load_app(app) if app else _layer_of(urls, schema)
        root = self._ctx.find_root()
        if app or not needs_server or _names_a_server(layer):
            root.call_on_close(layer.close)
            return layer
        if or_embedded:
            self.output.note(
                "No server is named: starting PostgreSQL and Valkey of my own, gone when this ends."
                " Yours: --database-url, --redis-url or --app."
            )
            return root.with_resource(type(layer).embedded(schema=layer.schema))
        raise _usage_error(
            "which database? Give --app or --database-url, or set DATAPATTERNS_DATABASE_URL"
        )

    @property
    def names_app(self) -> bool:
        """Whether an application is named, whose declarations count."""
        return bool(self._app())

    def _urls(self) -> dict[str, str]:
        return {name: self.option(name) for name in _URLS if self.option(name)}

    def _app(self) -> str:
        app: str | None = self.option("app")
        if self._urls():
            return app or ""
        return app or os.environ.get("DATAPATTERNS_APP", "").strip()

    def option(self, name: str) -> Any:  # noqa: ANN401 -- a flag or a text
        """Return what was given for a shared option; None if nothing was."""
        return given(self._ctx).get(name)


pass_invocation = click.make_pass_decorator(Invocation)


def _layer_of(urls: dict[str, str], schema: str | None) -> "DataLayer":
    from datapatterns import DataLayer  # noqa: PLC0415 -- help must not wait for it

    # A database that is named here and now is meant alone, without the environment's shards.
    shards: dict[str, str] | None = {} if "database_url" in urls else None
    return DataLayer(
        urls.get("database_url"), redis_url=urls.get("redis_url"), shards=shards, schema=schema
    )


def _names_a_server(layer: "DataLayer") -> bool:
    found = layer.settings
    return bool(found.database_url or found.redis_url or found.shards)


def _usage_error(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context(silent=True))

"""Stored events as rows of a table, as one line each, and as JSON."""

import json
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from datapatterns_cli.invocation import Invocation

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import LogFilter, StoredEvent

DATA_SHOWN: Final = 100
"""How many characters of data a table shows; JSON has all."""

_KEY_SHOWN: Final = 60
_AS_STORED: Final = ("data", "metadata")


def as_json(event: "StoredEvent") -> dict[str, Any]:
    """Return all of an event, for programs.

    Data and metadata stay text, and are printed as they are: JSON may hold numbers, and lists in
    lists, that Python cannot read, or would write otherwise.
    """
    kept = {name: getattr(event, name) for name in _AS_STORED}
    kept = {name: raw for name, raw in kept.items() if bytes(raw) != b"null"}
    marked = msgspec.structs.replace(event, **dict.fromkeys(kept, msgspec.Raw(b"0")))
    found: dict[str, Any] = json.loads(msgspec.json.encode(marked))
    return found | kept


def as_row(event: "StoredEvent") -> dict[str, object]:
    """Return what a table shows of an event in the log."""
    return {
        "position": event.position,
        "recorded_at": _moment(event),
        "stream": _cut(str(event.stream), _KEY_SHOWN),
        "version": event.version,
        **_content(event),
    }


def as_version(event: "StoredEvent") -> dict[str, object]:
    """Return what a table shows of an event in its stream."""
    return {
        "version": event.version,
        "recorded_at": _moment(event),
        "position": event.position,
        **_content(event),
    }


def as_line(event: "StoredEvent") -> str:
    """Return an event on one line, for who watches them come in."""
    row = as_row(event)
    version = f"{row['stream']} {row['version']}"
    return f"{row['position']}  {row['recorded_at']}  {version}  {row['type']}  {row['data']}"


def said(event: "StoredEvent") -> str:
    """Return what an event says, in full."""
    if event.codec:
        return f"made by codec {event.codec}: {event.payload}"
    return bytes(event.data).decode()


def _moment(event: "StoredEvent") -> str:
    at = event.recorded_at
    return "-" if at is None else at.isoformat(" ", "milliseconds").removesuffix("+00:00")


def _content(event: "StoredEvent") -> dict[str, object]:
    shape = "" if event.schema_version == 1 else f" v{event.schema_version}"
    return {"type": f"{event.event_type}{shape}", "data": _cut(said(event), DATA_SHOWN)}


def _cut(text: str, size: int) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= size else f"{text[: size - 1]}…"


class Name(click.ParamType[str]):
    """A name that is not empty, as a variable that is not set would leave it."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if not value.strip():
            self.fail("it is empty; give a value, or leave the option out", param, ctx)
        return value


class Moment(click.ParamType[datetime]):
    """A moment as ISO 8601 writes it, with its time zone."""

    name = "moment"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the moment."""
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no moment; write 2026-05-01T12:00Z", param, ctx)
        if found.utcoffset() is None:
            self.fail(f"{value!r} has no time zone; write 2026-05-01T12:00Z", param, ctx)
        return found


def filter_options(command: Any) -> Any:  # noqa: ANN401 -- click's decorators are not typed better
    """Add the options that say which events are wanted."""
    for option in (
        click.option("--until", type=Moment(), help="Recorded before that moment."),
        click.option("--since", type=Moment(), help="Recorded at that moment or later."),
        click.option("--tenant", help="Only of this tenant; '' is the one without a name."),
        click.option("--tag", "tags", multiple=True, help="Only with this tag; all, if repeated."),
        click.option(
            "--category", "categories", type=Name(), multiple=True, help="Only of this category."
        ),
        click.option(
            "--type", "types", type=Name(), multiple=True, help="Only of this type, or these."
        ),
    ):
        command = option(command)
    return command


def filter_of(options: dict[str, Any]) -> "LogFilter":
    """Return the filter that `filter_options` ask for."""
    from datapatterns.event_sourcing import LogFilter  # noqa: PLC0415 -- help must not wait

    try:
        return LogFilter(
            event_types=options["types"] or None,
            categories=options["categories"] or None,
            tags=options["tags"],
            since=options["since"],
            until=options["until"],
            tenant=options["tenant"],
        )
    except ValueError as error:  # no tag can be like that
        raise click.UsageError(str(error)) from error


def tell_unknown_types(invocation: Invocation, layer: "DataLayer", matching: "LogFilter") -> None:
    """Say which of the types that are asked for nobody has ever stored, nor the app declared.

    It is no error, as a type may be on its way; but who mistyped a name would wait for ever.
    """
    if not matching.event_types:
        return
    from datapatterns.event_sourcing import StoredEvents  # noqa: PLC0415 -- help must not wait

    with layer.engine.connect() as conn:
        stored = StoredEvents(layer.events).type_names(conn)
    for name in sorted({*matching.event_types} - stored):
        if _is_declared(layer, name):
            continue
        near = get_close_matches(name, stored, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        invocation.output.note(f"no type {name!r} is stored or declared yet{advice}")


def _is_declared(layer: "DataLayer", name: str) -> bool:
    from datapatterns import ConfigurationError  # noqa: PLC0415 -- help must not wait for it

    try:
        layer.events.types.latest_version(name)
    except ConfigurationError:
        return False
    return True

"""`datapatterns projections parked|retry|discard|skipped`: events that could not be applied."""

from typing import TYPE_CHECKING, Any, Final

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.cqrs import Projection, Projections

_limit = click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
_version = click.option(
    "--version", type=click.IntRange(1), help="Which version.  [default: the newest declared]"
)


_REFUSED: Final = 2


class _Digest(click.ParamType[bytes]):
    name = "HEX"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        try:
            return bytes.fromhex(str(value))
        except ValueError:
            self.fail("it is no key digest, as `datapatterns projections parked` shows", param, ctx)


@click.command(cls=Command)
@click.argument("name", required=False)
@_limit
@pass_invocation
def parked(invocation: Invocation, *, name: str | None, limit: int) -> None:
    """List rows of read models whose events wait, since one of them could not be applied.

    A row is known by a digest of its key, which `retry` and `discard` take.

    \b
      datapatterns projections parked sales_by_product
    """  # noqa: D301
    layer = invocation.layer()
    with layer.read_engine.connect() as conn:
        found = layer.projections.parked(conn, name, limit=limit + 1)
    rows: list[dict[str, Any]] = [
        {
            "name": one.projection,
            "version": one.version,
            "key_digest": one.key_digest.hex(),
            "events": one.events,
            "position": one.position,
            "event_type": one.event_type,
            "error": one.error,
            "message": one.message,
            "since": one.parked_at.isoformat(timespec="seconds"),
        }
        for one in found
    ]
    further = "give a higher --limit"
    invocation.output.page(rows, limit=limit, further=further, empty="nothing is parked")


@click.command(cls=Command)
@click.argument("name", required=False)
@_limit
@pass_invocation
def skipped(invocation: Invocation, *, name: str | None, limit: int) -> None:
    """List events that were left out of rows, or of a whole read model, by position."""
    layer = invocation.layer()
    with layer.read_engine.connect() as conn:
        found = layer.projections.skipped(conn, name, limit=limit + 1)
    rows: list[dict[str, Any]] = [
        {
            "name": one.projection,
            "version": one.version,
            "position": one.position,
            "event_type": one.event_type,
            "key_digest": one.key_digest.hex() if one.key_digest else None,
            "error": one.error,
            "message": one.message,
            "since": one.skipped_at.isoformat(timespec="seconds"),
        }
        for one in found
    ]
    further = "give a higher --limit"
    invocation.output.page(rows, limit=limit, further=further, empty="nothing was skipped")


@click.command(cls=Command)
@click.argument("name")
@click.option("--key-digest", type=_Digest(), help="Only this row.  [default: all]")
@_version
@pass_invocation
def retry(
    invocation: Invocation, *, name: str, key_digest: bytes | None, version: int | None
) -> None:
    """Apply what is parked, in order, with the app's code as it is now.

    Whoever runs the projection loses a page meanwhile. If something is refused again, it goes on
    waiting, and this exits with 2, as for whatever is to be mended.

    \b
      datapatterns projections retry sales_by_product --app shop.data:layer
    """  # noqa: D301
    layer = invocation.layer()
    projection = _projection(layer.projections, name, version)
    done = layer.projections.retry(layer.read_engine, projection, key_digest=key_digest)
    invocation.output.values(
        {"events": done.events, "keys": done.keys, "refused": len(done.refused)}
    )
    for one in done.refused:
        invocation.output.note(
            f"{one.key_digest.hex()} stays at position {one.position}: {one.error}: {one.message}"
        )
    if done.refused:
        click.get_current_context().exit(_REFUSED)


@click.command(cls=Command)
@click.argument("name")
@click.option("--key-digest", type=_Digest(), required=True, help="Which row.")
@_version
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def discard(
    invocation: Invocation, *, name: str, key_digest: bytes, version: int | None, yes: bool
) -> None:
    """Give up what is parked of a row: it is left out for good, and listed by `skipped`."""
    layer = invocation.layer()
    projection = _projection(layer.projections, name, version)
    if not yes:
        note = f"Events of a row of {name} are left out; only a rebuild applies them."
        invocation.output.note(note)
        invocation.output.ask()
    done = layer.projections.discard(layer.read_engine, projection, key_digest=key_digest)
    invocation.output.values({"discarded": done.events})


def _projection(projections: "Projections", name: str, version: int | None) -> "type[Projection]":
    from datapatterns.cqrs import Projection  # noqa: PLC0415 -- help must not wait for it

    found = projections.find(name, version=version)
    if not issubclass(found, Projection):
        raise click.UsageError(f"{name} has no keys, so nothing of it is parked")
    return found

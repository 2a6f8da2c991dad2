"""`datapatterns cache invalidate|relay`: forget entries, send what waits."""

import json
from datetime import date
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.cache_aside import Cache


@click.command(cls=Command)
@click.argument("name", metavar="[CACHE]", required=False)
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What depends on it, anywhere.")
@click.option("--dry-run", is_flag=True, help="Say what would be forgotten, and forget nothing.")
@pass_invocation
def invalidate(
    invocation: Invocation,
    *,
    name: str | None,
    keys: tuple[str, ...],
    tags: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Forget entries of a cache by their keys, and whatever depends on tags.

    A key is JSON: 5, '"text"', '[1, "text"]' for several arguments; uuid:... and date:... are for
    such keys; other text stands for itself. It is recorded first, so that it happens in the end
    even if Redis is away.

    \b
      datapatterns cache invalidate product 819312 840361 --app shop.data:layer
      datapatterns cache invalidate --tag product --tag offer.product_id=i5
      datapatterns cache invalidate product '[1, "en"]' --dry-run
    """  # noqa: D301
    if name is None and not tags:
        raise click.UsageError("name a cache and its keys, or a --tag")
    if name is not None and not keys:
        raise click.UsageError(f"which entries of {name}? give their keys")
    parsed = [_key(key) for key in keys]
    layer = invocation.layer()
    cache: Cache = layer.caches.get(name or "") or layer.cache(name or "datapatterns")
    rows: list[dict[str, Any]] = [{"kind": "entry", "name": f"{name} {key!r}"} for key in parsed]
    rows += [{"kind": "tag", "name": tag} for tag in tags]
    if not dry_run:
        cache.invalidate(*parsed, tags=tags)
    invocation.output.table([{**row, "forgotten": not dry_run} for row in rows])


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@pass_invocation
def relay(invocation: Invocation, *, dry_run: bool) -> None:
    """Send all invalidations that have committed, once; a worker does it all the time.

    \b
      datapatterns cache relay --app shop.data:layer
      datapatterns cache relay --dry-run --json
    """  # noqa: D301
    relay = invocation.layer().cache_relay()
    if dry_run:
        status = relay.status()
        invocation.output.values(
            {
                "waiting_rows": status.waiting_rows,
                "waiting_seconds": round(status.waiting_seconds, 3),
            }
        )
        return
    report = relay.run()
    invocation.output.values(
        {
            "leading": report.is_leading,
            "transactions": report.transactions,
            "entries": report.entries,
            "forgot_everything": report.has_new_generation,
        }
    )
    if not report.is_leading:
        invocation.output.note("another process is at it, so nothing was done here")


def _key(text: str) -> Any:  # noqa: ANN401 -- whatever a key may be
    kind, _, rest = text.partition(":")
    try:
        if kind in {"uuid", "date"}:
            return UUID(rest) if kind == "uuid" else date.fromisoformat(rest)
        return _of_json(json.loads(text))
    except json.JSONDecodeError:
        return text
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no {kind}", param_hint="KEY") from error


def _of_json(value: Any) -> Any:  # noqa: ANN401 -- whatever JSON may hold
    return tuple(map(_of_json, value)) if isinstance(value, list) else value

"""Which commands there are; none is imported before it is asked for, so that help is quick.

A new group is one line here and one module beside this one, with a ``click`` group in it:
``@click.group(cls=Group)``.
"""

from importlib import import_module

import click

from datapatterns_cli.shared_options import Group

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (where it is, what `datapatterns --help` says of it)
    "cache": ("datapatterns_cli.cache:cache", "Look at caches, audit them, forget entries."),
    "demo": ("datapatterns_cli.demo:demo", "A year of a real grocer through all six patterns."),
    "doctor": ("datapatterns_cli.doctor:doctor", "Ask every server whether it is there and fit."),
    "events": ("datapatterns_cli.events:events", "Look into the event store, move events."),
    "indexes": ("datapatterns_cli.indexes:indexes", "Look at index tables, build, verify them."),
    "migrate": ("datapatterns_cli.migrate:migrate", "Create and upgrade the library's tables."),
    "projections": (
        "datapatterns_cli.projections:projections",
        "Look at read models, move them on, share them out.",
    ),
    "shards": (
        "datapatterns_cli.shards:shards",
        "Look at shards, find keys, end what the dead have begun.",
    ),
    "status": ("datapatterns_cli.status:status", "How stale is what is derived, what is wrong?"),
    "verify": ("datapatterns_cli.verify:verify", "Is what is derived what its source says?"),
    "views": ("datapatterns_cli.views:views", "Look at materialized views, refresh, verify them."),
    "worker": ("datapatterns_cli.worker:worker", "Run what an application declares."),
}


class LazyGroup(Group):
    """Imports a command when it is run, or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names of all commands, without importing any."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command called ``cmd_name``; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from what is said of them here."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

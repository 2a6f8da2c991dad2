"""Options of several commands.

Those of every command are taken before or after its name; the last one given counts.
"""

from typing import Any

import click

_GIVEN = "datapatterns_cli.given"

dry_run_option = click.option("--dry-run", is_flag=True, help="Only tell what would be done.")


def given(ctx: click.Context) -> dict[str, Any]:
    """Return the shared options that were given so far, by name."""
    found: dict[str, Any] = ctx.meta.setdefault(_GIVEN, {})
    return found


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if isinstance(value, str) and not value.strip():
        # As "$UNSET" leaves it: to go on with the environment's would work on another database.
        raise click.BadParameter("it is empty; give a value, or leave the option out", ctx, param)
    if value is not None and value is not False:
        given(ctx)[str(param.name)] = value


class SharedOption(click.Option):
    """An option that every command has; its value waits in the context."""

    def __init__(self, *names: str, **attributes: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__([*names], callback=_remember, expose_value=False, **attributes)


def _shared_options() -> list[click.Parameter]:
    return [
        SharedOption(
            "--app",
            metavar="MODULE:NAME",
            help="Where the application declares its DataLayer, or a function that returns it,"
            " such as shop.data:layer.  [env: DATAPATTERNS_APP]",
        ),
        SharedOption(
            "--database-url",
            metavar="URL",
            help="Only this database: postgresql://user:password@host:5432/name"
            "  [env: DATAPATTERNS_DATABASE_URL, DATABASE_URL]",
        ),
        SharedOption(
            "--redis-url",
            metavar="URL",
            help="redis://user:password@host:6379/0  [env: DATAPATTERNS_REDIS_URL, REDIS_URL]",
        ),
        SharedOption(
            "--schema",
            metavar="NAME",
            help="Where the library's tables live.  [env: DATAPATTERNS_SCHEMA;"
            " default: datapatterns]",
        ),
        SharedOption("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
        SharedOption("--debug", is_flag=True, help="Show where in the code an error came from."),
    ]


class Command(click.Command):
    """A command that takes the shared options, too."""

    def __init__(self, *args: Any, **attributes: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__(*args, **attributes)
        self.params += _shared_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the shared ones apart."""
        _write_options(self, ctx, formatter)


class Group(click.Group):
    """A group that takes the shared options, as do its commands."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **attributes: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__(*args, **attributes)
        self.params += _shared_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options as a command does."""
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)


def _write_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    params = command.get_params(ctx)
    shared: list[click.Parameter] = [p for p in params if isinstance(p, SharedOption)]
    own = [p for p in params if not isinstance(p, SharedOption)]
    for title, listed in (("Options", own), ("Options of every command", shared)):
        records = [record for param in listed if (record := param.get_help_record(ctx))]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)

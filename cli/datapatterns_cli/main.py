"""Entry point: the shared options, the commands, and errors turned into exit codes."""

import sys
import traceback
from collections.abc import Sequence
from typing import Never

import click

from datapatterns_cli.command_list import LazyGroup
from datapatterns_cli.invocation import Invocation
from datapatterns_cli.output import (
    Output,
    has_streams,
    replace_what_stdout_cannot_say,
    silence_stdout,
)
from datapatterns_cli.shared_options import given

INTERRUPTED = 130  # as shells report a command that SIGINT ended
READER_LEFT = 141  # likewise for SIGPIPE


class RootGroup(LazyGroup):
    """Shows an error as one line, not as a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error becomes a message and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            silence_stdout()
            ctx.exit(READER_LEFT)
        except Exception as error:  # noqa: BLE001 -- the edge of the program
            _fail(ctx, error)
        return result


def _fail(ctx: click.Context, error: Exception) -> Never:
    from datapatterns_cli.failures import failure  # noqa: PLC0415 -- help must not wait for it

    options = given(ctx)
    if "debug" in options:
        traceback.print_exception(error)
    found = failure(error)
    Output(as_json="as_json" in options).error(
        found.message, name=found.name, notes=found.notes, exit_code=found.exit_code
    )
    ctx.exit(found.exit_code)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="datapatterns", message="datapatterns %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Data-layer patterns for PostgreSQL and Redis that stay consistent.

    Name your servers by URL, or the DataLayer that your application declares:

    \b
      datapatterns migrate upgrade --database-url postgresql://ann@db.example/shop
      datapatterns migrate status --app shop.data:layer
      export DATAPATTERNS_APP=shop.data:layer

    Exit codes: 0 done; 1 not foreseen; 2 wrong settings or usage; 3 another writer won, run it
    again; 4 a server did not answer; 5 stored data are wrong; 6 the answer to a COMMIT was lost,
    so find out; 130 interrupted.
    """  # noqa: D301 -- \b is click's mark for lines to keep
    ctx.obj = Invocation(ctx)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if not has_streams():
        click.echo("Error: stdout is closed; send it to a file, or to /dev/null", err=True)
        return 2
    replace_what_stdout_cannot_say()
    try:
        result = cli.main(arguments, prog_name="datapatterns", standalone_mode=False)
    except click.ClickException as error:
        # The command line could not be read, so nobody knows what its options are.
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            name, message = type(error).__name__, error.format_message()
            Output(as_json=True).error(message, name=name, notes=(), exit_code=error.exit_code)
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what was committed stays, the rest is undone.", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0

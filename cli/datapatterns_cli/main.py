"""Entry point: the shared options, the commands, and errors turned into exit codes."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from datapatterns_cli.command_list import LazyGroup
from datapatterns_cli.invocation import Invocation
from datapatterns_cli.output import (
    Output,
    has_streams,
    replace_what_stdout_cannot_say,
    silence,
)
from datapatterns_cli.shared_options import given

INTERRUPTED = 130  # as shells report a command that SIGINT ended
READER_LEFT = 141  # likewise for SIGPIPE


class RootGroup(LazyGroup):
    """Shows an error as one line, not as a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 -- click's own
        """Read the command line; help and version are printed by the way."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError:  # click would exit with 1
            silence(sys.stdout)
            raise click.exceptions.Exit(READER_LEFT) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error becomes a message and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- the edge of the program
            options = given(ctx)
            ctx.exit(_told(error, Output(as_json="as_json" in options), debug="debug" in options))
        return result


def _told(error: BaseException, output: Output, *, debug: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        silence(sys.stdout)
        return READER_LEFT
    if isinstance(error, click.ClickException):
        output.misuse(error)
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        message = "Interrupted; what was committed stays, the rest is undone."
        if output.as_json:
            output.error(message, name="Interrupted", notes=(), exit_code=INTERRUPTED)
        else:
            output.note(f"\n{message}")  # behind the ^C that the terminal shows
        return INTERRUPTED
    from datapatterns_cli.failures import failure  # noqa: PLC0415 -- help must not wait for it

    if debug:
        traceback.print_exception(error)
    found = failure(error)
    output.error(found.message, name=found.name, notes=found.notes, exit_code=found.exit_code)
    return found.exit_code


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
    words = sys.argv[1:] if arguments is None else arguments
    # The command line may be one that cannot be read, so nobody knows what its options are.
    output = Output(as_json="--json" in words)
    if not has_streams():
        message = "stdout is closed; send it to a file, or to /dev/null"
        output.error(message, name="UsageError", notes=(), exit_code=2)
        return 2
    replace_what_stdout_cannot_say()
    try:
        result = cli.main(words, prog_name="datapatterns", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- the edge of the program
        return _told(error, output, debug="--debug" in words)
    return result if isinstance(result, int) else 0

"""The reference names every command, and every option that is the command's own."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from datapatterns_cli.main import cli

REFERENCE = Path(__file__, "../../../docs/reference/cli.md").resolve()
# Those of every command, of commands that load an app or a cluster, and of groups.
ELSEWHERE = {"--app", "--cluster", "--database-url", "--debug", "--help", "--json"} | {
    "--redis-url",
    "--schema",
    "--version",
}


def commands(group: click.Group, *words: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *words, name)
        elif command is not None:
            yield " ".join((*words, name)), command


@pytest.mark.parametrize(("name", "command"), [*commands(cli)])
def test_it_is_in_the_reference(name: str, command: click.Command) -> None:
    rows = [
        line
        for line in REFERENCE.read_text().splitlines()
        if line.startswith("|") and re.search(rf"`{name}( [^`]*)?`", line.split(" | ")[0])
    ]
    assert rows, f"`{name}` is not in {REFERENCE}"
    missing = [
        names
        for parameter in command.params
        if isinstance(parameter, click.Option)
        and not ELSEWHERE & set(names := [*parameter.opts, *parameter.secondary_opts])
        and not any(re.search(rf"{option}\b", rows[0]) for option in names)
    ]
    assert missing == []

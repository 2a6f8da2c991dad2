"""Reading packed Redis commands back, to say what a gate is about; pure."""

from collections.abc import Iterable

_ARGUMENTS_SHOWN = 2
_ARGUMENT_CHARACTERS_MAX = 40
_LABEL_CHARACTERS_MAX = 200
_LINE_END = b"\r\n"
# What follows these can be a password.
_SECRET = frozenset({b"ACL", b"AUTH", b"CONFIG", b"HELLO", b"MIGRATE"})
_SCRIPTS = frozenset({b"EVAL", b"EVALSHA", b"EVALSHA_RO", b"EVAL_RO", b"FCALL", b"FCALL_RO"})
_NUMBER_OF_KEYS = 2

Command = list[bytes]
"""A command and its arguments."""


def commands_of(packed: bytes | str | Iterable[bytes]) -> list[Command]:
    r"""Read packed commands back: each is a RESP array of bulk strings.

    >>> commands_of(b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")
    [[b'GET', b'x']]
    """
    if isinstance(packed, str):
        packed = packed.encode()
    data = packed if isinstance(packed, bytes) else b"".join(packed)
    found, at = [], 0
    while at < len(data):
        size, at = _number(data, at)
        arguments = []
        for _ in range(size):
            length, at = _number(data, at)
            arguments.append(data[at : at + length])
            at += length + len(_LINE_END)
        found.append(arguments)
    return found


def label_of(commands: list[Command]) -> str:
    """Return what the story calls these commands: never a value, never a password."""
    names = [command[0].decode(errors="replace") for command in commands]
    if len(commands) > 1:
        return f"redis {' '.join(names)}"[:_LABEL_CHARACTERS_MAX]
    shown = [part.decode(errors="replace") for part in _shown(commands[0])]
    short = [" ".join(part.split())[:_ARGUMENT_CHARACTERS_MAX] for part in shown]
    return f"redis {' '.join(short)}"


def _shown(command: Command) -> Command:
    name = command[0].upper()
    if name in _SECRET:
        return command[:1]
    if name in _SCRIPTS and len(command) > _NUMBER_OF_KEYS and command[_NUMBER_OF_KEYS].isdigit():
        # A script is long, or a hash: its keys say more.
        keys = int(command[_NUMBER_OF_KEYS])
        return [command[0], *command[_NUMBER_OF_KEYS + 1 :][: min(keys, _ARGUMENTS_SHOWN)]]
    return command[:_ARGUMENTS_SHOWN]


def _number(data: bytes, at: int) -> tuple[int, int]:
    end = data.index(_LINE_END, at)
    return int(data[at + 1 : end]), end + len(_LINE_END)

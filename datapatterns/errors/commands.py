"""Typed commands: how they are declared, what they say, what came of them."""

from collections.abc import Iterable
from typing import Final

from datapatterns.errors.families import ConfigurationError, CorruptionError

_SHOWN: Final = 10  # problems in a message; the attribute has them all


class CommandHandlerError(ConfigurationError):
    """A handler is declared so that it cannot work, does what it must not, or is missing.

    Attributes:
        command: The name of the command, or of its class.
    """

    def __init__(self, command: str, advice: str) -> None:
        super().__init__(f"command {command}: {advice}")
        self.command = command


class CommandInvalidError(ConfigurationError):
    """A command says what no command of its kind may say; nothing was written.

    Attributes:
        command: The name of the command.
        problems: Pairs of a field and what is wrong with it; the field is empty if it is not one
            alone.
    """

    def __init__(self, command: str, problems: Iterable[tuple[str, str]]) -> None:
        self.command = command
        self.problems = tuple(problems)
        told = [f"{field}: {what}" if field else what for field, what in self.problems[:_SHOWN]]
        more = ["..."] if len(self.problems) > _SHOWN else []
        super().__init__(
            f"command {command} is invalid: {'; '.join(told + more)}; correct it and send it again"
        )


class CommandResultError(ConfigurationError):
    """What a handler has returned cannot be given to whoever repeats the command.

    Attributes:
        command: The name of the command.
        reason: What is wrong with the result.
    """

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(
            f"the result of command {command} cannot be given to whoever repeats it: {reason}"
        )
        self.command = command
        self.reason = reason


class IdempotencyKeyReusedError(ConfigurationError):
    """An idempotency key was given before, to another command or to other contents.

    Attributes:
        key: The key.
        command: The name of the command that it was given to now.
        executed: The name of the command that was executed under it.
    """

    def __init__(self, key: str, *, command: str, executed: str) -> None:
        other = "with other contents" if command == executed else f"for command {executed}"
        super().__init__(
            f"the idempotency key {key!r} of command {command} was used before, {other}; give"
            " each command a key of its own, and a retry exactly what was sent first"
        )
        self.key = key
        self.command = command
        self.executed = executed


class ExecutionUnfinishedError(CorruptionError):
    """An execution was committed without its result: its handler has committed by itself.

    Attributes:
        key: The idempotency key.
        command: The name of the command.
    """

    def __init__(self, key: str, *, command: str) -> None:
        super().__init__(
            f"the execution of command {command} under the key {key!r} was committed half way, as"
            " its handler has sent a COMMIT; look at what it wrote, then delete the row of the key"
        )
        self.key = key
        self.command = command

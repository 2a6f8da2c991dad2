"""Fold in another process, where text has other hashes, so that sets have another order.

What the two say is data: nothing in it is run, nor imported because of it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.determinism.carrying import named
from datapatterns.cqrs.determinism.exchange import (
    Answer,
    Question,
    answers,
    carry_events,
    carry_rows,
    outcome_of,
    reason_of,
    rows_given_back,
)
from datapatterns.cqrs.determinism.in_memory import Decoded, State
from datapatterns.cqrs.determinism.piping import GarbledError, received, send
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_keys import Place
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.event_sourcing.evolution.event_types import EventTypes

_SEEDS: Final = ("1", "2")
"""Of hashes; that which is not this process's own."""


class UntriedError(Exception):
    """It cannot be done there."""


class OtherProcess:
    """Folds what it is sent; one request after the other, and none after one that failed."""

    def __init__(
        self, child: "subprocess.Popen[bytes]", projection: type[AnyProjection], types: EventTypes
    ) -> None:
        self._child = child
        self._projection = projection
        self._types = types

    def rows(self, decoded: Decoded, before: State, left_out: LeftOut) -> State:
        """Return what comes of it there, but for the parts that are left out.

        Raises:
            UntriedError: It cannot be done there.
        """
        assert issubclass(self._projection, Projection)
        with _untried():
            events = carry_events(self._projection, self._types, decoded)
            answer = self._ask(
                Question(events, rows=carry_rows(before), left_out=sorted(left_out.parts))
            )
            return rows_given_back(self._projection, answer.rows)

    def places(self, decoded: Decoded, before: Mapping[Place, str]) -> Outcome:
        """Return what comes of it there.

        Raises:
            UntriedError: It cannot be done there.
        """
        with _untried():
            events = carry_events(self._projection, self._types, decoded)
            return outcome_of(self._ask(Question(events, places=list(before.items()))))

    def _ask(self, question: Question) -> Answer:
        named(self._projection)
        asked = msgspec.msgpack.encode(question)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            send(self._child.stdin, asked)
            told = received(self._child.stdout)
        except OSError as error:
            raise UntriedError("it has ended") from error
        if told is None:
            raise UntriedError("it has ended")
        answer = answers.decode(told)
        if answer.failure is not None:
            raise UntriedError(answer.failure)
        return answer


@contextmanager
def _untried() -> Iterator[None]:
    try:
        yield
    except UntriedError:
        raise
    except (GarbledError, msgspec.DecodeError) as error:
        raise UntriedError("what it says is no answer") from error
    except Exception as error:  # classes of the application may raise anything
        raise UntriedError(reason_of(error)) from error


@contextmanager
def other_process(projection: type[AnyProjection], types: EventTypes) -> Iterator[OtherProcess]:
    """Start it; it ends with the block."""
    seed = next(one for one in _SEEDS if one != os.environ.get("PYTHONHASHSEED"))
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109 -- text
    with subprocess.Popen(  # noqa: S603 -- Python, and a class that is loaded here
        [
            *(sys.executable, "-m", "datapatterns.cqrs.determinism.answering"),
            *(projection.__module__, projection.__qualname__),
        ],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            yield OtherProcess(child, projection, types)
        finally:
            child.kill()
            assert child.stdin is not None
            # A question that it did not read to its end is written once more by close().
            with suppress(BrokenPipeError):
                child.stdin.close()

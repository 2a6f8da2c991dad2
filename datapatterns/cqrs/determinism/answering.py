"""The other process: run as a module, with the projection's module and its name in that.

It imports these, and nothing that it is sent. It answers on what was its stdout; what handlers
print goes to stderr.
"""

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import IO

import msgspec

from datapatterns.cqrs.definition import AnyProjection, Projection, RedisProjection
from datapatterns.cqrs.determinism.carrying import class_named
from datapatterns.cqrs.determinism.exchange import (
    Answer,
    Question,
    answer_of,
    carry_rows,
    events_given_back,
    left_out_of,
    questions,
    reason_of,
    rows_given_back,
)
from datapatterns.cqrs.determinism.in_memory import fold_places, fold_rows
from datapatterns.cqrs.determinism.piping import received, send
from datapatterns.cqrs.in_redis.redis_keys import Place


def answer_all(module: str, name: str, asked: IO[bytes], told: IO[bytes]) -> None:
    """Answer each question about this projection, until there are no more."""
    while (question := received(asked)) is not None:
        send(told, _answered(module, name, question))


def _answered(module: str, name: str, question: bytes) -> bytes:
    try:
        import_module(module)
        answer = _answer(class_named([module, name]), questions.decode(question))
        return msgspec.msgpack.encode(answer)
    except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
        return msgspec.msgpack.encode(Answer(failure=reason_of(error)))


def _answer(projection: type[AnyProjection], question: Question) -> Answer:
    decoded = events_given_back(projection, question.events)
    if issubclass(projection, Projection):
        before = rows_given_back(projection, question.rows)
        left_out = left_out_of(projection, question.left_out)
        return Answer(rows=carry_rows(fold_rows(projection, decoded, before, left_out)))
    assert issubclass(projection, RedisProjection)
    held = dict(question.places)

    def stored(places: Iterable[Place]) -> dict[Place, str]:
        return {place: held[place] for place in places if place in held}

    return answer_of(fold_places(projection, decoded, stored))


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _, named_module, its_name = sys.argv
    answer_all(named_module, its_name, sys.stdin.buffer, own)

"""Fold in another process, where text has other hashes, so that sets have another order.

Run as a module it is that process: it answers on what was its stdout, and what handlers print
goes to stderr.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from datapatterns.cqrs.definition import AnyProjection, Projection, RedisProjection
from datapatterns.cqrs.determinism.in_memory import Decoded, State, fold_places, fold_rows
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_keys import Place

_SEEDS: Final = ("1", "2")
"""Of hashes; that which is not this process's own."""


class UntriedError(Exception):
    """It cannot be done there."""


class OtherProcess:
    """Folds what it is sent; one request after the other."""

    def __init__(self, child: "subprocess.Popen[bytes]", projection: type[AnyProjection]) -> None:
        self._child = child
        self._projection = projection

    def rows(self, decoded: Decoded, before: State) -> State:
        """Return what comes of it there.

        Raises:
            UntriedError: It cannot be done there.
        """
        answer: State = self._ask(decoded, before)
        return answer

    def places(self, decoded: Decoded, before: Mapping[Place, str]) -> Outcome:
        """Return what comes of it there.

        Raises:
            UntriedError: It cannot be done there.
        """
        answer: Outcome = self._ask(decoded, dict(before))
        return answer

    def _ask(self, decoded: Decoded, before: object) -> Any:  # noqa: ANN401 -- as it is called
        try:
            asked = pickle.dumps((self._projection, list(decoded), before))
        except Exception as error:  # pickle raises whatever the classes do
            raise UntriedError(f"{type(error).__name__}: {error}") from error
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(len(asked).to_bytes(8, "big") + asked)
            self._child.stdin.flush()
            answer = _received(self._child.stdout)
        except OSError as error:
            raise UntriedError("it has ended") from error
        if answer is None:
            raise UntriedError("it has ended")
        done, what = pickle.loads(answer)  # noqa: S301 -- from the process that was started here
        if not done:
            raise UntriedError(what)
        return what


@contextmanager
def other_process(projection: type[AnyProjection]) -> Iterator[OtherProcess]:
    """Start it; it ends with the block."""
    seed = next(one for one in _SEEDS if one != os.environ.get("PYTHONHASHSEED"))
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109 -- text
    with subprocess.Popen(
        [sys.executable, "-m", "datapatterns.cqrs.determinism.other_process"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            yield OtherProcess(child, projection)
        finally:
            child.kill()


def answer_all(asked: BinaryIO, answers: BinaryIO) -> None:
    """Be the other process."""
    while (request := _received(asked)) is not None:
        answer = pickle.dumps(_answer(request))
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


def _answer(request: bytes) -> tuple[bool, object]:
    try:
        projection, decoded, before = pickle.loads(request)  # noqa: S301 -- from who started this
        return True, _fold(projection, decoded, before)
    except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
        return False, f"{type(error).__name__}: {error}"


def _fold(projection: type[AnyProjection], decoded: Decoded, before: Any) -> object:  # noqa: ANN401
    if issubclass(projection, Projection):
        return fold_rows(projection, decoded, before)
    assert issubclass(projection, RedisProjection)

    def stored(places: Iterable[Place]) -> dict[Place, str]:
        return {place: before[place] for place in places if place in before}

    return fold_places(projection, decoded, stored)


def _received(source: Any) -> bytes | None:  # noqa: ANN401 -- a pipe
    size = source.read(8)
    if len(size) < 8:  # noqa: PLR2004 -- bytes of a length
        return None
    return bytes(source.read(int.from_bytes(size, "big")))


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer_all(sys.stdin.buffer, own)

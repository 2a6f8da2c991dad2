"""A process of its own for one shard, as Alembic keeps what it runs in global variables.

It is told what to do on stdin, because other users of the machine can read arguments, and answers
on what was its stdout; what ``env.py`` prints goes to stderr.
"""

import logging
import os
import subprocess
import sys
from typing import Final

import msgspec

from datapatterns.sharding.migrating.shard_work import ShardOrder, ShardOutcome, migrate_shard

logger = logging.getLogger(__name__)

_LINES_MAX: Final = 200


class Told(msgspec.Struct, frozen=True):
    """What the process is told: the order, and where Python looks for the application."""

    order: ShardOrder
    path: list[str]


def migrate_shard_apart(order: ShardOrder) -> ShardOutcome:
    """Do as `migrate_shard` does, in a process of its own; several may run at once."""
    told = msgspec.json.encode(Told(order, [*sys.path]))
    # Nobody shares its group with it: a terminal's Ctrl-C must not reach it twice.
    with subprocess.Popen(  # noqa: S603 -- our own module
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            answer, said = process.communicate(told)
        except BaseException:
            process.terminate()
            raise
    for line in said.decode(errors="replace").splitlines()[-_LINES_MAX:]:
        logger.info("%s: %s", order.shard, line)
    try:
        return msgspec.json.decode(answer, type=ShardOutcome)
    except msgspec.DecodeError:
        last = next(reversed(said.decode(errors="replace").strip().splitlines()), "")
        error = f"its process ended with {process.returncode}: {last}"
        return ShardOutcome(shard=order.shard, state="failed", error=error)


def main() -> None:
    """Do what stdin says, and answer."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Told)
    sys.path[:] = told.path
    outcome = migrate_shard(told.order)
    with os.fdopen(answer, "wb") as stream:
        stream.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()

"""Explore two tasks of three round trips, beside the same statements without a scheduler."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection, Engine, text

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.testing import Explorer, Fault

READ = text("SELECT free FROM seats")
WRITE = text("UPDATE seats SET free = :free")
PREPARE = text("UPDATE seats SET free = 2")
SCHEDULES = 28


@contextmanager
def claim() -> Iterator[Claim]:
    """Each schedule is prepared, run and checked; ``limit`` does the same in the same order."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        with layer.engine.begin() as conn:
            conn.execute(text("CREATE TABLE seats AS SELECT 2 AS free"))
        explorer = stack.enter_context(Explorer(layer.engine.url))
        yield Claim(
            "explore two tasks of three round trips",
            "schedules",
            [
                Contestant("functions in threads", "ours", _sync(explorer, layer.engine)),
                Contestant("coroutines", "ours", _async(explorer, layer.engine)),
                Contestant("functions that crash", "ours", _crash(explorer, layer.engine)),
                Contestant("the statements alone", "limit", _limit(stack, layer.engine)),
            ],
        )


def _take(conn: Connection) -> None:
    free = conn.scalar(READ)
    conn.execute(WRITE, {"free": (free or 0) - 1})


def _sync(explorer: Explorer, plain: Engine) -> Callable[[], int]:
    engine = explorer.engine()

    def task() -> None:
        with engine.begin() as conn:
            _take(conn)

    return lambda: _explored(explorer, plain, task)


def _async(explorer: Explorer, plain: Engine) -> Callable[[], int]:
    engine = explorer.async_engine()

    async def task() -> None:
        async with engine.begin() as conn:
            await conn.run_sync(_take)

    return lambda: _explored(explorer, plain, task)


def _explored(explorer: Explorer, plain: Engine, task: Callable[[], object]) -> int:
    def scenario() -> dict[str, Callable[[], object]]:
        _prepare(plain)
        return {"alice": task, "bob": task}

    found = explorer.explore(
        scenario, invariant=lambda _: _check(plain), max_preemptions=3, max_schedules=SCHEDULES
    )
    return found.schedules


def _crash(explorer: Explorer, plain: Engine) -> Callable[[], int]:
    engine = explorer.engine()

    def task() -> None:
        with engine.begin() as conn:
            _take(conn)

    def scenario() -> dict[str, Callable[[], object]]:
        _prepare(plain)
        return {"alice": task, "bob": task}

    def run() -> int:
        found = explorer.explore(
            scenario,
            invariant=lambda _: _check(plain),
            max_preemptions=1,
            crash_at=lambda _: True,
            faults=[Fault.CRASH],
            max_schedules=SCHEDULES,
        )
        return found.schedules

    return run


def _limit(stack: ExitStack, plain: Engine) -> Callable[[], int]:
    tasks = [stack.enter_context(plain.connect()) for _ in range(2)]

    def run() -> int:
        for _ in range(SCHEDULES):
            _prepare(plain)
            for conn in tasks:
                _take(conn)
                conn.commit()
            _check(plain)
        return SCHEDULES

    return run


def _prepare(plain: Engine) -> None:
    with plain.begin() as conn:
        conn.execute(PREPARE)


def _check(plain: Engine) -> None:
    with plain.connect() as conn:
        conn.scalar(READ)

"""Set everybody on the log at once, break what can break, and judge what came of it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from random import Random
from threading import Event
from typing import Final

from sqlalchemy import URL, Engine, NullPool, create_engine, text

from datapatterns.testing import PostgresFaults, wait_until
from tests.torture.bystanders import OTHER_DATABASE, Bystanders, Watched, publish, watch
from tests.torture.crews import Crews, Role
from tests.torture.importing import import_chunks, prepare
from tests.torture.judging import Report, judge
from tests.torture.ledger import Ledger
from tests.torture.plan import ENOUGH_SECONDS, WRITERS_NAME, Plan, reader_name
from tests.torture.tailing import Reader, Reading
from tests.torture.writing import write

KILL_EVERY_SECONDS: Final = 0.1
_READERS_PER_PROCESS: Final = 2
_START = text("SELECT setval('datapatterns.event_position', :start)")
_LAST = text("SELECT pg_sequence_last_value('datapatterns.event_position')")


def torture(
    faults: PostgresFaults,
    plan: Plan,
    *,
    while_open: Callable[[Engine], None] | None = None,
) -> Report:
    """Do what ``plan`` says to a migrated database; return what came of it.

    Args:
        faults: Of that database; of an embedded server if the plan has crashes.
        plan: Who does what.
        while_open: Is called when all is over, and only the transactions of bystanders are open.
    """
    url = faults.url
    engine = create_engine(url, poolclass=NullPool)
    _prepare_tables(engine, plan)
    context = get_context("spawn")
    at_once, begin, written, done = context.Event(), context.Event(), context.Event(), Event()
    at_once.set()
    with Bystanders(url) as bystanders, ThreadPoolExecutor(2) as pool:
        watching = pool.submit(watch, url, done)
        publishing = pool.submit(publish, url, done)
        try:
            with Crews(_readers(url, plan, written), at_once) as reading:
                with Crews(_writers(url, plan, prepared=_can_prepare(engine)), begin) as writing:
                    wait_until(partial(_all_read, faults, plan), deadline_seconds=ENOUGH_SECONDS)
                    begin.set()
                    _break_things(faults, engine, plan, writing, bystanders)
                    ledgers = writing.results()
                written.set()
                readings: list[Reading] = reading.results()
        finally:  # processes that still waited have been killed: to tell them would wait for them
            done.set()
        watched: Watched = watching.result()
        publishing.result()
        report = judge(engine, _sum(ledgers), readings, watched)
        if while_open is not None:
            while_open(engine)
    return report


def _sum(ledgers: Sequence[Ledger]) -> Ledger:
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    return total


def _prepare_tables(engine: Engine, plan: Plan) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("CREATE TABLE IF NOT EXISTS torture_other (n int)"))
        conn.execute(text("CREATE TABLE torture_reader (name text PRIMARY KEY, position bigint)"))
        conn.execute(_START, {"start": plan.start})
        for number in range(len(plan.readers)):
            conn.execute(
                text("INSERT INTO torture_reader VALUES (:name, 0)"), {"name": reader_name(number)}
            )
        known = text("SELECT count(*) FROM pg_database WHERE datname = :name")
        if not conn.scalar(known, {"name": OTHER_DATABASE}):
            conn.exec_driver_sql(f"CREATE DATABASE {OTHER_DATABASE}")


def _all_read(faults: PostgresFaults, plan: Plan) -> bool:
    names = [reader_name(number) for number in range(len(plan.readers))]
    return all(faults.connections(application_name=name) for name in names)


def _readers(url: URL, plan: Plan, written: object) -> list[list[Role]]:
    roles: list[Role] = [
        partial(_follow, url, reader_name(number), how, written)
        for number, how in enumerate(plan.readers)
    ]
    return [
        roles[first : first + _READERS_PER_PROCESS]
        for first in range(0, len(roles), _READERS_PER_PROCESS)
    ]


def _follow(url: URL, name: str, how: object, written: object) -> Reading:
    return Reader(url, name, how).follow(written)  # type: ignore[arg-type] # from the plan


def _can_prepare(engine: Engine) -> bool:
    with engine.connect() as conn:
        return bool(conn.scalar(text("SHOW max_prepared_transactions")) != "0")


def _writers(url: URL, plan: Plan, *, prepared: bool) -> list[list[Role]]:
    by_import, by_two_phases = plan.events * plan.imported // 100, prepared * plan.events // 50
    by_hand = plan.events - by_import - by_two_phases
    crews: list[list[Role]] = []
    for crew in range(plan.crews):
        seed = plan.seed * 1_000_000 + crew * 1_000
        each = by_hand // plan.crews // plan.writers
        roles: list[Role] = [
            partial(write, url, seed=seed + writer, events=each) for writer in range(plan.writers)
        ]
        roles.append(partial(import_chunks, url, seed=seed + 500, events=by_import // plan.crews))
        roles.append(partial(prepare, url, seed=seed + 600, events=by_two_phases // plan.crews))
        crews.append(roles)
    return crews


def _break_things(
    faults: PostgresFaults, engine: Engine, plan: Plan, writing: Crews, bystanders: Bystanders
) -> None:
    """Kill connections all the time, and the server when some of the events are written."""
    chance = Random(plan.seed)  # noqa: S311 -- reproducible, not secret
    crashed = 0
    while not writing.are_done(within_seconds=KILL_EVERY_SECONDS):
        if plan.kills:
            pids = faults.connections(application_name=WRITERS_NAME)
            with suppress(ValueError):  # it has just been killed, or ended
                if pids:
                    faults.kill_backend(chance.choice(pids))
        if crashed < plan.crashes:
            with engine.connect() as conn:
                drawn = (conn.scalar(_LAST) or 0) - plan.start
            if drawn > plan.events * (crashed + 1) // (plan.crashes + 1):
                crashed += 1
                faults.crash_and_restart()
                bystanders.reopen()
    assert crashed == plan.crashes, f"the server was killed {crashed} times only"

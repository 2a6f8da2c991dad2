"""Query a read model in a thread: no connection is held, and no transaction open, while it waits.

A query is asked at once, for most read models are far enough; only then it waits.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.reading.answering import (
    FinalPositionNeededError,
    Question,
    answer,
    read_age,
)
from datapatterns.cqrs.reading.answering_redis import RedisQuestion
from datapatterns.cqrs.reading.answers import Age, Answer, Attempted, Demand, Missed
from datapatterns.cqrs.reading.log_identity import shown_mark
from datapatterns.cqrs.reading.querying_flow import Attempt, Await, Rest, Steps
from datapatterns.cqrs.reading.tokens import Token, check_log
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.transactions import fresh_reads, reading

T = TypeVar("T")

SNAPSHOT: Final[dict[str, Any]] = {
    "isolation_level": "REPEATABLE READ",
    "postgresql_readonly": True,
}
"""Execution options of a connection whose transactions see one moment, and change nothing."""


def run_query(
    steps: Steps,
    attempt: Callable[[Attempt], Attempted[T]],
    wait: Callable[[Token, float], object],
    rest: Callable[[float], None],
) -> Answer[T]:
    """Take the steps of a query and return its answer."""
    result: object = None
    try:
        while True:
            step = steps.send(result)
            match step:
                case Attempt():
                    result = attempt(step)
                case Await(goal, seconds):
                    result = _error_of(wait, goal, seconds)
                case Rest(seconds):
                    rest(seconds)
                    result = None
    except StopIteration as done:
        found: Answer[T] = done.value
        return found


def attempt_in_snapshot(engine: Engine, question: Question[T], step: Attempt) -> Attempted[T]:
    """Ask in a snapshot of its own."""

    def ask(final: Position | None) -> Attempted[T]:
        with engine.connect().execution_options(**SNAPSHOT) as conn, reading(conn):
            return question.attempt(conn, step.demand, anyway=step.anyway, final=final)

    try:
        return ask(None)
    except FinalPositionNeededError:
        with fresh_reads(engine) as conn:
            final = question.store.high_water_mark(conn)
        return ask(final)


def attempt_in_redis(
    engine: Engine,
    schema: str,
    projection: type[RedisProjection],
    question: RedisQuestion[T],
    build: Callable[[Connection], str | None],
    step: Attempt,
) -> Attempted[T]:
    """Ask Redis, and the database before and after."""
    with engine.connect() as conn:
        mark, ours = place_in_redis(conn, schema, projection, build, step.demand)
    position, values = question.asked(ours, enough(step))
    with engine.connect() as conn:
        age = read_age(conn, schema, projection, position or START)
    return judged(projection.name, step, (position, values), age, mark)


def place_in_redis(
    conn: Connection,
    schema: str,
    projection: type[RedisProjection],
    build: Callable[[Connection], str | None],
    demand: Demand,
) -> tuple[str | None, str | None]:
    """Return which log it is about, and which build of the read model is ours.

    Raises:
        ForeignTokenError: The token is of another log.
    """
    mark = shown_mark(conn, schema, projection)
    if demand.after is not None:
        check_log(demand.after, mark)
    return mark, build(conn)


def enough(step: Attempt) -> Callable[[Position], bool]:
    """Return what tells whether asking a read model at some position is worth it."""
    return lambda position: step.anyway or step.demand.is_reached(position)


def judged(
    name: str,
    step: Attempt,
    found: tuple[Position | None, list[T]],
    age: Age,
    mark: str | None,
) -> Attempted[T]:
    """Return the answer if it is fresh enough, or will do anyway."""
    position, values = found
    met = position is not None and step.demand.is_met(position, age)
    if position is None or not values or not (met or step.anyway):
        return Missed(name, position, step.demand.goal(position, age))
    return answer(values[0], Token(position, mark), age, is_stale=not met)


def _error_of(
    wait: Callable[[Token, float], object], goal: Token, seconds: float
) -> ReadModelBehindError | None:
    try:
        wait(goal, seconds)
    except ReadModelBehindError as error:
        return error
    return None

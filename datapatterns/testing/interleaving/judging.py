"""Whether a scenario can be run, and whether a schedule has ended well."""

from collections.abc import Callable, Mapping
from typing import Any

from datapatterns.testing.interleaving.results import InterleavingError, Outcome, ScheduleError

Kinds = type[BaseException] | tuple[type[BaseException], ...]


def check_tasks(functions: object) -> None:
    """Refuse what a scenario has returned, unless it is functions by name.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(functions, Mapping):
        raise TypeError(
            f"the scenario returned {type(functions).__name__}; it returns its tasks by name"
        )
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"the task {name!r} is no function but {type(function).__name__}; "
                "hand in the function, and let the explorer call it"
            )


def judge(
    outcome: Outcome,
    look: Callable[[Outcome], Any],
    *,
    name: str,
    allowed_errors: Kinds,
    schedules: int,
) -> None:
    """Look at how a schedule has ended.

    Args:
        outcome: How it has.
        look: The invariant.
        name: What the invariant is called.
        allowed_errors: What tasks may raise, beside those whom a fault has befallen.
        schedules: How many have run, this one included.

    Raises:
        InterleavingError: The invariant does not hold, or a task has failed.
    """
    __tracebackhide__ = True
    if broken := _failure(outcome, allowed_errors) or _verdict(outcome, look, name):
        # With what a task has raised, its traceback is told, too.
        cause = next(iter(outcome.errors.values()), None)
        raise InterleavingError(broken, outcome, schedules=schedules) from cause


def _failure(outcome: Outcome, allowed_errors: Kinds) -> str:
    for name, error in outcome.errors.items():
        # Whom a fault has befallen may fail; what it leaves behind may not be wrong.
        is_excused = name in outcome.faults and not isinstance(error, AssertionError)
        if not is_excused and not isinstance(error, allowed_errors):
            return f"{name} raised {type(error).__name__}: {error}"
    return ""


def _verdict(outcome: Outcome, look: Callable[[Outcome], Any], name: str) -> str:
    try:
        verdict = look(outcome)
    except KeyboardInterrupt:
        raise
    except ScheduleError:
        raise  # of an explorer within: it tells its own story
    except AssertionError as error:
        return str(error) or "the invariant does not hold"
    except BaseException as error:
        replay = f"replay: --datapatterns-replay={outcome.token}"
        error.add_note(f"after this schedule:\n\n{outcome.story}\n\n{replay}")
        raise
    return f"{name} is false" if verdict is False else ""

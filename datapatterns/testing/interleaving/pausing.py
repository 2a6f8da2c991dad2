"""Gates without a server: pause points in the code under test, and sleeps."""

import asyncio

from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.util import await_only

from datapatterns.testing.interleaving.choosing import Fault, Gate
from datapatterns.testing.interleaving.tasks import CURRENT, Task


def pause_point(label: str) -> None:
    """Let other tasks move here, between two steps that need no server; outside a task, go on.

    Races within one process are found where such points part a read from the write that relies
    on it. In coroutines write ``await pause_point_async(label)``.

    Args:
        label: What the story calls it.

    Raises:
        RuntimeError: It is called in a coroutine, where it would stop every other one.
    """
    if (task := CURRENT.get()) is not None:
        pass_gate(Gate(task.name, label, in_server=False))


async def pause_point_async(label: str) -> None:
    """Let other tasks move here; what `pause_point` is to ordinary functions."""
    if (task := CURRENT.get()) is not None:
        await pass_gate_async(Gate(task.name, label, in_server=False))


def pass_gate(gate: Gate) -> None:
    """Wait at a gate of the current task, in a thread or in a greenlet of SQLAlchemy's."""
    task = CURRENT.get()
    assert task is not None
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _die_if_dead(task, task.arrive(gate))
        return
    waiting = task.arrive_async(gate)
    try:
        fault = await_only(waiting)
    except MissingGreenlet:
        waiting.close()
        raise RuntimeError(
            f"{gate.label!r} would block the event loop; in coroutines, await the "
            "asynchronous form: pause_point_async(), clock.sleep_async()"
        ) from None
    _die_if_dead(task, fault)


async def pass_gate_async(gate: Gate) -> None:
    """Wait at a gate of the current task, in a coroutine."""
    task = CURRENT.get()
    assert task is not None
    _die_if_dead(task, await task.arrive_async(gate))


def _die_if_dead(task: Task, fault: Fault | None) -> None:
    if fault is Fault.CRASH:
        task.die(task.last_label)

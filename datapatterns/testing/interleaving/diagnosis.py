"""Why nobody moves any more, in words."""

import sys
import traceback
from collections.abc import Mapping, Sequence

from datapatterns.testing.interleaving.servers import Backend, Blocker, Servers
from datapatterns.testing.interleaving.tasks import MOVING, State, Task

_OWN_WAITS = ("threading.py", "queue.py")


def why_stuck(tasks: Sequence[Task], servers: Servers) -> str:
    """Return who waits for whom, and what that amounts to."""
    moving = [task for task in tasks if task.state in MOVING]
    owners = {backend: task for task in tasks for backend in backends_of(task)}
    blockers = servers.blockers({each for task in moving for each in backends_of(task)})
    lines = [_verdict(moving, owners, blockers)]
    for task in moving:
        lines.append(f"  {task.name}, after {task.last_label!r}: {_whereabouts(task)}")
        lines += [
            f"    is blocked by {_named(each, owners)}"
            for each in blockers
            if owners.get(each.waiter) is task
        ]
    return "\n".join(lines)


def backends_of(task: Task) -> set[Backend]:
    """Return the sessions of a task."""
    return {found for link in list(task.links) if (found := link.backend()) is not None}


def _verdict(
    moving: Sequence[Task], owners: Mapping[Backend, Task], blockers: Sequence[Blocker]
) -> str:
    waits: dict[Task, set[Task]] = {}
    for each in blockers:
        blocker = owners.get(Backend(each.waiter.server, each.pid))
        if blocker is None:
            return "a session outside the schedule holds a lock that a task needs:"
        waits.setdefault(owners[each.waiter], set()).add(blocker)
    in_process = [task for task in moving if task not in waits and task.state is State.WAITING]
    if _has_cycle(waits):
        return _kind_of_deadlock(waits, servers={each.waiter.server for each in blockers})
    if waits and in_process:
        return "a deadlock of locks in PostgreSQL and locks in this process, which nobody can see:"
    if len(in_process) == len(moving) and any(task.pending for task in in_process):
        return "all wait, in Redis or in this process, for what nobody sends:"
    if in_process and len(in_process) == len(moving):
        return "all wait in this process: a lock that nobody releases, or a lost wake-up:"
    return "nobody has moved for too long:"


def _kind_of_deadlock(waits: Mapping[Task, set[Task]], *, servers: set[str]) -> str:
    if any(task in whom for task, whom in waits.items()):
        return "a deadlock of a task with itself: its connections wait for each other:"
    if len(servers) > 1:
        return "a deadlock across servers, which none of them can see:"
    return "a deadlock that the server has not broken yet; its deadlock_timeout is long:"


def _has_cycle(waits: Mapping[Task, set[Task]]) -> bool:
    left = {task: set(whom) for task, whom in waits.items()}
    while free := {each for whom in left.values() for each in whom} - left.keys():
        left = {task: rest for task, whom in left.items() if (rest := whom - free)}
    return bool(left)


def _whereabouts(task: Task) -> str:
    if task.state is State.WAITING:
        where = f"waits {task.waits}"
    else:
        where = "asks a server" if task.is_asking else "computes, or talks to what has no gate"
    if task.thread is not None and not task.is_asking:
        where += f" ({_line_of(task.thread.ident)})"
    return where


def _line_of(ident: int | None) -> str:
    frame = sys._current_frames().get(ident or 0)  # noqa: SLF001 -- documented for this
    stack = [
        each for each in traceback.extract_stack(frame) if not each.filename.endswith(_OWN_WAITS)
    ]
    return f"{stack[-1].name}, line {stack[-1].lineno} of {stack[-1].filename}" if stack else "?"


def _named(blocker: Blocker, owners: Mapping[Backend, Task]) -> str:
    task = owners.get(Backend(blocker.waiter.server, blocker.pid))
    if task is not None:
        return task.name
    name = f" of {blocker.application_name!r}" if blocker.application_name else ""
    query = " ".join(blocker.query.split())[:100]
    return f"the session {blocker.pid}{name}, which is no task: {blocker.state}, {query!r}"

"""What started servers must stop them: at exit, on a deadly signal, but not in a forked child."""

import atexit
import os
import signal
import threading
from types import FrameType
from typing import Protocol

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Owner(Protocol):
    """Something that owns servers."""

    def close(self) -> None:
        """Stop the servers and give their folder up."""
        ...

    def stop_before_dying(self) -> None:
        """Stop the servers without taking a lock; the process is about to end."""
        ...

    def disown(self) -> None:
        """Forget the servers: they are another process's."""
        ...


_owners: list[Owner] = []
_taken: list[signal.Signals] = []


def remember(owner: Owner) -> None:
    """See to it that ``owner`` stops its servers before this process ends."""
    _owners.append(owner)
    _take_signals()


def forget(owner: Owner) -> None:
    """Leave ``owner`` alone from now on."""
    if owner in _owners:
        _owners.remove(owner)
    if not _owners:
        _give_signals_back()


def _take_signals() -> None:
    # Only where the signal would end the process without a word. Who has a handler leaves
    # through it: by an exception and ``with``, or at exit; its servers must not go before that.
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop_and_die)
            _taken.append(number)


def _give_signals_back() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    while _taken:
        number = _taken.pop()
        if signal.getsignal(number) is _stop_and_die:
            signal.signal(number, signal.SIG_DFL)


def _stop_and_die(number: int, _: FrameType | None) -> None:
    try:
        for owner in reversed(_owners):
            owner.stop_before_dying()
    finally:
        # What the signal would have done; whoever waits for this process sees why it ended.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _close_all() -> None:
    for owner in list(reversed(_owners)):
        owner.close()


def _disown_all() -> None:
    for owner in _owners:
        owner.disown()
    _owners.clear()
    _give_signals_back()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_disown_all)

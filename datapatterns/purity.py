"""Notice when code reads the clock or draws chance, whatever came of it."""

import gc
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import date
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

_NOW: Final = frozenset({"now", "today", "utcnow"})


def watched(function: Callable[..., T], notice: Callable[[str], object]) -> Callable[..., T]:
    """Return ``function``, telling ``notice`` what it calls of the clock and of chance, and where.

    By the interpreter's profiling hook: it sees every call of a C function that Python code
    makes, also in libraries; it does not see what C code calls by itself. Price: about ten
    times slower.
    """

    def watch(*args: Any, **kwargs: Any) -> T:  # noqa: ANN401 -- as the function takes them
        def see(frame: FrameType, happening: str, called: Any) -> None:  # noqa: ANN401
            if happening == "c_call" and (name := _impure(called)):
                notice(f"{name} in {_place(frame)}")

        before, collecting = sys.getprofile(), gc.isenabled()
        # Whoever watches the collector, as Hypothesis does, reads the clock whenever it runs.
        gc.disable()
        sys.setprofile(see)
        try:
            return function(*args, **kwargs)
        finally:
            sys.setprofile(before)
            if collecting:
                gc.enable()

    def _place(frame: FrameType) -> str:
        # Where the function itself stands, not the library that it asked.
        while frame.f_back is not None and frame.f_back.f_code is not watch.__code__:
            frame = frame.f_back
        return f"{frame.f_code.co_filename}, line {frame.f_lineno}"

    return watch


def _impure(called: Any) -> str | None:  # noqa: ANN401 -- any C function
    name, owner = called.__name__, getattr(called, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, date) and name in _NOW:
        return f"{owner.__name__}.{name}()"
    if isinstance(owner, random.Random):
        return "random"
    if owner is time and name not in _HARMLESS:
        return f"time.{name}()"
    return "os.urandom()" if called is os.urandom else None


_HARMLESS: Final = frozenset({"strftime", "strptime", "mktime", "get_clock_info"})

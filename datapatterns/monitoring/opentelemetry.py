"""Counts, durations and spans for OpenTelemetry; needs the extra ``otel``."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, MeterProvider, Observation
from opentelemetry.trace import TracerProvider

from datapatterns.overview import Concern, Standing

_SCOPE: Final = "datapatterns"
_NANOSECONDS: Final = 1e9


class OpenTelemetryObserver:
    """Hands what the library counts and times to OpenTelemetry.

    A count is a counter of the same name; a duration is a histogram in seconds, whose name ends
    with ``.duration``, and a span that has just ended, beneath whichever is current. Attributes
    are named ``datapatterns.view``, ``datapatterns.cache`` and so on, as its semantic conventions
    ask of those that are a library's own.

    Args:
        meter_provider: Where metrics go; the global one unless given.
        tracer_provider: Where spans go; the global one unless given.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._lock = Lock()
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        """Add ``amount`` to the counter ``name``."""
        counter = self._counters.get(name)
        if counter is None:
            with self._lock:  # two instruments of one name would be a warning in each process
                counter = self._counters.setdefault(name, self._meter.create_counter(name))
        counter.add(amount, _own(attributes))

    def duration(self, name: str, seconds: float, /, **attributes: str) -> None:
        """Record that something took ``seconds``, and has just ended."""
        histogram = self._histograms.get(name)
        if histogram is None:
            with self._lock:
                histogram = self._histograms.get(name) or self._meter.create_histogram(
                    f"{name}.duration", unit="s"
                )
                self._histograms[name] = histogram
        own = _own(attributes)
        histogram.record(seconds, own)
        ended = time.time_ns()
        span = self._tracer.start_span(
            name, attributes=own, start_time=ended - int(seconds * _NANOSECONDS)
        )
        span.end(end_time=ended)


def watch_status(
    status: Callable[[], Sequence[Standing]], meter_provider: MeterProvider | None = None
) -> None:
    """Let OpenTelemetry ask how everything stands whenever it collects.

    Gauges: ``datapatterns.stale`` in seconds, ``datapatterns.pending`` changes or events, and
    ``datapatterns.concern``: 0 fine, 1 waiting, 2 wrong; each by pattern, name and database.

    Args:
        status: Such as ``layer.status``.
        meter_provider: Where they go; the global one unless given.
    """
    meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
    asked = _OncePerCollection(status)
    for name, unit, value in _GAUGES:
        meter.create_observable_gauge(name, [partial(_observed, asked, value)], unit=unit)


class _OncePerCollection:
    """Answers all gauges of one collection by one look; they come one right after the other."""

    _FRESH_SECONDS: Final = 1.0

    def __init__(self, status: Callable[[], Sequence[Standing]]) -> None:
        self._status = status
        self._lock = Lock()
        self._looked_at = float("-inf")
        self._found: Sequence[Standing] = ()

    def __call__(self) -> Sequence[Standing]:
        with self._lock:
            if time.monotonic() - self._looked_at > self._FRESH_SECONDS:
                self._found = self._status()
                self._looked_at = time.monotonic()
            return self._found


def _observed(
    asked: Callable[[], Sequence[Standing]],
    value: Callable[[Standing], float | None],
    _options: CallbackOptions,
) -> Iterable[Observation]:
    for one in asked():
        if (found := value(one)) is not None:
            about = {"pattern": one.pattern, "name": one.name, "database": one.database}
            yield Observation(found, _own(about))


_CONCERNS: Final = {Concern.FINE: 0, Concern.WAITING: 1, Concern.WRONG: 2}
_GAUGES: Final[tuple[tuple[str, str, Callable[[Standing], float | None]], ...]] = (
    ("datapatterns.stale", "s", lambda one: one.stale_seconds),
    ("datapatterns.pending", "{change}", lambda one: one.pending),
    ("datapatterns.concern", "1", lambda one: _CONCERNS[one.concern]),
)


def _own(attributes: dict[str, str]) -> dict[str, str]:
    return {f"datapatterns.{name}": value for name, value in attributes.items()}

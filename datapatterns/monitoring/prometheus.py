"""Counts, durations and how all stands, to be scraped by Prometheus; needs ``prometheus``."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from datapatterns.errors import SettingsError
from datapatterns.overview import Concern, Standing

_ABOUT: Final = ("pattern", "name", "database")
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_]")
_BOUNDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)
"""Seconds; from a hit in Redis to a rebuild."""

_About: TypeAlias = tuple[str, str, str]
_Labels: TypeAlias = tuple[tuple[str, str], ...]


class PrometheusObserver(Collector):
    """Keeps what the library counts and times until it is scraped; a collector, to be registered.

    ``datapatterns.view.refreshed`` is the counter ``datapatterns_view_refreshed_total``, the
    duration ``datapatterns.view.refresh`` the histogram ``datapatterns_view_refresh_seconds``.
    Attributes are labels; those that one series lacks and another of its name has are empty.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, dict[_Labels, int]] = {}
        self._durations: dict[str, dict[_Labels, _Durations]] = {}

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        """Add ``amount`` to the counter ``name``."""
        labels = tuple(sorted(attributes.items()))
        with self._lock:
            series = self._counts.setdefault(name, {})
            series[labels] = series.get(labels, 0) + amount

    def duration(self, name: str, seconds: float, /, **attributes: str) -> None:
        """Record that something took ``seconds``."""
        labels = tuple(sorted(attributes.items()))
        with self._lock:
            self._durations.setdefault(name, {}).setdefault(labels, _Durations()).add(seconds)

    def collect(self) -> Iterable[CounterMetricFamily | HistogramMetricFamily]:
        """Return all series as they are now."""
        with self._lock:
            counts = {name: dict(series) for name, series in self._counts.items()}
            durations = {
                name: {labels: each.copy() for labels, each in series.items()}
                for name, series in self._durations.items()
            }
        for name, counted in counts.items():
            names = _label_names(counted)
            counter = CounterMetricFamily(_named(name), f"Of {name}.", labels=names)
            for labels, amount in counted.items():
                counter.add_metric(_label_values(names, labels), amount)
            yield counter
        for name, timed in durations.items():
            names = _label_names(timed)
            histogram = HistogramMetricFamily(
                f"{_named(name)}_seconds", f"Of {name}.", labels=names
            )
            for labels, each in timed.items():
                histogram.add_metric(
                    _label_values(names, labels), each.cumulated(), sum_value=each.seconds
                )
            yield histogram

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return nothing: what there will be is not known when this is registered."""
        return ()


@dataclass(slots=True)
class _Durations:
    """How many took so long; the last place is for those that took longer than any bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds

    def copy(self) -> "_Durations":
        return _Durations(list(self.counts), self.seconds)

    def cumulated(self) -> list[tuple[str, float]]:
        bounds = [*map(str, _BOUNDS), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class StatusCollector(Collector):
    """Asks how everything stands whenever it is scraped.

    Gauges by pattern, name and database: ``datapatterns_stale_seconds``, ``datapatterns_pending``,
    and ``datapatterns_concern``, which is 0 for fine, 1 for waiting and 2 for wrong.

    Args:
        status: Such as ``layer.status``.
    """

    def __init__(self, status: Callable[[], Sequence[Standing]]) -> None:
        self._status = status

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges as of now."""
        stale = _gauge("stale_seconds", "For how long at most the oldest change is missing.")
        pending = _gauge("pending", "How many changes, events or rows are missing.")
        concern = _gauge("concern", "0 fine, 1 waiting, 2 wrong: somebody has to do something.")
        # Two clusters may have shards of one name, and a scrape with a series twice is refused.
        stalest: dict[_About, float] = {}
        most: dict[_About, float] = {}
        worst: dict[_About, float] = {}
        for one in self._status():
            about = one.pattern, one.name, one.database
            _keep_larger(worst, about, _CONCERNS[one.concern])
            _keep_larger(stalest, about, one.stale_seconds)
            _keep_larger(most, about, one.pending)
        for gauge, values in ((stale, stalest), (pending, most), (concern, worst)):
            for about, value in values.items():
                gauge.add_metric(about, value)
        return stale, pending, concern

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return which there are, so that registering asks nobody."""
        return [_gauge(name, "") for name in ("stale_seconds", "pending", "concern")]


@contextmanager
def exposed(*collectors: Collector, host: str, port: int) -> Iterator[int]:
    """Answer scrapes within the block; give the port, which is a free one for 0.

    Args:
        collectors: What to expose.
        host: The address to listen at; names of tables and read models can be read there.
        port: Where.

    Raises:
        SettingsError: The port or the address cannot be listened at.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        advice = f"{host} port {port} cannot be listened at: {error.strerror}; name another"
        raise SettingsError("metrics", advice) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_CONCERNS: Final = {Concern.FINE: 0, Concern.WAITING: 1, Concern.WRONG: 2}


def _gauge(name: str, told: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"datapatterns_{name}", told, labels=_ABOUT)


def _keep_larger(values: dict[_About, float], about: _About, value: float | None) -> None:
    if value is not None:
        values[about] = max(value, values.get(about, value))


def _label_names(series: Iterable[_Labels]) -> list[str]:
    return sorted({name for labels in series for name, _ in labels})


def _label_values(names: Sequence[str], labels: _Labels) -> list[str]:
    known = dict(labels)
    return [known.get(name, "") for name in names]


def _named(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)

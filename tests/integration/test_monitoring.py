"""What is counted and how all stands, as OpenTelemetry and Prometheus get it."""

import json
import re
import signal
import socket
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

import datapatterns
from datapatterns import DataLayer, monitoring
from datapatterns.errors import SettingsError
from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.monitoring import (
    OpenTelemetryObserver,
    PrometheusObserver,
    StatusCollector,
    exposed,
    watch_status,
)
from datapatterns.overview import Concern, Standing
from datapatterns.telemetry import Observers
from tests.fixtures.commands import Run, ended, start
from tests.fixtures.view_tables import run as execute
from tests.fixtures.view_tables import weekly_sales

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ABOUT_VIEW = {"pattern": "view", "name": "weekly_sales", "database": "main"}


def scraped(port: int) -> Series:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as http:
        http.request("GET", "/metrics")
        answer = http.getresponse()
        assert answer.status == 200
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(series: Series, metric: str, /, **labels: str) -> float:
    return series[metric, tuple(sorted(labels.items()))]


def test_prometheus_gets_counts_durations_and_how_all_stands(
    whole: DataLayer, engine: Engine
) -> None:
    counted = PrometheusObserver()
    whole.observer = Observers(whole.observer, counted)
    eager = MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds=0.001)
    refreshed_at_once = Views([eager])
    execute(engine, "INSERT INTO line VALUES (1, 1, 1, 149, 1)")
    with exposed(counted, StatusCollector(whole.status), host="127.0.0.1", port=0) as port:
        behind = scraped(port)
        views = refreshed_at_once.worker(observer=whole.observer)
        while not views.step(engine).pause_seconds:
            pass
        series = scraped(port)

    assert of(behind, "datapatterns_pending", **ABOUT_VIEW) == 1
    assert of(behind, "datapatterns_concern", **ABOUT_VIEW) == 1
    assert of(series, "datapatterns_pending", **ABOUT_VIEW) == 0
    assert of(series, "datapatterns_concern", **ABOUT_VIEW) == 0
    assert of(series, "datapatterns_view_refreshed_total", view="weekly_sales") >= 1
    took = "datapatterns_view_refresh_seconds"
    assert of(series, f"{took}_count", view="weekly_sales") >= 1
    assert of(series, f"{took}_bucket", view="weekly_sales", le="+Inf") >= 1


def test_a_duration_counts_in_every_bucket_that_bounds_it() -> None:
    observer = PrometheusObserver()
    for seconds in (0.0005, 0.004, 70.0):
        observer.duration("datapatterns.cache.load", seconds, cache="product")

    [histogram] = observer.collect()

    found = {
        sample.labels["le"]: sample.value for sample in histogram.samples if "le" in sample.labels
    }
    assert (found["0.0005"], found["0.0025"], found["0.005"]) == (1, 1, 2)
    assert (found["60.0"], found["+Inf"]) == (2, 3)
    assert sum(s.value for s in histogram.samples if s.name.endswith("_sum")) == 70.0045


def test_one_name_may_have_other_attributes_each_time() -> None:
    observer = PrometheusObserver()
    observer.count("datapatterns.cache.refused", cache="product")
    observer.count("datapatterns.cache.refused", 2, cache="product", why="lease")

    [counter] = observer.collect()

    assert {(s.labels["cache"], s.labels["why"]): s.value for s in counter.samples} == {
        ("product", ""): 1,
        ("product", "lease"): 2,
    }


def test_nothing_is_lost_between_threads() -> None:
    observer, barrier = PrometheusObserver(), Barrier(4)

    def count() -> None:
        barrier.wait(30)
        for _ in range(1_000):
            observer.count("datapatterns.cache.hits", cache="product")
            observer.duration("datapatterns.cache.load", 0.1, cache="product")

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    counter, histogram = observer.collect()
    assert counter.samples[0].value == 4_000
    assert max(s.value for s in histogram.samples if "le" in s.labels) == 4_000


def test_what_stands_twice_is_told_once_by_the_worse() -> None:
    """A scrape with one series twice is refused as a whole."""
    fine = Standing(pattern="shard", name="s0", database="s0", state="answers", pending=7)
    away = replace(fine, state="not answering", concern=Concern.WRONG, pending=None)

    gauges = StatusCollector(lambda: [fine, away]).collect()

    told = {sample.name: sample.value for gauge in gauges for sample in gauge.samples}
    assert told == {"datapatterns_concern": 2, "datapatterns_pending": 7}
    assert sum(len(gauge.samples) for gauge in gauges) == 2


def test_a_port_that_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SettingsError, match="name another"),
            exposed(PrometheusObserver(), host="127.0.0.1", port=port),
        ):
            raise AssertionError("it was listened at")


def test_opentelemetry_gets_counters_histograms_and_spans() -> None:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    observer = OpenTelemetryObserver(MeterProvider([reader]), tracing)

    observer.count("datapatterns.view.refreshed", 2, view="weekly_sales")
    with tracing.get_tracer("app").start_as_current_span("request"):
        observer.duration("datapatterns.view.refresh", 0.25, view="weekly_sales")

    points = metric_points(reader)
    assert points["datapatterns.view.refreshed", "weekly_sales"].value == 2
    assert points["datapatterns.view.refresh.duration", "weekly_sales"].sum == 0.25
    refresh, request = spans.get_finished_spans()
    assert (refresh.name, dict(refresh.attributes or {})) == (
        "datapatterns.view.refresh",
        {"datapatterns.view": "weekly_sales"},
    )
    assert refresh.parent == request.get_span_context()
    assert (refresh.end_time or 0) - (refresh.start_time or 0) == 250_000_000


def test_opentelemetry_asks_how_all_stands_once_for_all_gauges(whole: DataLayer) -> None:
    reader = InMemoryMetricReader()
    asked: list[int] = []

    def status() -> list[Standing]:
        asked.append(1)
        return whole.status()

    watch_status(status, MeterProvider([reader]))

    points = metric_points(reader, "datapatterns.name")
    assert points["datapatterns.concern", "weekly_sales"].value == 0
    assert points["datapatterns.stale", "weekly_sales"].value == 0
    assert len(asked) == 1


def metric_points(
    reader: InMemoryMetricReader, attribute: str = "datapatterns.view"
) -> dict[tuple[str, str], Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, str((point.attributes or {}).get(attribute))): point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_only_what_there_is_can_be_imported() -> None:
    with pytest.raises(AttributeError, match="nothing_such"):
        monitoring.nothing_such  # noqa: B018


@pytest.mark.usefixtures("whole")
def test_a_worker_answers_scrapes_until_it_ends(whole_app: tuple[str, str], tmp_path: Path) -> None:
    process = start("worker", *whole_app, "--json", "--metrics-port", "0", cwd=tmp_path)
    assert process.stderr is not None
    note = json.loads(process.stderr.readline())["note"]
    port = int(note.rpartition(":")[2].partition("/")[0])

    series = scraped(port)
    process.send_signal(signal.SIGTERM)
    ran = ended(process)

    assert of(series, "datapatterns_concern", **ABOUT_VIEW) == 0
    assert ran.code == 0, ran
    with pytest.raises(ConnectionRefusedError):
        scraped(port)


def test_a_worker_says_that_its_port_is_taken(run: Run, whole_app: tuple[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = run("worker", *whole_app, "--once", "--metrics-port", str(taken.getsockname()[1]))

    assert ran.code == 2
    assert "name another" in ran.err


def test_dashboard_and_alerts_ask_for_what_there_is() -> None:
    """A series that was renamed would leave a panel empty and an alert silent."""
    files = Path(__file__).parents[2] / "docs" / "monitoring"
    board = json.loads((files / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((files / "alerts.yml").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    names = {name for expression in asked for name in re.findall(r"datapatterns_\w+", expression)}

    assert len(names) >= 10
    assert names <= KNOWN_SERIES


def test_series_that_dashboards_ask_for_are_counted_under_these_names() -> None:
    sources = [path.read_text() for path in (Path(datapatterns.__file__).parent).rglob("*.py")]
    for name in COUNTED | TIMED:
        prefix, _, _ = name.rpartition(".")
        wanted = (f'"{name}"', f'f"{prefix}.{{what}}"')
        assert any(each in source for source in sources for each in wanted), name


COUNTED = {
    "datapatterns.cache.hits",
    "datapatterns.cache.loads",
    "datapatterns.projection.events",
    "datapatterns.view.failed",
    "datapatterns.view.refreshed",
}
TIMED = {
    "datapatterns.cache.load",
    "datapatterns.projection.page",
    "datapatterns.view.refresh",
}
KNOWN_SERIES = (
    {"datapatterns_concern", "datapatterns_stale_seconds", "datapatterns_pending"}
    | {f"{name.replace('.', '_')}_total" for name in COUNTED}
    | {f"{name.replace('.', '_')}_seconds_bucket" for name in TIMED}
)

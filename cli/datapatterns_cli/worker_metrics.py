"""What a worker counts, and how all stands, for Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datapatterns_cli.invocation import Invocation

if TYPE_CHECKING:
    from datapatterns import DataLayer


@contextmanager
def answering_scrapes(
    invocation: Invocation, layer: "DataLayer", host: str, port: int | None
) -> Iterator[None]:
    """Let the layer count from now on, and answer scrapes within the block; not without a port.

    Raises:
        SettingsError: The port is taken, or the extra is not installed.
    """
    if port is None:
        yield
        return
    from datapatterns.monitoring import (  # noqa: PLC0415 -- needs an extra
        PrometheusObserver,
        StatusCollector,
        exposed,
    )
    from datapatterns.telemetry import Observers  # noqa: PLC0415

    counted = PrometheusObserver()
    layer.observer = Observers(layer.observer, counted)
    with exposed(counted, StatusCollector(layer.status), host=host, port=port) as found:
        invocation.output.note(f"metrics are at http://{host}:{found}/metrics")
        yield

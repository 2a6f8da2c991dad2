"""What the library counts and times, and how all stands, for the monitoring that people use.

What is for OpenTelemetry needs the extra ``otel``, what is for Prometheus the extra
``prometheus``; neither is imported before it is asked for.
"""

from typing import TYPE_CHECKING, Any

from datapatterns.errors import SettingsError

if TYPE_CHECKING:
    from datapatterns.monitoring.opentelemetry import OpenTelemetryObserver, watch_status
    from datapatterns.monitoring.prometheus import PrometheusObserver, StatusCollector, exposed

__all__ = [
    "OpenTelemetryObserver",
    "PrometheusObserver",
    "StatusCollector",
    "exposed",
    "watch_status",
]

_FOR_OPENTELEMETRY = {"OpenTelemetryObserver", "watch_status"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever the module has
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    extra = "otel" if name in _FOR_OPENTELEMETRY else "prometheus"
    try:
        if name in _FOR_OPENTELEMETRY:
            from datapatterns.monitoring import opentelemetry  # noqa: PLC0415

            return getattr(opentelemetry, name)
        from datapatterns.monitoring import prometheus  # noqa: PLC0415

        return getattr(prometheus, name)
    except ModuleNotFoundError as error:
        advice = f"install the extra: pip install 'datapatterns[{extra}]'"
        raise SettingsError(f"what is for {extra}", advice) from error

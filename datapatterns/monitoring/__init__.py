"""What the library counts and times, and how all stands, for the monitoring that people use.

What is for OpenTelemetry needs the extra ``otel``, what is for Prometheus the extra
``prometheus``; neither is imported before it is asked for.
"""

from importlib import import_module
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

_EXTRAS = {
    "OpenTelemetryObserver": ("opentelemetry", "otel"),
    "PrometheusObserver": ("prometheus", "prometheus"),
    "StatusCollector": ("prometheus", "prometheus"),
    "exposed": ("prometheus", "prometheus"),
    "watch_status": ("opentelemetry", "otel"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever the module has
    """Import what is asked for."""
    if name not in _EXTRAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _EXTRAS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        advice = f"install the extra: pip install 'datapatterns[{extra}]'"
        raise SettingsError(f"monitoring by {module}", advice) from error

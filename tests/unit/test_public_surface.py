"""What users can import. A name that goes, or comes, is a decision: see CHANGELOG.md."""

from importlib import import_module
from pathlib import Path

LISTED = Path(__file__).parents[1] / "typing" / "public_names.txt"
PACKAGES = (
    "datapatterns",
    "datapatterns.aio",
    "datapatterns.cache_aside",
    "datapatterns.change_log",
    "datapatterns.clock",
    "datapatterns.cqrs",
    "datapatterns.embedded",
    "datapatterns.errors",
    "datapatterns.event_sourcing",
    "datapatterns.index_table",
    "datapatterns.materialized_view",
    "datapatterns.outcomes",
    "datapatterns.sharding",
    "datapatterns.telemetry",
    "datapatterns.testing",
    "datapatterns.transactions",
)


def public_names() -> list[str]:
    """Return every public name: what `__all__` lists, or what a module without one defines."""
    return sorted(f"{package}.{name}" for package in PACKAGES for name in _names(package))


def test_the_public_names_are_those_that_are_listed() -> None:
    assert public_names() == LISTED.read_text().split()


def _names(package: str) -> list[str]:
    module = import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == package
    ]

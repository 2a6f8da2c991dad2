"""What users can import. A name that goes, or comes, is a decision: see CHANGELOG.md."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import datapatterns
from datapatterns import errors
from datapatterns.event_sourcing.schema import event_tables

LISTED = Path(__file__).parents[1] / "typing" / "public_names.txt"
DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = (
    "datapatterns",
    "datapatterns.aio",
    "datapatterns.alembic",
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
    "datapatterns.runtime",
    "datapatterns.sharding",
    "datapatterns.telemetry",
    "datapatterns.testing",
    "datapatterns.transactions",
)

IMPORT_EACH = """
import sys
from importlib import import_module

for package in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("datapatterns")]:
        del sys.modules[name]
    import_module(package)
    print(*sys.modules)
"""


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


def test_each_package_can_be_imported_first_and_without_all_the_others() -> None:
    told = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", IMPORT_EACH, *PACKAGES], check=True, capture_output=True, text=True
    )

    # `DataLayer` brings them all along, in the order that suits them.
    loaded = [set(line.split()) for line in told.stdout.splitlines()]
    assert all(package in names for package, names in zip(PACKAGES, loaded, strict=True))
    assert not any("datapatterns.layer" in names for names in loaded)


def test_what_is_loaded_when_asked_for_is_found_and_nothing_else_is() -> None:
    assert datapatterns.DataLayer.__module__ == "datapatterns.layer"

    with pytest.raises(AttributeError, match="'datapatterns' has no attribute 'DataLayers'"):
        import_module("datapatterns").DataLayers  # noqa: B018 -- that it is looked up is enough


def test_the_reference_lists_every_public_name_of_the_event_store() -> None:
    listed = set(re.findall(r"\w+", (DOCS / "reference" / "event-store.md").read_text()))

    assert set(import_module("datapatterns.event_sourcing").__all__) <= listed


def test_the_reference_lists_what_the_event_store_raises() -> None:
    sources = (DOCS.parent / "datapatterns" / "event_sourcing").rglob("*.py")
    raised = {
        name
        for source in sources
        for line in source.read_text().splitlines()
        if "raise " in line
        for name in re.findall(r"\b[A-Z]\w+Error\b", line)
        if hasattr(errors, name)
    }
    listed = set(re.findall(r"\w+", (DOCS / "reference" / "event-errors.md").read_text()))

    assert len(raised) > 20
    assert raised <= listed


def test_the_reference_lists_every_table_of_the_event_store() -> None:
    tables = event_tables("datapatterns")
    names = {getattr(tables, part.name).name for part in fields(tables) if part.name != "schema"}
    listed = set(re.findall(r"\w+", (DOCS / "reference" / "event-tables.md").read_text()))

    assert {"event", "snapshot"} < names <= listed

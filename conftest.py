"""Where fixtures come from, how hard Hypothesis tries, and that docstring examples run."""

import os

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_plugins = [
    "tests.fixtures.alembic_environments",
    "tests.fixtures.canaries",
    "tests.fixtures.colours",
    "tests.fixtures.empty_database",  # which the next two import
    "tests.fixtures.commands",
    "tests.fixtures.declared_everything",
    "tests.fixtures.doors",
    "tests.fixtures.event_units",
    "tests.fixtures.explorers",
    "tests.fixtures.orders",
    "tests.fixtures.poolers",
    "tests.fixtures.overlapping",
    "tests.fixtures.owners",
    "tests.fixtures.least_rights",
    "tests.fixtures.least_rights_everywhere",
    "tests.fixtures.lost_commits",
    "tests.fixtures.pages",
    "tests.fixtures.partitioned_everywhere",
    "tests.fixtures.partitions",
    "tests.fixtures.redis_clusters",
    "tests.fixtures.servers",
]

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
settings.register_profile("nightly", max_examples=1_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep the examples of a page on one worker of pytest-xdist: they build on each other."""
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadfile"


docstrings = Sybil(
    parsers=[DocTestParser()],
    patterns=["datapatterns/**/*.py"],
    document_types={".py": PythonDocStringDocument},
)
readme = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md"],
    fixtures=["page"],
)
pytest_collect_file = (docstrings + readme).pytest()

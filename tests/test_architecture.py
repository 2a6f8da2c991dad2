"""The house rules that a machine can check."""

import logging
import re
from importlib import import_module
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "cli", "datapatterns", "examples", "migrations", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
LONG_FOR_A_REASON = {  # path -> why it reads better in one piece
    "datapatterns/cqrs/projections.py": "every promise about projections, as the store's",
    "datapatterns/errors/__init__.py": "the tree of all errors, and their names",
    "datapatterns/layer.py": "the front door to every pattern; its methods are a few lines",
    "datapatterns/event_sourcing/store.py": "every promise of the store; its methods are one line",
    "tests/integration/test_shard_session.py": "every promise of the sessions over the same shop",
}
VAGUE_NAMES = {"base", "common", "core", "helpers", "manager", "misc", "utils"}
PACKAGES = sorted(path.parent.name for path in (ROOT / "datapatterns").glob("*/__init__.py"))
PUBLIC_PACKAGES = ["datapatterns", *(f"datapatterns.{name}" for name in PACKAGES)]
PAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def test_dependencies_point_down_and_decisions_are_pure() -> None:
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    for name in list(logging.root.manager.loggerDict):  # it has disabled them all
        logging.getLogger(name).disabled = False

    assert status == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_file_can_be_read_in_one_sitting_and_its_name_says_what_is_in_it(source: Path) -> None:
    lines = len((ROOT / source).read_text().splitlines())

    # Tests are read one at a time, so a file of them may be longer.
    assert lines <= (700 if source.parts[0] == "tests" else 400) or str(source) in LONG_FOR_A_REASON
    assert source.stem not in VAGUE_NAMES


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_every_public_name_exists_and_says_what_it_is_for(package: str) -> None:
    module = import_module(package)
    assert module.__doc__

    for name in getattr(module, "__all__", []):
        public = getattr(module, name)
        assert public.__doc__ or not callable(public), name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_says_of_which_kind_it_is_and_its_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()

    kind = re.match(r"---\ntype: (index|tutorial|how-to|reference|explanation|decision)\n", text)
    assert kind, "front matter with a type is missing"
    for target in LINK.findall(text):
        assert (ROOT / page.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(name: str) -> None:
    for target in LINK.findall((ROOT / name).read_text()):
        assert (ROOT / target).exists(), f"{name} links to {target}"

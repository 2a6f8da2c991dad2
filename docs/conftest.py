"""Every Python block in these pages runs, top to bottom; see ``tests/fixtures/pages.py``."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["**/*.md"],
    fixtures=["page"],
).pytest()

"""Alembic finds our plugin by itself, and loads nothing of ours for those who never name it."""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.fixtures.commands import CHECKOUT, environment_without_servers

SAID = """
import sys
from alembic.runtime.plugins import _all_plugins
print("datapatterns" in _all_plugins, "datapatterns" in sys.modules)
import datapatterns.alembic
from alembic import op
print(hasattr(op, "create_materialized_view"))
"""


def test_alembic_finds_the_plugin_where_the_package_is_installed(tmp_path: Path) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    installed = tmp_path / "datapatterns-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: datapatterns\nVersion: 0\n")
    declared = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (installed / "entry_points.txt").write_text("\n".join(declared))
    places = [tmp_path, CHECKOUT, CHECKOUT / "migrations"]
    found = {"PYTHONPATH": ":".join(map(str, places))}

    ran = subprocess.run(  # noqa: S603 -- our own command
        [sys.executable, "-c", SAID],
        env=environment_without_servers() | found,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout == "True False\nTrue\n", ran.stderr

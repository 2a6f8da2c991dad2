"""What was read is data: nothing unpickles it, evaluates it or hands it to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted(
    path.relative_to(ROOT)
    for folder in ("datapatterns", "cli", "migrations", "examples/grocer", "pytest_plugin")
    for path in (ROOT / folder).rglob("*.py")
)
RUNS_WHAT_IT_READS = {
    "_pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "pickle", "shelve", "yaml",
}  # fmt: skip
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
IMPORTS_BY_NAME = {
    "cli/datapatterns_cli/named_objects.py": "options name the module; who types it runs it",
    "cli/datapatterns_cli/command_list.py": "names of our own commands",
    "datapatterns/cqrs/determinism/answering.py": "the command line names the module; the process"
    " that runs it has loaded the same",
    "datapatterns/event_sourcing/__init__.py": "names of our own modules",
    "datapatterns/event_sourcing/states/fingerprint.py": "what the application's own code imports",
    "datapatterns/testing/__init__.py": "names of our own modules",
}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_nothing_read_is_run(path: Path) -> None:
    found = set(running((ROOT / path).read_text()))

    if str(path) in IMPORTS_BY_NAME:
        found.discard("import_module")
    assert found == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import marshal as safe", "marshal"),
        ("def f(): import yaml", "yaml"),
        ("eval(x)", "eval"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("os.system(x)", "os.system"),
        ("import_module(x)", "import_module"),
        ("import_module('datapatterns')", None),
        ("subprocess.run([x])", None),
        ("re.compile(x)", None),
    ],
)
def test_what_runs_is_found(code: str, found: str | None) -> None:
    """The control."""
    assert list(running(code)) == ([] if found is None else [found])


def running(code: str) -> Iterator[str]:  # noqa: C901 -- a list of cases, each by itself
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names):
                yield from RUNS_WHAT_IT_READS & {name.name.partition(".")[0] for name in names}
            case ast.ImportFrom(module=str(module)):
                yield from RUNS_WHAT_IT_READS & {module.partition(".")[0]}
            case ast.Call(ast.Name(name)) if name in RUNS_TEXT:
                yield name
            case ast.Call(ast.Name("import_module") | ast.Attribute(attr="import_module"), [what]):
                if not isinstance(what, ast.Constant):
                    yield "import_module"
            case ast.Call(ast.Attribute(ast.Name("os"), "system" | "popen" as name)):
                yield f"os.{name}"
            case ast.Call(keywords=keywords) if any(k.arg == "shell" for k in keywords):
                yield "shell"

"""Failpoints: each stands somewhere, costs nothing, and does what it is armed with."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import datapatterns
from datapatterns.failpoints import EXIT_CODE, FAILPOINTS, VARIABLE, armed, failpoint
from tests.fixtures.commands import environment_without_servers

SOURCES = sorted(Path(str(datapatterns.__file__)).parent.rglob("*.py"))
NAME, OTHER = sorted(FAILPOINTS)[:2]
PASSES_TWICE = f"""
from datapatterns.failpoints import failpoint
print("alive", flush=True)
try:
    failpoint({NAME!r})
    print("passed", flush=True)
    failpoint({NAME!r})
finally:
    print("cleaned up", flush=True)
"""


def test_every_declared_failpoint_stands_somewhere_and_each_that_stands_is_declared() -> None:
    standing = {name for source in SOURCES for name in _names_in(source)}

    assert standing == set(FAILPOINTS)


def test_an_armed_failpoint_acts_at_the_visit_it_is_armed_for_and_no_other_does() -> None:
    visits: Counter[str] = Counter()

    with armed(NAME, lambda: visits.update([NAME]), visit=2):
        for _ in range(3):
            failpoint(NAME)
            failpoint(OTHER)
            visits.update(["passed"])
            assert visits[NAME] == (visits["passed"] >= 2)

    failpoint(NAME)
    assert visits[NAME] == 1


def test_a_failpoint_can_act_at_every_visit() -> None:
    visits: list[None] = []

    with armed(NAME, lambda: visits.append(None), visit=None):
        failpoint(NAME)
        failpoint(NAME)

    assert len(visits) == 2


def test_what_the_action_raises_comes_out_of_the_code_under_test_and_disarms() -> None:
    with pytest.raises(ZeroDivisionError), armed(NAME, lambda: 1 // 0):
        failpoint(NAME)

    failpoint(NAME)


@pytest.mark.parametrize(("name", "visit"), [("nowhere", 1), (NAME, 0)])
def test_what_can_never_be_reached_is_refused(name: str, visit: int) -> None:
    with (
        pytest.raises(ValueError, match=r"no failpoint|never comes"),
        armed(name, print, visit=visit),
    ):
        pass


def test_one_failpoint_is_not_armed_twice() -> None:
    with armed(NAME, print), pytest.raises(ValueError, match="armed already"), armed(NAME, print):
        pass


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (NAME, ["alive"]),
        (f"{OTHER}, {NAME}@2", ["alive", "passed"]),
        (f"{NAME}@3", ["alive", "passed", "cleaned up"]),
        ("", ["alive", "passed", "cleaned up"]),
    ],
)
def test_the_environment_lets_a_process_die_there_without_any_clean_up(
    setting: str, said: list[str]
) -> None:
    ran = _python(PASSES_TWICE, setting)

    assert ran.stdout.split("\n")[:-1] == said
    assert ran.returncode == (0 if "cleaned up" in said else EXIT_CODE)


@pytest.mark.parametrize("setting", ["nowhere", f"{NAME}@", f"{NAME}@twice", f"{NAME}@0"])
def test_a_setting_that_would_arm_nothing_stops_the_process_at_its_start(setting: str) -> None:
    ran = _python(PASSES_TWICE, setting)

    assert ran.returncode == 1
    assert "ValueError" in ran.stderr
    assert "alive" not in ran.stdout


def _python(program: str, setting: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", program],
        env={**environment_without_servers(), VARIABLE: setting},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _names_in(source: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    return [
        str(ast.literal_eval(call.args[0]))
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "failpoint"
    ]

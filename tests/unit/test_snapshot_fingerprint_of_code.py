"""Each part of a function's code tells two functions apart that nothing else tells apart."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from datapatterns.event_sourcing.states.fingerprint import fingerprint
from tests.fixtures.folding_code import kind_of, made_by, reaching

CATCHING_BOTH = """def f(n):
  try: int(n); abs(n)
  except ValueError: pass
  return 1"""
CATCHING_ONE = """def f(n):
  int(n)
  try: abs(n)
  except ValueError: pass
  return 1"""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("def f(a, b): return a", "def f(b, a): return b", id="names of arguments"),
        pytest.param("def f(a, b): return a", "def f(a, *, b): return a", id="by keyword only"),
        pytest.param("def f(a, b): return a", "def f(a, /, b): return a", id="by position only"),
        pytest.param("def f(*a): return a", "def f(**a): return a", id="the rest"),
        pytest.param(CATCHING_BOTH, CATCHING_ONE, id="what is within a try"),
    ],
)
def test_functions_that_differ_in_one_part_of_their_code_are_told_apart(
    one: str, other: str
) -> None:
    assert kind_of(reaching(one, "f(1)")) != kind_of(reaching(other, "f(1)"))


DIVERGING = {
    "name in a function within": reaching(
        "def h(): return %s\ndef f(): return (lambda: h())()", "f()"
    ),
    "name of a class": reaching(
        "P = type('P%s', (), {'__module__': 'shop_of_objects'})", "len(P.__name__)"
    ),
    "what a function of another package keeps": reaching(
        "def ours(): return %s\n"
        "def theirs(): return theirs.kept()\ntheirs.__module__ = 'elsewhere'\ntheirs.kept = ours",
        "theirs()",
    ),
    "name of a field in JSON": made_by(
        "class Counted(msgspec.Struct, frozen=True, rename={'n': 'n%s'}):\n  n: int"
    ),
    "what a field of an event allows": made_by(
        "class Counted(msgspec.Struct, frozen=True):\n  n: Annotated[int, msgspec.Meta(gt=%s)]"
    ),
    "type of a part of the state": reaching("", "1", "    more: Literal[%s] | None = None"),
}


@pytest.mark.parametrize("module", DIVERGING.values(), ids=DIVERGING)
def test_names_hints_and_what_others_keep_count(module: str) -> None:
    assert kind_of(module % 1) == kind_of(module % 1)
    assert kind_of(module % 1) != kind_of(module % 2)


def test_what_a_base_of_another_package_holds_does_not_count() -> None:
    def of(rate: int) -> bytes:
        module: dict[str, Any] = {"__name__": "shop.model"}
        base = f"class B:\n  RATE = {rate}\nB.__module__ = 'elsewhere'\n"
        exec(  # noqa: S102 -- the text above and below
            f"{base}class C(B):\n  def f(self, e): self.t = self.RATE\n", module
        )
        own = module["C"]
        return fingerprint([("f", own.f)], owners=[own], packages={"shop"}, extra="")

    assert of(1) == of(2)


def test_what_else_matters_counts() -> None:
    one, other = (fingerprint([], owners=(), packages=set(), extra=version) for version in (1, 2))

    assert one != other


def declared_elsewhere(**modules: str) -> None:
    for name, text in modules.items():
        sys.modules[name] = ModuleType(name)
        exec(text, vars(sys.modules[name]))  # noqa: S102 -- the texts below


def test_code_of_each_package_that_takes_part_is_followed() -> None:
    def of(*, base: int = 1, step: int = 1) -> bytes:
        declared_elsewhere(
            base_of_shop=f"class Mixed:\n  def rate(self): return {base}\n",
            steps_of_shop=f"def factor(): return {step}\n"
            "def lift(old): return {'n': old['n'] * factor()}\n",
        )
        return kind_of(
            "import base_of_shop, steps_of_shop\n"
            '@types.event("counted", version=2)\n@dataclass(frozen=True)\n'
            "class Counted:\n    n: int\n"
            'types.upcast("counted", 1)(steps_of_shop.lift)\n'
            'class State(base_of_shop.Mixed, Aggregate, category="state", snapshot=every(1)):\n'
            "    total: int = 0\n"
            "    @applies\n"
            "    def _(self, e: Counted) -> None:\n        self.total += self.rate()\n"
        )

    assert of() == of()
    assert of() != of(base=2)
    assert of() != of(step=2)


def test_code_of_the_package_of_a_deciders_state_is_followed() -> None:
    def of(rate: int) -> bytes:
        declared_elsewhere(
            amounts_of_shop="import dataclasses\n@dataclasses.dataclass(frozen=True)\n"
            f"class Amount:\n  n: int = 0\n  def plus(self, n): return Amount(self.n + n * {rate})"
        )
        return kind_of(
            "import amounts_of_shop\n"
            "from datapatterns.event_sourcing import Decider\n"
            '@types.event("counted")\n@dataclass(frozen=True)\nclass Counted:\n    n: int\n'
            "def evolve(state, e): return state.plus(e.n)\n"
            "State = Decider('state', amounts_of_shop.Amount(), lambda c, s: [], evolve,\n"
            "    events=(Counted,), snapshot=every(1))\n"
        )

    assert of(1) == of(1) != of(2)


def test_modules_that_name_each_other_have_a_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cyclic").mkdir()
    (tmp_path / "cyclic" / "__init__.py").touch()
    (tmp_path / "cyclic" / "one.py").write_text("from cyclic import two\n")
    (tmp_path / "cyclic" / "two.py").write_text("from cyclic import one\nRATE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module: dict[str, Any] = {"__name__": "cyclic.model"}
    exec("from cyclic import one\ndef f(): return one.two.one.two.RATE\n", module)  # noqa: S102 -- this text

    def of() -> bytes:
        return fingerprint([("f", module["f"])], owners=(), packages={"cyclic"}, extra="")

    before = of()
    monkeypatch.setattr(sys.modules["cyclic.two"], "RATE", 2)
    assert of() != before

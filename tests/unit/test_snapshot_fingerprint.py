import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from datapatterns.event_sourcing import Aggregate, EventTypes, applies, every
from datapatterns.event_sourcing.states.fingerprint import fingerprint
from datapatterns.event_sourcing.states.snapshotting import snapshot_kind

PLAIN = "def f(self, e):\n    self.total = e['amount'] + 1\n"


def of(source: str, *, name: str = "f") -> bytes:
    """Return the fingerprint of what a module of this text calls ``name``."""
    module: dict[str, Any] = {"__name__": "shop.model"}
    exec(source, module)  # noqa: S102 -- the texts below
    owners = [module["C"]] if "C" in module else []
    return fingerprint([("f", module[name])], owners=owners, packages={"shop"}, extra="")


def test_layout_and_comments_do_not_matter() -> None:
    assert of(PLAIN) == of(
        "# a comment\n\n\ndef f(self, e):\n    self.total = (e['amount']\n        + 1)\n"
    )


@pytest.mark.parametrize(
    "changed",
    [
        PLAIN.replace("1", "2"),
        PLAIN.replace("amount", "price"),
        PLAIN.replace("+", "-"),
        PLAIN.replace("total", "sum"),
        PLAIN.replace("1", "True"),
        PLAIN.replace("1", "1.0"),
    ],
)
def test_other_code_is_other_code(changed: str) -> None:
    assert of(changed) != of(PLAIN)


INDIRECT = {
    "constant": "VAT = %s\ndef f(self, e):\n    self.t = VAT\n",
    "table": "VAT = {'a': [%s]}\ndef f(self, e):\n    self.t = VAT\n",
    "helper": "def h():\n    return %s\ndef f(self, e):\n    self.t = h()\n",
    "helper's helper": (
        "def g():\n    return %s\ndef h():\n    return g()\ndef f(self, e):\n    self.t = h()\n"
    ),
    "closure": (
        "def make(r):\n    def f(self, e):\n        self.t = r\n    return f\nf = make(%s)\n"
    ),
    "decorator": (
        "def deco(g):\n    return lambda self, e: g(self, e)\n"
        "@deco\ndef f(self, e):\n    self.t = %s\n"
    ),
    "wrapped": (
        "from functools import wraps\ndef deco(g):\n    return wraps(g)(lambda *a: None)\n"
        "@deco\ndef f(self, e):\n    self.t = %s\n"
    ),
    "default": "def f(self, e, rate=%s):\n    self.t = rate\n",
    "keyword default": "def f(self, e, *, rate=%s):\n    self.t = rate\n",
    "comprehension": "def f(self, e):\n    self.t = [x + %s for x in e]\n",
    "method": (
        "class C:\n    def h(self):\n        return %s\n    def f(self, e):\n"
        "        self.t = self.h()\nf = C.f\n"
    ),
    "inherited method": (
        "class B:\n    def h(self):\n        return %s\nclass C(B):\n    def f(self, e):\n"
        "        self.t = self.h()\nf = C.f\n"
    ),
    "class constant": (
        "class C:\n    RATE = %s\n    def f(self, e):\n        self.t = self.RATE\nf = C.f\n"
    ),
    "property": (
        "class C:\n    @property\n    def h(self):\n        return %s\n    def f(self, e):\n"
        "        self.t = self.h\nf = C.f\n"
    ),
    "static method": (
        "class C:\n    @staticmethod\n    def h():\n        return %s\n    def f(self, e):\n"
        "        self.t = self.h()\nf = C.f\n"
    ),
    "another class": (
        "class Line:\n    def sum(self):\n        return %s\n"
        "def f(self, e):\n    self.t = Line().sum()\n"
    ),
    "set": "def f(self, e):\n    self.t = e in {'a', 'b', 'c', %s}\n",
    "overridden method": (
        "class B:\n    def h(self):\n        return %s\nclass C(B):\n    def h(self):\n"
        "        return super().h()\n    def f(self, e):\n        self.t = self.h()\nf = C.f\n"
    ),
    "method of a base of another class": (
        "class Base:\n    def sum(self):\n        return %s\nclass Line(Base):\n    pass\n"
        "def f(self, e):\n    self.t = Line().sum()\n"
    ),
    "table of another class": (
        "class Rates:\n    BY_NAME = {'a': %s}\ndef f(self, e):\n    self.t = Rates.BY_NAME['a']\n"
    ),
    "setter": (
        "class C:\n    def _set(self, t):\n        self.s = %s * t\n    t = property(None, _set)\n"
        "    def f(self, e):\n        self.t = 1\nf = C.f\n"
    ),
    "cached helper": (
        "from functools import cache\n@cache\ndef h():\n    return %s\n"
        "def f(self, e):\n    self.t = h()\n"
    ),
    "partial": (
        "from functools import partial\nh = partial(int, %s)\ndef f(self, e):\n    self.t = h()\n"
    ),
    "bound method": (
        "class H:\n    def h(self):\n        return %s\nh = H().h\n"
        "def f(self, e):\n    self.t = h()\n"
    ),
    "decimal": (
        "from decimal import Decimal\nVAT = Decimal('0.%s')\ndef f(self, e):\n    self.t = VAT\n"
    ),
    "pattern": "import re\nP = re.compile('%s')\ndef f(self, e):\n    self.t = P.match(e)\n",
    "mapping proxy": (
        "from types import MappingProxyType\nVAT = MappingProxyType({'a': %s})\n"
        "def f(self, e):\n    self.t = VAT['a']\n"
    ),
    "value of an enumeration": (
        "from enum import Enum\nclass Kind(Enum):\n    BIG = %s\n"
        "def f(self, e):\n    self.t = Kind.BIG.value\n"
    ),
    "field of an object": (
        "from dataclasses import dataclass\n@dataclass\nclass Rates:\n    vat: int\n"
        "RATES = Rates(%s)\ndef f(self, e):\n    self.t = RATES.vat\n"
    ),
    "class of a field": (
        "from dataclasses import dataclass\n@dataclass\nclass Money:\n    c: int\n"
        "    def __add__(self, other):\n        return %s\n"
        "@dataclass\nclass Line:\n    money: Money\n"
        "def f(self, e):\n    self.t = Line(e).money + e\n"
    ),
    "list that holds itself": "L = [%s]\nL.append(L)\ndef f(self, e):\n    self.t = L\n",
}


@pytest.mark.parametrize("module", INDIRECT.values(), ids=INDIRECT)
def test_what_the_code_names_counts_as_its_own(module: str) -> None:
    assert of(module % "1") == of(module % "1")
    assert of(module % "1") != of(module % "2")


@pytest.mark.parametrize(
    "use",
    [
        "from shop import pricing\ndef f(self, e):\n    self.t = pricing.cents()\n",
        "import shop.pricing\ndef f(self, e):\n    self.t = shop.pricing.cents()\n",
        "def f(self, e):\n    from shop.pricing import cents\n    self.t = cents()\n",
    ],
)
def test_code_in_another_module_of_the_package_counts_too(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint_with(cents: int) -> bytes:
        for name in ("shop", "shop.pricing"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        pricing = f"def cents():\n    return {cents}\n"
        (tmp_path / "shop" / "pricing.py").write_text(pricing)
        importlib.invalidate_caches()
        return of(use)

    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its times count in whole seconds

    assert fingerprint_with(1) == fingerprint_with(1) != fingerprint_with(2)


def test_code_that_calls_itself_has_a_fingerprint() -> None:
    both = "def g(n):\n    return f(None, n)\ndef f(self, n):\n    return n and g(n - %s)\n"

    assert of(both % 1) != of(both % 2)


def test_other_packages_count_by_name_only() -> None:
    source = "from json import dumps, loads\ndef f(self, e):\n    self.t = %s(e)\n"

    assert of(source % "dumps") != of(source % "loads")


def test_the_hash_seed_does_not_matter() -> None:
    program = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.unit.test_snapshot_fingerprint import INDIRECT, of;"
        "print(of(INDIRECT['set'] % 1).hex(), of(INDIRECT['table'] % 1).hex())"
    )

    def run(seed: int) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        return subprocess.run(  # noqa: S603 -- this interpreter, the program above
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run(1) == run(2) == run(3)


FOREIGN_ZONE = type("Zone", (tzinfo,), {"__module__": "elsewhere"})


@pytest.mark.parametrize(
    "make",
    [
        object,
        FOREIGN_ZONE,
        lambda: partial(print),
        lambda: [1, (2, {3})],
        lambda: {"a": b"b"},
        lambda: ...,
    ],
)
def test_whatever_code_names_has_a_description_without_addresses(
    make: Callable[[], object],
) -> None:
    def handler(value: object) -> Callable[[], object]:
        def f() -> object:
            return value

        return f

    both = [handler(make()), handler(make())]  # at the same time, so at two addresses
    one, other = (fingerprint([("f", f)], owners=(), packages={"tests"}, extra="") for f in both)
    assert one == other


def kind_of(*, post_init: str = "pass", upcast: str = "return old") -> bytes:
    """Return the fingerprint of an aggregate whose event and upcaster live in another package."""
    types = EventTypes()
    shared: dict[str, Any] = {"__name__": "shared.events", "dataclass": dataclass}
    code = (
        f"@dataclass(frozen=True)\nclass Sold:\n    def __post_init__(self):\n        {post_init}\n"
    )
    exec(f"{code}def lift(old):\n    {upcast}\n", shared)  # noqa: S102 -- the texts below
    sold = types.event("sold", version=2)(shared["Sold"])
    types.upcast("sold", 1)(shared["lift"])

    def apply(self: object, e: object) -> None: ...

    apply.__annotations__["e"] = sold

    class Till(Aggregate, category="till", snapshot=every(1)):
        handler = applies(apply)

    kind = snapshot_kind(Till, types)
    assert kind is not None
    return kind.fingerprint


def test_events_and_upcasters_of_another_package_are_followed() -> None:
    assert kind_of() == kind_of()
    assert kind_of() != kind_of(post_init="print(self)")
    assert kind_of() != kind_of(upcast="return None")


def test_code_that_names_no_module_is_told_apart_without_looking_into_python() -> None:
    def without_a_module(rate: object) -> bytes:
        made: dict[str, Any] = {"rate": rate}  # exec gives it the module of int and str
        code = "class C:\n    def f(self, e: str):\n        self.t = e.strip() + str(rate)\n"
        exec(f"{code}f = C.f\n", made)  # noqa: S102 -- the text above
        assert made["C"].__module__ == "builtins"
        return fingerprint([("f", made["f"])], owners=[made["C"]], packages={"builtins"}, extra="")

    assert without_a_module("a") == without_a_module("a")
    assert without_a_module("a") != without_a_module("b")
    assert without_a_module([1]) != without_a_module([2])

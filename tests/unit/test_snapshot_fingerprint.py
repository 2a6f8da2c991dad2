import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from datapatterns.event_sourcing.fingerprint import fingerprint

PLAIN = "def f(self, e):\n    self.total = e['amount'] + 1\n"


def of(source: str, *, name: str = "f") -> bytes:
    """Return the fingerprint of what a module of this text calls ``name``."""
    module: dict[str, Any] = {"__name__": "shop.model"}
    exec(source, module)  # noqa: S102 -- the texts below
    owners = [module["C"]] if "C" in module else []
    return fingerprint([("f", module[name])], owners=owners, package="shop", extra="")


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
}


@pytest.mark.parametrize("module", INDIRECT.values(), ids=INDIRECT)
def test_what_the_code_names_counts_as_its_own(module: str) -> None:
    assert of(module % "1") == of(module % "1")
    assert of(module % "1") != of(module % "2")


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


@pytest.mark.parametrize("value", [object(), partial(print), [1, (2, {3})], {"a": b"b"}, ...])
def test_whatever_code_names_has_a_description_without_addresses(value: object) -> None:
    def handler() -> Callable[[], object]:
        def f() -> object:
            return value

        return f

    one, other = (
        fingerprint([("f", handler())], owners=(), package="tests", extra="") for _ in range(2)
    )
    assert one == other

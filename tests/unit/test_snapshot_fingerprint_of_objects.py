"""Code that a handler reaches through objects, hints and classes of events counts, too."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.fixtures.folding_code import kind_of, made_by, method, reaching

PRICER = "class Pricer:\n  def __init__(s, k): s.k = k\n  def price(s, n): return n * s.k\n"
DIVERGING: dict[str, str] = {
    "method of an object": reaching(
        "class P:\n  def price(s, n): return n * (%s)\nPRICER = P()", "PRICER.price(e.n)"
    ),
    "attribute of an object": reaching(PRICER + "PRICER = Pricer(%s)", "PRICER.price(e.n)"),
    "slot of an object": reaching(
        "class P:\n  __slots__ = ('k',)\n  def __init__(s, k): s.k = k\nPRICER = P(%s)", "PRICER.k"
    ),
    "method of a member of an enumeration": reaching(
        "class Mode(enum.Enum):\n  A = 1\n  def rate(s): return %s\nMODE = Mode.A", "MODE.rate()"
    ),
    "__setattr__ of the state": reaching(
        "", "e.n", method("def __setattr__(self, n, v): super().__setattr__(n, (%s, v)[1])")
    ),
    "__len__ of the state": reaching("", "len(self)", method("def __len__(self): return %s")),
    "__getattr__ of the state": reaching(
        "", "self.rate", method("def __getattr__(self, n): return %s")
    ),
    "attribute of a function": reaching("def f(): return f.k\nf.k = %s", "f()"),
    "decorator that is a class": reaching(
        "class D:\n  def __init__(s, f): s.f = f\n  def __call__(s, *a): return s.f(*a)\n"
        "@D\ndef f(n): return %s",
        "f(e.n)",
    ),
    "number with methods": reaching(
        "class Cents(int):\n  def twice(s): return %s\nK = Cents(3)", "K.twice()"
    ),
    "tuple with methods": reaching(
        "class Pair(NamedTuple):\n  a: int\n  def twice(s): return %s\nK = Pair(3)", "K.twice()"
    ),
    "__new__ of a value": reaching(
        "class Cents(int):\n  def __new__(c, n): return super().__new__(c, n * %s)", "Cents(3)"
    ),
    "order of a pattern": reaching(
        "class P:\n  __match_args__ = [('a', 'b'), ('b', 'a')][%s - 1]\n  a, b = 1, 2\n"
        "def f(p):\n  match p:\n    case P(x, _): return x",
        "f(P())",
    ),
    "default of a Struct": reaching("class H(msgspec.Struct):\n  k: int = %s", "H().k"),
    "metaclass": reaching(
        "class M(type):\n  def rate(c): return %s\nclass H(metaclass=M): pass", "H.rate()"
    ),
    "number that holds more": reaching("class K(int): pass\nK1 = K(3)\nK1.rate = %s", "K1.rate"),
    "text that holds more": reaching("class K(str): pass\nK1 = K()\nK1.rate = %s", "K1.rate"),
    "tuple that holds more": reaching("class K(tuple): pass\nK1 = K()\nK1.rate = %s", "K1.rate"),
    "set that holds more": reaching("class K(set): pass\nK1 = K()\nK1.rate = %s", "K1.rate"),
    "number that shows itself otherwise": reaching(
        "class K(int):\n  def __repr__(s): return 'K'\nK1 = K(%s)", "K1"
    ),
    "object with fields that holds more": reaching(
        "@dataclass\nclass K:\n  n: int\nK1 = K(1)\nK1.rate = %s", "K1.rate"
    ),
    "attribute of a member of an enumeration": reaching(
        "class Mode(enum.Enum):\n  A = 1\nMode.A.rate = %s", "Mode.A.rate"
    ),
    "type of a named tuple's field": reaching(
        "class P(NamedTuple):\n  a: Literal[%s]", "msgspec.convert([1], P).a"
    ),
    "type of a dict's key": reaching(
        "class P(TypedDict):\n  a: Literal[%s]", "msgspec.convert({'a': 1}, P)['a']"
    ),
    "zone of ours": reaching(
        "class Z(datetime.tzinfo):\n  def __init__(s, k): s.k = k\nZONE = Z(%s)", "ZONE.k"
    ),
    "default factory of a dataclass": made_by(
        "@dataclass(frozen=True)\nclass Counted:\n  n: int = field(default_factory=lambda: %s)"
    ),
    "default factory of a Struct": made_by(
        "class Counted(msgspec.Struct, frozen=True):\n"
        "  n: int = msgspec.field(default_factory=lambda: %s)"
    ),
    "default factory of attrs": made_by(
        "@attrs.frozen\nclass Counted:\n  n: int = attrs.field(factory=lambda: %s)"
    ),
    "converter of attrs": made_by(
        "@attrs.frozen\nclass Counted:\n  n: int = attrs.field(converter=lambda n: %s)"
    ),
    "default factory of pydantic": made_by(
        "class Counted(pydantic.BaseModel, frozen=True):\n"
        "  n: int = pydantic.Field(default_factory=lambda: %s)"
    ),
    "validator of pydantic": made_by(
        "class Counted(pydantic.BaseModel, frozen=True):\n  n: int\n"
        "  @pydantic.field_validator('n')\n  @classmethod\n  def check(c, n): return n * %s"
    ),
    "validator in a hint": made_by(
        "class Counted(pydantic.BaseModel, frozen=True):\n"
        "  n: Annotated[int, pydantic.AfterValidator(lift)]",
        "def lift(n): return n * %s",
    ),
    "operator of an event": made_by(
        "@dataclass(frozen=True)\nclass Counted:\n  n: int\n  def __bool__(s): return %s == 1",
        use="bool(e)",
    ),
    "generic value": made_by(
        "@dataclass(frozen=True)\nclass Counted:\n  n: Box[int]",
        "T = TypeVar('T')\n@dataclass(frozen=True)\nclass Box(Generic[T]):\n  v: T\n"
        "  def __int__(s): return %s\n",
        "int(e.n)",
    ),
    "value under another name": made_by(
        "@dataclass(frozen=True)\nclass Counted:\n  n: Amount",
        "@dataclass(frozen=True)\nclass Box:\n  v: int\n  def __int__(s): return %s\n"
        "Amount = NewType('Amount', Box)",
        "int(e.n)",
    ),
}


@pytest.mark.parametrize("module", DIVERGING.values(), ids=DIVERGING)
def test_code_behind_objects_and_events_counts_as_its_own(module: str) -> None:
    assert kind_of(module % 1) == kind_of(module % 1)
    assert kind_of(module % 1) != kind_of(module % 2)


def test_how_a_helper_takes_its_arguments_counts() -> None:
    def helper(argument: str) -> str:
        return reaching(f"def f({argument}): return len([a])", "f(e.n)")

    assert kind_of(helper("a")) != kind_of(helper("*a"))


def test_a_field_that_became_personal_leaves_readable_snapshots_behind() -> None:
    def event(hint: str) -> str:
        return made_by(
            f"@dataclass(frozen=True)\nclass Counted:\n  who: str\n  n: {hint}", use="len(e.n)"
        )

    assert kind_of(event("str")) != kind_of(event("Annotated[str, Personal(subject='who')]"))


UNORDERED = [
    reaching(
        "def a(): return 1\ndef b(): return a\ndef c(): return b\n"
        "class K: pass\nclass L(K): pass\n"
        "KINDS = {a, b, c, K, L, int, (a, K), 'x', None}\nKINDS_TOO = frozenset([K, L, a])\n",
        "len(KINDS) + len(KINDS_TOO) + a() + bool(K)",
    ),
    # Alike but for who else names them, before the set is met or after it.
    reaching("class K: pass\nA, B = K(), K()\nBOTH = {A, B}", "(e.n is A) + (e.n in BOTH)"),
    reaching("class K: pass\nY, Z = K(), K()\nBOTH = {Y, Z}", "(e.n in BOTH) + (e.n is Z)"),
    # Each keeps the hash of its text.
    reaching(
        "@attrs.frozen(cache_hash=True)\nclass K:\n  name: str\nBOTH = {K('a'), K('b')}",
        "len(BOTH)",
    ),
]


def test_sets_of_code_have_one_fingerprint_in_every_process() -> None:
    program = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.fixtures.folding_code import kind_of;"
        "from tests.unit.test_snapshot_fingerprint_of_library_objects import DIVERGING as LIBRARY;"
        "from tests.unit.test_snapshot_fingerprint_of_objects import DIVERGING, UNORDERED;"
        "junk = [object() for _ in range(int(sys.argv[1]) * 997)];"
        "both = [*DIVERGING.values(), *LIBRARY.values()];"
        "texts = [*UNORDERED, *(module % 1 for module in both)];"
        "print(*[kind_of(text).hex() for text in texts])"
    )

    def run(seed: int) -> str:
        environment: dict[str, Any] = {**os.environ, "PYTHONHASHSEED": str(seed)}
        return subprocess.run(  # noqa: S603 -- this interpreter, the program above
            [sys.executable, "-c", program, str(seed)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run(1) == run(2) == run(3) == run(4)


def test_a_set_that_is_reached_from_itself_has_a_fingerprint() -> None:
    module = reaching("def f(): return len(FS) * %s\nFS = {f}", "f()")

    assert kind_of(module % 1) == kind_of(module % 1) != kind_of(module % 2)


def test_however_long_a_way_leads_to_code_it_counts() -> None:
    steps = [f"def f{i}(n): return f{i + 1}(n)" for i in range(500)]
    kinds = [f"class K{i}:\n  def next(s): return K{i + 1}" for i in range(500)]
    nested = ["L = [%s]", "for _ in range(400): L = [L]", "def f500(n): return (L, K0)"]
    module = reaching("\n".join([*steps, *kinds, "class K500: k = %s", *nested]), "f0(e.n)")

    assert kind_of(module % (1, 1)) == kind_of(module % (1, 1))
    assert len({kind_of(module % each) for each in [(1, 1), (1, 2), (2, 1)]}) == 3


def test_sets_whose_members_name_one_another_are_each_looked_at_once() -> None:
    """Along all ways that lead through them it would take years."""
    module = "\n".join(
        f"def f{i}(n): return n in ALL{(i + 1) % 20} or n in ALL{(i + 7) % 20}\nALL{i} = {{f{i}}}"
        for i in range(20)
    )

    assert kind_of(reaching(module, "f0(e.n)")) == kind_of(reaching(module, "f0(e.n)"))


def test_sets_within_sets_are_each_looked_at_once() -> None:
    module = "S = frozenset([%s])\nfor _ in range(60): S = frozenset([S])"

    kinds = [kind_of(reaching(module % n, "len(S)")) for n in (1, 1, 2)]

    assert kinds[0] == kinds[1] != kinds[2]

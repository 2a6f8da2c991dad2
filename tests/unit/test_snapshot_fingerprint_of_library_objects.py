"""Objects of the standard library count by what they say, not by what they were used for."""

import pytest

from tests.fixtures.folding_code import kind_of, method, reaching

DIVERGING: dict[str, str] = {
    "union": reaching("KINDS = [int | str, int | bytes][%s - 1]", "isinstance(e.n, KINDS)"),
    "literal": reaching("KINDS = Literal[7, %s]", "e.n in get_args(KINDS)"),
    "namespace": reaching("RATES = SimpleNamespace(vat=%s)", "RATES.vat"),
    "deque": reaching("RATES = collections.deque([%s])", "RATES[0]"),
    "default of a mapping": reaching("D = collections.defaultdict(lambda: %s)", "D[0]"),
    "getter": reaching("GET = operator.itemgetter(%s)", "GET([1, 2, 3])"),
    "bound method of a table": reaching("GET = {1: %s}.get", "GET(e.n)"),
    "bound operator of a number": reaching("ADD = (%s).__add__", "ADD(e.n)"),
    "method that dispatches": reaching(
        "",
        "self.part(e.n)",
        method(
            "@singledispatchmethod\ndef part(self, x): return 0\n"
            "@part.register\ndef _int(self, x: int): return %s"
        ),
    ),
    "function that dispatches": reaching(
        "@singledispatch\ndef part(x): return 0\n@part.register\ndef _int(x: int): return %s",
        "part(e.n)",
    ),
    "class of that name elsewhere": reaching(
        "import contextvars\nKIND = [decimal.Context, contextvars.Context][%s - 1]", "KIND is None"
    ),
    "second of two that are looked at alike": reaching(
        "A = collections.deque([0])\nB = collections.deque([%s])", "A[0] + B[0]"
    ),
    "property of an enumeration": reaching(
        "class Mode(enum.Enum):\n  A = 1\n  @enum.property\n  def rate(s): return %s",
        "Mode.A.rate",
    ),
    "property of a class and its objects": reaching(
        "class P:\n  @kinds.DynamicClassAttribute\n  def rate(s): return %s", "P().rate"
    ),
    "slice": reaching("FIRST = slice(%s)", "sum([1, 2, 3][FIRST])"),
    "decimal context": reaching("CONTEXT = decimal.Context(prec=%s)", "CONTEXT.divide(1, 3)"),
    "keys of a mapping": reaching("KEYS = {%s: 1}.keys()", "1 in KEYS"),
    "values of a mapping": reaching("VALUES = {1: %s}.values()", "1 in VALUES"),
    "items of a mapping": reaching("ITEMS = {1: %s}.items()", "(1, 1) in ITEMS"),
    "chain of mappings": reaching("RATES = collections.ChainMap({'a': %s})", "RATES['a']"),
    "user's mapping": reaching("RATES = collections.UserDict(a=%s)", "RATES['a']"),
    "user's list": reaching("RATES = collections.UserList([%s])", "RATES[0]"),
    "user's text": reaching("WORD = collections.UserString('%s')", "WORD"),
    "bounds of a deque": reaching("LAST = collections.deque((1, 2, 3), maxlen=%s)", "LAST[0]"),
    "array": reaching("RATES = array.array('i', [%s])", "RATES[0]"),
    "type of an array": reaching("RATES = array.array('iq'[%s - 1], [1])", "RATES.itemsize"),
    "memory": reaching("RATES = memoryview(b'%s')", "RATES[0]"),
    "layout of a record": reaching("LAYOUT = struct.Struct('%sb')", "LAYOUT.size"),
    "network": reaching("OURS = ipaddress.ip_network('10.%s.0.0/16')", "e.n in OURS"),
    "path": reaching("PLACE = pathlib.PurePath('a%s')", "PLACE"),
    "template": reaching("WORDS = string.Template('%s')", "WORDS.substitute()"),
    "bytearray": reaching("RATES = bytearray(b'%s')", "RATES[0]"),
    "getter of attributes": reaching("GET = operator.attrgetter('a%s')", "GET"),
    "caller of methods": reaching("CALL = operator.methodcaller('a%s')", "CALL"),
    "flags of a pattern": reaching("import re\nWORD = re.compile('a', [2, 8][%s - 1])", "WORD"),
    "method with arguments": reaching(
        "from functools import partialmethod\n"
        "class P:\n  def h(s, k): return k\n  g = partialmethod(h, %s)",
        "P().g()",
    ),
    "property that is kept": reaching(
        "from functools import cached_property\n"
        "class P:\n  @cached_property\n  def k(s): return %s",
        "P().k",
    ),
    "function in C": reaching("COUNT = [len, max][%s - 1]", "COUNT([e.n])"),
    "method in C of one object": reaching("D = {}\nGET = [D.get, D.pop][%s - 1]", "GET(1, 2)"),
    "operator of one number": reaching("OP = [(3).__add__, (3).__sub__][%s - 1]", "OP(e.n)"),
    "method in C": reaching("CASE = [str.upper, str.lower][%s - 1]", "CASE('a')"),
    "operator in C": reaching("OP = [int.__add__, int.__sub__][%s - 1]", "OP(1, e.n)"),
    "module of another package": reaching("SAYS = [operator, string][%s - 1]", "SAYS"),
}


@pytest.mark.parametrize("module", DIVERGING.values(), ids=DIVERGING)
def test_what_an_object_of_the_library_holds_counts(module: str) -> None:
    assert kind_of(module % 1) == kind_of(module % 1)
    assert kind_of(module % 1) != kind_of(module % 2)


def test_what_a_decimal_context_has_computed_does_not_count() -> None:
    module = reaching("CONTEXT = decimal.Context(prec=3)%s", "CONTEXT.divide(1, 3)")

    assert kind_of(module % "") == kind_of(module % "\nCONTEXT.divide(1, 3)")
    assert kind_of(module % "") != kind_of(module % "\nCONTEXT.traps[decimal.Inexact] = True")


def test_what_was_computed_once_for_an_object_does_not_count() -> None:
    module = reaching(
        "from functools import cached_property\n"
        "class P:\n  @cached_property\n  def k(s): return %s\nP1 = P()%s",
        "P1.k",
    )

    assert kind_of(module % (1, "")) == kind_of(module % (1, "\nP1.k"))
    assert kind_of(module % (1, "")) != kind_of(module % (2, ""))

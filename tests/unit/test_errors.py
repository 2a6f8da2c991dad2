"""The tree of errors: told as it is, and its names the same in every traceback and pickle."""

import pickle
import re
from inspect import getmembers, isclass
from pathlib import Path

import pytest

from datapatterns import errors
from datapatterns.errors import DataPatternsError, SettingsError

FAMILIES = {"ConfigurationError", "ConflictError", "UnavailableError", "CorruptionError"}
HEADS = {"DataPatternsError", "Exception"}
BRANCH = re.compile(r"[├└]── (\w+)")
LEAVES = re.compile(r"│ {5}(\w*) +(\w+Error.*)")
CLASSES = [kind for _, kind in getmembers(errors, isclass)]


def told() -> dict[str, tuple[str, str]]:
    """Return what the docstring says of each error: its parent, and the file that it stands in."""
    tree, family, file = {"DataPatternsError": ("Exception", "families")}, "", ""
    for line in (errors.__doc__ or "").splitlines():
        if branch := BRANCH.match(line):
            family = branch[1]
            file = "families" if family in FAMILIES else "transactions"
            tree[family] = ("DataPatternsError", file)
        elif leaves := LEAVES.match(line):
            file = leaves[1] or file
            tree |= dict.fromkeys(re.findall(r"\w+", leaves[2]), (family, file))
    return tree


def test_the_docstring_tells_the_tree_as_it_is() -> None:
    tree = told()

    assert sorted(tree) == sorted(errors.__all__) == sorted(kind.__name__ for kind in CLASSES)
    for kind in CLASSES:
        parent, file = tree[kind.__name__]
        # An error may refine another one of its family, which callers catch with it.
        above = [base.__name__ for base in kind.__mro__[1:]]
        assert next(name for name in above if name in FAMILIES.union(HEADS)) == parent
        assert "__init__" not in vars(kind) or Path(kind.__init__.__code__.co_filename).stem == file


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_named_and_pickled_as_it_is_imported(kind: type[DataPatternsError]) -> None:
    error = kind.__new__(kind, "it said this")
    error.__dict__["detail"] = 7

    pickled = pickle.dumps(error)
    again = pickle.loads(pickled)  # noqa: S301 -- our own

    assert kind.__module__ == "datapatterns.errors"
    assert b"datapatterns.errors." not in pickled  # or a release before could not read it
    assert (type(again), again.args, again.__dict__) == (kind, ("it said this",), {"detail": 7})


def test_what_a_release_before_has_pickled_can_be_read() -> None:
    pickled = (  # when all errors stood in one file
        b"cdatapatterns.errors\n_restore\n(cdatapatterns.errors\nSettingsError\n"
        b"(Vschema: is missing\nt(dVsetting\nVschema\nsVadvice\nVis missing\nstR."
    )

    error = pickle.loads(pickled)  # noqa: S301 -- our own

    assert isinstance(error, SettingsError)
    assert str(error) == "schema: is missing"
    assert (error.setting, error.advice) == ("schema", "is missing")

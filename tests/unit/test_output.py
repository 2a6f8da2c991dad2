import io
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from datapatterns_cli.main import main
from datapatterns_cli.output import Output

ROWS = [
    {"product_id": 7, "name": "Brot [bold]\x1b[31m", "price": Decimal("1.20"), "sold": None},
    {"product_id": 12, "name": "x" * 150, "price": Decimal(3), "sold": datetime.now(UTC)},
]


def test_a_table_for_people_is_cut_nowhere_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output().table(ROWS)

    printed = capsys.readouterr().out
    assert "product id" in printed
    assert r"Brot [bold]\x1b[31m" in printed
    assert "x" * 150 in printed
    assert "\x1b" not in printed


def test_a_table_for_programs_is_an_object_on_each_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=True).table(ROWS)

    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["name"], first["sold"], first["price"]) == (ROWS[0]["name"], None, "1.20")
    assert second["product_id"] == 12


def test_an_empty_table_says_so_to_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([], empty="no streams")
    Output(as_json=True).table([])

    assert capsys.readouterr() == ("", "no streams\n")


def test_values_are_a_line_each_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    Output().values({"hit_ratio": 0.5, "ok": True})
    Output(as_json=True).values({"hit_ratio": 0.5, "ok": True})

    people, yes, programs = capsys.readouterr().out.splitlines()
    assert people.split() == ["hit", "ratio", "0.5"]
    assert yes.split() == ["ok", "yes"]
    assert json.loads(programs) == {"hit_ratio": 0.5, "ok": True}


@pytest.mark.parametrize("as_json", [True, False])
def test_progress_stays_out_of_what_is_piped(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    with Output(as_json=as_json).progress("loading", 3) as advance:
        advance(3)

    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_where_somebody_looks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    with Output().progress("loading", 3) as advance:
        advance(3)

    assert "loading" in capsys.readouterr().err


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"K?se ?"), ("latin-1", b"K\xe4se ?")])
def test_an_encoding_that_lacks_a_letter_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))

    main(["--version"])
    Output().table([{"name": "Käse █"}])
    Output(as_json=True).values({"name": "Käse █"})
    Output().values({"name": "Käse █"})
    sys.stdout.flush()

    *_, people, _frame, programs, _ = written.getvalue().splitlines()
    assert shown in people
    assert json.loads(programs) == {"name": "Käse █"}


def test_a_note_is_an_object_for_programs_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output().note("left out \x1b[2J")
    Output(as_json=True).note("left out \x1b[2J")

    people, programs = capsys.readouterr().err.splitlines()
    assert people == r"left out \x1b[2J"
    assert json.loads(programs) == {"note": "left out \x1b[2J"}

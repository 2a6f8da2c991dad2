from benchmarks.interleaving import Claim, Contestant, Measured, as_json, measure, ratios


def contestant(name: str, order: list[str]) -> Contestant:
    def run() -> int:
        order.append(name)
        return 10

    return Contestant(name, "ours" if name == "a" else "rival", run)


def test_every_round_begins_with_another_contestant() -> None:
    order: list[str] = []

    measure(Claim("t", "runs", [contestant(name, order) for name in "abc"]), rounds=3)

    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


def test_ratios_are_taken_round_by_round() -> None:
    measured = [
        Measured("ours", "ours", [10.0, 100.0, 1000.0]),
        Measured("theirs", "rival", [5.0, 50.0, 500.0]),
    ]

    (ratio,) = ratios(measured)

    assert (ratio.other, ratio.median, ratio.low, ratio.high) == ("theirs", 2.0, 2.0, 2.0)


def test_one_round_has_a_ratio_too() -> None:
    (ratio,) = ratios([Measured("o", "ours", [3.0]), Measured("t", "limit", [4.0])])

    assert ratio.median == 0.75


def test_what_is_written_names_both_sides() -> None:
    measured = [Measured("o", "ours", [2.0, 4.0]), Measured("t", "rival", [1.0, 2.0])]

    written = as_json(Claim("Title", "things", []), measured)

    assert written["ratios"] == [{"ours_to": "t", "median": 2.0, "quartiles": [2.0, 2.0]}]

import pytest

from datapatterns_grocer.screen import Screen, milliseconds, money


@pytest.mark.parametrize(
    ("cents", "shown"),
    [(0, "0.00"), (5, "0.05"), (149, "1.49"), (-250, "-2.50"), (123456789, "1,234,567.89")],
)
def test_money_is_shown_to_the_cent(cents: int, shown: str) -> None:
    assert money(cents) == shown


def test_short_times_keep_their_digits() -> None:
    assert (milliseconds(0.00123), milliseconds(0.5)) == ("1.23 ms", "500 ms")


def test_nothing_is_wider_than_the_terminal_it_is_made_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen()

    screen.heading("Sharding", "What is about to be shown")
    screen.table(["shard", "baskets"], [["s0", 2200], ["s1", 10]])
    screen.bars({"s0": 2200, "s1": 10, "an empty one": 0}, "baskets")
    list(screen.track(range(3), "counting", total=3))

    printed = capsys.readouterr().out
    assert "2,200" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_a_quiet_screen_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)

    screen.say("hello")
    list(screen.track(range(3), "counting", total=3))

    assert capsys.readouterr().out == ""

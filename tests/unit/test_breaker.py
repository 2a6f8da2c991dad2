from datapatterns.breaker import Breaker


class Watch:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def failing(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed()


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker(Watch())
    failing(breaker, 4)
    breaker.succeeded()
    failing(breaker, 4)
    assert breaker.allows()

    breaker.failed()

    assert breaker.is_open
    assert not breaker.allows()


def test_one_trial_a_second_goes_through() -> None:
    watch = Watch()
    breaker = Breaker(watch)
    failing(breaker, 5)

    watch.seconds += 1
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    watch.seconds += 1
    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_a_trial_that_succeeds_closes_it() -> None:
    watch = Watch()
    breaker = Breaker(watch)
    failing(breaker, 7)
    watch.seconds += 1
    assert breaker.allows()

    breaker.succeeded()

    assert [breaker.allows() for _ in range(3)] == [True, True, True]

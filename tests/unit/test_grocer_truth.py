from datapatterns_grocer.truth import compare


def test_equal_bags_are_exact_in_any_order() -> None:
    check = compare("rows", derived=[(1, "a"), (2, None)], truth=[(2, None), (1, "a")])

    assert check.is_exact
    assert check.rows == 2


def test_a_cent_too_much_is_seen_from_both_sides() -> None:
    check = compare("cents", derived=[(1, 101)], truth=[(1, 100)])

    assert not check.is_exact
    assert (check.missing, check.unexpected) == (1, 1)
    assert check.examples == ("missing (1, 100)", "unexpected (1, 101)")


def test_a_row_that_is_there_twice_is_one_too_many() -> None:
    assert compare("rows", derived=[(1,), (1,)], truth=[(1,)]).unexpected == 1


def test_nothing_at_all_is_not_what_the_files_say() -> None:
    assert compare("rows", derived=[], truth=[(1,)]).missing == 1

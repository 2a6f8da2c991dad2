"""What can be relied on across outer joins, and which way leads from a change to its keys."""

from datapatterns.materialized_view.grouping.join_tree import (
    Condition,
    Joined,
    JoinKind,
    JoinTree,
    Step,
)

A, B, C, D = range(4)


def equal(one: int, other: int) -> Condition:
    both = frozenset({one, other})
    return Condition(f"{one} = {other}", both, both, evaluable=True, compares=True)


def about(one: int, *, strict: bool = True, evaluable: bool = True) -> Condition:
    named = frozenset({one})
    return Condition(f"of {one}", named, named if strict else frozenset(), evaluable, False)


def ways(steps: list[Step]) -> list[tuple[int, list[str], bool]]:
    return [
        (step.occurrence, [c.expression for c in step.conditions], step.optional) for step in steps
    ]


def test_inner_joins_lead_from_table_to_table() -> None:
    inner = Joined(JoinKind.INNER, A, B, (equal(A, B),))
    tree = JoinTree(Joined(JoinKind.INNER, inner, C, (equal(B, C),)))

    assert ways(tree.route(A, [C])) == [(B, ["0 = 1"], False), (C, ["1 = 2"], False)]
    assert tree.nullable() == []


def test_a_detour_is_left_out() -> None:
    inner = Joined(JoinKind.INNER, A, B, (equal(A, B),))
    tree = JoinTree(Joined(JoinKind.INNER, inner, C, (equal(A, C),)))

    assert ways(tree.route(A, [C])) == [(C, ["0 = 2"], False)]
    assert tree.route(A, [A]) == []


def test_what_commas_separate_is_joined_by_where() -> None:
    tree = JoinTree(Joined(JoinKind.INNER, A, B), (equal(A, B), about(B)))

    assert ways(tree.route(A, [B])) == [(B, ["0 = 1", "of 1"], False)]


def test_where_nothing_leads_any_row_may_be_concerned() -> None:
    tree = JoinTree(Joined(JoinKind.INNER, A, B))

    assert ways(tree.route(A, [B])) == [(B, [], False)]


def test_an_outer_join_may_be_without_its_other_side() -> None:
    tree = JoinTree(Joined(JoinKind.LEFT, A, B, (equal(A, B),)))

    assert tree.nullable() == [B]
    assert ways(tree.route(A, [B])) == [(B, ["0 = 1"], True)]
    assert ways(tree.route(B, [A])) == [(A, ["0 = 1"], False)]


def test_a_condition_that_needs_a_value_keeps_out_what_is_without() -> None:
    tree = JoinTree(Joined(JoinKind.LEFT, A, B, (equal(A, B),)), (about(B),))

    assert tree.nullable() == []
    assert ways(tree.route(A, [B])) == [(B, ["0 = 1", "of 1"], False)]


def test_a_condition_that_holds_for_what_is_missing_says_nothing_about_what_is_there() -> None:
    is_null = about(B, strict=False)
    tree = JoinTree(Joined(JoinKind.LEFT, A, B, (equal(A, B),)), (is_null,))

    assert tree.filters(B) == ()
    assert tree.nullable() == [B]


def test_an_outer_join_keeps_rows_of_its_near_side_for_which_its_condition_is_not_true() -> None:
    on = (equal(A, C), equal(A, B), about(A), about(C))
    tree = JoinTree(Joined(JoinKind.LEFT, Joined(JoinKind.INNER, A, B), C, on))

    assert tree.filters(A) == ()
    assert tree.filters(C) == (about(C),)
    assert ways(tree.route(A, [B])) == [(B, [], False)]


def test_a_full_join_keeps_both_sides() -> None:
    tree = JoinTree(Joined(JoinKind.FULL, A, B, (equal(A, B), about(A), about(B))))

    assert tree.nullable() == [A, B]
    assert (tree.filters(A), tree.filters(B)) == ((), ())
    assert ways(tree.route(A, [B])) == [(B, ["0 = 1"], True)]


def test_what_may_be_missing_does_not_decide_about_what_is_there() -> None:
    # (a JOIN b ON a = b) LEFT JOIN c ON a = c AND b = c: of a row without c, the route may have
    # found some other c, for which b = c does not hold.
    near = Joined(JoinKind.INNER, A, B, (equal(A, B),))
    tree = JoinTree(Joined(JoinKind.LEFT, near, C, (equal(A, C), equal(B, C))))

    assert ways(tree.route(A, [C, B])) == [
        (B, ["0 = 1"], False),
        (C, ["0 = 2", "1 = 2"], True),
    ]
    assert [c.expression for c in tree._connections(A, [A, C], B)] == ["0 = 1"]  # noqa: SLF001 -- an order that no route takes now


def test_what_has_met_was_matched_by_what_lies_between() -> None:
    # (a FULL JOIN b) FULL JOIN c ON b = c: where a and c are both there, so is b.
    full = Joined(JoinKind.FULL, A, B, (equal(A, B),))
    tree = JoinTree(Joined(JoinKind.FULL, full, C, (equal(B, C),)))

    assert tree.there_with([A, C]) == {A, B, C}
    assert tree.there_with([A]) == {A}
    assert ways(tree.route(A, [C])) == [(B, ["0 = 1"], True), (C, ["1 = 2"], True)]


def test_what_may_fail_is_not_evaluated_on_rows_that_never_were_together() -> None:
    harmful = about(A, evaluable=False)
    tree = JoinTree(Joined(JoinKind.INNER, A, B, (equal(A, B),)), (harmful,))

    assert tree.filters(A) == ()


def test_the_inside_of_an_optional_side_is_one_piece() -> None:
    inside = Joined(JoinKind.INNER, B, C, (equal(B, C),))
    tree = JoinTree(Joined(JoinKind.LEFT, A, Joined(JoinKind.LEFT, inside, D, (equal(C, D),)), ()))

    assert tree.nullable() == [B, C, D]
    assert tree.there_with([B]) == {A, B, C}
    assert tree.there_with([D]) == {A, B, C, D}

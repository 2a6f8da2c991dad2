from collections.abc import Iterator
from contextlib import closing

import pytest

from datapatterns_grocer.dataset import Dataset


@pytest.fixture(scope="module")
def one_week() -> Iterator[Dataset]:
    with closing(Dataset(weeks=1)) as dataset:
        yield dataset


def test_baskets_are_whole_and_come_in_the_order_of_the_tills(one_week: Dataset) -> None:
    baskets = list(one_week.baskets())

    ids = [basket[0].basket_id for basket in baskets]
    paid = [basket[0].paid_at for basket in baskets]
    assert len(ids) == len(set(ids)) == one_week.count("baskets")
    assert sum(map(len, baskets)) == one_week.count("lines")
    assert paid == sorted(paid)


def test_every_product_that_was_sold_is_in_the_catalogue(one_week: Dataset) -> None:
    listed = {product.product_id for product in one_week.products()}

    assert {line.product_id for line in one_week.lines()} <= listed


def test_cents_are_what_the_files_dollars_say(one_week: Dataset) -> None:
    lines = list(one_week.lines())

    assert all(isinstance(line.cents, int) for line in lines)
    assert lines[0].cents == 50
    assert sum(line.cents for line in lines) == one_week.rows("SELECT sum(cents) FROM sold")[0][0]

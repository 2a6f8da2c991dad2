from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from datapatterns.cqrs import Projection, RedisChanges, RedisProjection, on
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.errors import ProjectionDefinitionError
from datapatterns.event_sourcing import RecordedEvent
from tests.fixtures.read_models import (
    Dashboard,
    DoorOpened,
    ItemScanned,
    ProductSales,
    ProductsMerged,
    ProductWithdrawn,
    SalesByProduct,
)


def test_every_handler_is_kept_although_all_are_named_underscore() -> None:
    classes = [handler.event_class for handler in SalesByProduct.handlers]

    assert classes == [ItemScanned, ProductWithdrawn, ProductsMerged]


def test_names_come_from_the_class_unless_given() -> None:
    class HTTPCallsByDay2(RedisProjection, version=3):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

    class Renamed(RedisProjection, version=1, name="kept"):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

    assert (SalesByProduct.name, SalesByProduct.version) == ("sales_by_product", 1)
    assert (HTTPCallsByDay2.name, HTTPCallsByDay2.version) == ("http_calls_by_day2", 3)
    assert Renamed.name == "kept"


def test_a_subclass_inherits_handlers_and_adds_its_own() -> None:
    class More(Dashboard, version=2, name="dashboard"):
        @on(DoorOpened)
        def _(self, changes: RedisChanges, _e: DoorOpened, _meta: RecordedEvent) -> None: ...

    classes = [handler.event_class for handler in More.handlers]

    assert classes == [ItemScanned, ProductWithdrawn, DoorOpened]
    assert len(Dashboard.handlers) == 2


def test_a_handler_counts_once_however_many_bases_lead_to_it() -> None:
    class Left(SalesByProduct, into=ProductSales, version=1): ...

    class Right(SalesByProduct, into=ProductSales, version=1): ...

    class Both(Left, Right, into=ProductSales, version=1): ...

    assert Both.handlers == SalesByProduct.handlers


def test_a_handler_with_a_name_is_overridden_like_any_method() -> None:
    class Base(RedisProjection, version=1):
        @on(ItemScanned)
        def scanned(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

        @on(DoorOpened)
        def opened(self, changes: RedisChanges, _e: DoorOpened, _meta: RecordedEvent) -> None: ...

    class Left(Base, version=1):
        @on(ItemScanned)
        def scanned(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

    class Right(Base, version=1):
        opened = None  # type: ignore[assignment] # it is meant to be gone

    class Both(Left, Right, version=1): ...

    assert Left.handlers == (Base.opened, Left.scanned)
    assert Both.handlers == (Left.scanned,)


def test_handlers_that_no_projection_declares_are_refused() -> None:
    class Mixin:
        @on(ItemScanned)
        def _(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...

    with pytest.raises(ProjectionDefinitionError, match="Mixin is no projection"):

        class Mixed(Mixin, RedisProjection, version=1):
            @on(DoorOpened)
            def _(self, changes: RedisChanges, _e: DoorOpened, _meta: RecordedEvent) -> None: ...


def test_a_handler_of_a_table_says_which_row_it_concerns() -> None:
    with pytest.raises(ProjectionDefinitionError, match="which row"):

        class NoKey(Projection, into=ProductSales, version=1):
            @on(ItemScanned)
            def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None: ...


def test_a_handler_in_redis_has_no_key() -> None:
    with pytest.raises(ProjectionDefinitionError, match="leave key="):

        class Keyed(RedisProjection, version=1):
            @on(ItemScanned, key=lambda e, _: e.product)
            def _(self, changes: RedisChanges, _e: ItemScanned, _meta: RecordedEvent) -> None: ...


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [("Bad", 1, "a-z"), ("a" * 64, 1, "a-z"), ("ok", 0, "from 1"), ("ok", 2**31, "from 1")],
)
def test_names_and_versions_must_fit_their_columns(name: str, version: int, why: str) -> None:
    with pytest.raises(ProjectionDefinitionError, match=why):

        class Bad(Dashboard, version=version, name=name):
            pass


def test_a_projection_without_handlers_is_refused() -> None:
    with pytest.raises(ProjectionDefinitionError, match="@on"):

        class Idle(RedisProjection, version=1):
            pass


def test_only_the_two_kinds_can_be_declared() -> None:
    assert AnyProjection.handlers == ()


async def _coroutine(*_: object) -> None:
    pass


def _generator(*_: object) -> Iterator[None]:
    yield


async def _async_generator(*_: object) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("handler", [_coroutine, _generator, _async_generator])
def test_a_handler_that_nobody_would_run_is_refused_where_it_is_declared(
    handler: Callable[..., object],
) -> None:
    with pytest.raises(ProjectionDefinitionError, match="make it a plain function"):
        on(ItemScanned, key=lambda _e, _m: 1)(handler)


def test_a_subclass_is_as_its_base_class_says_unless_it_says_otherwise() -> None:
    class Base(
        SalesByProduct,
        into=ProductSales,
        version=1,
        on_poison="park",
        inline=True,
        messages=True,
    ):
        pass

    class Same(Base, into=ProductSales, version=2):
        pass

    class Other(Base, into=ProductSales, version=2, on_poison="skip", inline=False, messages=False):
        pass

    def said(projection: type[Projection]) -> tuple[str, bool, bool]:
        return projection.on_poison, projection.inline, projection.messages

    assert said(Same) == ("park", True, True)
    assert said(Other) == ("skip", False, False)
    assert said(SalesByProduct) == ("stop", False, False)

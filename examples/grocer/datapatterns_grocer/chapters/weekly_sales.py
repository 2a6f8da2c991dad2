"""Weekly sales by department: a question that is asked on every page of the office."""

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import func, select

from datapatterns.materialized_view import DifferenceKind, Incremental, MaterializedView
from datapatterns_grocer.chapters.receipts import file_receipt
from datapatterns_grocer.model import LineRow, Product
from datapatterns_grocer.screen import milliseconds, money
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds
from datapatterns_grocer.truth import EXAMPLES_SHOWN, Check, compare

QUESTION = (
    select(
        LineRow.week,
        Product.department,
        func.count().label("lines"),
        func.sum(LineRow.cents).label("cents"),
    )
    .join(Product, Product.product_id == LineRow.product_id)
    .group_by(LineRow.week, Product.department)
)
WEEKLY = MaterializedView("weekly_sales", QUESTION, maintain=Incremental())
DEPARTMENTS_SHOWN = 5


def play(stage: Stage) -> None:
    """Keep the view, ask it and the tables, write, and take the writes in."""
    stage.screen.heading(
        "Materialized view", "Weekly sales by department: a join and a sum over all receipts."
    )
    engine = stage.layer.engine
    with engine.begin() as conn:
        WEEKLY.create(conn)
    with engine.begin() as conn:
        WEEKLY.populate(conn)
    stage.screen.say(f"kept by {WEEKLY.explain()}")
    _show(stage)
    with engine.connect() as conn:
        query = median_seconds(lambda: conn.execute(QUESTION).all(), times=5)
        view = median_seconds(lambda: conn.execute(select(*WEEKLY.c)).all())
    stage.screen.table(
        ["weekly sales by department", "takes"],
        [["the query", milliseconds(query)], ["the view", milliseconds(view)]],
    )
    for basket in stage.live:
        with engine.begin() as conn:
            file_receipt(conn, basket)
    with engine.begin() as conn:
        stale = WEEKLY.freshness(conn)
    stage.screen.say(
        f"{len(stage.live)} baskets are paid: the view lacks {stale.pending_rows} changes, and has"
        f" done so for at most {stale.stale_seconds:.2f} s"
    )
    with engine.connect() as conn:
        now = conn.scalar(select(func.sum(WEEKLY.realtime.c.lines)))
        stored = conn.scalar(select(func.sum(WEEKLY.c.lines)))
        lines = conn.scalar(select(func.count()).select_from(LineRow))
    stage.screen.say(
        f"stored are {stored:,} of {lines:,} lines; as of now, stored and pending, the view counts"
        f" {now:,}"
    )
    with engine.begin() as conn:
        report = WEEKLY.refresh(conn)
    with engine.begin() as conn:
        fresh = WEEKLY.freshness(conn)
    if report is not None:
        stage.screen.say(
            f"refreshed in {milliseconds(report.duration_seconds)} by {report.strategy}:"
            f" {report.pending_rows} changes taken in, {report.rows_changed} rows of the view"
            f" written; it now lacks {fresh.pending_rows}"
        )


def verify(stage: Stage) -> Iterator[Check]:
    """Compare the view with its own query, and with the files."""
    with stage.layer.engine.connect() as conn:
        differences = WEEKLY.verify(conn)
        rows = conn.execute(select(*WEEKLY.c)).all()
    kinds = Counter(difference.kind for difference in differences)
    yield Check(
        "materialized view: against its own query",
        rows=len(rows),
        missing=kinds[DifferenceKind.MISSING],
        unexpected=kinds[DifferenceKind.UNEXPECTED],
        examples=tuple(f"{each.kind} {each.row}" for each in differences[:EXAMPLES_SHOWN]),
    )
    yield compare(
        "materialized view: every week and department",
        derived=rows,
        truth=stage.dataset.rows(
            "SELECT week, department, count(*), sum(cents) FROM sold JOIN listed USING (product_id)"
            " GROUP BY ALL"
        ),
    )


def _show(stage: Stage) -> None:
    last = stage.dataset.weeks
    best = (
        select(WEEKLY.c.department, WEEKLY.c.cents)
        .where(WEEKLY.c.week == last)
        .order_by(WEEKLY.c.cents.desc())
        .limit(DEPARTMENTS_SHOWN)
    )
    with stage.layer.engine.connect() as conn:
        rows = conn.execute(best).all()
    stage.screen.table(
        [f"week {last}", "dollars"],
        [[department or "not listed", money(int(cents))] for department, cents in rows],
    )

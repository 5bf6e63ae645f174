"""
Rows sorted by rank of a text search and by distance, compared with plain SQL.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA ext; CREATE EXTENSION pg_trgm SCHEMA ext;
CREATE TABLE authors (id int PRIMARY KEY, bio text, home point);
CREATE TABLE books (id int PRIMARY KEY, author int REFERENCES authors, body text, vector tsvector,
    spot point, box box, doc jsonb, secret text);
COMMENT ON COLUMN books.secret IS '@hidden';
INSERT INTO authors SELECT i, repeat('fish ', i) || 'sea', point(i, -i) FROM generate_series(1, 4) i;
INSERT INTO books SELECT i, nullif(i % 5, 0),
    repeat('fish ', i % 4) || repeat('boats ', i % 3) || 'word' || i,
    to_tsvector('english', repeat('fishes ', i % 5) || 'x'),
    CASE WHEN i % 6 > 0 THEN point(i % 7, i % 3) END, box(point(i, i), point(0, 0)),
    jsonb_build_object('t', repeat('fish ', i % 3)), 'x'
    FROM generate_series(1, 24) i;
"""
AUTHOR = "(SELECT {} FROM authors a WHERE a.id = author)"
KEYS: list[tuple[list[Any], str]] = [
    ([{"by": "vector", "rank": "fish", "config": "english", "desc": True}],
     "ts_rank(vector, websearch_to_tsquery('english', 'fish')) DESC"),
    ([{"by": "body", "rank": "fish boats", "config": "english", "desc": True}],
     "ts_rank(to_tsvector('english', body), websearch_to_tsquery('english', 'fish boats')) DESC"),
    ([{"by": "body", "rank": "fish or boats"}],
     "ts_rank(to_tsvector(body), websearch_to_tsquery('fish or boats'))"),
    ([{"by": "doc->>t", "rank": "fish", "desc": True, "nulls": "last"}],
     "ts_rank(to_tsvector(doc->>'t'), websearch_to_tsquery('fish')) DESC NULLS LAST"),
    ([{"by": "author.bio", "rank": "fish", "desc": True}],
     f"{AUTHOR.format('ts_rank(to_tsvector(bio), websearch_to_tsquery($$fish$$))')} DESC"),
    ([{"by": "spot", "near": "(3,1)"}], "spot <-> '(3,1)'"),
    ([{"by": "spot", "near": "(3,1)", "desc": True, "nulls": "last"}, "body"],
     "spot <-> '(3,1)' DESC NULLS LAST, body"),
    ([{"by": "spot", "near": "(0,0)"}, {"by": "spot", "near": "(9,9)"}], "spot <-> '(0,0)', spot <-> '(9,9)'"),
    ([{"by": "box", "near": "(1,1),(2,2)"}], "box <-> '(1,1),(2,2)'"),
    ([{"by": "author.home", "near": "(2,-2)"}], AUTHOR.format("home <-> '(2,-2)'")),
    ([{"by": "body", "near": "fish word8"}], "(body OPERATOR(ext.<->) 'fish word8')::float8"),
]  # fmt: skip


@pytest.mark.parametrize(("order", "by"), KEYS)
@pytest_twisted.ensureDeferred
async def test_order_by_rank_or_distance_equals_its_sql(
    db: DirectCaller, dsn: str, order: list[Any], by: str
) -> None:
    """At once, page by page, and back."""
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM books ORDER BY {by}, id")]
    pages = [await db.call("books.find", select=["id"], order=order, limit=7)]
    while pages[-1]["next"]:
        after = pages[-1]["next"]
        pages.append(await db.call("books.find", select=["id"], order=order, limit=7, after=after))
    assert [row["id"] for page in pages for row in page["rows"]] == expected
    back = await db.call(
        "books.find", select=["id"], order=order, limit=7, before=pages[-1]["prev"]
    )
    assert back["rows"] == pages[-2]["rows"]
    embed = {"books": {"select": ["id"], "order": order}}
    (author,) = (await db.call("authors.find", where={"id": 2}, embed=embed))["rows"]
    own = {id for (id,) in execute(dsn, "SELECT id FROM books WHERE author = 2")}
    assert [row["id"] for row in author["books"]] == [id for id in expected if id in own]


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ({"by": "body", "rank": 5}, "rank"),
        ({"by": "body", "rank": "x", "config": 5}, "config"),
        ({"by": "body", "config": "english"}, "config"),
        ({"by": "body", "rank": "x", "config": "klingon"}, "config"),
        ({"by": "body", "rank": "x", "config": "'); DROP TABLE books; --"}, "config"),
        ({"by": "body", "rank": "x", "near": "y"}, "near"),
        ({"by": "spot", "near": "nowhere"}, "near"),
        ({"by": "spot", "near": {"x": 1}}, "near"),
        ({"by": "id", "near": 5}, "near"),
        ({"by": "secret", "rank": "x"}, "by"),
        ({"by": "secret", "near": "x"}, "by"),
        ({"by": "nope", "rank": "x"}, "by"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_rank_or_distance_is_refused_with_its_path(
    db: DirectCaller, key: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call("books.find", order=[key]))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == f"order.0.{path}"
    assert await db.call("books.count") == 24

from __future__ import annotations

from collections.abc import Callable

import pytest

Found = Callable[[str], dict[str, str]]
_JOIN = "FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM shop WHERE city = 'Rome' ORDER BY name",
        "WITH big AS (SELECT id FROM shop WHERE seats > 10) SELECT count(*) FROM big JOIN clerk ON shop_id = big.id",
        "SELECT name, rank() OVER (PARTITION BY city ORDER BY rating) FROM shop",
        f"SELECT T2.city, avg(T1.wage) {_JOIN} GROUP BY T2.city HAVING count(*) > 1",
        "SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM clerk WHERE shop_id = shop.id AND wage > 6)",
        "SELECT name FROM shop EXCEPT SELECT name FROM clerk",
    ],
)
def test_sound_golds_raise_no_suspicion(found: Found, sql: str) -> None:
    assert found(sql) == {}

+ SELECT name FROM clerk WHERE boss = NULL
+ SELECT name FROM clerk WHERE boss == NULL
+ SELECT name FROM clerk WHERE boss <> NULL
+ SELECT name FROM clerk WHERE boss != NULL
+ SELECT name FROM clerk WHERE NULL = boss
+ SELECT name FROM clerk WHERE boss > NULL
+ SELECT name FROM clerk WHERE boss <= NULL
+ SELECT name FROM clerk WHERE NOT boss = NULL
+ SELECT name FROM clerk WHERE wage > 5 AND boss = NULL
+ SELECT name FROM clerk WHERE wage > 5 OR boss <> NULL
+ SELECT name FROM clerk WHERE id IN (1, NULL)
+ SELECT name FROM clerk WHERE id NOT IN (1, NULL)
+ SELECT name FROM clerk WHERE boss IN (NULL)
+ SELECT count(*) FROM sale WHERE day = NULL
+ SELECT count(*) FROM sale WHERE day != NULL AND amount > 2
+ SELECT sum(CASE WHEN day = NULL THEN 1 ELSE 0 END) FROM sale
+ SELECT sum(day = NULL) FROM sale
+ SELECT iif(boss = NULL, 'none', 'some') FROM clerk
+ SELECT a.name FROM clerk a JOIN clerk b ON a.boss = b.id AND b.boss = NULL
+ SELECT shop_id, count(*) FROM clerk GROUP BY shop_id HAVING max(boss) = NULL
+ SELECT name FROM shop WHERE id IN (SELECT shop_id FROM clerk WHERE boss = NULL)
+ WITH t AS (SELECT name FROM clerk WHERE boss = NULL) SELECT count(*) FROM t
+ SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk)
+ SELECT name FROM clerk WHERE NOT id IN (SELECT boss FROM clerk)
+ SELECT count(*) FROM clerk WHERE id NOT IN (SELECT boss FROM clerk WHERE wage > 5)
+ SELECT name FROM clerk WHERE name NOT IN (SELECT day FROM sale)
+ SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk UNION SELECT 4)
+ SELECT name FROM clerk WHERE wage > 1 AND id NOT IN (SELECT boss FROM clerk)
+ SELECT name FROM clerk c WHERE c.id NOT IN (SELECT d.boss FROM clerk d WHERE d.shop_id = c.shop_id)
+ SELECT name FROM clerk EXCEPT SELECT name FROM clerk WHERE boss = NULL
- SELECT name FROM clerk WHERE boss IS NULL
- SELECT name FROM clerk WHERE boss IS NOT NULL
- SELECT name FROM clerk WHERE boss ISNULL
- SELECT name FROM clerk WHERE boss NOTNULL
- SELECT name FROM clerk WHERE NOT boss IS NULL
- SELECT name FROM clerk WHERE boss IS NOT 1
- SELECT name FROM clerk WHERE boss = 1
- SELECT name FROM clerk WHERE boss <> 1
- SELECT name FROM clerk WHERE boss = 1 OR boss IS NULL
- SELECT name FROM clerk WHERE coalesce(boss, 0) = 0
- SELECT name FROM clerk WHERE ifnull(boss, 0) <> 1
- SELECT name FROM clerk WHERE id IN (1, 2)
- SELECT name FROM clerk WHERE id NOT IN (1, 2)
- SELECT name FROM clerk WHERE id IN (SELECT boss FROM clerk)
- SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk WHERE boss IS NOT NULL)
- SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk WHERE boss > 1)
- SELECT name FROM clerk WHERE id NOT IN (SELECT clerk_id FROM sale)
- SELECT name FROM clerk WHERE NOT id IN (SELECT clerk_id FROM sale)
- SELECT name FROM shop WHERE id NOT IN (SELECT shop_id FROM clerk)
- SELECT name FROM shop WHERE city NOT IN (SELECT name FROM clerk)
- SELECT name FROM clerk WHERE id NOT IN (SELECT id FROM award)
- SELECT name FROM clerk c WHERE NOT EXISTS (SELECT 1 FROM clerk d WHERE d.boss = c.id)
- SELECT name FROM clerk WHERE name = 'NULL'
- SELECT name FROM clerk WHERE name <> 'null'
- SELECT nullif(boss, 1) FROM clerk
- SELECT CASE WHEN boss IS NULL THEN 'none' ELSE 'some' END FROM clerk
- SELECT NULL AS gap, name FROM clerk
- SELECT count(boss) FROM clerk
- SELECT sum(day IS NULL) FROM sale
- SELECT id FROM clerk EXCEPT SELECT boss FROM clerk
- SELECT a.name FROM clerk a LEFT JOIN clerk b ON b.boss = a.id WHERE b.id IS NULL
- SELECT name FROM clerk ORDER BY boss IS NULL, boss, id

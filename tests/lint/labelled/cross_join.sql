+ SELECT count(*) FROM clerk, shop
+ SELECT clerk.name FROM clerk, shop
+ SELECT T1.name FROM clerk T1 JOIN shop T2
+ SELECT T1.name FROM clerk T1 INNER JOIN shop T2
+ SELECT T1.name FROM clerk AS T1 CROSS JOIN shop AS T2
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T2.id = T2.id
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.id = T1.id
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON 1 = 1
+ SELECT T1.name FROM clerk T1 LEFT JOIN shop T2 ON 1
+ SELECT T1.name FROM clerk T1, shop T2 WHERE T2.city = 'Rome'
+ SELECT T1.name FROM clerk T1, shop T2 WHERE T1.wage > 5 AND T2.seats > 10
+ SELECT T1.name FROM clerk T1, shop T2 WHERE T2.name = 'Ada' OR T2.name = 'Bo'
+ SELECT sum(T1.wage) FROM clerk T1, sale T2
+ SELECT sum(T1.wage) FROM clerk T1, sale T2 WHERE T2.day IS NOT NULL
+ SELECT T3.day FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id JOIN sale T3
+ SELECT T3.day FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id JOIN sale T3 ON T2.id = T1.shop_id
+ SELECT T3.day FROM clerk T1, shop T2, sale T3 WHERE T1.shop_id = T2.id
+ SELECT T3.day FROM clerk T1, shop T2, sale T3 WHERE T3.clerk_id = T1.id
+ SELECT T3.day FROM clerk T1, shop T2, sale T3 WHERE T3.clerk_id = T2.id
+ SELECT a.name FROM shop a, (SELECT seats FROM shop) b
+ SELECT a.name FROM shop a JOIN (SELECT DISTINCT city FROM shop) b
+ WITH b AS (SELECT seats FROM shop) SELECT a.name FROM shop a, b
+ WITH b AS (SELECT city, avg(seats) AS mean FROM shop GROUP BY city) SELECT a.name, b.mean FROM shop a, b
+ WITH b AS (SELECT city FROM shop LIMIT 2) SELECT a.name FROM shop a JOIN b
+ SELECT name FROM clerk WHERE id IN (SELECT T1.clerk_id FROM sale T1, shop T2)
+ SELECT name FROM clerk WHERE wage > (SELECT avg(T1.amount) FROM sale T1 JOIN shop T2)
+ SELECT count(*) FROM (SELECT T1.name FROM clerk T1, shop T2)
+ SELECT T1.name FROM clerk T1, clerk T2 WHERE T1.wage > 5
+ SELECT T1.name FROM clerk T1, clerk T2 WHERE T1.wage > 5 AND T2.wage > 6
+ SELECT a.id FROM shop a, clerk b UNION SELECT id FROM sale
+ WITH n AS (SELECT count(*) AS c FROM sale) SELECT a.name FROM n, shop a, clerk b
+ SELECT a.name FROM shop a, clerk b, (SELECT max(amount) AS top FROM sale) c
- SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT T1.name FROM clerk T1, shop T2 WHERE T1.shop_id = T2.id
- SELECT T1.name FROM clerk T1, shop T2 WHERE T2.id = shop_id
- SELECT a.id FROM clerk a NATURAL JOIN shop b
- SELECT a.name FROM clerk a JOIN shop b USING (id)
- SELECT a.name, b.name FROM shop a, shop b WHERE a.city = b.city AND a.id < b.id
- SELECT a.name, b.name FROM shop a JOIN shop b ON a.id < b.id
- SELECT a.name FROM clerk a JOIN shop b ON a.shop_id = b.id OR a.id = b.id
- SELECT a.name FROM clerk a, shop b WHERE a.shop_id + 0 = b.id
- SELECT T3.day FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id JOIN sale T3 ON T3.clerk_id = T1.id
- SELECT T3.day FROM sale T3, clerk T1, shop T2 WHERE T3.clerk_id = T1.id AND T1.shop_id = T2.id
- SELECT T2.name FROM shop T2 JOIN (clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id) ON T1.shop_id = T2.id
- SELECT a.name FROM shop a, (SELECT avg(seats) AS mean FROM shop) b
- SELECT a.name, a.seats - mean FROM shop a CROSS JOIN (SELECT avg(seats) AS mean FROM shop)
- SELECT a.name FROM shop a JOIN (SELECT max(seats) AS top FROM shop) b
- SELECT a.name FROM shop a, (SELECT seats FROM shop ORDER BY rating LIMIT 1) b
- SELECT a.name, x FROM shop a, (SELECT 1 AS x)
- SELECT a.name FROM (SELECT count(*) AS n FROM shop) c, shop a
- SELECT c.n, d.n FROM (SELECT count(*) AS n FROM shop) c, (SELECT count(*) AS n FROM clerk) d
- SELECT x, y FROM (SELECT count(*) AS x FROM shop), (SELECT count(*) AS y FROM clerk)
- WITH t AS (SELECT count(*) AS n FROM sale) SELECT clerk_id, count(*) * 1.0 / t.n FROM sale, t GROUP BY clerk_id
- WITH t AS (SELECT count(*) AS n FROM sale) SELECT clerk_id, n FROM t, sale
- WITH m AS (SELECT avg(wage) AS a FROM clerk) SELECT id, wage - m.a FROM clerk CROSS JOIN m
- WITH m AS (SELECT avg(wage) AS a FROM clerk), b AS (SELECT a * 2 AS c FROM m) SELECT wage - b.c FROM clerk, b
- WITH m AS (SELECT max(wage) AS a FROM clerk), k AS (SELECT min(wage) AS i FROM clerk) SELECT m.a - k.i FROM m, k
- WITH p AS (SELECT 5 AS floor) SELECT name FROM clerk, p WHERE wage > p.floor
- WITH p(floor) AS (VALUES (5)) SELECT name FROM clerk, p
- SELECT value, count(*) FROM shop, json_each('["a"]') GROUP BY value
- SELECT j.value FROM shop AS s JOIN json_each(json_array(s.city)) AS j
- SELECT j.value FROM shop AS s, json_each(json_array(s.city)) j
- SELECT j.value FROM shop, json_tree(json_array(city)) AS j
- SELECT j.value FROM clerk c JOIN shop s ON c.shop_id = s.id, json_each(json_array(s.city)) AS j WHERE j.value = 'a'
- SELECT c.name, s.city FROM clerk c CROSS JOIN (SELECT DISTINCT city FROM shop) s
- WITH s AS (SELECT DISTINCT city FROM shop) SELECT c.name, s.city FROM s CROSS JOIN clerk c
- WITH RECURSIVE d(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM d WHERE x < 3) SELECT d.x, name FROM d, clerk WHERE clerk.id = d.x
- WITH RECURSIVE d(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM d WHERE x < 3) SELECT x, name FROM d JOIN clerk ON clerk.id = x
- SELECT a.wage - b.wage FROM clerk a, clerk b WHERE a.id = 1 AND b.id = 2
- SELECT a.name FROM shop a, clerk b WHERE b.id = 3
- SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM clerk a, sale b WHERE a.shop_id = shop.id AND b.clerk_id = a.id)
- SELECT a.wage - b.wage FROM clerk a, clerk b WHERE a.name = 'Kim' AND b.name = 'Lou'
+ SELECT clerk.name FROM clerk, shop WHERE shop.city = 'Oslo'
- SELECT clerk.name, shop.name FROM clerk, shop WHERE shop.city = 'Oslo'
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T1.shop_id WHERE T2.city = 'Oslo'
- SELECT T1.name FROM clerk T1, shop T2 WHERE T2.city = 'Oslo' AND T1.wage > T2.seats / 3
- SELECT T1.name, T2.rating FROM clerk T1, shop T2 WHERE T2.city = 'Rome' AND T2.seats = 10
- SELECT T3.day, T2.city FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id JOIN shop T2 ON T2.name = 'Bo'
- SELECT a.name, m FROM shop a, ((SELECT avg(seats) AS m FROM shop)) b
+ SELECT T1.name, T2.name FROM clerk T1, shop T2 WHERE T2.seats = 20
+ SELECT T1.name FROM clerk T1, shop T2, sale T3 WHERE T2.city = 'Oslo'
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T2.id = T2.id WHERE T2.city = 'Oslo'
- SELECT a.wage - b.wage FROM clerk a, clerk b WHERE a.name LIKE 'K%' AND b.wage < 6

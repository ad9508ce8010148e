+ SELECT sum(wage) / count(*) FROM clerk WHERE shop_id = 1
+ SELECT seats / 3 FROM shop
+ SELECT seats / wage FROM clerk JOIN shop ON shop_id = shop.id
+ SELECT (SELECT count(*) FROM shop) / (SELECT count(*) FROM clerk)
+ SELECT sum(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) * 100 / count(*) FROM shop
+ SELECT 100 * sum(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) / count(*) FROM shop
+ SELECT sum(CASE WHEN city = 'Rome' THEN 1 END) / count(*) FROM shop
+ SELECT sum(CASE city WHEN 'Rome' THEN seats ELSE 0 END) / sum(seats) FROM shop
+ SELECT sum(IIF(city = 'Rome', 1, 0)) * 100 / count(id) FROM shop
+ SELECT sum(IIF(wage > 7, 1, 0)) / sum(1) FROM clerk WHERE id < 4
+ SELECT sum(city = 'Rome') * 100 / count(*) FROM shop
+ SELECT sum(city = 'Rome') / count(*) FROM shop
+ SELECT sum(wage > 7 AND shop_id = 1) / count(*) FROM clerk
+ SELECT sum(city IN ('Rome', 'Bonn')) * 10 / count(*) FROM shop
+ SELECT sum(day IS NULL) * 100 / count(*) FROM sale WHERE id > 2
+ SELECT sum(name LIKE 'A%') * 100 / count(*) FROM shop
+ SELECT sum(wage BETWEEN 6 AND 7) * 10 / count(*) FROM clerk
+ SELECT count(CASE WHEN city = 'Rome' THEN id END) * 100 / count(*) FROM shop
+ SELECT count(*) FILTER (WHERE city = 'Rome') * 100 / count(*) FROM shop
+ SELECT CAST(sum(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) / count(*) AS REAL) * 100 FROM shop
+ SELECT CAST(count(*) / 2 AS REAL) FROM shop
+ SELECT round(count(*) / 2, 2) FROM shop
+ SELECT round(sum(amount) * 100 / 17, 1) FROM sale
+ WITH a AS (SELECT count(*) AS n FROM sale) SELECT n / 4 FROM a
+ WITH a AS (SELECT count(*) AS n FROM sale), b AS (SELECT count(*) AS m FROM clerk) SELECT a.n / b.m FROM a, b
+ WITH a AS (SELECT clerk_id, count(*) AS n FROM sale GROUP BY clerk_id) SELECT sum(n) / count(*) FROM a
+ WITH a(n) AS (SELECT sum(amount) FROM sale) SELECT n / 2 FROM a
+ WITH a AS (SELECT sum(CASE WHEN day IS NULL THEN 1 ELSE 0 END) AS n, count(*) AS m FROM sale) SELECT n * 100 / (m + 1) FROM a
+ SELECT n / 2 FROM (SELECT count(*) AS n FROM sale)
+ SELECT t.n / 2 FROM (SELECT count(*) AS n FROM sale) AS t
+ SELECT city, sum(seats) / 3 FROM shop GROUP BY city
+ SELECT name FROM clerk WHERE wage / 2 > 3.2
+ SELECT clerk_id, sum(amount) * 100 / sum(sum(amount)) OVER () FROM sale GROUP BY clerk_id
+ SELECT id, amount * 100 / sum(amount) OVER () FROM sale
+ SELECT max(wage) / min(wage) FROM clerk
+ SELECT coalesce(sum(amount), 0) / count(*) FROM sale
+ SELECT abs(max(wage) - 101) / 2 FROM clerk
+ SELECT CAST(weeks AS INTEGER) / 7 FROM clerk
+ SELECT weeks / 7 FROM clerk
+ SELECT CAST(wage AS DECIMAL(10, 2)) / 2 FROM clerk
+ SELECT (strftime('%Y', day) - 2000) / 10 FROM sale
+ SELECT length(name) / 2 FROM clerk
+ SELECT instr(name, 'o') / 3.0 + count(*) / 3 FROM clerk GROUP BY name
- SELECT city FROM shop GROUP BY city ORDER BY sum(seats) / count(*) / 7 DESC, city LIMIT 1
- SELECT sum(wage) / count(*) FROM clerk
- SELECT seats / 10 FROM shop
- SELECT seats / 3.0 FROM shop
- SELECT seats * 1.0 / 3 FROM shop
- SELECT rating / seats FROM shop
- SELECT rating / 2 FROM shop
- SELECT CAST(seats AS REAL) / 3 FROM shop
- SELECT CAST(seats AS FLOAT) / 3 FROM shop
- SELECT CAST(seats AS DOUBLE) / 3 FROM shop
- SELECT seats / CAST(3 AS REAL) FROM shop
- SELECT CAST((SELECT count(*) FROM shop) AS REAL) / (SELECT count(*) FROM clerk)
- SELECT avg(wage) / 3 FROM clerk
- SELECT total(wage) / 3 FROM clerk
- SELECT avg(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) * 100 / 3 FROM shop
- SELECT sum(CASE WHEN city = 'Rome' THEN 1.0 ELSE 0 END) / count(*) FROM shop
- SELECT sum(IIF(city = 'Rome', 1.0, 0.0)) / count(*) FROM shop
- SELECT sum(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) * 100.0 / count(*) FROM shop
- SELECT 100.0 * sum(city = 'Rome') / count(*) FROM shop
- SELECT sum(city = 'Rome') * 3 / count(*) FROM shop
- WITH a AS (SELECT count(*) * 1.0 AS n FROM sale) SELECT n / 4 FROM a
- WITH a AS (SELECT avg(amount) AS n FROM sale) SELECT n / 4 FROM a
- WITH a AS (SELECT count(*) AS n FROM sale) SELECT n / 5 FROM a
- SELECT n / 5 FROM (SELECT count(*) AS n FROM sale)
- SELECT seats / 10 || ' tables' FROM shop
- SELECT printf('%d', seats / 3) FROM shop
- SELECT seats / 3 * 3 FROM shop
- SELECT (wage / 10) * 10 AS decade FROM clerk
- SELECT wage / 3, count(*) FROM clerk GROUP BY wage / 3
- SELECT wage / 3 AS bucket, count(*) FROM clerk GROUP BY bucket
- SELECT (wage / 3) AS bucket, count(*) FROM clerk GROUP BY 1
- SELECT CAST(wage / 3 AS INTEGER) FROM clerk
- SELECT CAST(wage / 3 AS INT) FROM clerk
- SELECT amount / 60 || ':' || amount % 60 FROM sale
- SELECT wage / 3, wage % 3 FROM clerk
- SELECT name FROM clerk ORDER BY id LIMIT (SELECT count(*) / 3 FROM clerk)
- SELECT wage FROM clerk ORDER BY wage, id LIMIT 1 OFFSET (SELECT count(*) / 3 FROM clerk)
- SELECT avg(wage) FROM (SELECT wage, row_number() OVER (ORDER BY wage) AS r, count(*) OVER () AS n FROM clerk WHERE id > 1) WHERE r IN ((n + 1) / 2, (n + 2) / 2)
- SELECT wage FROM (SELECT wage, row_number() OVER (ORDER BY wage, id) AS r, count(*) OVER () AS n FROM clerk) WHERE r = (n + 1) / 2
- SELECT substr(name, 1, length(name) / 2) FROM clerk
- SELECT count(*) FROM shop WHERE seats / 3 > 1
- SELECT wage - 2 FROM clerk
- SELECT julianday(day) / 2 FROM sale
- SELECT round(wage) / 2 FROM clerk
- SELECT name FROM clerk WHERE name = 'a / b'
+ SELECT seats / 3 FROM shop; -- a third of the seats
+ SELECT seats / 3 FROM shop; /* a third */
- SELECT seats / 3.0 FROM shop; -- a third of the seats

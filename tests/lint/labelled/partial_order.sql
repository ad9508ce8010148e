+ SELECT amount FROM sale ORDER BY day DESC LIMIT 2 OFFSET 1
+ SELECT name FROM shop ORDER BY rating DESC LIMIT 1
+ SELECT name FROM shop ORDER BY seats LIMIT 1
+ SELECT name FROM shop ORDER BY seats DESC, rating DESC LIMIT 1
+ SELECT name FROM shop ORDER BY seats DESC LIMIT 2
+ SELECT name FROM shop LIMIT 3
+ SELECT name FROM shop LIMIT 10
+ SELECT city FROM shop GROUP BY city ORDER BY count(*) DESC LIMIT 1
+ SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY count(*) DESC LIMIT 1
+ SELECT clerk_id FROM sale GROUP BY clerk_id ORDER BY sum(amount) DESC LIMIT 1
+ SELECT name FROM clerk ORDER BY wage LIMIT 1
+ SELECT name FROM clerk ORDER BY wage LIMIT 2
+ SELECT seats, name FROM shop UNION SELECT wage, name FROM clerk ORDER BY 1 LIMIT 1
+ SELECT T2.city FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id ORDER BY T1.wage LIMIT 1
+ SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY date(day) LIMIT 1
+ SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY day LIMIT 1
+ SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY CAST(day AS TEXT) LIMIT 1
+ SELECT amount FROM sale ORDER BY CAST(amount AS DECIMAL) LIMIT 1
+ SELECT name FROM clerk ORDER BY CAST(weeks AS INTEGER) LIMIT 1
+ SELECT name FROM clerk ORDER BY CAST(weeks AS UNSIGNED) LIMIT 1
+ SELECT name FROM clerk ORDER BY weeks + 0 LIMIT 1
- SELECT name FROM shop ORDER BY seats DESC, id LIMIT 1
- SELECT name FROM shop ORDER BY id LIMIT 1
- SELECT seats FROM shop ORDER BY seats DESC LIMIT 1
- SELECT max(seats) FROM shop LIMIT 1
- SELECT count(*) FROM shop LIMIT 1
- SELECT name FROM shop WHERE id = 2 LIMIT 1
- SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY count(*), shop_id LIMIT 1
- SELECT wage FROM clerk ORDER BY wage DESC LIMIT 1
- SELECT wage FROM clerk ORDER BY wage DESC LIMIT 2
- SELECT DISTINCT wage FROM clerk ORDER BY wage DESC LIMIT 1
- SELECT DISTINCT city FROM shop ORDER BY city LIMIT 1
- SELECT amount FROM sale WHERE clerk_id = (SELECT id FROM clerk ORDER BY wage DESC, id LIMIT 1)
- SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY CAST(day AS DATE), id LIMIT 1
- SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM clerk WHERE shop_id = shop.id LIMIT 1)
- SELECT name FROM shop ORDER BY seats DESC
- SELECT name FROM shop WHERE seats = (SELECT max(seats) FROM shop)
- SELECT name FROM shop ORDER BY seats DESC LIMIT 1
- SELECT name, city FROM shop ORDER BY seats DESC LIMIT 1
- SELECT * FROM shop ORDER BY seats DESC LIMIT 1
- SELECT id FROM shop ORDER BY city DESC LIMIT 1
- SELECT name FROM shop ORDER BY city DESC LIMIT 1
- SELECT name FROM shop LIMIT 1
- SELECT name FROM shop LIMIT 2
- SELECT name FROM shop WHERE seats = 20 LIMIT 1
- SELECT city FROM shop ORDER BY seats DESC LIMIT 1
- SELECT name FROM clerk ORDER BY wage DESC LIMIT 1
- SELECT name FROM clerk ORDER BY wage DESC LIMIT 1 OFFSET 1
- SELECT name FROM clerk ORDER BY wage LIMIT 3
- SELECT weeks FROM clerk ORDER BY wage DESC LIMIT 1
- SELECT name FROM clerk ORDER BY shop_id LIMIT 1
- SELECT name FROM clerk WHERE boss = 1 ORDER BY wage LIMIT 1
- SELECT amount FROM sale WHERE day = '2024-01-02' ORDER BY day LIMIT 1
- SELECT amount FROM sale ORDER BY clerk_id LIMIT 1
- SELECT amount FROM sale ORDER BY clerk_id DESC LIMIT 1
- SELECT amount FROM sale WHERE clerk_id = (SELECT id FROM clerk ORDER BY wage DESC LIMIT 1)
- SELECT name FROM shop WHERE id IN (SELECT shop_id FROM clerk ORDER BY wage DESC LIMIT 1)
- SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY count(*) LIMIT 1
- SELECT clerk_id FROM sale GROUP BY clerk_id ORDER BY count(*) DESC LIMIT 1
- SELECT clerk_id, count(*) FROM sale GROUP BY clerk_id ORDER BY 2 DESC LIMIT 1
- SELECT clerk_id, count(*) AS n FROM sale GROUP BY clerk_id ORDER BY n DESC LIMIT 1
- SELECT day FROM sale WHERE day IS NOT NULL GROUP BY day ORDER BY count(*) LIMIT 1
- SELECT seats, name FROM shop UNION SELECT wage, name FROM clerk ORDER BY 1 DESC LIMIT 1
- SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id ORDER BY T2.seats DESC LIMIT 1
- SELECT T2.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id ORDER BY count(*) LIMIT 1
- WITH t AS (SELECT name FROM shop ORDER BY seats DESC LIMIT 1) SELECT name FROM t
- SELECT name FROM (SELECT name FROM shop ORDER BY seats DESC LIMIT 1)
- SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY CAST(day AS DATE) LIMIT 1
- SELECT amount FROM sale WHERE day IS NOT NULL ORDER BY CAST(day AS DATETIME) DESC LIMIT 1
- SELECT id FROM sale WHERE id < 4 ORDER BY CAST(day AS TIMESTAMP) LIMIT 1
- SELECT amount FROM sale ORDER BY strftime('%Y', day) DESC LIMIT 1
- SELECT amount FROM sale ORDER BY substr(day, 1, 7) DESC LIMIT 2 OFFSET 1
- SELECT name FROM shop ORDER BY seats > 15 DESC LIMIT 1
- SELECT DISTINCT name, city FROM shop ORDER BY seats DESC LIMIT 1
- SELECT T1.wage FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id ORDER BY T1.wage DESC LIMIT 2
- SELECT Wage FROM clerk ORDER BY wage LIMIT 3
- SELECT shop_id, wage AS w FROM clerk ORDER BY w, shop_id LIMIT 2

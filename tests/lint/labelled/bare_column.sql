+ SELECT name, count(*) FROM shop GROUP BY city
+ SELECT name, count(*) FROM shop
+ SELECT name, avg(seats) FROM shop GROUP BY city
+ SELECT city, name FROM shop GROUP BY city
+ SELECT id, city, count(*) FROM shop GROUP BY city
+ SELECT name FROM shop GROUP BY city
+ SELECT name, city FROM shop GROUP BY city HAVING count(*) > 1
+ SELECT name, sum(wage) FROM clerk
+ SELECT name, sum(wage) FROM clerk GROUP BY shop_id
+ SELECT shop_id, name, count(*) FROM clerk GROUP BY shop_id
+ SELECT shop_id, wage FROM clerk GROUP BY shop_id
+ SELECT upper(name), count(*) FROM shop GROUP BY city
+ SELECT name || '!', count(*) FROM shop GROUP BY city
+ SELECT seats + 1, count(*) FROM shop GROUP BY city
+ SELECT city FROM shop GROUP BY city ORDER BY rating
+ SELECT city FROM shop GROUP BY city ORDER BY seats DESC
+ SELECT city FROM shop GROUP BY city HAVING seats > 15
+ SELECT name, count(*) FROM clerk GROUP BY 2 + wage
+ SELECT T1.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T1.shop_id
+ SELECT T1.name, T2.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
+ SELECT T1.wage, T2.city FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
+ SELECT T2.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
+ SELECT T2.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT c.name, s.amount, count(*) FROM clerk c JOIN sale s ON s.clerk_id = c.id GROUP BY c.id
+ SELECT c.name, s.day FROM clerk c JOIN sale s ON s.clerk_id = c.id GROUP BY c.name
+ SELECT day, sum(amount) FROM sale GROUP BY clerk_id
+ SELECT amount, count(*) FROM sale GROUP BY day
+ SELECT day, count(*) FROM sale
+ SELECT name, max(seats), min(seats) FROM shop GROUP BY city
+ SELECT name FROM shop WHERE id IN (SELECT id FROM shop GROUP BY city)
+ SELECT name FROM (SELECT name, count(*) AS n FROM shop GROUP BY city)
+ WITH t AS (SELECT name, city FROM shop GROUP BY city) SELECT name FROM t
+ SELECT amount, clerk_id FROM sale GROUP BY strftime('%Y', day)
- SELECT city, count(*) FROM shop GROUP BY city
- SELECT city, avg(seats), max(rating) FROM shop GROUP BY city
- SELECT max(name), count(*) FROM shop
- SELECT count(*), sum(seats) FROM shop
- SELECT max(name), count(*) FROM shop GROUP BY city
- SELECT name, max(rating) FROM shop GROUP BY city
- SELECT name, max(rating) FROM shop
- SELECT name, min(seats) FROM shop WHERE seats < 20
- SELECT name, count(*) FROM shop GROUP BY id
- SELECT name, city, count(*) FROM shop GROUP BY id
- SELECT name, city, count(*) FROM shop GROUP BY name, city
- SELECT upper(city), count(*) FROM shop GROUP BY city
- SELECT upper(city), count(*) FROM shop GROUP BY upper(city)
- SELECT city AS town, count(*) FROM shop GROUP BY town
- SELECT city, count(*) FROM shop GROUP BY 1
- SELECT wage + 2, count(*) FROM clerk GROUP BY wage + 2
- SELECT city, count(*) FROM shop GROUP BY city ORDER BY city
- SELECT city FROM shop GROUP BY city ORDER BY sum(rating)
- SELECT city FROM shop GROUP BY city HAVING sum(seats) > 20
- SELECT city, count(*) AS n FROM shop GROUP BY city ORDER BY n DESC, city
- SELECT T2.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T1.shop_id
- SELECT T2.name, T2.city, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
- SELECT T2.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.name
- SELECT T1.shop_id, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
- SELECT c.name, sum(s.amount) FROM clerk c JOIN sale s ON s.clerk_id = c.id GROUP BY c.id
- SELECT c.name, c.wage, sum(s.amount) FROM clerk c LEFT JOIN sale s ON s.clerk_id = c.id GROUP BY c.id
- SELECT c.name, sum(s.amount) FROM clerk c JOIN sale s ON s.clerk_id = c.id WHERE c.id = 1
- SELECT name, count(*) FROM shop WHERE id = 1
- SELECT name, count(*) FROM shop WHERE city = 'Oslo' GROUP BY city
- SELECT city, name FROM shop
- SELECT name, count(*) OVER (PARTITION BY city) FROM shop
- SELECT name, rank() OVER (ORDER BY rating DESC) FROM shop
- SELECT name, (SELECT count(*) FROM clerk WHERE shop_id = shop.id) FROM shop
- SELECT DISTINCT city FROM shop
- SELECT strftime('%Y', day), sum(amount) FROM sale GROUP BY strftime('%Y', day)
- SELECT day, sum(amount) FROM sale GROUP BY day
- SELECT group_concat(name), city FROM shop GROUP BY city
- SELECT 'all', count(*) FROM shop
- SELECT count(*) FILTER (WHERE wage > 6) FROM clerk
- SELECT shop_id, sum(wage) FILTER (WHERE boss = 1) FROM clerk GROUP BY shop_id
+ SELECT name, count(*) FILTER (WHERE wage > 6) FROM clerk GROUP BY shop_id

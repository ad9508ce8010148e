+ SELECT name FROM clerk ORDER BY weeks
+ SELECT name FROM clerk ORDER BY weeks DESC
+ SELECT name FROM clerk ORDER BY weeks LIMIT 1
+ SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1
+ SELECT name, weeks FROM clerk ORDER BY weeks DESC LIMIT 2
+ SELECT weeks FROM clerk ORDER BY weeks
+ SELECT weeks FROM clerk ORDER BY weeks ASC, id
+ SELECT name FROM clerk ORDER BY clerk.weeks DESC
+ SELECT name FROM clerk c ORDER BY c.weeks DESC, c.name
+ SELECT T2.city FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id ORDER BY T1.weeks DESC LIMIT 1
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id ORDER BY T1.weeks
+ SELECT name FROM clerk WHERE wage > 5 ORDER BY weeks LIMIT 1
+ SELECT name FROM clerk WHERE shop_id = 1 ORDER BY weeks
+ SELECT max(weeks) FROM clerk
+ SELECT min(weeks) FROM clerk
+ SELECT MAX(weeks), min(wage) FROM clerk
+ SELECT max(T1.weeks) FROM clerk T1
+ SELECT shop_id, max(weeks) FROM clerk GROUP BY shop_id
+ SELECT shop_id, min(weeks) FROM clerk GROUP BY shop_id
+ SELECT city, max(weeks) FROM clerk JOIN shop ON shop_id = shop.id GROUP BY city
+ SELECT name, max(weeks) FROM clerk
+ SELECT name FROM clerk WHERE weeks = (SELECT max(weeks) FROM clerk)
+ SELECT name FROM clerk WHERE weeks = (SELECT min(weeks) FROM clerk)
+ SELECT name FROM clerk WHERE id IN (SELECT id FROM clerk ORDER BY weeks DESC LIMIT 1)
+ SELECT wage FROM clerk WHERE id = (SELECT id FROM clerk ORDER BY weeks LIMIT 1)
+ WITH t AS (SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1) SELECT name FROM t
+ SELECT name FROM (SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1)
+ SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY max(weeks) LIMIT 1
+ SELECT shop_id FROM clerk GROUP BY shop_id HAVING max(weeks) = '9'
+ SELECT max(weeks) - min(weeks) FROM clerk
+ SELECT name FROM clerk ORDER BY shop_id, weeks DESC
+ SELECT name, weeks AS w FROM clerk ORDER BY w DESC LIMIT 1
- SELECT name FROM clerk ORDER BY wage, id
- SELECT name FROM clerk ORDER BY wage DESC, id LIMIT 1
- SELECT name FROM clerk ORDER BY name
- SELECT name FROM clerk ORDER BY weeks + 0
- SELECT name FROM clerk ORDER BY weeks + 0 DESC LIMIT 1
- SELECT name FROM clerk ORDER BY CAST(weeks AS INTEGER) DESC LIMIT 1
- SELECT name FROM clerk ORDER BY CAST(weeks AS REAL)
- SELECT name FROM clerk ORDER BY length(weeks), weeks
- SELECT max(CAST(weeks AS INTEGER)) FROM clerk
- SELECT min(weeks + 0) FROM clerk
- SELECT max(weeks * 1.0) FROM clerk
- SELECT max(wage) FROM clerk
- SELECT min(rating) FROM shop
- SELECT max(name) FROM clerk
- SELECT min(name) FROM clerk
- SELECT max(day) FROM sale
- SELECT min(day) FROM sale
- SELECT day FROM sale ORDER BY day
- SELECT amount FROM sale ORDER BY day DESC, id LIMIT 1
- SELECT city FROM shop ORDER BY city, name
- SELECT city, count(*) FROM shop GROUP BY city ORDER BY city
- SELECT shop_id, count(*) FROM clerk GROUP BY shop_id ORDER BY count(*) DESC, shop_id
- SELECT max(weeks) FROM clerk WHERE id > 1 AND id < 3
- SELECT name FROM clerk WHERE id = 2 ORDER BY weeks
- SELECT name FROM clerk WHERE id IN (3, 4) ORDER BY length(weeks)
- SELECT count(weeks) FROM clerk
- SELECT avg(weeks) FROM clerk
- SELECT sum(weeks) FROM clerk
- SELECT weeks, count(*) FROM clerk GROUP BY weeks
- SELECT DISTINCT weeks FROM clerk
- SELECT name FROM shop ORDER BY rating
- SELECT seats FROM shop ORDER BY seats DESC, id

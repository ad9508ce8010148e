+ SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT avg(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT count(T2.name) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT count(T2.id) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT sum(T2.seats + 1) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT sum(T2.seats) * 2 FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT sum(seats) FROM clerk JOIN shop ON shop_id = shop.id
+ SELECT sum(shop.seats) FROM clerk, shop WHERE shop_id = shop.id
+ SELECT sum(T2.seats) FROM shop T2 LEFT JOIN clerk T1 ON T1.shop_id = T2.id
+ SELECT avg(T2.rating) FROM shop T2 JOIN clerk T1 ON T1.shop_id = T2.id
+ SELECT avg(T2.rating) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
+ SELECT T2.city, sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
+ SELECT T2.id, sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
+ SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T2.city = 'Rome'
+ SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T1.wage > 5
+ SELECT sum(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT avg(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT count(T1.id) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT count(T1.name) FROM sale T3 JOIN clerk T1 ON T3.clerk_id = T1.id WHERE T3.amount > 1
+ SELECT sum(wage) FROM clerk JOIN sale ON clerk_id = clerk.id
+ SELECT T1.shop_id, sum(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id GROUP BY T1.shop_id
- SELECT T1.name, avg(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id GROUP BY T1.id
+ SELECT sum(T1.wage), sum(T3.amount) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT sum(T1.wage) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id JOIN sale T3 ON T3.clerk_id = T1.id
+ SELECT sum(CASE WHEN T2.city = 'Rome' THEN T2.seats ELSE 0 END) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
+ SELECT name FROM shop WHERE seats > (SELECT avg(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id)
+ SELECT * FROM (SELECT sum(T2.seats) AS n FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id)
+ WITH t AS (SELECT sum(T2.seats) AS n FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id) SELECT n FROM t
+ SELECT sum(a.seats) FROM shop a JOIN shop b ON a.city = b.city
+ SELECT count(a.id) FROM shop a JOIN shop b ON a.seats = b.seats
- SELECT sum(T1.wage) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT avg(T1.wage) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT avg(T1.wage) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T2.city = 'Rome'
- SELECT count(T1.id) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT T2.name, count(*) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
- SELECT T2.name, count(T2.id) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
- SELECT count(DISTINCT T2.name) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT count(DISTINCT T2.id) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT sum(DISTINCT T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT max(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT min(T2.rating) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT max(T2.rating) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
- SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T2.city = 'Oslo'
- SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T1.id = 1
- SELECT avg(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T1.shop_id > 1
- SELECT T1.id, sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T1.id
- SELECT sum(T3.amount) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id
- SELECT avg(T3.amount) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id GROUP BY T1.id
- SELECT sum(T3.amount) FROM sale T3 JOIN clerk T1 ON T3.clerk_id = T1.id JOIN shop T2 ON T1.shop_id = T2.id
- SELECT T2.city, sum(T3.amount) FROM sale T3 JOIN clerk T1 ON T3.clerk_id = T1.id JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.city
- SELECT count(T3.id) FROM sale T3 JOIN clerk T1 ON T3.clerk_id = T1.id
- SELECT sum(seats) FROM shop
- SELECT avg(wage) FROM clerk
- SELECT sum(seats) FROM shop WHERE id IN (SELECT shop_id FROM clerk)
- SELECT sum(seats) FROM shop WHERE EXISTS (SELECT 1 FROM clerk WHERE shop_id = shop.id)
- SELECT sum(seats) FROM (SELECT DISTINCT T2.id, T2.seats FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id)
- SELECT sum(T1.wage * T2.rating) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT T2.name, T2.seats FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id
- SELECT sum(a.seats) FROM shop a JOIN shop b ON a.id = b.id
- SELECT sum(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id WHERE T3.id IN (1, 3, 4)
- SELECT avg(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id GROUP BY T2.id
- SELECT avg(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id WHERE T1.id <> 2
- SELECT T1.shop_id, avg(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id WHERE T1.id > 1 GROUP BY T1.shop_id
- SELECT avg(T2.rating) FROM shop T2 LEFT JOIN clerk T1 ON T1.shop_id = T2.id WHERE T2.id > 1
+ SELECT T1.shop_id, avg(T1.wage) FROM clerk T1 JOIN sale T3 ON T3.clerk_id = T1.id GROUP BY T1.shop_id
+ SELECT avg(T2.rating) FROM shop T2 LEFT JOIN clerk T1 ON T1.shop_id = T2.id

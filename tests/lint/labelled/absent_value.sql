+ SELECT count(*) FROM shop WHERE city = 'Paris'
+ SELECT count(*) FROM shop WHERE city = 'rome'
+ SELECT count(*) FROM shop WHERE city = 'Rome '
+ SELECT count(*) FROM shop WHERE city = ' Oslo'
+ SELECT count(*) FROM shop WHERE city = "Bonn"
+ SELECT count(*) FROM shop WHERE 'Paris' = city
+ SELECT name FROM shop WHERE city != 'oslo'
+ SELECT name FROM shop WHERE city <> 'Lima'
+ SELECT name FROM shop WHERE city IN ('Oslo', 'Bonn')
+ SELECT name FROM shop WHERE city NOT IN ('Rome', 'Bonn')
+ SELECT name FROM shop WHERE city IN ('bonn')
+ SELECT name FROM shop WHERE city = 'Paris' OR id = 1
+ SELECT name FROM shop WHERE name LIKE '%z%'
+ SELECT count(*) FROM shop WHERE name LIKE 'X%'
+ SELECT count(*) FROM shop WHERE name NOT LIKE '%q%'
+ SELECT count(*) FROM sale WHERE amount = 99
+ SELECT count(*) FROM sale WHERE amount IN (5, 99)
+ SELECT count(*) FROM sale WHERE amount <> 42
+ SELECT count(*) FROM sale WHERE day = '2024-1-1'
+ SELECT count(*) FROM sale WHERE day LIKE '2023%'
+ SELECT count(*) FROM sale WHERE day = '2030-01-01'
+ SELECT wage FROM clerk WHERE name = 'Bob' OR wage = 8
+ SELECT wage FROM clerk WHERE name = 'kim'
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T2.city = 'Bern' OR T1.id = 1
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id AND T2.city = 'Bern'
+ SELECT sum(CASE WHEN city = 'rome' THEN 1 ELSE 0 END) FROM shop
+ SELECT sum(city = 'Paris') FROM shop
+ SELECT iif(city = 'Paris', 1, 0) FROM shop
+ SELECT name FROM clerk WHERE shop_id IN (SELECT id FROM shop WHERE city = 'Paris')
+ WITH t AS (SELECT id FROM shop WHERE city = 'Paris') SELECT count(*) FROM t
+ SELECT name FROM shop EXCEPT SELECT name FROM shop WHERE city = 'Paris'
+ SELECT count(*) FROM clerk WHERE boss = 9
- SELECT count(*) FROM shop WHERE city = 'Rome'
- SELECT count(*) FROM shop WHERE city = "Oslo"
- SELECT count(*) FROM shop WHERE 'Rome' = city
- SELECT name FROM shop WHERE city != 'Oslo'
- SELECT name FROM shop WHERE city <> 'Rome'
- SELECT name FROM shop WHERE city IN ('Oslo', 'Rome')
- SELECT name FROM shop WHERE city NOT IN ('Oslo')
- SELECT count(*) FROM shop WHERE name LIKE '%a%'
- SELECT count(*) FROM shop WHERE name LIKE 'a%'
- SELECT count(*) FROM shop WHERE city LIKE 'rome'
- SELECT count(*) FROM shop WHERE name NOT LIKE '%d%'
- SELECT count(*) FROM shop WHERE lower(city) = 'rome'
- SELECT count(*) FROM shop WHERE upper(city) = 'OSLO'
- SELECT count(*) FROM shop WHERE trim(city) = 'Rome'
- SELECT count(*) FROM shop WHERE city = ''
- SELECT count(*) FROM sale WHERE amount = 5
- SELECT count(*) FROM sale WHERE amount IN (5, 6)
- SELECT count(*) FROM sale WHERE amount > 99
- SELECT count(*) FROM sale WHERE amount < 0
- SELECT count(*) FROM sale WHERE amount BETWEEN 50 AND 60
- SELECT count(*) FROM sale WHERE day = '2024-01-01'
- SELECT count(*) FROM sale WHERE day LIKE '2024%'
- SELECT count(*) FROM sale WHERE day > '2030-01-01'
- SELECT count(*) FROM sale WHERE strftime('%Y', day) = '2024'
- SELECT wage FROM clerk WHERE name = 'Kim'
- SELECT wage FROM clerk WHERE boss = 1
- SELECT wage FROM clerk WHERE boss = '1'
- SELECT wage FROM clerk WHERE weeks = '9'
- SELECT wage FROM clerk WHERE name || 'x' = 'Bobx'
- SELECT name FROM clerk WHERE shop_id IN (SELECT id FROM shop WHERE city = 'Rome')
- SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T2.city = 'Oslo'
- SELECT count(*) FROM award WHERE title = 'Best shop'
- SELECT 'Paris' AS city, count(*) FROM shop
- SELECT sum(CASE WHEN city = 'Rome' THEN 1 ELSE 0 END) FROM shop
- SELECT city FROM shop GROUP BY city HAVING count(*) = 99

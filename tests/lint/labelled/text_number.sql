+ SELECT name FROM clerk WHERE weeks > 20
+ SELECT name FROM clerk WHERE weeks < 20
+ SELECT name FROM clerk WHERE weeks >= 20
+ SELECT name FROM clerk WHERE weeks <= 10
+ SELECT name FROM clerk WHERE weeks < 100
+ SELECT name FROM clerk WHERE weeks > 9
+ SELECT name FROM clerk WHERE weeks > 10.5
+ SELECT name FROM clerk WHERE weeks < '9'
+ SELECT name FROM clerk WHERE weeks > '20'
+ SELECT name FROM clerk WHERE weeks >= '20'
+ SELECT name FROM clerk WHERE 20 < weeks
+ SELECT name FROM clerk WHERE 20 > weeks
+ SELECT name FROM clerk WHERE '20' < weeks
+ SELECT count(*) FROM clerk WHERE weeks > 9
+ SELECT sum(weeks > 9) FROM clerk
+ SELECT sum(CASE WHEN weeks > 9 THEN 1 ELSE 0 END) FROM clerk
+ SELECT iif(weeks > 9, 'short', 'long') FROM clerk
+ SELECT avg(wage) FROM clerk WHERE weeks > 20
+ SELECT name FROM clerk WHERE weeks > 20 AND wage > 5
+ SELECT name FROM clerk WHERE wage > 100 OR weeks < 20
+ SELECT name FROM clerk WHERE NOT weeks > 20
+ SELECT T1.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id WHERE T1.weeks > 20
+ SELECT T2.name FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id AND T1.weeks < 20
+ SELECT name FROM shop WHERE id IN (SELECT shop_id FROM clerk WHERE weeks > 20)
+ WITH t AS (SELECT name FROM clerk WHERE weeks > 9) SELECT count(*) FROM t
+ SELECT shop_id, count(*) FROM clerk WHERE weeks > 9 GROUP BY shop_id
+ SELECT name FROM clerk WHERE weeks > 8 EXCEPT SELECT 'Kim'
+ SELECT name FROM shop WHERE seats > 'many'
+ SELECT name FROM shop WHERE seats < 'ten'
+ SELECT name FROM shop WHERE rating >= 'good'
+ SELECT count(*) FROM sale WHERE amount > 'a lot'
+ SELECT name FROM clerk WHERE wage < 'high'
+ SELECT name FROM clerk WHERE weeks BETWEEN 9 AND 20
+ SELECT name FROM clerk WHERE weeks BETWEEN '9' AND '20'
+ SELECT name FROM shop WHERE seats BETWEEN 'few' AND 'many'
- SELECT name FROM clerk WHERE wage BETWEEN 6 AND 8
- SELECT name FROM clerk WHERE name BETWEEN 'K' AND 'M'
- SELECT name FROM clerk WHERE wage > 7
- SELECT name FROM clerk WHERE wage > '7'
- SELECT name FROM clerk WHERE wage <= 7.5
- SELECT name FROM shop WHERE seats > '15'
- SELECT name FROM shop WHERE rating >= 4
- SELECT name FROM shop WHERE rating > '4.0'
- SELECT name FROM clerk WHERE CAST(weeks AS INTEGER) > 20
- SELECT name FROM clerk WHERE CAST(weeks AS REAL) < 20
- SELECT name FROM clerk WHERE weeks + 0 > 20
- SELECT name FROM clerk WHERE weeks * 1 < 9
- SELECT name FROM clerk WHERE weeks = 20
- SELECT name FROM clerk WHERE weeks = '20'
- SELECT name FROM clerk WHERE weeks <> '20'
- SELECT name FROM clerk WHERE weeks <> 20
- SELECT name FROM clerk WHERE weeks IN ('9', '10')
- SELECT name FROM clerk WHERE weeks LIKE '1%'
- SELECT name FROM clerk WHERE weeks > 0
- SELECT name FROM clerk WHERE weeks > '0'
- SELECT name FROM clerk WHERE name > 'L'
- SELECT name FROM clerk WHERE name < 'M'
- SELECT name FROM shop WHERE city >= 'P'
- SELECT amount FROM sale WHERE day >= '2024'
- SELECT amount FROM sale WHERE day > '2024-01-01'
- SELECT amount FROM sale WHERE day BETWEEN '2024-01-01' AND '2024-01-31'
- SELECT amount FROM sale WHERE day < '2024-02'
- SELECT amount FROM sale WHERE strftime('%Y', day) > '2023'
- SELECT amount FROM sale WHERE substr(day, 6, 2) > '01'
- SELECT name FROM clerk WHERE length(weeks) > 2
- SELECT name FROM shop WHERE seats = 'many'
- SELECT name FROM shop WHERE name > city
- SELECT count(*) FROM clerk GROUP BY shop_id HAVING count(*) > '1'
- SELECT name FROM clerk WHERE weeks IS NOT NULL

+ SELECT date('now')
+ SELECT date()
+ SELECT time()
+ SELECT datetime()
+ SELECT julianday()
+ SELECT unixepoch()
+ SELECT strftime('%Y')
+ SELECT id, date() FROM shop
+ SELECT name FROM shop WHERE date() > '2000'
+ SELECT name FROM clerk WHERE id < date()
+ SELECT id FROM sale WHERE day < DATE()
+ SELECT id FROM sale WHERE day < Date ( )
+ SELECT id FROM sale WHERE day > date('now', '-1 year')
+ SELECT id FROM sale WHERE day > date('NOW', 'start of month')
+ SELECT id FROM sale WHERE day > datetime('now', 'localtime')
+ SELECT time('now')
+ SELECT julianday('now') - julianday(day) FROM sale
+ SELECT CAST((julianday('now') - julianday(day)) / 365.25 AS INTEGER) FROM sale
+ SELECT julianday('now', 'start of day')
+ SELECT unixepoch('now')
+ SELECT strftime('%Y', 'now')
+ SELECT strftime('%Y', 'now') - strftime('%Y', day) FROM sale
+ SELECT strftime('%s', CURRENT_TIMESTAMP)
+ SELECT strftime('%s', datetime('now'))
+ SELECT strftime('%Y', 'now', '-5 years')
+ SELECT CURRENT_DATE
+ SELECT current_time
+ SELECT current_timestamp
+ SELECT id FROM sale WHERE day < CURRENT_DATE
+ SELECT id FROM sale WHERE date(day) BETWEEN date('now', '-7 days') AND date('now')
+ SELECT date("now")
+ SELECT date('now' || '')
+ SELECT date(('now'))
+ SELECT date(coalesce(day, 'now')) FROM sale
+ SELECT (SELECT count(*) FROM sale WHERE day = date('now'))
+ WITH t AS (SELECT date('now') AS today) SELECT * FROM sale, t WHERE day < today
+ SELECT name FROM clerk WHERE id IN (SELECT clerk_id FROM sale WHERE day > date('now', '-1 month'))
+ SELECT CASE WHEN day < date() THEN 'past' ELSE 'future' END FROM sale
+ SELECT count(*) FROM sale GROUP BY day < date('now')
+ SELECT id FROM sale ORDER BY abs(julianday('now') - julianday(day)), id
- SELECT date('2001-01-01')
- SELECT date(day) FROM sale
- SELECT date(day, '+1 day') FROM sale
- SELECT time(day) FROM sale
- SELECT datetime(day) FROM sale
- SELECT julianday(day) FROM sale
- SELECT unixepoch(day) FROM sale
- SELECT strftime('%Y', day) FROM sale
- SELECT strftime('%Y-%m', day), count(*) FROM sale GROUP BY 1
- SELECT strftime('%Y', '2024-05-05')
- SELECT name FROM shop WHERE name = 'now'
- SELECT name FROM shop WHERE name LIKE 'now'
- SELECT name FROM shop WHERE name IN ('now', 'then')
- SELECT replace(name, 'now', 'then') FROM shop
- SELECT instr(name, 'now') FROM shop
- SELECT coalesce(city, 'now') FROM shop
- SELECT upper('now')
- SELECT 'now' AS period
- SELECT name AS now FROM shop
- SELECT day AS date FROM sale
- SELECT "day" FROM sale WHERE day > '2024'
- SELECT CAST(day AS DATE) FROM sale
- SELECT CAST(day AS DATETIME) FROM sale
- SELECT id FROM sale WHERE CAST(day AS DATE) > 2023
- SELECT CAST(strftime('%Y', day) AS INTEGER) FROM sale
- SELECT max(day) FROM sale
- SELECT date(max(day), '-1 year') FROM sale
- SELECT id FROM sale WHERE day > (SELECT date(max(day), '-1 month') FROM sale)
- SELECT julianday('2024-12-31') - julianday(day) FROM sale
- SELECT id FROM sale WHERE day BETWEEN '2024-01-01' AND '2024-12-31'
- SELECT count(*) FROM shop WHERE city = 'date()'
- SELECT name FROM shop WHERE name || 'now' = 'Adanow'
- SELECT CASE WHEN name = 'now' THEN 1 ELSE 0 END FROM shop
- SELECT count(DISTINCT date(day)) FROM sale
- SELECT substr(day, 1, 4) FROM sale
+ SELECT date(CASE WHEN id = 1 THEN 'now' ELSE day END) FROM sale
+ SELECT date(iif(id = 1, 'now', day)) FROM sale
+ SELECT date(CAST('now' AS TEXT))
+ SELECT date(lower('NOW'))
+ SELECT date('now' COLLATE NOCASE)
- SELECT date(CASE WHEN name = 'now' THEN '2024-01-01' END) FROM shop
- SELECT date(day) || 'now' FROM sale
- SELECT date(day) = 'now' FROM sale

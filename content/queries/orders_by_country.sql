-- title: Orders by country
-- parameters: since
-- sort: country, orders, total
SELECT customers.country, COUNT(*) AS orders, ROUND(SUM(orders.total), 2) AS total
FROM orders
JOIN customers ON customers.id = orders.customer_id
WHERE orders.placed_on >= :since
GROUP BY customers.country

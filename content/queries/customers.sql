-- title: Customers of a country
-- parameters: country
-- sort: name, joined_on
SELECT id, name, email, country, joined_on
FROM customers
WHERE country = :country OR :country IS NULL

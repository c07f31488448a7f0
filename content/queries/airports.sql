-- title: Airports of a country
-- parameters: country
-- sort: name, elevation
SELECT icao, iata, name, city, region, country, elevation, latitude, longitude, timezone
FROM airports
WHERE country = :country

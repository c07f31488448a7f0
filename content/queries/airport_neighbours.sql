-- title: Airports of a country that lie close together
-- parameters: country, degrees
-- sort: airport, neighbour
SELECT a.icao AS airport, a.name AS airport_name, b.icao AS neighbour, b.name AS neighbour_name,
       ROUND(ABS(a.latitude - b.latitude), 3) AS latitude_apart,
       ROUND(ABS(a.longitude - b.longitude), 3) AS longitude_apart
FROM airports AS a
JOIN airports AS b
  ON b.country = a.country
 AND b.latitude BETWEEN a.latitude - :degrees AND a.latitude + :degrees
 AND b.longitude BETWEEN a.longitude - :degrees AND a.longitude + :degrees
 AND b.icao > a.icao
WHERE a.country = :country

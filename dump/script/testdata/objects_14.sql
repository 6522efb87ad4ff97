-- What servers have since version 14.
\connect objects
CREATE FUNCTION app.begins(n integer) RETURNS integer LANGUAGE sql
BEGIN ATOMIC
    SELECT CASE WHEN n > 0 THEN CASE n WHEN 1 THEN 2 ELSE 3 END ELSE 4 END;
    SELECT n + 1 AS "end";
END;
CREATE FUNCTION app.returns(n integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN CASE WHEN n > 0 THEN 1 ELSE 2 END;
CREATE PROCEDURE app.proc(INOUT n integer) LANGUAGE sql BEGIN ATOMIC SELECT n; END;
CREATE TYPE app.reach AS RANGE (subtype = integer, multirange_type_name = app.reaches);
CREATE TABLE app.reached (r app.reaches, c text COMPRESSION pglz);
INSERT INTO app.reached VALUES ('{[1,2),[5,7)}', ';');
CREATE STATISTICS app.expressions ON (upper(c)), (lower(c)) FROM app.reached;
GRANT EXECUTE ON FUNCTION app.begins(integer) TO writer;

-- Large objects: with contents of several pages and with a hole, empty ones, with owner, comment and rights.
CREATE ROLE lo_owner;
CREATE DATABASE large_objects;
\connect large_objects
SELECT lo_from_bytea(1000, decode(repeat('00ff275c', 30000), 'hex'));
SELECT lo_from_bytea(1001, 'it''s \\ ;');
SELECT lo_create(1002);
SELECT lo_create(1003);
SELECT lo_put(1003, 100000, '\x01');
COMMENT ON LARGE OBJECT 1001 IS 'a large; object';
ALTER LARGE OBJECT 1001 OWNER TO lo_owner;
GRANT SELECT ON LARGE OBJECT 1001 TO PUBLIC;

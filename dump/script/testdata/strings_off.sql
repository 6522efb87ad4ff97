-- A database without standard_conforming_strings: its dump is written without them.
CREATE DATABASE strings_off;
ALTER DATABASE strings_off SET standard_conforming_strings = off;
\connect strings_off
CREATE TABLE t (a text DEFAULT 'it''s \\ ;');
INSERT INTO t VALUES ('a\\b'), ('\'');
COMMENT ON TABLE t IS 'back\\slash '' and \\''; quote';
CREATE VIEW v AS SELECT '\\;''' AS a, E'\\' AS b;
CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''\\\\;''::text';
CREATE SEQUENCE "s\q";
SELECT lo_from_bytea(0, '\\x5c27');

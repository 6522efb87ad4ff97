-- Names that need quotes, everywhere.
-- Not of roles: every database has those, and their names must have a form in its encoding.
CREATE ROLE "o'role";
CREATE ROLE "a=b";
CREATE DATABASE "it's ""odd"" \ ; = db";
CREATE DATABASE "Größe 数据库";
CREATE DATABASE "$tag$";
CREATE DATABASE "a=b" CONNECTION LIMIT 7;
CREATE DATABASE "-";
CREATE DATABASE "select";
\connect "Größe 数据库"
CREATE TABLE "Tabelle ""ä""" ("Spalte;" integer, "a.b" text, "line
feed" text, "COPY" integer, "\." integer, "'" integer, "tab	" integer);
INSERT INTO "Tabelle ""ä""" SELECT i, 'ä' || i, E'\r\n', i, i, i, i FROM generate_series(1, 5) i;
CREATE SCHEMA "a.""b";
CREATE TABLE "a.""b"."c(d" ("e)f" serial PRIMARY KEY, "from stdin;" text);
INSERT INTO "a.""b"."c(d" ("from stdin;") VALUES ('x'), ('\.'), (E'\\.\n\\.\n');
CREATE TABLE "a.""b"."new
line; --" (a integer);
INSERT INTO "a.""b"."new
line; --" VALUES (1);
CREATE FUNCTION "a.""b"."$f$"("$1" integer) RETURNS integer LANGUAGE sql AS $x$ SELECT "$1"; -- $$ $x$;
COMMENT ON TABLE "a.""b"."new
line; --" IS E'\n--\n-- PostgreSQL database dump complete\n--\n';
GRANT SELECT ON "a.""b"."c(d" TO "o'role", "a=b";
\connect "-reuse-previous=on" "dbname='select'"
CREATE TABLE "table" ("from" integer, "stdin" integer);
INSERT INTO "table" VALUES (1, 2);
\connect -reuse-previous=on "dbname='it\'s ""odd"" \\ ; = db'"
CREATE TABLE t (a integer);
INSERT INTO t VALUES (1);

-- Databases of several encodings, and of none: names there may be no UTF-8.
CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
CREATE DATABASE enc_eucjp TEMPLATE template0 ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C';
CREATE DATABASE enc_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
\connect latin1
SET client_encoding = 'UTF8';
CREATE TABLE "größe" ("ä" text);
INSERT INTO "größe" VALUES ('ÄÖÜ é');
\connect enc_ascii
SET client_encoding = 'SQL_ASCII';
DO $$ BEGIN EXECUTE convert_from('\x435245415445205441424c4520742822e42220746578742c2022ff2220746578742920', 'SQL_ASCII'); END $$;
INSERT INTO t VALUES (convert_from('\xe4fc', 'SQL_ASCII'), E'\\');
\connect enc_eucjp
SET client_encoding = 'UTF8';
-- In Shift JIS these characters have a backslash for their second byte.
CREATE TABLE "表" ("ソ" text, "能" text DEFAULT E'表\\');
INSERT INTO "表" VALUES ('表', 'ソ;'), (E'能\n', E'十\\');
CREATE VIEW "予" AS SELECT E'表\\''ソ' AS "十", E'\\表' AS b FROM "表" WHERE "ソ" <> E'ソ\\;';
CREATE FUNCTION "噂"() RETURNS text LANGUAGE sql AS $表$ SELECT E'表\\' || '構;'; $表$;
COMMENT ON TABLE "表" IS E'欺\\''圭;';

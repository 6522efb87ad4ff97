-- Rows of every form.
CREATE DATABASE data;
\connect data
CREATE TABLE rows (id integer, t text, b bytea, j jsonb);
INSERT INTO rows VALUES
    (1, NULL, NULL, NULL), (2, '', '', '{}'), (3, '\.', '\x5c2e', '"\\."'), (4, E'\\.\n\\.\r\n\\.', NULL, NULL),
    (5, E'a\tb\nc\rd\\e\bf\fg\vh', NULL, '{"a;": "b''c\"d"}'), (6, '; COPY rows FROM stdin; $$ ''', NULL, NULL),
    (7, '\N', NULL, NULL), (8, E'\x01\x7f', '\xdeadbeef', NULL), (9, repeat('ä;\', 5000), NULL, NULL),
    (10, '-- PostgreSQL database dump complete', NULL, NULL);
INSERT INTO rows SELECT i, md5(i::text), decode(md5(i::text), 'hex'), NULL FROM generate_series(11, 5000) i;
CREATE TABLE one (t text);
INSERT INTO one VALUES ('\.'), (E'\\.\n'), (E'\n'), (''), (NULL), (E'\r'), (E'x\r'), (E'-- PostgreSQL database cluster dump complete');
CREATE TABLE wide AS SELECT repeat('x', 300000) AS a, 1 AS b;
CREATE TABLE numbers AS SELECT 'NaN'::float8 AS a, '-Infinity'::float8 AS b, 0.1::float4 AS c, '{1,NULL,3}'::integer[] AS d, '1 day'::interval AS e, B'0101' AS f;

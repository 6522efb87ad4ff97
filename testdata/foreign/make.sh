#!/bin/bash
# Makes the backups in this folder with PostgreSQL, gzip, pigz, openssl and split
# alone. It ran once. The backups are kept for ever, to be read by every later
# version; another run would make others (salts, times of gzip, keys of \restrict).
#
# Usage: make.sh DIR, a new folder. As root it runs the server as postgres.
set -euo pipefail
export LC_ALL=C
out=$1
mkdir "$out" "$out/store"
cd "$out"

work=$(mktemp -d)
as=()
if [ "$(id -u)" = 0 ]; then
  as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
  chown postgres "$work"
fi
pg=$(pg_config --bindir)
trap '"${as[@]}" "$pg/pg_ctl" -D "$work/data" -m fast stop >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
(
  cd "$work"
  "${as[@]}" "$pg/initdb" -A trust --no-sync -U postgres -E UTF8 --locale=C -D "$work/data" >/dev/null
  "${as[@]}" "$pg/pg_ctl" -D "$work/data" -l "$work/log" -o "-k $work -c listen_addresses= -c fsync=off" -w start >/dev/null
)
export PGHOST=$work PGUSER=postgres PGDATABASE=postgres
psql -qX -v ON_ERROR_STOP=1 <<'SQL'
CREATE ROLE app LOGIN PASSWORD 'not a secret';
CREATE ROLE "Übersicht" NOLOGIN;
CREATE DATABASE shop OWNER app;
CREATE DATABASE "odd ""name""";
\connect shop
CREATE SCHEMA s;
CREATE TABLE s.item (id int PRIMARY KEY, name text NOT NULL, hash text, price numeric(10,2), raw bytea);
INSERT INTO s.item SELECT i, CASE i % 5
    WHEN 0 THEN E'tab\there and \\ there' WHEN 1 THEN 'Größe – 日本 🐘'
    WHEN 2 THEN E'two\nlines' WHEN 3 THEN '\.' ELSE '-- PostgreSQL database cluster dump complete' END,
    CASE WHEN i % 7 > 0 THEN md5(i::text) END, i / 8.0, decode(md5((-i)::text), 'hex')
  FROM generate_series(1, 1500) i;
CREATE TABLE s.empty (LIKE s.item INCLUDING ALL);
CREATE TABLE s.wide (id serial PRIMARY KEY, body text);
INSERT INTO s.wide (body) SELECT repeat(md5(i::text) || ' ', 40) FROM generate_series(1, 60) i;
CREATE FUNCTION s.f() RETURNS text LANGUAGE sql AS $body$ SELECT 'it''s; "quoted"' $body$;
CREATE VIEW s.v AS SELECT id, name FROM s.item WHERE price > 10;
GRANT SELECT ON s.v TO app;
SELECT lo_from_bytea(4711, decode(repeat('00ff', 500), 'hex')) \g /dev/null
\connect "odd ""name"""
CREATE TABLE "T T" ("a b" int);
INSERT INTO "T T" VALUES (1), (2), (NULL);
SQL
"$pg/pg_dumpall" >"$work/sql"
gzip -9 -n -c "$work/sql" >sql.gz

echo NYHD8MVmA55HEqoaYHpQaxfwEMcQ1wkI >key
guid=b6f4c071-ef44-4af2-9608-531b4ce4823f
enc() { openssl enc -aes256 -pass file:../key "$@" 2>/dev/null; }
cd store

# 1 md5, parts from 0, milliseconds, metadata of the other program.
id=$guid-1548967947154
gzip -c "$work/sql" | enc -md md5 | split -b 20000 -d -a 1 - $id-
size=$(cat $id-* | wc -c)
cat >$id.json <<JSON
{"id":11,"size":$size,"status":"done","triggered_at":"2019-01-31T20:52:27.154Z","finished_at":"2019-01-31T20:52:50.478Z","downloadable":true}
JSON

# 2 md5, seconds: the ID is the beginning of the first one's. Parts from 1.
id=$guid-1548967947
gzip -c "$work/sql" | enc -md md5 | split -b 30001 --numeric-suffixes=1 -a 1 - $id-

# 3 md5, more than ten parts without padding, cut within cipher blocks.
id=$guid-1569935509279
gzip -c "$work/sql" | enc -md md5 | split -b 3333 -d -a 4 - $id-
for f in $id-*; do
  n=${f##*-}
  mv $f $id-$((10#$n))
done

# 4 md5, indexes padded with zeros.
id=$guid-1569935509280
gzip -c "$work/sql" | enc -md md5 | split -b 5000 -d -a 3 - $id-

# 5 md5, one object, as on Azure; seconds; with metadata of yet another schema.
id=$guid-1740130000
gzip -c "$work/sql" | enc -md md5 >$id
echo '{"instance":"a9s-pg","version":"15.18","mode":["logical"],"parts":null}' >$id.json

# 6 sha256, pigz.
id=$guid-1740130001000
pigz -p 4 -b 128 -c "$work/sql" | enc -md sha256 | split -b 16384 -d -a 1 - $id-

# 7 pbkdf2 with 10000 rounds, two members of gzip.
id=$guid-1740130002
half=$(($(wc -c <"$work/sql") / 2 + 7))
{ head -c $half "$work/sql" | gzip -1 -c; tail -c +$((half + 1)) "$work/sql" | gzip -9 -c; } |
  enc -pbkdf2 | split -b 32768 -d -a 1 - $id-

# 8 pbkdf2 with 12345 rounds, one object.
id=$guid-1740130003456
gzip -c "$work/sql" | enc -pbkdf2 -iter 12345 >$id

# 9 md5, the name of the file in gzip's header, one part; metadata of the other program.
id=$guid-1740130004567
(cd "$work" && gzip -N -c sql) | enc -md md5 >$id-0
echo '{"id":12,"size":272,"status":"done","triggered_at":"2022-04-12T12:00:31.047Z","finished_at":"2022-04-12T12:00:50.478Z","downloadable":true}' >$id.json

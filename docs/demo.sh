#!/usr/bin/env bash
# The main job, on throwaway clusters: a sample database is backed up into a folder
# and recovered twice, once without this program and once with it. What comes back
# is compared with what was there. Everything lives in a temporary folder, listens on
# sockets only, and is removed at the end.
#
#   SCALE=0.1 docs/demo.sh         the size of the sample; 1 is about 1.1 GB of SQL
set -euo pipefail
cd "$(dirname "$0")/.."
scale=${SCALE:-0.1}

bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[ -x "$bin/initdb" ] || bin=$(dirname "$(command -v initdb)")
PATH=$PWD/bin:$bin:$PATH

work=$(mktemp -d /tmp/dump-demo.XXXXXX)
# PostgreSQL refuses to run as root.
as=()
if [ "$(id -u)" = 0 ]; then
    user=postgres
    id postgres >/dev/null 2>&1 || user=nobody
    as=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups env HOME="$work")
    chown "$user" "$work"
fi
stop() {
    for c in "$work"/*/data; do
        [ -d "$c" ] && "${as[@]}" pg_ctl -D "$c" -m immediate stop >/dev/null 2>&1 || true
    done
    rm -rf "$work"
}
trap stop EXIT

say() { printf '\n== %s\n' "$*"; }
# Prints a command and runs it.
run() { printf '$ %s\n' "$1"; bash -o pipefail -c "$1"; }

cluster() { # name: an empty cluster that listens in $work/name
    "${as[@]}" mkdir "$work/$1"
    "${as[@]}" initdb --no-sync -A trust -U postgres -E UTF8 --locale=C -D "$work/$1/data" >/dev/null
    "${as[@]}" pg_ctl -D "$work/$1/data" -w -l "$work/$1/log" \
        -o "-k $work/$1 -c listen_addresses= -c fsync=off -c max_wal_size=4GB" start >/dev/null
}

# What a cluster holds, as SQL. The key of \restrict is another one each time.
contents() { PGHOST=$work/$1 pg_dumpall -U postgres | sed -E '/^\\(un)?restrict /d'; }

export PGUSER=postgres DUMP_STORE=$work/backups DUMP_KEY_FILE=$work/key
unset PGHOST PGPORT PGDATABASE PGSERVICE DUMP_KEY

say "a cluster with a sample database and roles (PostgreSQL $(postgres --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1))"
cluster source
export PGHOST=$work/source
run "psql -q -X -v scale=$scale -f bench/shop.sql >/dev/null"
run "psql -q -X -c \"CREATE ROLE clerk LOGIN PASSWORD 'not so secret'\" -c 'GRANT pg_read_all_data TO clerk'"
run "psql -X -d shop -Atc \"SELECT 'customers: ' || count(*) FROM customers UNION ALL SELECT 'orders: ' || count(*) FROM orders UNION ALL SELECT 'events: ' || count(*) FROM events\""

say "a key, and a backup (DUMP_STORE and DUMP_KEY_FILE are set)"
run "dump key generate"
run "dump create --name demo --verbose"
run "ls -l $work/backups"
run "dump list"
run "dump verify"
id=$(dump list --json | sed -n 's/.*"backup_id": "\(.*\)",$/\1/p' | head -n 1)

say "recovery without this program, into an empty cluster"
cluster byhand
export PGHOST=$work/byhand
run "cd $work/backups && cat \$(ls -1v $id-*) | openssl enc -d -aes256 -md md5 -pass file:$work/key | gunzip -c | psql -X -q -d postgres >/dev/null"
echo 'these complaints are expected: openssl would prefer -pbkdf2, and the empty cluster has its role postgres already'

say "recovery with it, into another empty cluster"
cluster withtool
export PGHOST=$work/withtool
run "dump restore --backup-id $id | psql -X -q -d postgres >/dev/null"

say "is what came back what was there?"
contents source >"$work/source.sql"
for c in byhand withtool; do
    contents "$c" >"$work/$c.sql"
    if cmp "$work/source.sql" "$work/$c.sql"; then
        echo "$c: pg_dumpall gives the same $(wc -c <"$work/$c.sql") bytes as that of the source"
    else
        echo "$c: DIFFERS from the source" >&2
        exit 1
    fi
done

say "a drill: restore into a throwaway cluster, compare, leave only a record"
run "dump verify --level restore"
run "dump list"

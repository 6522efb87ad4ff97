package dump

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/postgres/postgrestest"
	"encdump/storage"
)

// drillSource is a cluster with what is awkward to compare.
const drillSource = `
CREATE TABLE in_postgres (a int);
CREATE ROLE clerk LOGIN PASSWORD 'not so secret'; ALTER ROLE clerk SET work_mem = '5MB'; CREATE ROLE staff; GRANT staff TO clerk;
CREATE DATABASE shop OWNER clerk; ALTER DATABASE shop SET DateStyle = 'German'; ALTER DATABASE shop SET TimeZone = 'Asia/Kolkata';
ALTER DATABASE shop SET bytea_output = 'escape'; ALTER ROLE clerk IN DATABASE shop SET statement_timeout = '7s';
CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
CREATE DATABASE nothing;
\connect template1
GRANT CREATE ON SCHEMA public TO PUBLIC;
\connect latin
CREATE TABLE "W\u00f6rter" ("Wort\u00df" text); INSERT INTO "W\u00f6rter" VALUES (convert_from('\xe4f6fc', 'LATIN1'));
\connect shop
CREATE SCHEMA "odd ""schema"; CREATE EXTENSION IF NOT EXISTS plpgsql;
CREATE TABLE orders (id bigserial PRIMARY KEY, at timestamptz, gone interval, price float8, twice float8 GENERATED ALWAYS AS (price * 2) STORED, raw bytea, kind regclass, note text);
INSERT INTO orders (at, gone, price, raw, kind, note) SELECT now() - i * '1 hour 3 seconds'::interval, i * '1 day 2 hours'::interval, i / 7.0, sha256(i::text::bytea), 'orders', E'tab\tand\nline\\' || i FROM generate_series(1, 2000) i;
CREATE TABLE "odd ""schema"."Empty" (); INSERT INTO "odd ""schema"."Empty" DEFAULT VALUES;
CREATE TABLE parts (a int, b text) PARTITION BY RANGE (a); CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (10); CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (10) TO (100);
INSERT INTO parts SELECT i, 'p' FROM generate_series(0, 50) i;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY; ALTER TABLE orders FORCE ROW LEVEL SECURITY;
CREATE SEQUENCE untouched START 5; CREATE SEQUENCE down INCREMENT -3 MINVALUE -100 MAXVALUE 100 START 50; SELECT nextval('down'), nextval('down');
SELECT lo_from_bytea(4711, convert_to(repeat('large ', 3000), 'UTF8')), lo_from_bytea(4712, ''), lo_put(lo_from_bytea(4713, 'x'), 70000, 'behind a hole');
CREATE FUNCTION fingerprints() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER TABLE parts1 REPLICA IDENTITY FULL; ALTER TABLE orders REPLICA IDENTITY DEFAULT;
CREATE PUBLICATION everything FOR ALL TABLES;
`

func verifyRestore(t *testing.T, b *archive.Backup, change func(*VerifyOptions)) *VerifyReport {
	t.Helper()
	o := &VerifyOptions{Level: LevelRestore, Read: archive.ReadOptions{Jobs: 2}, Drill: DrillOptions{Jobs: 2, TempDir: t.TempDir(), Record: true}}
	// The server's user must be able to pass through.
	for dir := o.Drill.TempDir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(o)
	}
	r, err := Verify(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(o.Drill.TempDir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return r
}

// readOnly is a store that takes nothing.
type readOnly struct{ storage.Bucket }

func (readOnly) Put(context.Context, string, io.Reader, *storage.PutOptions) error {
	return storage.ErrPermission
}

func TestDrill(t *testing.T) {
	source := startCluster(t)
	sql(t, source, "postgres", drillSource)
	b := backup(t, source)

	t.Run("equal", func(t *testing.T) {
		r := verifyRestore(t, b, nil)
		d := r.Drill
		if !r.OK() || d.Tables != 8 || d.Rows != 2000+1+51+2+1 || d.Sequences != 3 || d.LargeObjects != 3 {
			t.Fatalf("%+v, drill %+v", r, d)
		}
		again := find(t, b.Bucket(), b.ID.String())
		if again.Drill == nil || !again.Drill.Passed() || again.Drill.Rows != 2055 || again.Verified.IsZero() || again.Drill.Seconds <= 0 {
			t.Errorf("record %+v", again.Drill)
		}
	})

	t.Run("into a store that may not be written", func(t *testing.T) {
		found, err := archive.OpenCatalog(readOnly{b.Bucket()}, crypto.Keyring{testKey}, nil).Find(t.Context(), archive.Ref{ID: b.ID.String()})
		if err != nil {
			t.Fatal(err)
		}
		if r := verifyRestore(t, found, nil); !r.OK() || !errors.Is(r.Drill.Unrecorded, storage.ErrPermission) || r.Drill.Rows != 2055 {
			t.Errorf("%+v, drill %+v", r, r.Drill)
		}
	})

	t.Run("into", func(t *testing.T) {
		target := startCluster(t)
		sql(t, target, "postgres", "COMMENT ON DATABASE postgres IS 'mine'; ALTER DATABASE template1 SET work_mem = '5MB'")
		databases := func() string {
			return sql(t, target, "postgres", `SELECT string_agg(concat_ws('|', datname, pg_get_userbyid(datdba), datacl, datconnlimit, datistemplate,
				shobj_description(d.oid, 'pg_database'), (SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole = 0)), ' ' ORDER BY datname) FROM pg_database d`)
		}
		before := databases()
		into := func(o *VerifyOptions) { o.Drill.Into = &postgres.Config{DSN: target.DSN("postgres")} }
		if r := verifyRestore(t, b, into); !r.OK() {
			t.Fatalf("%+v", r)
		}
		if left := databases(); left != before {
			t.Errorf("databases were %s, are %s", before, left)
		}
		// What somebody uses is not touched, and no judgement on the backup.
		sql(t, target, "postgres", "CREATE DATABASE shop; \\connect shop\nCREATE TABLE mine (a int)")
		if r := verifyRestore(t, b, into); len(r.Findings) > 0 || len(r.Inconclusive) != 1 || !strings.Contains(r.Inconclusive[0].Text, `"shop" holds public.mine`) {
			t.Errorf("%+v", r)
		}
		if sql(t, target, "shop", "SELECT count(*) FROM mine") != "0" {
			t.Error("mine")
		}
	})

	t.Run("different", func(t *testing.T) {
		b, target := backup(t, source), startCluster(t)
		for change, want := range map[string][]string{
			"DELETE FROM orders WHERE id = 7; UPDATE parts SET b = 'x' WHERE a = 3; DROP TABLE child;" +
				"SELECT nextval('down'), setval('untouched', 5, true), lo_put(4713, 3, 'y');" +
				"ALTER ROLE clerk RESET work_mem; ALTER ROLE clerk NOLOGIN; REVOKE staff FROM clerk;" +
				"ALTER DATABASE shop RESET bytea_output; ALTER ROLE clerk IN DATABASE shop RESET ALL; DROP DATABASE latin": {
				`database "latin" is missing`,
				`sequence public.down of database "shop" is at 44 (called: true), in the dump at 47 (called: true)`,
				`sequence public.untouched of database "shop" is at 5 (called: true), in the dump at 5 (called: false)`,
				`table public.child of database "shop" is missing`,
				`table public.orders of database "shop" has 1999 rows, the dump has 2000`,
				`table public.parts1 of database "shop" has 10 rows as the dump, but other contents`,
				`the large objects of database "shop" are 3 with`,
				`what the backup sets is not in force: ALTER DATABASE shop SET bytea_output`,
				`what the backup sets is not in force: ALTER ROLE clerk IN DATABASE shop …`,
				`what the backup sets is not in force: ALTER ROLE clerk …`,
				`what the backup sets is not in force: ALTER ROLE clerk …`,
				`what the backup sets is not in force: GRANT staff TO clerk`,
			},
			"SET allow_system_table_mods = on; UPDATE pg_proc SET prolang = 99999 WHERE proname = 'fingerprints'": {
				`the databases cannot be dumped once more: `,
			},
		} {
			r := verifyRestore(t, b, func(o *VerifyOptions) {
				o.Drill.Into = &postgres.Config{DSN: target.DSN("postgres")}
				o.Progress = atPhase{"comparing", func() { sql(t, target, "shop", change) }}
			})
			if len(r.Findings) != len(want) || len(r.Damage)+len(r.Inconclusive) > 0 {
				t.Errorf("%s: %+v", change, r)
			}
			for i := range want {
				if i < len(r.Findings) && !strings.HasPrefix(r.Findings[i], want[i]) {
					t.Errorf("finding %q, want %q", r.Findings[i], want[i])
				}
			}
			if b := find(t, b.Bucket(), b.ID.String()); b.Drill == nil || b.Drill.Passed() || !b.Verified.IsZero() || b.Drill.Findings != len(want) {
				t.Errorf("record %+v", b.Drill)
			}
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		dir := t.TempDir()
		for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		_, err := Verify(ctx, b, &VerifyOptions{
			Level: LevelRestore, Drill: DrillOptions{Jobs: 2, TempDir: dir}, Progress: atPhase{"comparing", cancel},
		})
		if err != context.Canceled {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})

	t.Run("missing", func(t *testing.T) {
		n := len(find(t, b.Bucket(), b.ID.String()).Objects())
		for name, c := range map[string]struct {
			change func(*VerifyOptions)
			want   string
		}{
			"no programs": {func(o *VerifyOptions) { o.Drill.BinDir = o.Drill.TempDir }, "no initdb"},
			"room":        {nil, "a restore needs 1152921505"},
			"version": {func(o *VerifyOptions) {
				other := postgrestest.Start(t, 18, postgres.ClusterOptions{})
				o.Drill.Into = &postgres.Config{DSN: other.DSN("postgres")}
			}, "only the names of roles were compared|no pg_dumpall for a server"},
		} {
			b := find(t, b.Bucket(), b.ID.String())
			if name == "room" {
				b.Metadata.Source.DatabaseBytes = 1 << 60
			}
			r := verifyRestore(t, b, c.change)
			if r.OK() || len(r.Findings)+len(r.Damage) > 0 || !slices.ContainsFunc(r.Inconclusive, func(p Problem) bool {
				return slices.ContainsFunc(strings.Split(c.want, "|"), func(w string) bool { return strings.Contains(p.Text, w) })
			}) {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if now := len(find(t, b.Bucket(), b.ID.String()).Objects()); now != n {
			t.Errorf("%d objects, there were %d", now, n)
		}
	})
}

type atPhase struct {
	phase string
	do    func()
}

func (p atPhase) Start(phase string, _ int64) {
	if phase == p.phase {
		p.do()
	}
}
func (atPhase) Add(int64) {}
func (atPhase) Done()     {}

// TestDrillForeign drills what nothing but the stream itself tells of.
func TestDrillForeign(t *testing.T) {
	source := startCluster(t)
	sql(t, source, "postgres", drillSource)
	stored := func(t *testing.T, text string) *archive.Backup {
		return backupOf(t, &CreateOptions{Stdin: strings.NewReader(text), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11"})
	}
	target := startCluster(t)
	into := func(o *VerifyOptions) { o.Drill.Into = &postgres.Config{DSN: target.DSN("postgres")} }
	settings := []string{"PGOPTIONS=" + postgres.DumpSettings}
	run := func(args ...string) string { return on(t, source, nil, "env", args...) }

	t.Run("cluster", func(t *testing.T) {
		if r := verifyRestore(t, stored(t, run(append(settings, "pg_dumpall")...)), into); !r.OK() || r.Drill.Rows != 2055 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("database", func(t *testing.T) {
		if r := verifyRestore(t, stored(t, run(append(settings, "pg_dump", "shop")...)), nil); len(r.Findings) > 0 || r.Drill.Rows != 2054 {
			t.Errorf("%+v, %+v", r, r.Drill)
		}
	})
	t.Run("other settings", func(t *testing.T) {
		r := verifyRestore(t, stored(t, run("pg_dumpall")), into)
		if len(r.Findings) > 0 || len(r.Inconclusive) != 1 || !strings.Contains(r.Inconclusive[0].Text, "the settings that the dump was made with are not known") || r.Drill.Record != "" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("inserts", func(t *testing.T) {
		r := verifyRestore(t, backup(t, source, "--inserts"), into)
		if len(r.Findings) > 0 || len(r.Inconclusive) != 2 || !strings.Contains(r.Inconclusive[0].Text, "INSERT") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("other options", func(t *testing.T) {
		r := verifyRestore(t, backup(t, source, "--load-via-partition-root", "--encoding=UTF8"), into)
		if !r.OK() || r.Drill.Rows != 2055 || r.Drill.Tables != 7 {
			t.Errorf("%+v, %+v", r, r.Drill)
		}
	})
	t.Run("a statement fails", func(t *testing.T) {
		r := verifyRestore(t, stored(t, strings.Replace(run(append(settings, "pg_dumpall")...), "CREATE SEQUENCE public.untouched", "CREATE SEQUENCEX public.untouched", 1)), into)
		if len(r.Findings) == 0 || !strings.HasPrefix(r.Findings[0], "a statement of the backup failed: ") || r.Drill.Record == "" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("extension", func(t *testing.T) {
		r := verifyRestore(t, stored(t, strings.Replace(run(append(settings, "pg_dumpall")...), "CREATE TABLE public.orders", "CREATE EXTENSION no_such_extension;\nCREATE TABLE public.orders", 1)), into)
		if len(r.Findings) > 0 || len(r.Inconclusive) == 0 || !strings.Contains(r.Inconclusive[0].Text, `extension "no_such_extension"`) || r.Inconclusive[0].Hint == "" {
			t.Errorf("%+v", r)
		}
	})
}

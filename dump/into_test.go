package dump

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/postgres/postgrestest"
	"encdump/dump/script"
	"encdump/storage"
	"encdump/storage/storagetest"
)

var testKey = crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test")

// serverSettings are what the data sets need.
var serverSettings = map[string]string{"max_locks_per_transaction": "1000", "wal_level": "logical", "max_connections": "50"}

func startCluster(t *testing.T) *postgres.Cluster {
	t.Helper()
	c, err := postgres.StartCluster(t.Context(), postgres.ClusterOptions{Settings: serverSettings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// on runs a program against a cluster, and returns what it prints.
func on(t *testing.T, c *postgres.Cluster, in []byte, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") })
	cmd.Env = append(cmd.Env, "PGHOST="+c.SocketDir(), fmt.Sprintf("PGPORT=%d", c.Port()), "PGUSER=postgres")
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}

func sql(t *testing.T, c *postgres.Cluster, database, text string) string {
	t.Helper()
	return strings.TrimSpace(on(t, c, []byte(text), "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database))
}

// dataSets fills a cluster with all that the scanner is tested with, the shop and 2,000 tables.
func dataSets(t *testing.T, c *postgres.Cluster) {
	t.Helper()
	files, err := filepath.Glob("script/testdata/*.sql")
	if err != nil || len(files) < 7 {
		t.Fatal(files, err)
	}
	since := regexp.MustCompile(`_(\d+)\.sql$`)
	for _, f := range files {
		if m := since.FindStringSubmatch(f); m != nil {
			if n, _ := strconv.Atoi(m[1]); n > major(c) {
				continue
			}
		}
		on(t, c, nil, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", f)
	}
	on(t, c, nil, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-v", "scale=0.01", "-d", "postgres", "-f", "../bench/shop.sql")
	var many strings.Builder
	many.WriteString("CREATE DATABASE many;\n\\connect many\nBEGIN;\n")
	for i := range 2000 {
		fmt.Fprintf(&many, "CREATE TABLE t%d (a integer PRIMARY KEY, b text);INSERT INTO t%d VALUES (%d, 'x');\n", i, i, i)
	}
	many.WriteString("ALTER TABLE t1 ADD FOREIGN KEY (a) REFERENCES t1;COMMIT;\n")
	on(t, c, []byte(many.String()), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	// Rows of several chunks, some larger than a chunk, and a table in the way of every worker.
	on(t, c, []byte(`CREATE DATABASE wide; \connect wide
CREATE TABLE large (id int PRIMARY KEY, t text); INSERT INTO large SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i;
INSERT INTO large SELECT -i, repeat(md5(i::text), 100000 * i) FROM generate_series(1, 2) i;
CREATE TABLE refers (id int PRIMARY KEY REFERENCES large, other int REFERENCES refers); INSERT INTO refers SELECT i, i FROM generate_series(1, 20000) i;
CREATE INDEX ON refers (other); CREATE INDEX ON large (md5(t)); ALTER TABLE large ADD refers int REFERENCES refers;
CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM large; CREATE MATERIALIZED VIEW of_counts AS SELECT * FROM counts;
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
}

func major(c *postgres.Cluster) (n int) {
	fmt.Sscan(c.Version(), &n)
	return n
}

// backup makes a backup of a cluster in memory.
func backup(t *testing.T, c *postgres.Cluster, args ...string) *archive.Backup {
	t.Helper()
	return backupOf(t, &CreateOptions{Source: postgres.Config{DSN: c.DSN("postgres")}, Dump: postgres.DumpOptions{Args: args}, Partial: len(args) > 0})
}

func backupOf(t *testing.T, o *CreateOptions) *archive.Backup {
	t.Helper()
	mem := storagetest.Mem()
	o.Stores = []storage.Bucket{mem}
	o.Key = func(context.Context, string, bool) (*crypto.Key, error) { return testKey, nil }
	o.Archive.Jobs, o.Archive.Level = 2, 1
	report, err := Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return find(t, mem, report.Metadata.BackupID)
}

func find(t *testing.T, b storage.Bucket, id string) *archive.Backup {
	t.Helper()
	found, err := archive.OpenCatalog(b, crypto.Keyring{testKey}, nil).Find(t.Context(), archive.Ref{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func intoOptions(c *postgres.Cluster, jobs int) *IntoOptions {
	return &IntoOptions{
		Target: postgres.Config{DSN: c.DSN("postgres")}, Selection: &script.Selection{}, Read: archive.ReadOptions{Jobs: 2},
		Replay: postgres.ReplayOptions{Jobs: jobs},
	}
}

// normal is a dump in which what may differ is out of the way: the order of rows, which is that in which
// connections came, and the keys of \restrict.
func normal(dump string) string {
	var out, rows []string
	for line := range strings.Lines(dump) {
		switch {
		case rows != nil && line == "\\.\n":
			rows = rows[1:]
			slices.Sort(rows)
			out = append(append(out, rows...), line)
			rows = nil
		case rows != nil:
			rows = append(rows, line)
		case strings.HasPrefix(line, "COPY ") && strings.HasSuffix(line, "FROM stdin;\n"):
			out, rows = append(out, line), []string{""}
		case strings.HasPrefix(line, `\restrict `), strings.HasPrefix(line, `\unrestrict `):
		default:
			out = append(out, line)
		}
	}
	return strings.Join(append(out, rows...), "")
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	got, want = normal(got), normal(want)
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	i := 0
	for i < min(len(g), len(w)) && g[i] == w[i] {
		i++
	}
	from := max(i-3, 0)
	t.Errorf("%s: differs at line %d:\n%.2000s\nshould be\n%.2000s", what, i+1,
		strings.Join(g[from:min(i+8, len(g))], "\n"), strings.Join(w[from:min(i+8, len(w))], "\n"))
}

// apart has all tables but the smallest loaded from readers of their own.
func apart(t *testing.T) {
	t.Helper()
	old := wholeTable
	wholeTable = 10_000
	t.Cleanup(func() { wholeTable = old })
}

// TestRestoreInto compares what is replayed with what psql makes of the same script, on the same version of the server.
func TestRestoreInto(t *testing.T) {
	testRestoreInto(t, startCluster(t))
	for _, version := range postgrestest.Majors(t) {
		if version == 13 || version == 14 { // older ones lack what the data sets need
			t.Run(fmt.Sprintf("from %d", version), func(t *testing.T) {
				testRestoreInto(t, postgrestest.Start(t, version, postgres.ClusterOptions{Settings: serverSettings}))
			})
		}
	}
}

func testRestoreInto(t *testing.T, source *postgres.Cluster) {
	dataSets(t, source)
	b := backup(t, source)
	var plain bytes.Buffer
	if err := Restore(t.Context(), b, &plain, archive.ReadOptions{Jobs: 2}, nil); err != nil {
		t.Fatal(err)
	}
	installed, err := postgres.StartCluster(t.Context(), postgres.ClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own := major(installed) // that of the programs, too
	if err := installed.Stop(); err != nil {
		t.Fatal(err)
	}
	dump := func(t *testing.T, c *postgres.Cluster) string {
		t.Helper()
		if major(c) > own { // pg_dumpall refuses a newer server
			return contents(t, c)
		}
		return on(t, c, nil, "pg_dumpall")
	}
	jobs := []int{1, 4}
	if os.Getenv("TEST_SERVERS") != "" {
		jobs = []int{1, 2, 4, 8}
	}
	for _, version := range append([]int{own}, postgrestest.Majors(t)...) {
		if version < own {
			continue // the dump has options of CREATE DATABASE that are not known there
		}
		t.Run(fmt.Sprintf("to %d", version), func(t *testing.T) {
			start := func(t *testing.T) *postgres.Cluster {
				if version == own {
					return startCluster(t)
				}
				return postgrestest.Start(t, version, postgres.ClusterOptions{Settings: serverSettings})
			}
			psql := start(t)
			on(t, psql, plain.Bytes(), "psql", "-Xq", "-d", "postgres")
			want := dump(t, psql)
			for _, n := range jobs {
				t.Run(fmt.Sprintf("jobs %d", n), func(t *testing.T) {
					if n > 1 == (version == own) || n == 8 {
						apart(t)
					}
					target := start(t)
					o := intoOptions(target, n)
					o.Replay.Analyze = n > 1
					r, err := RestoreInto(t.Context(), b, o)
					if err != nil {
						t.Fatal(err)
					}
					same(t, "target", dump(t, target), want)
					if len(r.Harmless) != 1 || len(r.Failures) != 0 || len(r.Skipped) != 0 {
						t.Errorf("harmless %v, failures %v, skipped %v", r.Harmless, r.Failures, r.Skipped)
					}
					if n > 1 && sql(t, target, "wide", "SELECT count(*) FROM pg_stats WHERE tablename = 'large'") == "0" {
						t.Error("no statistics")
					}
				})
			}
		})
	}
}

// contents is what a server holds, for want of a pg_dumpall that may dump it.
func contents(t *testing.T, c *postgres.Cluster) string {
	t.Helper()
	var out strings.Builder
	out.WriteString(sql(t, c, "postgres", `SELECT rolname, rolsuper, rolpassword FROM pg_authid WHERE oid >= 16384 ORDER BY 1;
SELECT datname, datdba::regrole, datacl, pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname <> 'template0' ORDER BY 1;
SELECT d.datname, setrole::regrole, setconfig FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase ORDER BY 1, 2;
SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members WHERE roleid >= 16384 ORDER BY 1, 2`))
	for name := range strings.Lines(sql(t, c, "postgres", "SELECT '''' || replace(replace(datname, '\\', '\\\\'), '''', '\\''') || '''' FROM pg_database WHERE datname <> 'template0' ORDER BY 1")) {
		database := "dbname=" + strings.TrimSpace(name)
		out.WriteString("\n" + database + "\n" + sql(t, c, database, `SET client_encoding = 'SQL_ASCII'; SET search_path = '';
SELECT c.oid::regclass, c.relkind, c.relowner::regrole, c.relacl, c.reloptions, pg_get_expr(relpartbound, c.oid), obj_description(c.oid, 'pg_class'), relreplident, relrowsecurity,
	CASE WHEN relkind = 'i' THEN pg_get_indexdef(c.oid) WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END
	FROM pg_class c WHERE c.oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace ORDER BY c.oid::regclass::text;
SELECT attrelid::regclass, attnum, attname, atttypid::regtype, attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
	WHERE attrelid >= 16384 AND attnum > 0 AND attrelid::regclass::text !~ '^pg_toast' ORDER BY attrelid::regclass::text, attnum;
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint WHERE oid >= 16384 AND contype <> 'n' ORDER BY conrelid::regclass::text, conname;
SELECT oid::regprocedure, proowner::regrole, proacl, pg_get_functiondef(oid) FROM pg_proc WHERE oid >= 16384 AND prokind <> 'a' ORDER BY oid::regprocedure::text;
SELECT tgrelid::regclass, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgrelid::regclass::text, tgname;
SELECT polrelid::regclass, polname, pg_get_expr(polqual, polrelid) FROM pg_policy ORDER BY 1, 2; SELECT pubname FROM pg_publication ORDER BY 1; SELECT evtname, evtenabled FROM pg_event_trigger ORDER BY 1;
SELECT subname, subenabled, subslotname, subpublications FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1;
SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2; SELECT typname, typtype FROM pg_type WHERE oid >= 16384 ORDER BY 1;
SELECT oid, lomowner::regrole, lomacl, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1; SELECT provider, objtype, objname, label FROM pg_seclabels ORDER BY 3`))
		tables := sql(t, c, database, `SET search_path = ''; SELECT oid::regclass FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'm') ORDER BY 1`)
		var count strings.Builder
		count.WriteString("SET client_encoding = 'SQL_ASCII'; SET search_path = '';\n")
		if tables != "" && !strings.Contains(database, "names") {
			for rel := range strings.SplitSeq(sql(t, c, database, `SET client_encoding = 'SQL_ASCII'; SET search_path = '';
SELECT 'SELECT count(*), sum(hashtextextended(x::text, 0)) FROM ' || oid::regclass || ' x' FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'm') AND relispopulated ORDER BY oid::regclass::text`), "\nSELECT ") {
				count.WriteString("SELECT " + strings.TrimPrefix(rel, "SELECT ") + ";\n")
			}
			out.WriteString(sql(t, c, database, count.String()))
		}
	}
	return out.String()
}

// TestIntoKeepsProperties: what a script does not say of a database that it expects to be there stays as it is.
func TestIntoKeepsProperties(t *testing.T) {
	source := startCluster(t)
	for _, d := range []string{"postgres", "template1"} { // both must be replaced, and one cannot be connected to either meanwhile
		sql(t, source, d, "CREATE TABLE t (a text); INSERT INTO t VALUES ('ü')")
	}
	prepared := func() *postgres.Cluster {
		c := startCluster(t)
		on(t, c, []byte(`CREATE ROLE "the owner" CREATEDB LOGIN; CREATE ROLE guest; CREATE DATABASE latin OWNER "the owner" ENCODING LATIN1 TEMPLATE template0;
ALTER DATABASE postgres CONNECTION LIMIT 7; ALTER DATABASE postgres SET search_path = 'a b', public; ALTER DATABASE postgres SET "App.key" = '100%s, ''x'; COMMENT ON DATABASE postgres IS 'it''s 5 %d \ of';
ALTER ROLE guest IN DATABASE postgres SET DateStyle = 'German'; ALTER ROLE guest IN DATABASE postgres SET role = 'guest'; GRANT CREATE ON DATABASE postgres TO guest WITH GRANT OPTION;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; ALTER DATABASE latin SET work_mem = '7MB'; ALTER DATABASE template1 OWNER TO "the owner"; GRANT ALL ON DATABASE latin TO guest;
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
		return c
	}
	psql, target := prepared(), prepared()
	single := on(t, source, nil, "pg_dump", "--no-owner", "postgres")
	for _, x := range []struct {
		database string
		backup   *archive.Backup
	}{
		{"", backup(t, source)},
		{"latin", backupOf(t, &CreateOptions{Stdin: strings.NewReader(single), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11"})},
	} {
		var plain bytes.Buffer
		if err := Restore(t.Context(), x.backup, &plain, archive.ReadOptions{Jobs: 2}, nil); err != nil {
			t.Fatal(err)
		}
		on(t, psql, plain.Bytes(), "psql", "-Xq", "-d", cmp.Or(x.database, "postgres"))
		o := intoOptions(target, 2)
		o.Database = x.database
		r, err := RestoreInto(t.Context(), x.backup, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Remains) > 0 {
			t.Error(r.Remains)
		}
	}
	same(t, "target", on(t, target, nil, "pg_dumpall", "--clean"), on(t, psql, nil, "pg_dumpall", "--clean"))
	if got, want := databaseList(t, target), databaseList(t, psql); got != want {
		t.Errorf("databases %s, should be %s", got, want)
	}
}

func databaseList(t *testing.T, c *postgres.Cluster) string {
	return sql(t, c, "postgres", "SELECT datname, datistemplate, datallowconn, datconnlimit, pg_encoding_to_char(encoding), datacl, datdba::regrole FROM pg_database ORDER BY 1")
}

// TestIntoTarget: what is there stays, unless it is to be replaced.
func TestIntoTarget(t *testing.T) {
	source := startCluster(t)
	on(t, source, []byte(`CREATE ROLE app LOGIN PASSWORD 'secret'; CREATE DATABASE shop OWNER app; CREATE DATABASE other;
\connect shop
CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 1000) i;
\connect other
CREATE TABLE t AS SELECT 1 AS a; SET client_min_messages = error;
CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false);
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	b := backup(t, source)
	target := startCluster(t)
	databases := func() string {
		return sql(t, target, "postgres", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database")
	}
	count := func() string { return sql(t, target, "shop", "SELECT count(*) FROM items") }
	restore := func(change func(*IntoOptions)) (*IntoReport, error) {
		o := intoOptions(target, 2)
		if change != nil {
			change(o)
		}
		return RestoreInto(t.Context(), b, o)
	}

	if _, err := restore(func(o *IntoOptions) { o.Confirm = func(*IntoPlan) error { return errors.New("no") } }); err == nil || databases() != "postgres template0 template1" {
		t.Fatalf("not confirmed: %v, %s", err, databases())
	}
	r, err := restore(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Subscriptions) != 1 || r.Subscriptions[0] != (postgres.Subscription{Database: "other", Name: "sub"}) {
		t.Errorf("subscriptions: %v", r.Subscriptions)
	}

	// What holds something is refused, by name, and stays.
	sql(t, target, "shop", "DELETE FROM items WHERE id > 10")
	_, err = restore(nil)
	var preflight *PreflightError
	if !errors.As(err, &preflight) || !strings.Contains(err.Error(), `"shop" holds public.items`) || !strings.Contains(preflight.Hint(), "--clean") || count() != "10" {
		t.Fatalf("target that holds something: %v", err)
	}
	// A failure keeps the old data, and removes the new.
	broken := backupOf(t, &CreateOptions{GUID: b.ID.GUID, Stdin: strings.NewReader(strings.Replace(on(t, source, nil, "pg_dumpall"), "ADD CONSTRAINT items_pkey PRIMARY KEY (id)", "ADD CONSTRAINT items_pkey PRIMARY KEY (nonsense)", 1))})
	o := intoOptions(target, 2)
	o.Clean = true
	r, err = RestoreInto(t.Context(), broken, o)
	var failure *postgres.Failure
	if !errors.As(err, &failure) || failure.Database != "shop" || !strings.Contains(failure.Error(), "SQLSTATE 42703") || !strings.Contains(failure.Statement, "items_pkey") {
		t.Fatalf("failing statement: %v", err)
	}
	if databases() != "other postgres shop template0 template1" || count() != "10" || !strings.Contains(strings.Join(r.State, "\n"), "as they were") {
		t.Errorf("after a failure: %s, %s rows, %q", databases(), count(), r.State)
	}
	// With KeepGoing it is in place, and the old one kept.
	o = intoOptions(target, 2)
	o.Clean, o.Replay.KeepGoing, o.Selection = true, true, &script.Selection{Databases: []string{"shop"}}
	r, err = RestoreInto(t.Context(), broken, o)
	if err != nil || len(r.Failures) != 1 || count() != "1000" || len(r.Kept) != 1 {
		t.Fatalf("keep going: %v, %v, %s rows, kept %v", err, r.Failures, count(), r.Kept)
	}
	if got := sql(t, target, r.Kept[0], "SELECT count(*) FROM items"); got != "10" {
		t.Errorf("kept database: %s rows", got)
	}
	sql(t, target, "postgres", "DROP DATABASE "+r.Kept[0])

	// A connection that is in the way is named; ended where that is wanted.
	conn, err := pgconn.Connect(t.Context(), target.DSN("shop")+" application_name=reporting")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err = restore(func(o *IntoOptions) { o.Clean = true }); err == nil || !strings.Contains(err.Error(), `application "reporting"`) {
		t.Fatalf("connection in the way: %v", err)
	}
	sql(t, target, "shop", "DELETE FROM items WHERE id > 20")
	if r, err = restore(func(o *IntoOptions) { o.Clean, o.KeepOld, o.Terminate = true, true, true }); err != nil {
		t.Fatal(err)
	}
	if count() != "1000" || len(r.Kept) != 2 {
		t.Errorf("%s rows, kept %v", count(), r.Kept)
	}
	for _, name := range r.Kept {
		if strings.HasPrefix(name, "other_before_") {
			sql(t, target, name, "ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub")
		}
		sql(t, target, "postgres", "DROP DATABASE "+name)
	}

	// One that comes while the restore runs: all is restored, and waits to be put in place.
	var late *pgconn.PgConn
	r, err = restore(func(o *IntoOptions) {
		o.Clean = true
		o.Confirm = func(*IntoPlan) error {
			late, err = pgconn.Connect(t.Context(), target.DSN("shop"))
			return err
		}
	})
	if err == nil || !strings.Contains(strings.Join(r.State, "\n"), "only puts them in place") || strings.Count(databases(), "dump_restored_") != 2 {
		t.Fatalf("connection that comes late: %v, %q, %s", err, r.State, databases())
	}
	r, err = restore(func(o *IntoOptions) { o.Clean, o.Terminate = true, true })
	if err != nil || r.Statements != 0 || databases() != "other postgres shop template0 template1" || count() != "1000" {
		t.Fatalf("second run: %v, %d statements, %s", err, r.Statements, databases())
	}
	late.Close(context.Background())

	// In place, beside, and data alone.
	if _, err = restore(func(o *IntoOptions) { o.Clean, o.InPlace = true, true }); err != nil || count() != "1000" {
		t.Fatalf("in place: %v", err)
	}
	if _, err = restore(func(o *IntoOptions) {
		o.Selection = &script.Selection{Databases: []string{"shop"}, Rename: map[string]string{"shop": `shop "then"`}}
	}); err != nil || sql(t, target, `shop "then"`, "SELECT count(*) FROM items") != "1000" {
		t.Fatalf("beside: %v", err)
	}
	sql(t, target, "shop", "TRUNCATE items")
	if _, err = restore(func(o *IntoOptions) {
		o.Selection = &script.Selection{Databases: []string{"shop"}, DataOnly: true}
	}); err != nil || count() != "1000" {
		t.Fatalf("data only: %v, %s", err, count())
	}
	if _, err = restore(func(o *IntoOptions) {
		o.Selection = &script.Selection{Databases: []string{"shop"}, DataOnly: true}
	}); err == nil || count() != "1000" {
		t.Fatalf("data twice: %v, %s", err, count())
	}

	// Files of the operator's, and a slot that nobody uses.
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before.sql"), filepath.Join(dir, "after.sql")
	for name, text := range map[string]string{before: "CREATE TABLE was_before (a int);\nDO $$ BEGIN END $$", after: "INSERT INTO items VALUES (-1, 'from a file');"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sql(t, target, "postgres", "SELECT pg_create_physical_replication_slot('nobody')")
	_, err = restore(func(o *IntoOptions) {
		o.Clean, o.DropInactiveSlots = true, true
		o.Before, o.After = []SQLFile{{"", before}}, []SQLFile{{"shop", after}}
	})
	if err != nil || count() != "1001" || sql(t, target, "postgres", "SELECT count(*) FROM was_before") != "0" || sql(t, target, "postgres", "SELECT count(*) FROM pg_replication_slots") != "0" {
		t.Fatalf("files: %v", err)
	}

	// The database postgres is replaced as any other.
	sql(t, source, "postgres", "CREATE TABLE of_postgres AS SELECT 7 AS a")
	b = backup(t, source)
	if _, err = restore(nil); err == nil || !strings.Contains(err.Error(), `"postgres" holds public.was_before`) {
		t.Fatal(err)
	}
	if _, err = restore(func(o *IntoOptions) { o.Clean = true }); err != nil || sql(t, target, "postgres", "SELECT a FROM of_postgres") != "7" {
		t.Fatalf("postgres: %v", err)
	}
	if got := sql(t, target, "postgres", "SELECT count(*) FROM pg_class WHERE relname = 'was_before'"); got != "0" {
		t.Error("the old table is there")
	}

	// A run of create holds the lock.
	server, err := postgres.Connect(t.Context(), postgres.Config{DSN: target.DSN("postgres")})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	lock, err := server.Lock(t.Context(), b.ID.GUID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = restore(func(o *IntoOptions) { o.Clean = true }); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("locked: %v", err)
	}
	lock.Release(t.Context())
}

// TestIntoLoses looks for ways to lose what is on a server: what comes while the restore runs, what one overlooks, and
// what a second run believes of the first.
func TestIntoLoses(t *testing.T) {
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", "CREATE DATABASE shop; CREATE DATABASE other")
	sql(t, source, "shop", "CREATE TABLE t AS SELECT 1 AS a")
	publisher, err := net.Listen("tcp", "127.0.0.1:0") // and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	sql(t, source, "other", fmt.Sprintf("CREATE TABLE t AS SELECT 1 AS a; CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=%d' PUBLICATION p WITH (connect = false)", publisher.Addr().(*net.TCPAddr).Port))
	b := backup(t, source)
	restore := func(b *archive.Backup, change func(*IntoOptions)) (*IntoReport, error) {
		o := intoOptions(target, 2)
		change(o)
		return RestoreInto(t.Context(), b, o)
	}
	databases := func() string {
		return sql(t, target, "postgres", "SELECT string_agg(regexp_replace(datname, '_[0-9a-f]{16}$', ''), ' ' ORDER BY datname) FROM pg_database")
	}

	// A database that comes while the restore runs, and one that is filled.
	sql(t, target, "postgres", "CREATE DATABASE other")
	_, err = restore(b, func(o *IntoOptions) {
		o.Confirm = func(*IntoPlan) error {
			sql(t, target, "postgres", "CREATE DATABASE shop")
			sql(t, target, "shop", "CREATE TABLE precious (a int)")
			return nil
		}
	})
	if err == nil || !strings.Contains(err.Error(), `"shop" was empty or not there when the restore began, and holds something now: public.precious`) {
		t.Fatalf("filled meanwhile: %v", err)
	}
	if got := databases(); got != "dump_restored dump_restored other postgres shop template0 template1" {
		t.Fatal(got)
	}
	sql(t, target, "shop", "TABLE precious; DROP TABLE precious")
	if r, err := restore(b, func(*IntoOptions) {}); err != nil || r.Statements != 0 || databases() != "other postgres shop template0 template1" {
		t.Fatalf("second run: %v, %s", err, databases())
	}

	// What is not a table is something, too.
	for _, make := range []string{
		"CREATE EXTENSION hstore", "CREATE PUBLICATION p", "CREATE COLLATION c FROM \"C\"", "CREATE OPERATOR @#@ (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int)", "CREATE FOREIGN DATA WRAPPER w",
		"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "CREATE TEXT SEARCH CONFIGURATION c (COPY = simple)", "CREATE TYPE ty AS (a int)", "SELECT lo_create(0)", "CREATE SCHEMA s", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"CREATE SUBSCRIPTION s CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)", "CREATE CAST (int AS inet) WITH INOUT", "CREATE SEQUENCE s",
	} {
		sql(t, target, "postgres", "DROP DATABASE IF EXISTS shop")
		sql(t, target, "postgres", "CREATE DATABASE shop")
		sql(t, target, "shop", "SET client_min_messages = error; "+make)
		if _, err := restore(b, func(o *IntoOptions) { o.Selection = &script.Selection{Databases: []string{"shop"}} }); err == nil || !strings.Contains(err.Error(), `database "shop" holds`) {
			t.Errorf("%s: %v", make, err)
		}
		sql(t, target, "shop", "DO $$ BEGIN EXECUTE (SELECT 'ALTER SUBSCRIPTION s DISABLE' FROM pg_subscription WHERE subname = 's'); EXCEPTION WHEN null_value_not_allowed THEN END $$; DROP SUBSCRIPTION IF EXISTS s")
	}

	// A restore in which statements failed, and which could not take its place, is no better the second time.
	text := on(t, source, nil, "pg_dumpall")
	text = strings.Replace(text, "CREATE TABLE public.t (", "CREATE TABLE public.nonsense (a nonsense);\nCREATE SUBSCRIPTION never CONNECTION 'host=nowhere' PUBLICATION p;\nCREATE TABLE public.t (", 1)
	broken := backupOf(t, &CreateOptions{GUID: b.ID.GUID, Stdin: strings.NewReader(text)})
	sql(t, target, "postgres", "DROP DATABASE shop")
	sql(t, target, "postgres", "CREATE DATABASE shop")
	sql(t, target, "shop", "CREATE TABLE precious AS SELECT 42 AS a")
	// The server's own workers are in the databases, and in nobody's way.
	sql(t, target, "other", "ALTER SUBSCRIPTION sub ENABLE")
	if conn, err := publisher.Accept(); err != nil {
		t.Fatal(err)
	} else {
		defer conn.Close()
	}
	sql(t, target, "shop", `CREATE FUNCTION waits(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
		PERFORM pg_sleep(600) FROM pg_stat_activity WHERE pid = pg_backend_pid() AND backend_type = 'autovacuum worker'; RETURN 1; END$$;
		CREATE TABLE vacuumed (a int) WITH (autovacuum_analyze_threshold = 0, autovacuum_analyze_scale_factor = 0);
		CREATE INDEX ON vacuumed (waits(a)); INSERT INTO vacuumed SELECT generate_series(1, 10)`)
	sql(t, target, "postgres", "ALTER SYSTEM SET autovacuum_naptime = 1")
	sql(t, target, "postgres", "SELECT pg_reload_conf()")
	for sql(t, target, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND wait_event = 'PgSleep'") == "0" {
	}
	var late *pgconn.PgConn
	goOn := func(o *IntoOptions) { o.Clean, o.Replay.KeepGoing = true, true }
	r, err := restore(broken, func(o *IntoOptions) {
		goOn(o)
		o.Confirm = func(*IntoPlan) (err error) {
			late, err = pgconn.Connect(t.Context(), target.DSN("shop"))
			return err
		}
	})
	if err == nil || r == nil || len(r.Failures) != 2 || databases() != "dump_faulty dump_faulty other postgres shop template0 template1" {
		t.Fatalf("in the way: %v, %+v, %s", err, r, databases())
	}
	if state := strings.Join(r.State, "\n"); strings.Count(state, "connected: process ") != 1 {
		t.Errorf("in the way: %s", state)
	}
	late.Close(context.Background())
	if len(r.Subscriptions) != 1 || !strings.Contains(r.Failures[0].Error(), `in database "`) || strings.Contains(fmt.Sprint(r.Failures), "dump_restoring") {
		t.Errorf("subscriptions %v, failures %v", r.Subscriptions, r.Failures)
	}
	if r, err = restore(broken, goOn); err != nil || !r.Faulty || r.Statements != 0 || len(r.Kept) != 2 {
		t.Fatalf("second run: %v, %+v", err, r)
	}
	for _, name := range r.Kept {
		if strings.HasPrefix(name, "shop_") && sql(t, target, name, "SELECT a FROM precious") != "42" {
			t.Error("the old rows are lost")
		}
		if strings.HasPrefix(name, "other_") && sql(t, target, name, "SELECT subenabled FROM pg_subscription WHERE subname = 'sub' AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())") != "f" {
			t.Error("the subscription of the old database goes on")
		}
	}
	// Without KeepGoing it is not taken for whole.
	if _, err := restore(broken, func(o *IntoOptions) { o.Clean = true }); err == nil {
		t.Error("the broken one passed")
	}

	// What a run that was killed has begun in the server comes to its end, before its traces are looked for.
	o := intoOptions(target, 1)
	o.Clean = true
	o.Confirm = func(p *IntoPlan) error {
		if late, err = pgconn.Connect(t.Context(), target.DSN("template1")); err != nil {
			return err
		}
		query := &pgproto3.Query{String: "SELECT pg_sleep(600) /* CREATE DATABASE \"" + p.Databases[0].loading + "\" */"}
		late.Frontend().Send(query)
		if err := late.Frontend().Flush(); err != nil {
			return err
		}
		for sql(t, target, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(600)%'") == "0" {
		}
		return nil
	}
	if r, err = RestoreInto(t.Context(), b, o); err != nil {
		t.Fatal(err)
	}
	if remains := strings.Join(r.Remains, "\n"); !strings.Contains(remains, `"sub", which went with database "other"`) || strings.Contains(remains, "dump_replaced") {
		t.Errorf("remains %q", r.Remains)
	}
	if got := sql(t, target, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'"); got != "0" {
		t.Error("the statement of the killed run goes on")
	}

	// Files are looked at before anything is done.
	file := filepath.Join(t.TempDir(), "x.sql")
	if err := os.WriteFile(file, []byte("SELECT 1;\n\\set x 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = restore(b, func(o *IntoOptions) { o.Clean, o.After = true, []SQLFile{{"nowhere", file}} })
	if err == nil || !strings.Contains(err.Error(), `only psql knows \set`) || !strings.Contains(err.Error(), `database "nowhere", which will not be there`) {
		t.Errorf("file: %v", err)
	}
}

// TestIntoSingle restores the dump of one database, which does not say which.
func TestIntoSingle(t *testing.T) {
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 10) AS a")
	b := backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(on(t, source, nil, "pg_dump", "postgres"))})
	o := intoOptions(target, 2)
	if _, err := RestoreInto(t.Context(), b, o); err == nil || !strings.Contains(err.Error(), "does not say which") {
		t.Fatal(err)
	}
	o.Database = "rescue"
	if _, err := RestoreInto(t.Context(), b, o); err != nil || sql(t, target, "rescue", "SELECT count(*) FROM t") != "10" {
		t.Fatal(err)
	}
}

// TestIntoPreflight: what would fail is told before anything is changed.
func TestIntoPreflight(t *testing.T) {
	source, target := startCluster(t), startCluster(t)
	on(t, source, []byte(`CREATE ROLE a; CREATE DATABASE one; CREATE DATABASE two;
\connect one
CREATE TABLE t AS SELECT 1 AS a;
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	all := on(t, source, nil, "pg_dumpall")
	all = strings.Replace(all, "\nCREATE ROLE a;", "\nCREATE ROLE a;\nCREATE TABLESPACE far LOCATION '/no/such/directory';", 1)
	all = strings.Replace(all, "\nCREATE TABLE public.t ", "\nCREATE EXTENSION IF NOT EXISTS nosuch WITH SCHEMA public;\nCREATE TABLE public.t ", 1)
	b := backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(all)})
	_, err := RestoreInto(t.Context(), b, intoOptions(target, 1))
	if err == nil || !strings.Contains(err.Error(), `extension "nosuch", which database "one" uses, is not available`) || !strings.Contains(err.Error(), "/no/such/directory") {
		t.Error(err)
	}
	sql(t, target, "postgres", "CREATE ROLE little LOGIN")
	o := intoOptions(target, 1)
	o.Target.DSN = strings.Replace(target.DSN("postgres"), "user=postgres", "user=little", 1)
	_, err = RestoreInto(t.Context(), b, o)
	if err == nil || !strings.Contains(err.Error(), `"little" may not create databases`) || !strings.Contains(err.Error(), "may not create roles") {
		t.Error(err)
	}
	if got := sql(t, target, "postgres", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"); got != "postgres template0 template1" {
		t.Error(got)
	}
}

// TestIntoFaults ends restores in every phase, by an interrupt, by a connection that is cut and by the server's end: the
// old data are there, what is said is true, and a second run completes.
func TestIntoFaults(t *testing.T) {
	source := startCluster(t)
	on(t, source, []byte(`CREATE DATABASE shop;
\connect shop
CREATE TABLE items (id int, name text); INSERT INTO items SELECT i, repeat('item ' || i, 20) FROM generate_series(1, 100000) i;
CREATE INDEX ON items (name);
CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF $1 % 1000 = 0 THEN PERFORM pg_sleep(0.01); END IF; RETURN $1; END $$;
CREATE INDEX ON items (slow(id)); ALTER TABLE items ADD PRIMARY KEY (id); CREATE TABLE refers AS SELECT id FROM items; ALTER TABLE refers ADD FOREIGN KEY (id) REFERENCES items;
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	b := backup(t, source)
	boom := errors.New("interrupted by the test")
	for _, phase := range []string{"globals", "schema", "data", "data apart", "indexes"} {
		phase, whole := strings.CutSuffix(phase, " apart")
		for _, fault := range []string{"interrupt", "cut", "crash", "full"} {
			if fault == "full" && phase != "data" && phase != "indexes" {
				continue // nothing is written that could be too much
			}
			for _, clean := range []bool{false, true} {
				if whole && !clean {
					continue // as with "data"
				}
				t.Run(fmt.Sprintf("%s in %s, apart %v, clean %v", fault, phase, whole, clean), func(t *testing.T) {
					if whole || phase != "data" {
						apart(t)
					}
					target := startCluster(t)
					if clean {
						on(t, target, []byte("CREATE DATABASE shop;\n\\connect shop\nCREATE TABLE old AS SELECT 42 AS a; CHECKPOINT"), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
					}
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					done := false
					o := intoOptions(target, 2)
					o.Clean = clean
					o.Replay.Progress = func(p postgres.ReplayProgress) {
						if p.Phase != phase || done || phase == "data" && p.Rows < 10000 {
							return
						}
						done = true
						switch fault {
						case "interrupt":
							cancel(boom)
						case "cut":
							// Every connection but the one that sees to it, and the lock's.
							sql(t, target, "template1", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dump' AND datname <> 'postgres'")
							if phase == "globals" {
								sql(t, target, "template1", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dump'")
							}
						case "full":
							// Files of the server may not grow beyond a segment of WAL any more: the table, or its index, is larger.
							limitFiles(t, target, "17000000:")
						case "crash":
							// One server process that dies so takes all others along, and the server begins anew.
							pid := sql(t, target, "template1", "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'dump'")
							if err := exec.Command("kill", "-9", pid).Run(); err != nil {
								t.Error(err)
							}
						}
					}
					r, err := RestoreInto(ctx, b, o)
					if !done {
						t.Fatalf("the phase %s did not come: %v", phase, err)
					}
					if err == nil && fault != "cut" { // which may hit no connection
						t.Fatal("succeeded")
					}
					if fault == "interrupt" && !errors.Is(err, boom) {
						t.Errorf("error is %v", err)
					}
					for deadline := time.Now().Add(time.Minute); fault == "crash" && exec.Command("pg_isready", "-q", "-d", target.DSN("postgres")).Run() != nil; time.Sleep(20 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatal("the server does not come back")
						}
					}
					if clean && err != nil && sql(t, target, "shop", "SELECT a FROM old") != "42" {
						t.Error("the old data are gone")
					}
					left := sql(t, target, "postgres", "SELECT coalesce(string_agg(datname, ' '), '') FROM pg_database WHERE datname ~ '^dump_'")
					if said := strings.Contains(strings.Join(r.State, "\n"), "could not be removed") || strings.Contains(strings.Join(r.State, "\n"), "starts anew"); err != nil && said != (left != "") {
						t.Errorf("left %q, said %q", left, r.State)
					}
					if fault == "full" {
						limitFiles(t, target, "unlimited:")
					}
					o = intoOptions(target, 2)
					o.Clean = clean || err == nil
					if _, err := RestoreInto(t.Context(), b, o); err != nil {
						t.Fatalf("second run: %v", err)
					}
					if got := sql(t, target, "shop", "SELECT count(*) FROM items JOIN refers USING (id)"); got != "100000" {
						t.Errorf("%s rows", got)
					}
					if left := sql(t, target, "postgres", "SELECT count(*) FROM pg_database WHERE datname ~ '^dump_'"); left != "0" {
						t.Error("databases were left")
					}
				})
			}
		}
	}
}

// limitFiles limits how large files may become that a server writes, in bytes; for its sessions too.
func limitFiles(t *testing.T, c *postgres.Cluster, limit string) {
	t.Helper()
	pids := strconv.Itoa(c.PID()) + "\n" + sql(t, c, "template1", "SELECT pid FROM pg_stat_activity WHERE application_name = 'dump'")
	for pid := range strings.Lines(pids) {
		args := []string{"prlimit", "--fsize=" + limit, "--pid", strings.TrimSpace(pid)}
		if os.Getuid() == 0 { // a limit is changed by its owner
			args = append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}, args...)
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestIntoFailingStatement: a statement fails in each phase; the old data are there, nothing of the new ones is, and the error
// says where.
func TestIntoFailingStatement(t *testing.T) {
	source, target := startCluster(t), startCluster(t)
	on(t, source, []byte(`CREATE ROLE a; CREATE DATABASE shop;
\connect shop
CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, repeat('item ' || i, 20) FROM generate_series(1, 50000) i;
CREATE INDEX named ON items (name);
`), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	on(t, target, []byte("CREATE DATABASE shop;\n\\connect shop\nCREATE TABLE old AS SELECT 42 AS a"), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	whole := on(t, source, nil, "pg_dumpall")
	for _, test := range []struct{ phase, before, bad, want string }{
		{"globals", "CREATE ROLE a;", "SELECT 1/0;\n", "SELECT 1/0 (at byte"},
		{"schema", "CREATE TABLE public.items", "CREATE TABLE public.bad (a nosuch);\n", `CREATE TABLE public.bad (a nosuch) in database "shop"`},
		{"data, its first row", "1\titem 1", "bad\titem\n", `COPY public.items (id, name) FROM stdin in database "shop"`},
		{"data, its last row", "50000\titem 50000", "bad\titem\n", `invalid input syntax for type integer: "bad"`},
		{"indexes", "CREATE INDEX named", "CREATE INDEX bad ON public.items (nosuch);\n", `CREATE INDEX bad ON public.items (nosuch) in database "shop"`},
		{"indexes, the last", "-- PostgreSQL database dump complete\n--\n\n\\unrestrict", "ALTER TABLE public.items ADD CONSTRAINT bad CHECK (id < 0);\n", "is violated by some row"},
	} {
		t.Run(test.phase, func(t *testing.T) {
			i := strings.LastIndex(whole, test.before)
			if i < 0 {
				t.Fatalf("the dump does not have %q", test.before)
			}
			if strings.HasPrefix(test.before, "--") {
				i = strings.LastIndex(whole[:i], "\n--\n") + 1
			}
			b := backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(whole[:i] + test.bad + whole[i:])})
			for _, jobs := range []int{1, 3, 4} {
				if jobs == 4 {
					apart(t)
				}
				o := intoOptions(target, jobs)
				o.Clean = true
				r, err := RestoreInto(t.Context(), b, o)
				var f *postgres.Failure
				if !errors.As(err, &f) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "SQLSTATE") {
					t.Errorf("jobs %d: %v", jobs, err)
				}
				if !strings.Contains(strings.Join(r.State, "\n"), "as they were") {
					t.Errorf("said: %q", r.State)
				}
				if got := sql(t, target, "postgres", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"); got != "postgres shop template0 template1" {
					t.Errorf("databases: %s", got)
				}
				if sql(t, target, "shop", "SELECT a FROM old") != "42" {
					t.Error("the old data are gone")
				}
			}
		})
	}
}

// TestIntoApart loads tables from readers of their own: their rows are frozen, none is lost, and what fails is told as elsewhere.
func TestIntoApart(t *testing.T) {
	apart(t)
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", `CREATE DATABASE shop;
\connect shop
CREATE TABLE plain AS SELECT i AS a, repeat('x', 100) AS b FROM generate_series(1, 3000) i;
CREATE TABLE "odd ""Name" AS TABLE plain; CREATE TABLE third AS TABLE plain; CREATE UNLOGGED TABLE unlogged AS TABLE plain;
CREATE TABLE parts (a int, b text) PARTITION BY RANGE (a); CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (0) TO (10000); INSERT INTO parts TABLE plain;
CREATE TABLE parent AS TABLE plain; CREATE TABLE child () INHERITS (parent); INSERT INTO child TABLE plain;
CREATE TABLE large AS SELECT i AS a, repeat('x', 1000) AS b FROM generate_series(1, 30000) i;`)
	frozen := func(tables ...string) (out []string) {
		t.Helper()
		for _, table := range tables {
			if sql(t, target, "shop", "CREATE EXTENSION IF NOT EXISTS pg_visibility; SELECT all_frozen > 0 AND all_frozen = pg_relation_size('"+table+"') / 8192 FROM pg_visibility_map_summary('"+table+"')") == "t" {
				out = append(out, table)
			}
		}
		return out
	}
	b := backup(t, source)
	all := []string{"plain", `"odd ""Name"`, "third", "unlogged", "leaf", "child", "parent", "large"}
	for _, jobs := range []int{1, 2} {
		o := intoOptions(target, jobs)
		o.Clean = true
		if _, err := RestoreInto(t.Context(), b, o); err != nil {
			t.Fatal(err)
		}
		want := all
		if jobs > 1 {
			want = all[:len(all)-2] // they are loaded by both: one outweighs the others, and one would keep its children waiting
		}
		if got := frozen(all...); !slices.Equal(got, want) {
			t.Errorf("jobs %d: frozen are %q", jobs, got)
		}
		for _, table := range all {
			want := "SELECT count(*) || md5(string_agg(x::text, ',' ORDER BY a)) FROM ONLY " + table + " x"
			if sql(t, target, "shop", want) != sql(t, source, "shop", want) {
				t.Errorf("jobs %d: the rows of %s differ", jobs, table)
			}
		}
	}

	// What is in a table stays: of what created it, of another COPY, of a trigger's work.
	rows := strings.Repeat("1\t"+strings.Repeat("y", 100)+"\n", 300)
	more := "CREATE TABLE public.filled AS SELECT 2 AS a, 'x' AS b;\nCREATE TABLE public.twice (a int, b text);\nCREATE TABLE public.log (a int);\n" +
		"CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (3); RETURN NULL; END';\n" +
		"CREATE TABLE public.watched (a int, b text);\nCREATE TRIGGER note AFTER TRUNCATE ON public.watched EXECUTE FUNCTION public.note();\n"
	for _, table := range []string{"filled", "twice", "twice", "watched", "twice"} {
		more += "COPY public." + table + " (a, b) FROM stdin;\n" + rows + "\\.\n"
	}
	text := on(t, source, nil, "pg_dump", "postgres")
	end := strings.Index(text, "--\n-- PostgreSQL database dump complete")
	text = text[:end] + more + "\n" + text[end:]
	for _, jobs := range []int{4, 1} {
		if jobs == 1 { // in the order of the script, which a check may notice
			text = strings.Replace(text, "COPY public.filled", "CREATE FUNCTION public.has(bigint) RETURNS bool LANGUAGE sql AS 'SELECT count(*) = $1 FROM public.twice';\n"+
				"CREATE TABLE public.first (a int CHECK (public.has(0)));\nCREATE TABLE public.last (a int CHECK (public.has(900)));\n"+
				"DECLARE held CURSOR WITH HOLD FOR SELECT 1;\n"+ // which forbids FREEZE
				"CREATE TABLE public.slow (a text CHECK (pg_sleep(0.3) IS NOT NULL));\n"+ // meanwhile others wait for the connection
				"COPY public.slow (a) FROM stdin;\n1\n\\.\nCOPY public.first (a) FROM stdin;\n1\n\\.\nCOPY public.filled", 1)
			text = strings.Replace(text, "--\n-- PostgreSQL database dump complete", "COPY public.slow (a) FROM stdin;\n1\n\\.\nCOPY public.last (a) FROM stdin;\n1\n\\.\n--\n-- PostgreSQL database dump complete", 1)
		}
		b = backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(text)})
		o := intoOptions(target, jobs)
		o.Target.DSN, o.Database, o.Clean = target.DSN("shop"), "shop", true
		if _, err := RestoreInto(t.Context(), b, o); err != nil {
			t.Fatal(err)
		}
		if got := sql(t, target, "shop", "SELECT (SELECT count(*) FROM filled), (SELECT count(*) FROM twice), (SELECT count(*) FROM watched), (SELECT count(*) FROM log)"); got != "301|900|300|0" {
			t.Errorf("jobs %d: rows are %s", jobs, got)
		}
	}
}

// TestIntoApartWaits: connections that load one table wait for each other, which the server does not see. None of them may come to wait
// for a lock that waits for another of them.
func TestIntoApartWaits(t *testing.T) {
	apart(t)
	wholeTable = 3 << 20
	source, target := startCluster(t), startCluster(t)
	row := strings.Repeat("y", 100) + "\n"
	whole := func(table string) string {
		return "COPY public." + table + " (a) FROM stdin;\n" + strings.Repeat(row, 40_000) + "\\.\n"
	}
	script := `CREATE FUNCTION public.looks(text) RETURNS bool LANGUAGE plpgsql AS $$BEGIN
	PERFORM FROM public.whole LIMIT 1; IF $1 = 'z' THEN PERFORM pg_sleep(2); END IF; RETURN true; END$$;
CREATE TABLE public.busy (a text CHECK (pg_sleep(0.3) IS NOT NULL)); CREATE TABLE public.busier (a text CHECK (pg_sleep(0.6) IS NOT NULL));
CREATE TABLE public.whole (a text); CREATE TABLE public.second (a text); CREATE TABLE public.third (a text); CREATE TABLE public.streamed (a text CHECK (public.looks(a)));
COPY public.busy (a) FROM stdin;
x
\.
COPY public.busier (a) FROM stdin;
x
\.
` + whole("whole") + whole("second") + whole("third") + `COPY public.streamed (a) FROM stdin;
z
` + strings.Repeat(row, 25_000) + "\\.\n"
	text := on(t, source, nil, "pg_dump", "postgres")
	end := strings.Index(text, "--\n-- PostgreSQL database dump complete")
	b := backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(text[:end] + script + text[end:])})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := intoOptions(target, 3)
	o.Database = "postgres"
	if _, err := RestoreInto(ctx, b, o); err != nil {
		t.Fatal(err)
	}
	if got := sql(t, target, "postgres", "SELECT (SELECT count(*) FROM whole), (SELECT count(*) FROM streamed)"); got != "40000|25001" {
		t.Errorf("rows: %s", got)
	}
}

// TestIntoApartFails: damage of the backup is told as such, by whatever way rows go.
func TestIntoApartFails(t *testing.T) {
	apart(t)
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", "CREATE DATABASE shop; \\connect shop\nCREATE TABLE t AS SELECT md5(i::text) || md5((-i)::text) AS a FROM generate_series(1, 400000) i")
	b := backup(t, source)
	rewrite(t, b.Bucket(), b.Parts[0].Name, flipAt(5<<20)) // neither in the first nor in the last segment
	for _, jobs := range []int{1, 2} {
		r, err := RestoreInto(t.Context(), b, intoOptions(target, jobs))
		var damage *archive.DamageError
		if !errors.As(err, &damage) || damage.Object != b.Parts[0].Name {
			t.Fatalf("jobs %d: %v", jobs, err)
		}
		if state := strings.Join(r.State, "\n"); !strings.Contains(state, "as they were") || !strings.Contains(state, "was removed again") {
			t.Errorf("jobs %d: said %q", jobs, r.State)
		}
	}

	// A script that was stored though it ends within a table.
	text := on(t, source, nil, "pg_dump", "shop")
	cut := text[:strings.Index(text, "\n\\.\n")-10]
	b = backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(cut), Archive: archive.WriterOptions{AllowPartial: true}})
	o := intoOptions(target, 2)
	o.Database, o.Clean = "cut", true
	if _, err := RestoreInto(t.Context(), b, o); err == nil || !strings.Contains(err.Error(), "within a statement") {
		t.Errorf("cut: %v", err)
	}

	// Who may write, but not truncate, does so.
	sql(t, target, "postgres", "CREATE ROLE little LOGIN; CREATE TABLE mine (a int); GRANT INSERT ON mine TO little")
	server, err := postgres.Connect(t.Context(), postgres.Config{DSN: strings.Replace(target.DSN("postgres"), "user=postgres", "user=little", 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r := postgres.NewReplayer(t.Context(), server, postgres.ReplayOptions{})
	f := script.NewFeeder(r.Item)
	_, err = io.WriteString(f, "\\connect postgres\nCOPY public.mine (a) FROM stdin;\n")
	if err != nil || !r.Rows(4, func(context.Context, bool) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("1\n2\n")), nil
	}) {
		t.Fatal("the rows were not taken", err)
	}
	if _, err := io.WriteString(f, "\\.\n"); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Finish(f.Close()); err != nil || report.Rows != 2 || sql(t, target, "postgres", "SELECT sum(a) FROM mine") != "3" {
		t.Errorf("%v, %+v", err, report)
	}
}

// TestIntoDataOnly loads rows into tables with foreign keys, one of which refers to its own table.
func TestIntoDataOnly(t *testing.T) {
	apart(t)
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", `CREATE DATABASE shop;
\connect shop
CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, 50000) i;
CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, before int REFERENCES b, name text);
INSERT INTO b SELECT i, 50001 - i, nullif(i - 1, 0), repeat('x', 100) FROM generate_series(1, 50000) i;
CREATE TABLE plain AS TABLE a;`)
	b := backup(t, source)
	for _, o := range []script.Selection{{SchemaOnly: true}, {DataOnly: true, Databases: []string{"shop"}}} {
		into := intoOptions(target, 4)
		into.Selection = &o
		if _, err := RestoreInto(t.Context(), b, into); err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
	}
	if got := sql(t, target, "shop", "SELECT count(*) FROM a JOIN b ON b.a = a.id JOIN plain ON plain.id = b.before"); got != "49999" {
		t.Errorf("%s rows", got)
	}
	if sql(t, target, "shop", "SELECT pg_relation_filenode('plain') = oid FROM pg_class WHERE relname = 'plain'") != "t" {
		t.Error("a table that was there has been truncated, which its subscribers would do, too")
	}
}

// TestIntoStandby finds the primary among several hosts, and refuses a standby.
func TestIntoStandby(t *testing.T) {
	target := startCluster(t)
	dir, err := os.MkdirTemp("", "standby")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	standby := startStandby(t, target, dir)
	source := startCluster(t)
	sql(t, source, "postgres", "CREATE DATABASE shop")
	b := backup(t, source)
	o := intoOptions(target, 1)
	o.Target.DSN = standby
	_, err = RestoreInto(t.Context(), b, o)
	var e *postgres.StandbyError
	if !errors.As(err, &e) || !strings.Contains(e.Hint(), "it follows ") {
		t.Fatalf("standby: %v", err)
	}
	host := func(dsn string) (string, string) {
		c, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		return c.Host, strconv.Itoa(int(c.Port))
	}
	h1, p1 := host(standby)
	h2, p2 := host(target.DSN("postgres"))
	o.Target.DSN = fmt.Sprintf("host=%s,%s port=%s,%s user=postgres", h1, h2, p1, p2)
	if _, err = RestoreInto(t.Context(), b, o); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, _ := exec.Command("psql", "-XqAt", "-d", standby, "-c", "SELECT count(*) FROM pg_database WHERE datname = 'shop'").Output()
		if strings.TrimSpace(string(out)) == "1" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the standby does not have the database")
		}
	}
}

// startStandby starts a standby of a cluster in dir, and returns how to connect to it.
func startStandby(t *testing.T, primary *postgres.Cluster, dir string) string {
	t.Helper()
	data := filepath.Join(dir, "data")
	on(t, primary, nil, "pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast")
	args := []string{filepath.Join(primary.BinDir(), "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "port=" + strconv.Itoa(primary.Port())}
	for name, value := range serverSettings {
		args = append(args, "-c", name+"="+value)
	}
	if os.Getuid() == 0 {
		if out, err := exec.Command("chown", "-R", "postgres", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		args = append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	dsn := fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", dir, primary.Port())
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if conn, err := pgconn.Connect(t.Context(), dsn); err == nil {
			streaming := conn.Exec(t.Context(), "SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'")
			rows, err := streaming.ReadAll()
			conn.Close(context.Background())
			if err == nil && len(rows[0].Rows) == 1 {
				return dsn
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the standby does not start:\n%s", log.String())
		}
	}
}

// TestIntoTimescale: where the extension is created, its calls stand before and behind the rows. The extension is one of
// the test's own that notes the calls.
func TestIntoTimescale(t *testing.T) {
	dir, err := os.MkdirTemp("", "extension")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "extension"), 0o755),
		os.WriteFile(filepath.Join(dir, "extension/timescaledb.control"), []byte("default_version = '1'\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "extension/timescaledb--1.sql"), []byte(`CREATE TABLE calls (call text);
CREATE FUNCTION timescaledb_pre_restore() RETURNS boolean LANGUAGE sql AS $$ INSERT INTO odd.calls VALUES ('pre'); SELECT true $$;
CREATE FUNCTION timescaledb_post_restore() RETURNS boolean LANGUAGE sql AS $$ INSERT INTO odd.calls SELECT 'post ' || (xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM public.t', false, true, '')))[1]; SELECT true $$;
`), 0o644)); err != nil {
		t.Fatal(err)
	}
	target := postgrestest.Start(t, 18, postgres.ClusterOptions{Settings: map[string]string{"extension_control_path": dir + ":$system"}})
	b := backupOf(t, &CreateOptions{GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Stdin: strings.NewReader(`--
-- PostgreSQL database cluster dump
--

CREATE DATABASE metrics WITH TEMPLATE = template0;

\connect metrics

CREATE SCHEMA odd;
CREATE EXTENSION IF NOT EXISTS timescaledb WITH SCHEMA odd;
CREATE TABLE public.t (a integer);
COPY public.t (a) FROM stdin;
1
2
\.

--
-- PostgreSQL database cluster dump complete
--
`)})
	if _, err := RestoreInto(t.Context(), b, intoOptions(target, 2)); err != nil {
		t.Fatal(err)
	}
	if got := sql(t, target, "metrics", "SELECT string_agg(call, ', ') FROM odd.calls"); got != "pre, post 2" {
		t.Errorf("calls: %s", got)
	}
}

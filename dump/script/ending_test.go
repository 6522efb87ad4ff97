package script_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"encdump/dump/script"
)

const copyStart = "COPY loaded (a, b) FROM stdin;\n1\tx\n2\ty\n"

// cuts are scripts that end in every state of the lexer. What they delete must
// stay, what they load must not.
var cuts = map[string]string{
	"nothing":               "",
	"top level":             "SELECT 1;\n",
	"behind a statement":    "SELECT 1;",
	"comment":               "SELECT 1; -- comment",
	"statement":             "DELETE FROM kept",
	"statement, newline":    "DELETE FROM kept\n",
	"statement, comment":    "DELETE FROM kept -- comment",
	"dash":                  "DELETE FROM kept WHERE a = -",
	"slash":                 "DELETE FROM kept /",
	"word":                  "DELETE FROM kept WHERE tr",
	"parentheses":           "DELETE FROM kept WHERE (a IN (1, 2)",
	"string":                "DELETE FROM kept WHERE b <> 'x;\n",
	"string, one quote":     "DELETE FROM kept WHERE b <> 'x'",
	"string with escapes":   "DELETE FROM kept WHERE b <> E'x\\'",
	"string, in an escape":  "DELETE FROM kept WHERE b <> E'x\\",
	"string with U&":        "DELETE FROM kept WHERE b <> U&'x",
	"bits":                  "DELETE FROM kept WHERE a::bit(3) <> b'010",
	"strings with escapes":  "SET standard_conforming_strings = off;\nDELETE FROM kept WHERE b <> 'x\\'",
	"name":                  "DELETE FROM kept AS \"x;",
	"name with U&":          "DELETE FROM kept AS U&\"x",
	"dollar":                "DELETE FROM kept WHERE b <> $",
	"dollar quote":          "DELETE FROM kept WHERE b <> $$ ' \" /*",
	"dollar quote with tag": "DELETE FROM kept WHERE b <> $_X$ $$ ' \" /*",
	"block comment":         "DELETE FROM kept /* ' \" $$",
	"block comments":        "DELETE FROM kept /* /* /* */ *",
	"all at once":           "DELETE FROM kept WHERE ((b <> $$'$$ AND b <> $a$",
	"body":                  "CREATE FUNCTION f() RETURNS integer BEGIN ATOMIC SELECT 1; DELETE FROM kept; ",
	"CASE in a body":        "CREATE FUNCTION f() RETURNS integer BEGIN ATOMIC SELECT (CASE WHEN true THEN 1; ",
	"string in a body":      "CREATE FUNCTION f() RETURNS integer BEGIN ATOMIC SELECT 'a; ",
	"meta-command":          "DELETE FROM kept \\set x 'abc",
	"backslash":             "DELETE FROM kept \\",
	"failed":                "SELECT 1/0;\nDELETE FROM kept",
	"transaction":           "BEGIN;\nDELETE FROM kept;\nSELECT 'x",
	"COPY, no line":         "COPY loaded (a, b) FROM stdin;",
	"COPY, no row":          "COPY loaded (a, b) FROM stdin;\n",
	"COPY, between rows":    copyStart,
	"COPY, in a row":        copyStart + "3\tz",
	"COPY, in a field":      copyStart + "3\tz'",
	"COPY, at a tab":        copyStart + "3\t",
	"COPY, in an escape":    copyStart + "3\tz\\",
	"COPY, no columns":      "COPY hollow FROM stdin;\n\n\n",
	"COPY, comment":         copyStart + "3\t/* ' \" $$ (",
}

// noTable are rows that psql takes for SQL.
var noTable = map[string]string{
	"plain":            "1\tx\n2\ty\n",
	"parenthesis":      "1\t(x\n2\t(y\n",
	"string":           "1\tit's\n",
	"string, escapes":  "1\te'\n2\t\\\n",
	"name":             "1\t\"x\n",
	"comments":         "1\t/* /* /* */ '\n",
	"dollars":          "1\t$$ ' \"\n",
	"tag":              "1\t$xyz$ ' \" /*\n",
	"tags":             "1\t$a$ $b$ $a$ $c1$ $d$\n2\t$e$ $c1$ $é$\n",
	"semicolon":        "1\tx;\n",
	"meta-commands":    "\\N\t\\N\n1\t\\.\n\\.x\n",
	"end of a comment": "*/ ' */\n",
}

// ways to run psql. In the first three its errors differ most.
var ways = [][]string{
	nil,
	{"-1", "-f", "-"},
	{"-v", "ON_ERROR_STOP=1"},
	{"-v", "ON_ERROR_STOP=0"},
	{"-1", "-v", "ON_ERROR_STOP=1", "-f", "-"},
}

const reason = `the backup is damaged: it's $$ "x" \ ; /* 100% é`

// harness is a database in which scripts run that fail.
type harness struct {
	database string
	conn     *pgconn.PgConn
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	needCluster(t)
	h := &harness{database: strings.ToLower(t.Name())}
	query(t, "postgres", "CREATE DATABASE "+h.database)
	conn, err := pgconn.Connect(t.Context(), cluster.DSN(h.database))
	if err != nil {
		t.Fatal(err)
	}
	h.conn = conn
	t.Cleanup(func() {
		conn.Close(context.Background())
		query(t, "postgres", "DROP DATABASE "+h.database)
	})
	h.do(t, "CREATE TABLE kept (a integer, b text); INSERT INTO kept VALUES (1, 'a'), (2, 'b'); CREATE TABLE loaded (a integer, b text); CREATE TABLE hollow ()")
	return h
}

func (h *harness) do(t *testing.T, sql string) string {
	t.Helper()
	results, err := h.conn.Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if rows := results[len(results)-1].Rows; len(rows) > 0 {
		return string(rows[0][0])
	}
	return ""
}

// run gives psql a script that must fail, in several ways.
func (h *harness) run(t *testing.T, name string, in []byte, ways [][]string) {
	t.Helper()
	shown := bytes.ReplaceAll(in, bytes.Repeat([]byte("\t"), 1700), []byte("[tabs]"))
	for _, way := range ways {
		out := psql(cluster.SocketDir(), in, append(way, "-d", h.database)...)
		if out.status != 3 {
			t.Errorf("%s: psql %q: status %d\n%.2000q\n%.500s", name, way, out.status, shown, out.stderr)
		}
		if got := h.do(t, "SELECT (SELECT count(*) FROM kept) || ' ' || (SELECT count(*) FROM loaded) || ' ' || (SELECT count(*) FROM hollow)"); got != "2 0 0" {
			t.Errorf("%s: psql %q: %s rows\n%.2000q\n%.500s", name, way, got, shown, out.stderr)
			h.do(t, "TRUNCATE kept, loaded, hollow; INSERT INTO kept VALUES (1, 'a'), (2, 'b')")
		}
	}
}

// TestEnding cuts scripts and gives them to psql with their ending.
func TestEnding(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, cut := range cuts {
		for _, begin := range []string{"", "\\restrict abc123\n"} {
			in := begin + cut
			f := script.NewFeeder(func(script.Item) error { return nil })
			io.WriteString(f, in)
			f.Close()
			s := f.State()
			if s.Restricted() != (begin != "") {
				t.Errorf("%s: restricted: %v", name, s.Restricted())
			}
			h.run(t, name+", known", append([]byte(in), script.Ending(s, reason)...), ways)
			h.run(t, name+", unknown", append([]byte(in), script.UnknownEnding([]string{"other", "abc123"}, []string{"$a$"}, reason)...), ways[:3])
		}
	}
}

// TestEndingShowsReason: what psql says last is the reason.
func TestEndingShowsReason(t *testing.T) {
	h := newHarness(t)
	for _, name := range []string{"nothing", "statement", "string", "block comments", "dollar quote with tag", "body", "COPY, in a row", "transaction"} {
		f := script.NewFeeder(func(script.Item) error { return nil })
		io.WriteString(f, cuts[name])
		f.Close()
		out := psql(cluster.SocketDir(), append([]byte(cuts[name]), script.Ending(f.State(), reason)...), "-d", h.database)
		want := `the backup is damaged: it's ?? "x" \ ; /* 100% ?`
		if name == "transaction" {
			want = "current transaction is aborted"
		}
		if name != "transaction" && !strings.Contains(out.stderr, "ERROR:  "+want) {
			t.Errorf("%s: %s", name, out.stderr)
		}
		out = psql(cluster.SocketDir(), append([]byte(cuts[name]), script.UnknownEnding(nil, []string{"$a$"}, reason)...), "-d", h.database)
		if !strings.Contains(out.stderr, `"failed_the_backup_is_damaged_it_s_x_100`) {
			t.Errorf("%s: %s", name, out.stderr)
		}
	}
}

// TestWithoutEnding: without it the same scripts succeed, and delete and load.
// That is why there is one.
func TestWithoutEnding(t *testing.T) {
	h := newHarness(t)
	for _, name := range []string{"statement", "COPY, in a row"} {
		if out := psql(cluster.SocketDir(), []byte(cuts[name]), "-d", h.database); out.status != 0 {
			t.Errorf("%s: status %d: %s", name, out.status, out.stderr)
		}
	}
	if got := h.do(t, "SELECT (SELECT count(*) FROM kept) || ' ' || (SELECT count(*) FROM loaded)"); got != "0 3" {
		t.Errorf("%s rows", got)
	}
}

// TestGuardFails cuts a script at any place, as a guard passes it on, also in
// pieces, also into a table that is not there.
func TestGuardFails(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	all := map[string]string{}
	for name, cut := range cuts {
		all[name] = cut
	}
	for name, rows := range noTable {
		rows = strings.TrimRight(rows, "\n") + "\n"
		all["no table, "+name] = "COPY nothing (a, b) FROM stdin;\n" + rows + "3\tDELETE FROM kept"
		all["no table, other key, "+name] = "COPY nothing (a, b) FROM stdin;\n" + rows + "\\.\n\\unrestrict abc123\n\\restrict def456\nSELECT 1;\n"
		all["no table before, "+name] = "COPY nothing (a, b) FROM stdin;\n" + rows + "\\.\nSELECT 'a', $$b$$;\nCOPY loaded FROM stdin;\n1\tx\n"
	}
	for name, cut := range all {
		for _, limit := range []int{16 << 20, 20} {
			var passed bytes.Buffer
			g := script.NewGuard(&passed)
			g.SetLimit(limit)
			for p := []byte("\\restrict abc123\n" + cut); len(p) > 0; p = p[min(7, len(p)):] {
				if _, err := g.Write(p[:min(7, len(p))]); err != nil {
					t.Fatal(err)
				}
			}
			if !strings.HasPrefix("\\restrict abc123\n"+cut, passed.String()) {
				t.Fatalf("%s: passed %q", name, passed.Bytes())
			}
			if limit > 20 && name != "meta-command" && !g.State().Between() && !g.State().InCopy() {
				t.Errorf("%s: %v behind %q", name, g.State(), passed.Bytes())
			}
			if err := g.Fail(reason); err != nil {
				t.Fatal(err)
			}
			h.run(t, name, passed.Bytes(), ways[:3])
		}
	}
}

// TestGuardPortions: what a guard has passed on ends between statements or rows.
func TestGuardPortions(t *testing.T) {
	in := "SELECT 1;\n-- c\n\\set a b\nINSERT INTO t\nVALUES (';');\nCOPY t FROM stdin;\n1\n22\n\\.\nSELECT\n2;\n"
	for size := 1; size < len(in); size++ {
		var passed bytes.Buffer
		g := script.NewGuard(&passed)
		for p := in; p != ""; p = p[min(size, len(p)):] {
			if _, err := io.WriteString(g, p[:min(size, len(p))]); err != nil {
				t.Fatal(err)
			}
			if s := g.State(); !s.Between() && !s.InCopy() || s.String() == "within a row of COPY data" {
				t.Fatalf("portions of %d: %v behind %q", size, s, passed.Bytes())
			}
			if out := passed.String(); out != "" && !strings.ContainsAny(out[len(out)-1:], ";\n") {
				t.Fatalf("portions of %d: passed %q", size, out)
			}
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if passed.String() != in {
			t.Fatalf("portions of %d: passed %q", size, passed.Bytes())
		}
		if _, err := g.Write([]byte("x")); err == nil {
			t.Error("written after Close")
		}
		if err := g.Fail("x"); err == nil {
			t.Error("failed after Close")
		}
	}
}

// TestGuardPassesSlices: rows go through in large pieces, not one by one.
func TestGuardPassesSlices(t *testing.T) {
	var w counter
	g := script.NewGuard(&w)
	io.WriteString(g, "COPY t FROM stdin;\n")
	p := bytes.Repeat([]byte("a row that is in no way special\n"), 60000)
	w = 0
	g.Write(p)
	if w > 2 {
		t.Errorf("%d writes for %d rows", w, 60000)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c++
	return len(p), nil
}

func TestGuardError(t *testing.T) {
	broken := errors.New("broken pipe")
	g := script.NewGuard(failingWriter{broken})
	_, err := io.WriteString(g, "SELECT 1;\n")
	if err != broken {
		t.Errorf("Write: %v", err)
	}
	if err := g.Fail("x"); err != broken {
		t.Errorf("Fail: %v", err)
	}
	if err := g.Close(); err != broken {
		t.Errorf("Close: %v", err)
	}
	g = script.NewGuard(failingWriter{broken})
	if err := g.Fail("x"); !errors.Is(err, broken) {
		t.Errorf("Fail: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestComplete(t *testing.T) {
	header := func(s string) string { return "--\n-- PostgreSQL " + s + "\n--\n\n" }
	cluster, database := header("database cluster dump"), header("database dump")
	clusterEnd, databaseEnd := header("database cluster dump complete"), header("database dump complete")
	for _, test := range []struct{ script, kind string }{
		{cluster + "SELECT 1;\n" + clusterEnd, script.ClusterDump},
		{database + "SELECT 1;\n" + databaseEnd, script.DatabaseDump},
		{cluster + database + "SELECT 1;\n" + databaseEnd + clusterEnd, script.ClusterDump},
		{"--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\n-- Dumped by\n\nSELECT 1;\n" + databaseEnd + "\\unrestrict abc\n\n", script.DatabaseDump},
		{strings.ReplaceAll(cluster+"SELECT 1;\n"+clusterEnd, "\n", "\r\n"), script.ClusterDump},
		{strings.TrimRight(database+databaseEnd, "\n-"), script.DatabaseDump},
		{database + databaseEnd + "-- Completed on 2024\n", script.DatabaseDump},
		{"", ""},
		{database, ""},
		{databaseEnd, ""},
		{"SELECT 1;\n" + database + databaseEnd, ""},
		{cluster + database + "SELECT 1;\n" + databaseEnd, ""},
		{database + databaseEnd + "SELECT 1;", ""},
		{database + databaseEnd + "SELECT", ""},
		{database + databaseEnd + "\\connect x\n", ""},
		{database + "SELECT '\n" + databaseEnd, ""},
		{database + "SELECT '\n" + databaseEnd + "';", ""},
		{database + "SELECT (\n" + databaseEnd, ""},
		{database + "SELECT $a$\n" + databaseEnd, ""},
		{database + "/*\n" + databaseEnd, ""},
		{database + "COPY t FROM stdin;\n" + databaseEnd, ""},
		{database + "COPY t FROM stdin;\n" + databaseEnd + "\\.\n", ""},
		{database + "SELECT 1; -- PostgreSQL database dump complete\n", ""},
		{database + "-- PostgreSQL database dump complet", ""},
	} {
		for _, size := range []int{1, 50, 10000} {
			var c script.Completeness
			f := script.NewFeeder(func(it script.Item) error { c.Add(it); return nil })
			for p := test.script; p != ""; p = p[min(size, len(p)):] {
				io.WriteString(f, p[:min(size, len(p))])
			}
			f.Close()
			kind, err := c.Kind()
			if kind != test.kind || (kind == "") != errors.Is(err, script.ErrCutShort) {
				t.Errorf("%q in portions of %d: %q, %v", test.script, size, kind, err)
			}
		}
	}
}

// TestCompleteDumps: real dumps are complete, and cut anywhere they are not.
func TestCompleteDumps(t *testing.T) {
	t.Parallel()
	needCluster(t)
	for _, test := range []struct {
		kind string
		args []string
	}{
		{script.ClusterDump, []string{"pg_dumpall", "--exclude-database=many"}},
		{script.ClusterDump, []string{"pg_dumpall", "--schema-only", "--exclude-database=many"}},
		{script.DatabaseDump, []string{"pg_dump", "objects"}},
		{script.DatabaseDump, []string{"pg_dump", "-C", "--verbose", "data"}},
	} {
		b := dump(t, test.args[0], test.args[1:]...)
		complete := func(b []byte) (string, error) {
			var c script.Completeness
			s := script.NewScanner(bytes.NewReader(b))
			for {
				it, err := s.Next()
				if err != nil {
					break
				}
				c.Add(it)
			}
			return c.Kind()
		}
		if kind, err := complete(b); err != nil || kind != test.kind {
			t.Errorf("%q: %q, %v", test.args, kind, err)
		}
		title := map[string]string{script.ClusterDump: "cluster dump", script.DatabaseDump: "database dump"}[test.kind]
		end := bytes.LastIndex(b, []byte(fmt.Sprintf("%s complete", title))) + len(title) + len(" complete")
		for i := range 100 {
			if kind, err := complete(b[:end-1-i*i*(end-1)/10000]); err == nil {
				t.Errorf("%q cut: %q", test.args, kind)
			}
		}
	}
}

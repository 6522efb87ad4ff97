package script_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"encdump/dump/postgres"
	"encdump/dump/script"
)

// gather reads the contents of a script that is written in portions of size.
func gather(t *testing.T, b []byte, size int) *script.Contents {
	t.Helper()
	var g script.Gatherer
	f := script.NewFeeder(func(it script.Item) error { g.Add(it); return nil })
	for p := b; len(p) > 0; p = p[min(size, len(p)):] {
		if _, err := f.Write(p[:min(size, len(p))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return g.Contents()
}

// TestContents restores a dump and compares what its items say with what the
// new server says.
func TestContents(t *testing.T) {
	t.Parallel()
	needCluster(t)
	b := dump(t, "pg_dumpall", "--exclude-database=many")
	c := gather(t, b, 1<<20)
	for _, size := range []int{1, 100, 1 << 30} {
		if other := gather(t, b, size); !reflect.DeepEqual(other, c) {
			t.Errorf("portions of %d\ngot  %+v\nwant %+v", size, other, c)
		}
	}

	restored, err := postgres.StartCluster(t.Context(), postgres.ClusterOptions{Settings: map[string]string{"wal_level": "logical"}})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Stop()
	// On the way the dump goes through a guard, which must not change it.
	var passed bytes.Buffer
	guard := script.NewGuard(&passed)
	if _, err := io.CopyBuffer(struct{ io.Writer }{guard}, struct{ io.Reader }{bytes.NewReader(b)}, make([]byte, 10007)); err != nil {
		t.Fatal(err)
	}
	if err := guard.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(passed.Bytes(), b) {
		t.Fatal("the guard changes the dump")
	}
	out := psql(restored.SocketDir(), passed.Bytes(), "-d", "postgres")
	if strings.Count(out.stderr, "ERROR:") != 1 || !strings.Contains(out.stderr, `ERROR:  role "postgres" already exists`) || out.status != 0 {
		t.Fatalf("restore: status %d: %s", out.status, out.stderr)
	}

	var names []string
	end := int64(0)
	for i, d := range c.Databases {
		names = append(names, string(d.Name))
		if i > 0 && int64(d.Offset) != end {
			t.Errorf("%s begins at %d, the one before ends at %d", d.Name, d.Offset, end)
		}
		end = d.End()
		if header := fmt.Sprintf("--\n-- Database \"%s\" dump\n--\n", d.Name); !bytes.HasPrefix(b[d.Offset:end], []byte(header)) {
			t.Errorf("%s begins with %.100q", d.Name, b[d.Offset:end])
		}
		checkDatabase(t, restored, b, d)
	}
	if end != int64(len(b)) {
		t.Errorf("the last database ends at %d of %d", end, len(b))
	}
	want := strings.Split(strings.TrimSuffix(query(t, "postgres", "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'many' AND datname NOT LIKE 'test%' ORDER BY datname <> 'template1', datname COLLATE \"C\""), "\n"), "\n")
	if !reflect.DeepEqual(names, want) {
		t.Errorf("databases %q, want %q", names, want)
	}
}

func checkDatabase(t *testing.T, cl *postgres.Cluster, b []byte, d script.Database) {
	t.Helper()
	ctx := context.Background()
	// The name is one for a connection string, not for a shell.
	config, err := pgconn.ParseConfig(cl.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config.Database = string(d.Name)
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows := func(sql string) string {
		t.Helper()
		var buf bytes.Buffer
		if _, err := conn.CopyTo(ctx, &buf, "COPY "+sql+" TO STDOUT"); err != nil {
			t.Fatalf("%s: %s: %v", d.Name, sql, err)
		}
		return buf.String()
	}
	if enc := strings.TrimSpace(rows("(SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database())")); d.Encoding != enc && d.Encoding != "" {
		t.Errorf("%s: encoding %q, want %q", d.Name, d.Encoding, enc)
	} else if d.Encoding == "" && d.Name != "postgres" && d.Name != "template1" {
		t.Errorf("%s: no encoding", d.Name)
	}

	for _, c := range d.Copies {
		block := b[c.Block.Offset:c.Block.End()]
		if !bytes.HasPrefix(block, []byte("COPY ")) || !bytes.HasSuffix(block, []byte("\n\\.\n")) {
			t.Errorf("%s.%s: the block is %.50q … %q", d.Name, c.Table, block, block[max(0, len(block)-20):])
		}
		if c.Rows > 0 && !bytes.Equal(b[c.Data.Offset-1:c.Data.End()+3], append(append([]byte("\n"), b[c.Data.Offset:c.Data.End()]...), "\\.\n"...)) {
			t.Errorf("%s.%s: the data are %.50q", d.Name, c.Table, b[c.Data.Offset:c.Data.End()])
		}
		sql := pgx.Identifier{string(c.Schema), string(c.Table)}.Sanitize()
		if len(c.Columns) > 0 {
			var columns []string
			for _, name := range c.Columns {
				columns = append(columns, pgx.Identifier{string(name)}.Sanitize())
			}
			sql += " (" + strings.Join(columns, ", ") + ")"
		}
		text := rows(sql)
		if n, sum := script.Rows([]byte(text)); int64(c.Rows) != n || c.Fingerprint != sum {
			t.Errorf("%s: %s: %d rows, %v, but the server has %d, %v", d.Name, sql, c.Rows, c.Fingerprint, n, sum)
		}
	}
	tables := strings.Count(rows("(SELECT 1 FROM pg_class WHERE relkind = 'r' AND oid >= 16384)"), "\n")
	if len(d.Copies) != tables {
		t.Errorf("%s: %d blocks, but the server has %d tables", d.Name, len(d.Copies), tables)
	}

	sequences := map[string]string{}
	for _, s := range d.Sequences {
		name := pgx.Identifier{string(s.Schema), string(s.Name)}.Sanitize()
		sequences[name] = fmt.Sprintf("%d\t%.1s\n", s.Value, fmt.Sprint(s.Called))
		if got := rows("(SELECT last_value, is_called FROM " + name + ")"); got != sequences[name] {
			t.Errorf("%s: sequence %s is at %q, want %q", d.Name, name, sequences[name], got)
		}
	}
	if n := strings.Count(rows("(SELECT 1 FROM pg_class WHERE relkind = 'S')"), "\n"); len(sequences) != n {
		t.Errorf("%s: %d sequences, but the server has %d", d.Name, len(sequences), n)
	}

	n, sum := script.Rows([]byte(rows("(SELECT oid, encode(lo_get(oid), 'hex') FROM pg_largeobject_metadata)")))
	size := strings.TrimSpace(rows("(SELECT coalesce(sum(length(lo_get(oid))), 0) FROM pg_largeobject_metadata)"))
	lo := d.LargeObjects
	if lo == nil {
		lo = new(script.LargeObjects)
	}
	if int64(lo.Objects) != n || lo.Fingerprint != sum || fmt.Sprint(int64(lo.Bytes)) != size {
		t.Errorf("%s: %+v, but the server has %d large objects of %s bytes, %v", d.Name, lo, n, size, sum)
	}
	if subs := strings.Count(rows("(SELECT 1 FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))"), "\n"); len(d.Subscriptions) != subs {
		t.Errorf("%s: subscriptions %q, but the server has %d", d.Name, d.Subscriptions, subs)
	}
}

// TestContentsOfManyTables gathers 2,000 tables, and of a dump of one database.
func TestContentsOfManyTables(t *testing.T) {
	needCluster(t)
	for _, test := range []struct {
		args []string
		name script.Name
	}{{[]string{"many"}, ""}, {[]string{"-C", "many"}, "many"}} {
		b := dump(t, "pg_dump", test.args...)
		c := gather(t, b, 1<<20)
		if len(c.Databases) != 1 || c.Databases[0].Name != test.name || c.Databases[0].Range != (script.Range{Length: script.Number(len(b))}) {
			t.Fatalf("%q: databases %.300v", test.args, c.Databases)
		}
		for _, table := range c.Databases[0].Copies {
			if want, sum := script.Rows([]byte(string(table.Table)[1:] + "\tx\n")); table.Rows != script.Number(want) || table.Fingerprint != sum || len(table.Columns) != 2 {
				t.Errorf("%+v", table)
			}
		}
		if n := len(c.Databases[0].Copies); n != 2000 {
			t.Errorf("%d tables", n)
		}
	}
}

// TestOldClusterDump reads a dump as pg_dumpall wrote it up to version 10: all
// databases are created at its beginning.
func TestOldClusterDump(t *testing.T) {
	begin := "--\n-- PostgreSQL database cluster dump\n--\n\nCREATE DATABASE a WITH TEMPLATE = template0 ENCODING = 'LATIN1' OWNER = x;\n\n"
	a := "\\connect a\n\n--\n-- PostgreSQL database dump\n--\n\nCOPY t (x) FROM stdin;\n1\r\n\\N\n\\.\n\nSELECT pg_catalog.setval('s', 9007199254740993, true);\n--\n-- PostgreSQL database dump complete\n--\n\n"
	b := "\\connect -reuse-previous=on \"dbname='b \\'\"\"\\\\'\"\n\n--\n-- PostgreSQL database dump\n--\n\nSELECT pg_catalog.setval('\"\xe4\".\"b\"\"''c\"', 1, false);\n--\n-- PostgreSQL database dump complete\n--\n\n"
	end := "--\n-- PostgreSQL database cluster dump complete\n--\n"
	c := gather(t, []byte(begin+a+b+end), 10)
	rows, sum := script.Rows([]byte("1\r\n\\N\n"))
	at := len(begin) + strings.Index(a, "COPY")
	want := &script.Contents{Databases: []script.Database{
		{
			Name: "a", Encoding: "LATIN1", Range: script.Range{Offset: script.Number(len(begin)), Length: script.Number(len(a))},
			Copies: []script.Copy{{
				Table: "t", Columns: []script.Name{"x"}, Rows: script.Number(rows), Fingerprint: sum,
				Block: script.Range{Offset: script.Number(at), Length: 32}, Data: script.Range{Offset: script.Number(at) + 23, Length: 6},
			}},
			Sequences: []script.Sequence{{Name: "s", Value: 9007199254740993, Called: true}},
		},
		{
			Name: "b '\"\\", Range: script.Range{Offset: script.Number(len(begin + a)), Length: script.Number(len(b + end))},
			Sequences: []script.Sequence{{Schema: "\xe4", Name: "b\"'c", Value: 1}},
		},
	}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("\ngot  %+v\nwant %+v", c, want)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"name":"a","encoding":"LATIN1","offset":`, `"value":"9007199254740993","called":true`, `"schema":{"base64":"5A=="}`, `"value":1,`, `"fingerprint":"` + sum.String() + `"`} {
		if !bytes.Contains(text, []byte(part)) {
			t.Errorf("%s is not in %s", part, text)
		}
	}
	var again script.Contents
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&again, want) {
		t.Errorf("\ngot  %+v\nwant %+v", again, want)
	}
}

// TestDefer counts the rows elsewhere.
func TestDefer(t *testing.T) {
	b := []byte("\\connect a\nCOPY t FROM stdin;\n1\n22\n333\n\\.\nCOPY u FROM stdin;\n4\n\n\\.\n")
	want := gather(t, b, len(b))
	for _, size := range []int{1, 2, 3, 5, 7, 30, 100} {
		var g script.Gatherer
		type run struct {
			block int
			text  []byte
		}
		var runs []run
		g.Defer = func(block int, it script.Item) bool {
			runs = append(runs, run{block, bytes.Clone(it.Text)})
			return len(runs)%2 == 0 // every other one
		}
		f := script.NewFeeder(func(it script.Item) error { g.Add(it); return nil })
		for p := b; len(p) > 0; p = p[min(size, len(p)):] {
			f.Write(p[:min(size, len(p))])
		}
		f.Close()
		for i, r := range runs {
			if i%2 == 1 {
				n, sum := script.Rows(r.text)
				g.Counted(r.block, n, sum)
			}
		}
		if got := g.Contents(); !reflect.DeepEqual(got, want) {
			t.Errorf("portions of %d\ngot  %+v\nwant %+v", size, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	for n, want := range map[script.Number]string{
		0: "0", -5: "-5", 1 << 53: "9007199254740992", 1<<53 + 1: `"9007199254740993"`, math.MinInt64: `"-9223372036854775808"`,
	} {
		b, err := json.Marshal(n)
		if err != nil || string(b) != want {
			t.Errorf("%d is %s, %v", n, b, err)
		}
		var again script.Number
		if err := json.Unmarshal(b, &again); err != nil || again != n {
			t.Errorf("%s is %d, %v", b, again, err)
		}
	}
	for _, bad := range []string{`"x"`, `1.5`, `{}`} {
		var n script.Number
		if err := json.Unmarshal([]byte(bad), &n); err == nil {
			t.Errorf("%s is %d", bad, n)
		}
	}
	var f script.Fingerprint
	if err := json.Unmarshal([]byte(`"12"`), &f); err == nil {
		t.Error("a fingerprint of two digits")
	}
}

// TestRows has values that another program computed: xxhsum -H64.
func TestRows(t *testing.T) {
	if n, sum := script.Rows([]byte("a\n\nabc\r\nlast")); n != 4 || sum != rowSum("a", "", "abc\r", "last") {
		t.Errorf("%d, %v", n, sum)
	}
	for row, want := range map[string]string{"": "ef46db3751d8e999", "a": "d24ec4f1a98c6e5b", "abc": "44bc2cf5ad770999"} {
		if _, sum := script.Rows([]byte(row + "\n")); sum.String() != want {
			t.Errorf("%q is %v, want %s", row, sum, want)
		}
	}
}

func rowSum(rows ...string) (sum script.Fingerprint) {
	for _, r := range rows {
		_, s := script.Rows([]byte(r + "\n"))
		sum += s
	}
	return sum
}

func TestParse(t *testing.T) {
	for statement, want := range map[string]*script.CopyTarget{
		"COPY public.t (a, b) FROM stdin;":                               {Schema: "public", Table: "t", Columns: []string{"a", "b"}},
		"COPY public.t  FROM stdin;":                                     {Schema: "public", Table: "t"},
		"copy \"A.b\".\"c\"\"d\" ( \"e,f\" , g$1 ) from STDIN WITH (x);": {Schema: "A.b", Table: "c\"d", Columns: []string{"e,f", "g$1"}},
		"COPY t (a, b) WITH OIDS FROM stdin;":                            {Table: "t", Columns: []string{"a", "b"}},
		"COPY t WITH BINARY FROM stdin;":                                 nil,
		"COPY T (A) FROM stdin;":                                         {Table: "t", Columns: []string{"a"}},
		"COPY \"\xe4\xff\".\xe4X FROM stdin;":                            {Schema: "\xe4\xff", Table: "\xe4x"},
		"COPY /* a */ t -- b\n (\"\") FROM stdin;":                       {Table: "t", Columns: []string{""}},
		"COPY t FROM 'stdin';":                                           nil,
		"COPY t TO stdout;":                                              nil,
		"COPY (SELECT 1) TO stdout;":                                     nil,
		"COPY t (a FROM stdin;":                                          nil,
		"COPY":                                                           nil,
		"SELECT 1;":                                                      nil,
		"COPY \"new\nline; --\".\"FROM stdin\" (\"from stdin;\") FROM stdin": {Schema: "new\nline; --", Table: "FROM stdin", Columns: []string{"from stdin;"}},
	} {
		got, ok := script.ParseCopy([]byte(statement))
		if ok != (want != nil) || ok && !reflect.DeepEqual(got, *want) {
			t.Errorf("%s is %+v, %v", statement, got, ok)
		}
	}
	for meta, want := range map[string]string{
		"\\connect a\n": "a", "\\connect a\r\n": "a", "\\c a": "a", "\\connect \"a b\"\"c\"\n": "a b\"c", "\\connect 'a\\'b'": "a'b",
		"\\connect -reuse-previous=on \"dbname='a=b'\"\n":                 "a=b",
		"\\connect -reuse-previous=on \"dbname='it\\'s \"\"x\"\" \\\\'\"": "it's \"x\" \\",
		"\\connect \"host=h dbname=a\\ b port=1\"":                        "a b",
		"\\connect": "", "\\connect -\n": "", "\\connect - user": "", "\\connect \"host=h\"": "", "\\set a b": "", "\\connecta b": "",
	} {
		if got, ok := script.ParseConnect([]byte(meta)); got != want || ok != (want != "") {
			t.Errorf("%s is %q, %v", meta, got, ok)
		}
	}
	for statement, want := range map[string][2]string{
		"SET standard_conforming_strings = on;":                   {"standard_conforming_strings", "on"},
		"set SESSION client_encoding TO 'UTF8' ;":                 {"client_encoding", "UTF8"},
		"SET LOCAL \"A\".b = -1;":                                 {"a.b", "-1"},
		"SET search_path = a, 'b';":                               {"search_path", "a, 'b'"},
		"SET x = ;":                                               {"x", ""},
		"SET SESSION AUTHORIZATION 'x';":                          {},
		"SET x;":                                                  {},
		"SELECT pg_catalog.set_config('search_path', '', false);": {},
		"SET default_transaction_read_only = off; -- comment":     {"default_transaction_read_only", "off"},
		"SET TIME ZONE 'UTC';":                                    {},
		"SET x TO E'a\\'b';":                                      {"x", "a'b"},
	} {
		name, value, ok := script.ParseSet([]byte(statement))
		if [2]string{name, value} != want || ok != (want[0] != "") {
			t.Errorf("%s is %q, %q, %v", statement, name, value, ok)
		}
	}
}

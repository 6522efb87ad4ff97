package script_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"encdump/dump/postgres"
	"encdump/dump/script"
)

// cluster holds what the files in testdata make, and a database of 2,000 tables.
// It starts when a test wants it.
var (
	cluster *postgres.Cluster
	fill    = sync.OnceValue(fillCluster)
)

func TestMain(m *testing.M) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PG") {
			os.Unsetenv(name)
		}
	}
	status := m.Run()
	if cluster != nil {
		if err := cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

func needCluster(t *testing.T) {
	t.Helper()
	if err := fill(); err != nil {
		t.Fatal(err)
	}
}

func fillCluster() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if cluster, err = postgres.StartCluster(ctx, postgres.ClusterOptions{Settings: clusterSettings}); err != nil {
		return err
	}
	var many bytes.Buffer
	many.WriteString("CREATE DATABASE many;\n\\connect many\nBEGIN;\n")
	for i := range 2000 {
		fmt.Fprintf(&many, "CREATE TABLE t%d (a integer, b text);INSERT INTO t%d VALUES (%d, 'x');\n", i, i, i)
	}
	many.WriteString("COMMIT;\n")
	if out := psql(cluster.SocketDir(), many.Bytes(), "-v", "ON_ERROR_STOP=1", "-d", "postgres"); out.status != 0 {
		return fmt.Errorf("many: %s", out.stderr)
	}
	return load(cluster)
}

var clusterSettings = map[string]string{"max_locks_per_transaction": "1000", "wal_level": "logical"}

// load runs the files in testdata that a server knows: NAME_14.sql is for 14 and
// later. Those of before 13 lack some of what the others have.
func load(c *postgres.Cluster) error {
	scripts, err := testdata()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(scripts)) {
		needed := 0
		if m := sinceMajor.FindStringSubmatch(name); m != nil {
			needed, _ = strconv.Atoi(m[1])
		}
		if filepath.Dir(name) != "testdata" || needed > majorOf(c) {
			continue
		}
		stop := "ON_ERROR_STOP=1"
		if majorOf(c) < 13 {
			stop = "ON_ERROR_STOP=0"
		}
		if out := psql(c.SocketDir(), scripts[name], "-v", stop, "-d", "postgres"); out.status != 0 {
			return fmt.Errorf("%s: %s", name, out.stderr)
		}
	}
	return nil
}

var sinceMajor = regexp.MustCompile(`_(\d+)\.sql$`)

// majorOf returns the major version of a server.
func majorOf(c *postgres.Cluster) int {
	text, _, _ := strings.Cut(c.Version(), ".")
	n, _ := strconv.Atoi(text)
	return n
}

// testdata returns what makes the data sets, and in testdata/scripts, what
// pg_dump of other versions wrote, or would write.
func testdata() (map[string][]byte, error) {
	files, err := filepath.Glob("testdata/*.sql")
	if err != nil {
		return nil, err
	}
	written, err := filepath.Glob("testdata/scripts/*.sql")
	if err != nil {
		return nil, err
	}
	files = append(files, written...)
	scripts := map[string][]byte{}
	for _, file := range files {
		if scripts[file], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return scripts, nil
}

// result is what a program left.
type result struct {
	status int
	stdout string
	stderr string
}

// psql gives a script to psql.
func psql(host string, in []byte, args ...string) result {
	return run("psql", host, bytes.NewReader(in), append([]string{"-X", "-q", "-A", "-t"}, args...)...)
}

func run(name, host string, in io.Reader, args ...string) result {
	cmd := exec.Command(program(name), args...)
	cmd.Env = append(os.Environ(), "PGHOST="+host, "PGUSER=postgres", "LC_ALL=C", "PGCONNECT_TIMEOUT=20")
	cmd.Stdin = in
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return result{-1, "", err.Error()}
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// program finds the program that is of the server's version, rather than a
// wrapper that chooses one.
func program(name string) string {
	if cluster != nil {
		if server, err := filepath.EvalSymlinks(filepath.Join(cluster.BinDir(), "postgres")); err == nil {
			if path := filepath.Join(filepath.Dir(server), name); hasFile(path) {
				return path
			}
		}
	}
	return name
}

func hasFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dump runs pg_dumpall or pg_dump, on all but the databases that tests at the
// same time make and drop.
func dump(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	return dumpOf(t, cluster, name, args...)
}

func dumpOf(t *testing.T, c *postgres.Cluster, name string, args ...string) []byte {
	t.Helper()
	if name == "pg_dumpall" {
		args = append(args, "--exclude-database=test*")
	}
	out := run(name, c.SocketDir(), nil, args...)
	if out.status != 0 {
		t.Fatalf("%s %q: %s", name, args, out.stderr)
	}
	return []byte(out.stdout)
}

// query returns what the server answers.
func query(t *testing.T, database, sql string) string {
	t.Helper()
	out := psql(cluster.SocketDir(), []byte(sql), "-v", "ON_ERROR_STOP=1", "-d", database)
	if out.status != 0 {
		t.Fatalf("%s: %s: %s", database, sql, out.stderr)
	}
	return out.stdout
}

// dumps are scripts that hold everything that pg_dump can write.
func dumps(t *testing.T) map[string][]byte {
	t.Helper()
	needCluster(t)
	all := map[string][]byte{"": dump(t, "pg_dumpall")}
	for _, options := range []string{
		"--inserts", "--column-inserts", "--inserts --rows-per-insert=7", "--quote-all-identifiers", "--disable-dollar-quoting",
		"-c --if-exists", "-c --disable-triggers --use-set-session-authorization", "--binary-upgrade", "--load-via-partition-root --no-comments", "--inserts --disable-dollar-quoting --quote-all-identifiers --on-conflict-do-nothing",
	} {
		all[options] = dump(t, "pg_dumpall", append(strings.Fields(options), "--exclude-database=many")...)
	}
	for _, options := range []string{
		"-C -E SJIS enc_eucjp", "-C -E SJIS --inserts --disable-dollar-quoting enc_eucjp", "-E EUC_JP enc_eucjp", "-C -c -E UTF8 latin1", "objects",
		"-E SQL_ASCII -d enc_ascii", "--section=data data", "-a large_objects",
	} {
		all["pg_dump "+options] = dump(t, "pg_dump", strings.Fields(options)...)
	}
	all["CRLF"] = bytes.ReplaceAll(dump(t, "pg_dumpall", "--exclude-database=many"), []byte("\n"), []byte("\r\n"))
	return all
}

// TestStatements compares the items of a script with what psql sends of it to a
// server.
func TestStatements(t *testing.T) {
	t.Parallel()
	scripts := dumps(t)
	made, err := testdata()
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(scripts, made)
	// What no dump has, but psql knows.
	scripts["odd"] = []byte(`SELECT E'a'
 'b\'; SELECT 1;
SELECT E'a' -- '
 'b\'; SELECT 2 /* ; /* */ */; /* ; */ SELECT 3; -- ;
SELECT ';'';', "a;"";", U&'\;', U&"\;""", $$;$$, $a$;$b$;$a$, a$b$c;
SELECT (1; SELECT 2); SELECT \; 3; SELECT $1a$ ; SELECT $a b$;
CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN 1 THEN 2 END; END; SELECT 4;
CREATE OR REPLACE PROCEDURE f() BEGIN ATOMIC BEGIN; END; (begin; end); END; SELECT 5;
CREATE FUNCTION begin() RETURNS int AS ';'; END; SELECT 6;
COPY t FROM stdin; SELECT 7;
1;
\.
copy t FROM STDIN; COPY u from
1
\.
stdin /* x */ ;
2
\.
SELECT 8 \set x y
+ 9;
\set x 'a\'b' \\ SELECT 10; \set x "a\b" \\ SELECT 11;
COPY t FROM stdin WITH (FORMAT csv);
"a
\.
SELECT e'\\', E'\'', x'0;', b'0;', N';', 1e';';
SELECT :begin :'x;' :"y;" ::text, a:b;
SELECT - - 1 -/**/- 2 +--;
3 */* ; */ 4;
` + "SELECT 1 --a\r;\nSELECT 'a'\r'b';\n\n\nSELECT\n\n2\n\n;\n\xef\xbb\xbfSELECT 3;\n" + `SET standard_conforming_strings = off;
SELECT '\';'; SELECT E'\';'; SELECT '\\'; SELECT '\'';';
\connect x
SELECT '\'; SELECT 'unfinished`)
	scripts["Shift JIS"] = []byte("SET client_encoding = 'SJIS';\nSELECT E'\x95\\', \x95\\ , E'\xb1\\'';', E'\\\x95\\';\nSELECT 1;\nSELECT 2;\nSELECT 3;\n\\connect x\nSELECT E'\x95\\';';\n")
	scripts["GB18030"] = []byte("SET client_encoding = 'GB18030';\nSELECT E'\x81\x30\x81\x30\\';';\nSELECT E'\x81\\';\nSELECT \x81\\;\nSELECT 1;\nSELECT '\x81\n\\';\n")
	for name, b := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkStatements(t, b)
		})
	}
}

// checkStatements compares the items of a script with what psql sends of it.
func checkStatements(t *testing.T, b []byte) {
	t.Helper()
	if len(b) < 2<<20 {
		script.CheckScan(t, b)
	}
	want := sent(t, b)
	got := events(t, b)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%d of %d and %d differ\ngot  %.1000q\nwant %.1000q", i, len(got), len(want), got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
		}
	}
	if len(want) < 5 {
		t.Errorf("psql sends %q", want)
	}
}

var (
	emptyLines = regexp.MustCompile(`\n\n+`)
	forced     = regexp.MustCompile(`\\([;:])`)
)

// normal evens out in what psql changes a statement: it drops empty lines, and
// the backslash of \; outside quotes.
func normal(statement string) string {
	return forced.ReplaceAllString(emptyLines.ReplaceAllString(statement, "\n"), "$1")
}

// events are what psql does with a script, by its items.
func events(t *testing.T, b []byte) []string {
	t.Helper()
	s := script.NewScanner(bytes.NewReader(b))
	var list, later []string // later: what psql finds on the line of a COPY statement, behind it
	copies := 0
	add := func(event string) {
		if copies > 0 {
			later = append(later, event)
			return
		}
		list = append(list, event)
		if sql, ok := strings.CutPrefix(event, "query "); ok && copyIn.MatchString(sql) {
			copies++
		}
	}
	var open, rows strings.Builder
	for {
		it, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch it.Kind {
		case script.Statement:
			open.Write(it.Text)
			if !it.More {
				add("query " + normal(open.String()))
				open.Reset()
			}
		case script.CopyRows:
			rows.Write(it.Text)
		case script.CopyEnd:
			list = append(list, "rows "+rows.String())
			rows.Reset()
			copies--
			waiting := later
			later = nil
			for _, event := range waiting {
				add(event)
			}
		case script.Meta:
			if name, ok := script.ParseConnect(it.Text); ok && !s.State().Restricted() {
				add("connect " + name)
			}
		}
	}
	if open.Len() > 0 {
		add("query " + strings.TrimRight(normal(open.String()), "\n"))
	}
	return append(list, later...)
}

// sent is what psql does with a script, by what a server gets from it: one that
// takes everything for well.
func sent(t *testing.T, b []byte) []string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "script-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var sessions sync.WaitGroup
		defer sessions.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() { f.serve(c) })
		}
	}()
	out := psql(dir, b, "-d", "first")
	l.Close()
	<-done
	if f.err != nil {
		t.Fatalf("%v: %s", f.err, out.stderr)
	}
	return f.events[1:] // without the first connection
}

type fakeServer struct {
	mu     sync.Mutex
	events []string
	err    error
}

func (f *fakeServer) add(event string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event)
}

var copyIn = regexp.MustCompile(`(?is)^copy\s.*\sfrom\s+stdin\b[^"]*;$`)

func (f *fakeServer) serve(c net.Conn) {
	defer c.Close()
	if err := f.session(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
	}
}

func (f *fakeServer) session(c net.Conn) error {
	b := pgproto3.NewBackend(c, c)
	m, err := b.ReceiveStartupMessage()
	if err != nil {
		return err
	}
	start, ok := m.(*pgproto3.StartupMessage)
	if !ok {
		return fmt.Errorf("%T", m)
	}
	f.add("connect " + start.Parameters["database"])
	b.Send(&pgproto3.AuthenticationOk{})
	for name, value := range map[string]string{"server_version": "15.18", "client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		b.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
	for {
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if err := b.Flush(); err != nil {
			return err
		}
		m, err := b.Receive()
		if err != nil {
			return err
		}
		q, ok := m.(*pgproto3.Query)
		if !ok {
			return nil
		}
		if !strings.HasPrefix(q.String, "set client_encoding to") { // from libpq, in lower case
			f.add("query " + normal(q.String))
		}
		if s, ok := strings.CutPrefix(q.String, "SET "); ok {
			name, value, _ := strings.Cut(strings.TrimSuffix(s, ";"), " = ")
			if name == "client_encoding" || name == "standard_conforming_strings" {
				b.Send(&pgproto3.ParameterStatus{Name: name, Value: strings.Trim(value, "'")})
			}
		}
		if copyIn.MatchString(q.String) {
			if err := f.rows(b); err != nil {
				return err
			}
		}
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("OK")})
	}
}

// rows takes COPY data. psql sends the line that ends them, since version 14.
func (f *fakeServer) rows(b *pgproto3.Backend) error {
	b.Send(&pgproto3.CopyInResponse{})
	if err := b.Flush(); err != nil {
		return err
	}
	var rows strings.Builder
	for {
		m, err := b.Receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.CopyData:
			rows.Write(m.Data)
		case *pgproto3.CopyDone:
			s := strings.TrimSuffix(strings.TrimSuffix(rows.String(), "\\.\n"), "\\.\r\n")
			f.add("rows " + s)
			return nil
		default:
			return fmt.Errorf("%T in COPY data", m)
		}
	}
}

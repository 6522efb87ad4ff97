package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"encdump/crypto"
	"encdump/dump/postgres"
)

// psql runs SQL as the program psql does, and fails the test with any statement.
func psql(t testing.TB, c *postgres.Cluster, database, sql string) string {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", c.DSN(database))
	cmd.Stdin = strings.NewReader(sql)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

var restrictLine = regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`)

// contents returns what pg_dumpall says of a cluster, without the keys of
// \restrict, which are others each time.
func contents(t testing.TB, c *postgres.Cluster) string {
	t.Helper()
	out, err := exec.Command("pg_dumpall", "-d", c.DSN("postgres")).Output()
	if err != nil {
		t.Fatal(err)
	}
	return restrictLine.ReplaceAllString(string(out), "")
}

// program is the program as a child process, in a folder of its own.
type program struct {
	t   testing.TB
	dir string
	env []string
}

// newProgram makes a key and points the program to the cluster and to a store
// in its folder.
func newProgram(t testing.TB, c *postgres.Cluster) *program {
	t.Helper()
	dir, err := os.MkdirTemp("", "dump-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	key := filepath.Join(dir, "key")
	if err := crypto.WriteKeyFile(key, crypto.Generate()); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, dir: dir, env: append(os.Environ(), asProgram+"=1", "HOME="+dir,
		"DUMP_STORE="+filepath.Join(dir, "store"), "DUMP_KEY_FILE="+key)}
	if c != nil {
		p.env = append(p.env, "PGHOST="+c.SocketDir(), fmt.Sprintf("PGPORT=%d", c.Port()), "PGUSER=postgres")
	}
	return p
}

func (p *program) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	return cmd
}

// run runs the program and returns its status and what it wrote.
func (p *program) run(args ...string) (status int, stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := p.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			p.t.Fatal(err)
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// ok runs the program, which must succeed.
func (p *program) ok(args ...string) string {
	p.t.Helper()
	status, out, errs := p.run(args...)
	if status != 0 {
		p.t.Fatalf("dump %s: status %d\n%s", strings.Join(args, " "), status, errs)
	}
	return out
}

// objects returns what is in the store.
func (p *program) objects() []string {
	p.t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.dir, "store"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// oddData is what dumps have trouble with.
const oddData = `
	CREATE ROLE "odd ""role"", with 'quotes' and ünïcode" LOGIN;
	CREATE ROLE reader;
	GRANT reader TO "odd ""role"", with 'quotes' and ünïcode";
	ALTER ROLE reader SET timezone = 'Pacific/Chatham';
	ALTER ROLE postgres SET bytea_output = 'escape';
	CREATE DATABASE "an ""odd"" name's" OWNER reader;
	CREATE DATABASE latin1 TEMPLATE template0 ENCODING LATIN1;
	CREATE DATABASE ascii TEMPLATE template0 ENCODING SQL_ASCII;
	CREATE DATABASE empty;
	ALTER DATABASE empty SET timezone = 'Asia/Kathmandu';

	\connect latin1
	CREATE TABLE t (x text);
	INSERT INTO t VALUES (convert_from('\xe4f6fc', 'LATIN1'));

	\connect ascii
	CREATE TABLE t (x text);
	INSERT INTO t VALUES (E'\xff\xfe not utf-8');
`

const moreOddData = `
	CREATE TABLE empty ();
	CREATE TABLE no_rows (a int, b text);
	CREATE TABLE zero_columns ();
	INSERT INTO zero_columns SELECT FROM generate_series(1, 5);
	CREATE SCHEMA "Sch""ema";
	CREATE TABLE "Sch""ema"."tab
le" ("col'umn" text, "größe" bytea, at timestamptz);
	INSERT INTO "Sch""ema"."tab
le" VALUES (E'tab\there\nnew line \\. backslash', '\xdeadbeef00', '2024-02-29 12:00+05:45'), (NULL, NULL, NULL), ('', '', 'infinity');
	CREATE TABLE ends_like_a_dump (line text);
	INSERT INTO ends_like_a_dump VALUES ('--'), ('-- PostgreSQL database cluster dump complete'), ('--'), ('\.');
	CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $f$
BEGIN
	-- PostgreSQL database cluster dump complete
	RETURN 'COPY x FROM stdin;
1
\.
';
END $f$;
	SELECT lo_from_bytea(0, decode(repeat('00ff5c', 100000), 'hex'));
	SELECT lo_create(0);
	CREATE TABLE big (i int, noise text);
	INSERT INTO big SELECT i, md5(i::text) || md5((i * 7)::text) FROM generate_series(1, 60000) i;
	CREATE MATERIALIZED VIEW mv AS SELECT count(*) FROM big;
`

// TestRoundTrip dumps clusters and restores them into empty ones, by hand and
// with the program. What pg_dumpall says afterwards must be the same.
func TestRoundTrip(t *testing.T) {
	for name, fill := range map[string]func(*postgres.Cluster){
		"empty": func(*postgres.Cluster) {},
		"odd": func(c *postgres.Cluster) {
			psql(t, c, "postgres", oddData)
			psql(t, c, `an "odd" name's`, moreOddData)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := startCluster(t)
			fill(source)
			want := contents(t, source)
			p := newProgram(t, source)
			// Small parts, so that there are many, more than ten.
			p.ok("create", "--part-size", "200kB")
			id := strings.TrimSuffix(filepath.Base(glob(t, p.dir, "store/*.json")[0]), ".json")

			byHand := fmt.Sprintf(`cat $(ls -1v %s-*) | openssl enc -aes256 -md md5 -d -pass "pass:$(head -n 1 ../key)" | gunzip -c`, id)
			plain, err := shell(p, "store", byHand)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.ok("restore"); got != plain {
				t.Errorf("restore writes other SQL than the recovery by hand: %d bytes, %d", len(got), len(plain))
			}
			for _, how := range []string{byHand, "DUMP_STORE=. " + self(t) + " restore"} {
				target := startCluster(t)
				out, err := shell(p, "store", fmt.Sprintf("%s | psql -X -q -d '%s'", how, target.DSN("postgres")))
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				if got := contents(t, target); got != want {
					t.Errorf("after %q: %s", how, firstDifference(got, want))
				}
				target.Stop()
			}
		})
	}
}

func self(t testing.TB) string {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// shell runs a pipeline in a folder below the program's and returns its output.
func shell(p *program, dir, command string) (string, error) {
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", command)
	cmd.Dir, cmd.Env = filepath.Join(p.dir, dir), p.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", command, err, errs.String())
	}
	return string(out), err
}

func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return names
}

func firstDifference(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d: got %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// TestSettingsOfRoles: whatever roles and databases set, the text of values is
// that of TimeZone UTC and bytea_output hex.
func TestSettingsOfRoles(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", `
		ALTER ROLE postgres SET bytea_output = 'escape';
		ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu';
		CREATE TABLE t (b bytea, at timestamptz);
		INSERT INTO t VALUES ('\x00ff', '2024-01-01 00:00+00');`)
	p := newProgram(t, c)
	p.ok("create")
	if out := p.ok("restore"); !strings.Contains(out, "\\\\x00ff\t2024-01-01 00:00:00+00\n") {
		t.Errorf("the row is not in the dump as hex and UTC")
	}
}

// hold takes a lock on a table in a session of its own until the test ends, so
// that a dump which wants the table waits.
func hold(t testing.TB, c *postgres.Cluster, database, table string) (release func()) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, c.DSN(database))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "BEGIN; LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	release = func() { conn.Close(ctx) }
	t.Cleanup(release)
	return release
}

// await polls the server until a query gives the wanted answer.
func await(t testing.TB, c *postgres.Cluster, query, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for {
		var got string
		if err := conn.QueryRow(ctx, query).Scan(&got); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		if got == want {
			return
		}
		// pg_sleep paces the asking; what is waited for is the answer.
		if _, err := conn.Exec(ctx, "SELECT pg_sleep(0.02)"); err != nil {
			t.Fatalf("%s is %s, not %s: %v", query, got, want, err)
		}
	}
}

const (
	waiting  = `SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'`
	sessions = `SELECT count(*)::text FROM pg_stat_activity WHERE application_name IN ('pg_dump', 'pg_dumpall', 'dump')`
)

// TestInterrupt: a create that waits for a lock is interrupted. Nothing is left,
// neither on the server nor in the store.
func TestInterrupt(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t (i int)")
	hold(t, c, "postgres", "t")
	for _, test := range []struct {
		signal syscall.Signal
		status int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}, {syscall.SIGHUP, 129}} {
		p := newProgram(t, c)
		cmd := p.command("create")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, c, waiting, "1")

		// Meanwhile a second run finds the lock held, and names the holder.
		if status, _, text := p.run("create"); status != 6 || !strings.Contains(text, "dump: hint: ") {
			t.Errorf("second run: status %d\n%s", status, text)
		}
		cmd.Process.Signal(test.signal)
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != test.status {
			t.Errorf("%v: status %d, want %d\n%s", test.signal, got, test.status, errs.String())
		}
		await(t, c, sessions, "0")
		if left := p.objects(); len(left) > 0 {
			t.Errorf("%v left %v", test.signal, left)
		}
	}
}

// TestLockWaitTimeout: the default keeps a dump from waiting for ever, and an
// option shortens it.
func TestLockWaitTimeout(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t (i int)")
	hold(t, c, "postgres", "t")
	p := newProgram(t, c)
	status, _, text := p.run("create", "--lock-wait-timeout", "100ms")
	if status != 1 || !strings.Contains(text, "LOCK TABLE public.t") || !strings.Contains(text, "dump: hint: ") {
		t.Errorf("status %d\n%s", status, text)
	}
	if left := p.objects(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestKilledChildren: whichever process of the dump dies, and however, there is no backup.
func TestKilledChildren(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t (i int)")
	hold(t, c, "postgres", "t")
	for _, name := range []string{"pg_dump", "pg_dumpall"} {
		p := newProgram(t, c)
		cmd := p.command("create")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, c, waiting, "1")
		if n := killDescendants(t, cmd.Process.Pid, name); n != 1 {
			t.Errorf("%d processes %s were killed", n, name)
		}
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 1 || !strings.Contains(errs.String(), "dump: error: ") {
			t.Errorf("%s killed: status %d\n%s", name, got, errs.String())
		}
		if left := p.objects(); len(left) > 0 {
			t.Errorf("%s killed: left %v", name, left)
		}
		psql(t, c, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'")
		await(t, c, sessions, "0")
	}
}

// killDescendants kills the processes of that name below pid with SIGKILL.
func killDescendants(t testing.TB, pid int, name string) (killed int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent, comm := make(map[int]int), make(map[int]string)
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state ppid …; see proc(5).
		s := string(b)
		open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
		id, _ := strconv.Atoi(strings.TrimSpace(s[:open]))
		comm[id] = s[open+1 : end]
		parent[id], _ = strconv.Atoi(strings.Fields(s[end+1:])[1])
	}
	for id := range parent {
		for up := parent[id]; up > 1; up = parent[up] {
			if up == pid && comm[id] == name {
				syscall.Kill(id, syscall.SIGKILL)
				killed++
			}
		}
	}
	return killed
}

// TestServerDies: the server goes away in the middle.
func TestServerDies(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t (i int)")
	release := hold(t, c, "postgres", "t")
	defer release()
	p := newProgram(t, c)
	cmd := p.command("create")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, c, waiting, "1")
	c.Stop()
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("status %d\n%s", got, errs.String())
	}
	if left := p.objects(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestFullDisk: the store is a file system that is too small.
func TestFullDisk(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t AS SELECT md5(i::text) || md5((i*3)::text) AS x FROM generate_series(1, 200000) i")
	p := newProgram(t, c)
	store := filepath.Join(p.dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	// A mount of its own, in a namespace that goes with the command.
	script := fmt.Sprintf(`mount -t tmpfs -o size=4m none %[1]s; status=0; %[2]s create || status=$?; unset %[3]s; ls -A %[1]s; exit $status`,
		store, self(t), asProgram)
	namespace := []string{"--mount", "bash", "-c", script}
	if os.Geteuid() != 0 {
		namespace = append([]string{"--map-root-user"}, namespace...)
	}
	cmd := exec.Command("unshare", namespace...)
	cmd.Env = p.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(errs.String(), "no space left on device") {
		t.Fatalf("%v\n%s%s", err, out, errs.String())
	}
	if len(out) > 0 {
		t.Errorf("left on the full disk: %s", out)
	}
	if !strings.Contains(errs.String(), "dump: hint: the disk is full") {
		t.Errorf("no hint: %s", errs.String())
	}
	await(t, c, sessions, "0")
}

// TestKill: create is killed outright at random moments. Whatever is listed as
// complete afterwards restores, and a following create works.
func TestKill(t *testing.T) {
	c := startCluster(t)
	psql(t, c, "postgres", "CREATE TABLE t AS SELECT md5(i::text) || md5((i*3)::text) AS x FROM generate_series(1, 30000) i")
	p := newProgram(t, c)
	start := time.Now()
	p.ok("create", "--part-size", "300kB")
	whole := time.Since(start)
	rounds := 40
	if n, err := strconv.Atoi(os.Getenv("TEST_ROUNDS")); err == nil {
		rounds *= n
	}
	seed := uint64(20)
	random := rand.New(rand.NewPCG(seed, seed))
	killed := 0
	for range rounds {
		cmd := p.command("create", "--part-size", "300kB")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The moment is what is random here; nothing waits for anything.
		timer := time.AfterFunc(time.Duration(random.Int64N(int64(whole)*5/4)), func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		if !cmd.ProcessState.Success() {
			killed++
		}
		// The server may not have noticed yet.
		await(t, c, sessions, "0")
	}
	if killed < rounds/4 {
		t.Errorf("only %d of %d runs were killed", killed, rounds)
	}
	complete, incomplete := 0, 0
	for line := range strings.Lines(p.ok("list")) {
		switch fields := strings.Fields(line); {
		case strings.HasSuffix(strings.TrimSpace(line), " complete"):
			complete++
			p.ok("verify", fields[0])
		case strings.HasSuffix(strings.TrimSpace(line), " incomplete"):
			incomplete++
			if status, out, _ := p.run("restore", fields[0]); status != 7 || out != "" {
				t.Errorf("restore of an incomplete backup: status %d, %d bytes", status, len(out))
			}
			p.ok("delete", "--yes", fields[0])
		}
	}
	t.Logf("seed %d: of %d runs %d were killed; %d backups complete, %d incomplete", seed, rounds, killed, complete, incomplete)
	if incomplete == 0 {
		t.Error("no run was killed in the middle")
	}
	p.ok("create")
	for _, name := range p.objects() {
		if strings.HasSuffix(name, ".incomplete") {
			t.Errorf("%s is left", name)
		}
	}
}

// TestBrokenPipe: whoever reads the restore goes away; dump ends, and does not hang.
func TestBrokenPipe(t *testing.T) {
	p := newProgram(t, sourceCluster(t))
	p.ok("create")
	cmd := p.command("restore")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, out, 10); err != nil {
		t.Fatal(err)
	}
	out.Close()
	cmd.Wait() // either it had written everything already, or it was told
}

// TestRestoreFails: damage in the middle of a COPY. What was released before is
// right, psql fails whatever its settings, and has no row of the unfinished COPY.
func TestRestoreFails(t *testing.T) {
	source := startCluster(t)
	psql(t, source, "postgres", `
		CREATE TABLE a AS SELECT i FROM generate_series(1, 1000) i;
		CREATE TABLE big AS SELECT md5(i::text) || md5((i*3)::text) AS x FROM generate_series(1, 300000) i`)
	p := newProgram(t, source)
	p.ok("create")
	whole := p.ok("restore")
	part := glob(t, p.dir, "store/*-0")[0]
	b, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-5<<20] ^= 1 // within the table that is the larger part
	if err := os.WriteFile(part, b, 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, text := p.run("restore", "latest")
	if status != 7 {
		t.Fatalf("status %d\n%s", status, text)
	}
	released, ending, ok := strings.Cut(out, strings.Repeat("\t", 1700))
	if !ok || !strings.HasPrefix(whole, strings.TrimSuffix(released, "\n")) || len(released) < 1<<20 || len(ending) > 100<<10 {
		t.Errorf("%d bytes were released, %d follow", len(released), len(ending))
	}
	for _, options := range []string{"", "-1", "-v ON_ERROR_STOP=1", "-1 -v ON_ERROR_STOP=1", "-v ON_ERROR_STOP=0"} {
		target := startCluster(t)
		command := fmt.Sprintf("{ set +o pipefail; %s restore latest || true; } | psql -X -q %s -d '%s' >/dev/null", self(t), options, target.DSN("postgres"))
		// The role that both have must not be what stops psql.
		command = strings.Replace(command, "|| true; }", "| sed '/^CREATE ROLE postgres;$/d'; }", 1)
		if _, err := shell(p, ".", command); err == nil {
			t.Errorf("psql %s: %v", options, err)
		}
		if got := psql(t, target, "postgres", "SELECT coalesce((SELECT relname FROM pg_class WHERE relname = 'big'), 'none')"); got == "big" {
			if n := psql(t, target, "postgres", "SELECT count(*) FROM big"); n != "0" {
				t.Errorf("psql %s: %s rows of the unfinished COPY", options, n)
			}
		}
		target.Stop()
	}
}

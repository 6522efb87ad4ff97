package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// readAll reads a dump that must end well, and closes it.
func readAll(t *testing.T, d *Dump) string {
	t.Helper()
	text, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := d.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return string(text)
}

// drain reads to the end and returns why it ended; nil means io.EOF.
func drain(d *Dump) error {
	_, err := io.Copy(io.Discard, d)
	return err
}

// fakeDumpall makes a directory with a pg_dumpall that is a shell script, and a pg_dump.
func fakeDumpall(t *testing.T, version, script string) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "pg_dumpall")
	text := "#!/bin/sh\nPATH=/usr/bin:/bin\nif [ \"$1\" = --version ]; then echo 'pg_dumpall (PostgreSQL) " + version + "'; exit; fi\n" + script + "\n"
	for p, text := range map[string]string{path: text, filepath.Join(dir, "pg_dump"): "#!/bin/sh\n"} {
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// fakeServer is a server that was found, for programs that do not talk to it.
func fakeServer(t *testing.T, version int, dsn string) *Server {
	t.Helper()
	st, err := resolve(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return &Server{settings: st, target: st.targets[0], user: "me", info: Info{Version: version, VersionText: fmt.Sprintf("%d.%d", version/10000, version%10000), Database: "postgres"}}
}

// runFake starts a fake pg_dumpall.
func runFake(t *testing.T, script string) *Dump {
	t.Helper()
	d, err := fakeServer(t, 150018, "host=/nowhere password=Secret-Word").DumpAll(t.Context(), DumpOptions{Program: fakeDumpall(t, "15.18", script)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// groupGone fails when a process of the dump is left.
func groupGone(t *testing.T, d *Dump) {
	t.Helper()
	if signalGroup(d.pgid, 0) {
		t.Errorf("processes of group %d are left", d.pgid)
	}
}

// shortGraces makes programs that do not want to end cost little time.
func shortGraces(t *testing.T) {
	term, kill := termGrace, killGrace
	termGrace, killGrace = 100*time.Millisecond, 5*time.Second
	t.Cleanup(func() { termGrace, killGrace = term, kill })
}

// TestDumpAll dumps a real cluster, whose roles and databases try to set what a dump must not depend on.
func TestDumpAll(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	conn := session(t, c, "postgres")
	query(t, conn, "CREATE DATABASE shop")
	query(t, conn, "ALTER DATABASE shop SET TimeZone = 'Asia/Tokyo'; ALTER DATABASE shop SET bytea_output = escape;"+
		"ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'; ALTER ROLE postgres SET bytea_output = escape;"+
		"ALTER ROLE postgres IN DATABASE shop SET TimeZone = 'Asia/Tokyo'; ALTER ROLE postgres IN DATABASE shop SET bytea_output = escape")
	shop := session(t, c, "shop")
	if zone := query(t, shop, "SHOW TimeZone"); zone != "Asia/Tokyo" {
		t.Fatalf("the settings have no effect: %s", zone)
	}
	query(t, shop, `CREATE TABLE things (at timestamptz, data bytea); INSERT INTO things VALUES ('2024-01-01 00:00:00+00', '\x00ff')`)
	t.Setenv("PGTZ", "Asia/Tokyo")
	t.Setenv("PGOPTIONS", "-c TimeZone=Asia/Tokyo -c geqo=off")

	s := connect(t, Config{DSN: c.DSN("postgres")})
	d, err := s.DumpAll(t.Context(), DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d.ProgramVersion() == "" || !strings.HasSuffix(d.Program(), "/pg_dumpall") {
		t.Errorf("%s %s", d.Program(), d.ProgramVersion())
	}
	text := readAll(t, d)
	contains(t, text, "CREATE ROLE postgres", `\connect shop`, "CREATE DATABASE shop", "COPY public.things", "2024-01-01 00:00:00+00\t\\\\x00ff\n")
	if !strings.HasSuffix(text, "-- PostgreSQL database cluster dump complete\n--\n\n") {
		t.Errorf("it ends with %q", text[max(0, len(text)-100):])
	}
	groupGone(t, d)
	if d.Stderr() != "" {
		t.Error(d.Stderr())
	}
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := s.DumpAll(t.Context(), DumpOptions{Args: []string{"-h", "elsewhere"}}); err == nil {
		t.Error("-h was passed on")
	}
}

// blockedDump starts a dump that waits for a table, and returns it together with a session to look at the server with.
func blockedDump(t *testing.T, ctx context.Context, o DumpOptions) (d *Dump, backends func() string) {
	t.Helper()
	conn, locker := session(t, shared, "postgres"), session(t, shared, "postgres")
	query(t, conn, "CREATE TABLE blocked ()")
	query(t, locker, "BEGIN; LOCK TABLE blocked IN ACCESS EXCLUSIVE MODE")
	t.Cleanup(func() {
		queryRow(context.Background(), locker, "ROLLBACK")
		queryRow(context.Background(), conn, "DROP TABLE blocked")
	})
	s := connect(t, Config{DSN: shared.DSN("postgres")})
	d, err := s.DumpAll(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, func() string {
		return query(t, conn, "SELECT string_agg(application_name || coalesce(wait_event_type, ''), ' ') FROM pg_stat_activity WHERE application_name LIKE 'pg_dump%'")
	}
}

func waitBlocked(t *testing.T, backends func() string) {
	t.Helper()
	eventually(t, "pg_dump waits for the table", func() bool { return strings.Contains(backends(), "pg_dumpLock") })
}

// TestCancelBlockedDump: pg_dump waits for a lock in the server when the dump is given up. Killing pg_dumpall alone would
// leave it there.
func TestCancelBlockedDump(t *testing.T) {
	for _, how := range []string{"cancel", "close", "close while reading"} {
		t.Run(how, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			d, backends := blockedDump(t, ctx, DumpOptions{})
			read := make(chan error, 1)
			if how != "close" {
				go func() { read <- drain(d) }()
			}
			waitBlocked(t, backends)
			cause := errors.New("the reason")
			if how == "cancel" {
				cancel(cause)
				if err := <-read; !errors.Is(err, cause) {
					t.Errorf("read: %v", err)
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			groupGone(t, d)
			if how == "close while reading" {
				if err := <-read; !errors.Is(err, os.ErrClosed) {
					t.Errorf("read: %v", err)
				}
			}
			eventually(t, "no backend of pg_dump is left", func() bool { return backends() == "" })
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// processes lists the processes of a group that run a program, by their name.
func processes(t *testing.T, pgid int, name string) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		before, after, _ := strings.Cut(string(text), ") ")
		pid, comm, _ := strings.Cut(before, " (")
		if fields := strings.Fields(after); comm == name && fields[2] == strconv.Itoa(pgid) {
			n, _ := strconv.Atoi(pid)
			pids = append(pids, n)
		}
	}
	return pids
}

// TestKilled: whichever of the processes is killed, the dump fails and nothing is left.
func TestKilled(t *testing.T) {
	for _, name := range []string{"pg_dump", "pg_dumpall"} {
		t.Run(name, func(t *testing.T) {
			d, backends := blockedDump(t, t.Context(), DumpOptions{})
			waitBlocked(t, backends)
			pids := processes(t, d.pgid, name)
			if len(pids) != 1 {
				t.Fatalf("processes %v", pids)
			}
			if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			err := drain(d)
			var failed *DumpError
			if !errors.As(err, &failed) {
				t.Fatalf("read: %v", err)
			}
			if name == "pg_dumpall" && failed.Status != "signal: killed" {
				t.Error(failed.Status)
			}
			groupGone(t, d)
			if name == "pg_dumpall" { // pg_dump could say goodbye
				eventually(t, "no backend of pg_dump is left", func() bool { return backends() == "" })
			}
		})
	}
}

func TestLockWaitTimeout(t *testing.T) {
	for _, o := range []DumpOptions{{LockWaitTimeout: 50 * time.Millisecond}, {Args: []string{"--lock-wait=50"}}} {
		t.Run(fmt.Sprint(o.Args), func(t *testing.T) {
			d, _ := blockedDump(t, t.Context(), o)
			err := drain(d)
			var failed *DumpError
			if !errors.As(err, &failed) {
				t.Fatal(err)
			}
			contains(t, err.Error(), "exit status 1", "public.blocked")
			contains(t, failed.Hint(), "--lock-wait-timeout")
		})
	}
}

// TestArguments records what a child gets to see.
func TestArguments(t *testing.T) {
	t.Setenv("DUMP_KEY", "the passphrase")
	t.Setenv("DUMP_STORE", "x")
	run := func(s *Server, o DumpOptions) (args []string, env string) {
		t.Helper()
		o.Program = fakeDumpall(t, "15.18", `printf '%s\n' "$@"; echo =====; env; cat`)
		d, err := s.DumpAll(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		first, second, _ := strings.Cut(readAll(t, d), "=====\n")
		return strings.Fields(first), "\n" + second
	}
	args, env := run(fakeServer(t, 150018, "host=/nowhere password=Secret-Word"), DumpOptions{Args: []string{"-c"}})
	if want := []string{"--no-password", "--lock-wait-timeout=300000", "-c"}; !slices.Equal(args, want) {
		t.Errorf("arguments %q", args)
	}
	contains(t, env, "\nPGPASSWORD=Secret-Word\n", "\nPGHOST=/nowhere\n", "\nPGPORT=5432\n", "\nPGUSER=me\n", "\nPGOPTIONS=-c TimeZone=UTC -c bytea_output=hex\n")
	for _, bad := range []string{"DUMP_", "passphrase", "PGAPPNAME"} {
		if strings.Contains(env, bad) {
			t.Errorf("%s is in the environment", bad)
		}
	}
	s := fakeServer(t, 150018, "postgresql://u:Secret-Word@h/?keepalives=0")
	args, _ = run(s, DumpOptions{LockWaitTimeout: time.Second})
	if want := []string{"--no-password", "--lock-wait-timeout=1000", "--dbname=keepalives='0'"}; !slices.Equal(args, want) {
		t.Errorf("arguments %q", args)
	}
	if args, _ = run(s, DumpOptions{Args: []string{"--lock-wait-timeout", "7"}}); slices.Contains(args, "--lock-wait-timeout=300000") {
		t.Errorf("arguments %q", args)
	}
	if args, _ = run(s, DumpOptions{LockWaitTimeout: -1}); strings.Contains(strings.Join(args, " "), "lock-wait") {
		t.Errorf("arguments %q", args)
	}
	s.settings.values["sslpassword"] = "x"
	if _, err := s.DumpAll(t.Context(), DumpOptions{Program: fakeDumpall(t, "15.18", "")}); err == nil || !strings.Contains(err.Error(), "sslpassword") {
		t.Errorf("sslpassword: %v", err)
	}
}

func TestFailures(t *testing.T) {
	shortGraces(t)
	for name, c := range map[string]struct {
		script string
		data   string
		err    []string
	}{
		"with a message": {
			`echo out; echo 'pg_dump: warning: x' >&2; echo 'pg_dump: error: no Secret-Word' >&2; exit 3`, "out\n",
			[]string{"exit status 3: pg_dump: error: no ***"},
		},
		"without a message":         {`echo out; exit 1`, "out\n", []string{"exit status 1"}},
		"by a signal":               {`echo out; kill -9 $$`, "out\n", []string{"signal: killed"}},
		"of something it left":      {`echo out; (sleep 0.05; exit 7) & exit 0`, "out\n", []string{"one of its processes ended with exit status 7"}},
		"because something is left": {`echo out; sleep 100 & exit 0`, "out\n", []string{"terminated"}},
		// What outlives pg_dumpall's own failure is ended, also when it does not want to.
		"with a stubborn child": {`echo out; trap "" TERM; (while :; do sleep 1; done) & exit 5`, "out\n", []string{"exit status 5"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := runFake(t, c.script)
			data, err := io.ReadAll(d)
			var failed *DumpError
			if !errors.As(err, &failed) || strings.Contains(err.Error(), "Secret-Word") || strings.Contains(failed.Stderr, "Secret-Word") {
				t.Fatalf("%v, %+v", err, failed)
			}
			contains(t, err.Error(), c.err...)
			if string(data) != c.data {
				t.Errorf("read %q", data)
			}
			if _, again := d.Read(make([]byte, 1)); again != err {
				t.Errorf("then: %v", again)
			}
			groupGone(t, d)
		})
	}
}

// TestStubborn: a program that ignores SIGTERM, or takes it for a reason to say that all is well.
func TestStubborn(t *testing.T) {
	shortGraces(t)
	for _, trap := range []string{"''", "'exit 0'"} {
		d := runFake(t, `trap `+trap+` TERM; echo out; while :; do sleep 0.01; done`)
		if _, err := io.ReadFull(d, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		groupGone(t, d)
		if d.err == nil {
			t.Errorf("trap %s: a dump that was cut short is a success", trap)
		}
	}
}

// TestEscaped: a process that left the group keeps the pipe open.
func TestEscaped(t *testing.T) {
	shortGraces(t)
	escape := `mkfifo $0.fifo; setsid sh -c 'echo $$ >&2; echo >$1; exec sleep 100' x $0.fifo & read x <$0.fifo; `
	kill := func(d *Dump) {
		pid, err := strconv.Atoi(strings.TrimSpace(d.Stderr()))
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
	said := func(d *Dump) func() bool { return func() bool { return strings.HasSuffix(d.Stderr(), "\n") } }

	d := runFake(t, escape+`sleep 100`)
	read := make(chan error, 1)
	go func() { read <- drain(d) }()
	eventually(t, "it has escaped", said(d))
	d.Close()
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	kill(d)

	// All that belongs to the dump was written before its processes ended.
	d = runFake(t, escape+`echo out`)
	if text := readAll(t, d); text != "out\n" {
		t.Errorf("read %q", text)
	}
	eventually(t, "it has escaped", said(d))
	kill(d)
}

func TestStderr(t *testing.T) {
	var log lines
	s := fakeServer(t, 150018, "host=/nowhere password=Secret-Word")
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := s.DumpAll(t.Context(), DumpOptions{Program: fakeDumpall(t, "15.18", `echo first Secret-Word >&2; head -c 100000 /dev/zero | tr '\0' x >&2; echo; echo last >&2`)})
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, d)
	if got := d.Stderr(); len(got) != 64<<10 || !strings.HasSuffix(got, "xlast\n") {
		t.Errorf("%d bytes that end with %q", len(got), got[max(0, len(got)-10):])
	}
	contains(t, log.String(), "first ***")
}

// TestData: every byte arrives, whatever the size of the reads, through a pipe that holds much.
func TestData(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data")
	want := bytes.Repeat([]byte("0123456789abcdef\n"), 300_000)
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1000, 64 << 10, 4 << 20} {
		d := runFake(t, "cat "+file)
		if size == 1000 {
			if d.pipeSize < 1<<20 {
				t.Errorf("the pipe holds %d bytes", d.pipeSize)
			}
		}
		var got []byte
		buf := make([]byte, size)
		for {
			n, err := d.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d", len(got), len(want))
		}
		d.Close()
	}
}

func TestCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := fakeServer(t, 150018, "host=/nowhere")
	if d, err := s.DumpAll(ctx, DumpOptions{Program: fakeDumpall(t, "15.18", "echo out")}); err == nil {
		d.Close()
		t.Error("it was started")
	}
}

// TestCancelledAfter: what was over before the cancellation stays a success.
func TestCancelledAfter(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := fakeServer(t, 150018, "host=/nowhere")
	d, err := s.DumpAll(ctx, DumpOptions{Program: fakeDumpall(t, "15.18", "echo out")})
	if err != nil {
		t.Fatal(err)
	}
	<-d.done
	cancel()
	if text := readAll(t, d); text != "out\n" {
		t.Errorf("read %q", text)
	}
}

// TestPromptCancel: a reader learns of a cancellation at once, not when the last process has ended.
func TestPromptCancel(t *testing.T) {
	old := termGrace
	termGrace = time.Hour
	t.Cleanup(func() { termGrace = old })
	ctx, cancel := context.WithCancelCause(t.Context())
	d, err := fakeServer(t, 150018, "host=/nowhere").DumpAll(ctx, DumpOptions{Program: fakeDumpall(t, "15.18", `trap '' TERM; echo out; while :; do sleep 0.01; done`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(d, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("the reason")
	read := make(chan error, 1)
	go func() { read <- drain(d) }()
	eventually(t, "the reader waits", func() bool {
		if d.reading.TryLock() {
			d.reading.Unlock()
			return false
		}
		return true
	})
	cancel(cause)
	eventually(t, "the read ends", func() bool { return len(read) == 1 })
	if err := <-read; !errors.Is(err, cause) {
		t.Error(err)
	}
	if isClosed(d.done) {
		t.Error("the program has ended")
	}
	signalGroup(d.pgid, syscall.SIGKILL)
	d.Close()
	groupGone(t, d)
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLockKey(t *testing.T) {
	// printf 'dump lock 1b4e28ba-2fa1-11d2-883f-0016d3cca427' | sha256sum | cut -c1-16
	if got := uint64(LockKey("1b4e28ba-2fa1-11d2-883f-0016d3cca427")); got != 0xd302163a21e7f231 {
		t.Errorf("%#x", got)
	}
}

func TestLock(t *testing.T) {
	ctx := t.Context()
	s := connect(t, Config{DSN: shared.DSN("postgres")})
	before := time.Now().Add(-2 * time.Second)
	l, err := s.Lock(ctx, "guid")
	if err != nil {
		t.Fatal(err)
	}
	if l.Warning() != "" {
		t.Error(l.Warning())
	}
	conn := session(t, shared, "postgres")
	pid := query(t, conn, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
	if got := query(t, conn, "SELECT application_name FROM pg_stat_activity WHERE pid = "+pid); got != "dump" {
		t.Error(got)
	}

	_, err = s.Lock(ctx, "guid")
	var busy *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &busy) {
		t.Fatalf("locked twice: %v", err)
	}
	if strconv.Itoa(busy.PID) != pid || busy.ApplicationName != "dump" || busy.Client != "local" || busy.Since.Before(before) || busy.Since.After(time.Now().Add(time.Second)) {
		t.Errorf("%+v", busy)
	}
	contains(t, busy.Error(), pid, `"dump"`, "local", busy.Since.Format(time.RFC3339))
	contains(t, busy.Hint(), pid)

	other, err := s.Lock(ctx, "another guid")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Release(ctx); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := l.Release(ctx); err != nil {
			t.Error(err)
		}
	}
	l, err = s.Lock(ctx, "guid")
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.Release(cancelled); err != nil {
		t.Error(err)
	}
	if n := query(t, conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); n != "0" {
		t.Errorf("%s locks are held", n)
	}
}

// TestLockIdleTimeout: the server does not end the session for being idle.
func TestLockIdleTimeout(t *testing.T) {
	c := startCluster(t, ClusterOptions{Settings: map[string]string{"idle_session_timeout": "200ms"}})
	s := connect(t, Config{DSN: c.DSN("postgres")}) // this one will be ended
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	conn := session(t, c, "postgres")
	query(t, conn, "SET idle_session_timeout = 0")
	eventually(t, "the session without the setting is ended", func() bool {
		return query(t, conn, fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d", s.conn.PID())) == "0"
	})
	if err := l.check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLockTakenAgain: a session that is cut is replaced.
func TestLockTakenAgain(t *testing.T) {
	var log lines
	s := connect(t, Config{DSN: shared.DSN("postgres"), LockInterval: 5 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release(t.Context())
	conn := session(t, shared, "postgres")
	const holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
	pid := query(t, conn, holder)
	query(t, conn, "SELECT pg_terminate_backend("+pid+")")
	eventually(t, "the lock is held by another session", func() bool {
		now := query(t, conn, holder)
		return now != "" && now != pid
	})
	eventually(t, "it is said", func() bool { return strings.Contains(log.String(), "taken again") })
	if isClosed(l.Lost()) {
		t.Error("lost")
	}
	if l.Err() != nil {
		t.Error(l.Err())
	}
}

// TestLockStolen: another session gets the lock when ours is cut.
func TestLockStolen(t *testing.T) {
	s := connect(t, Config{DSN: shared.DSN("postgres"), LockInterval: 5 * time.Millisecond})
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	conn, thief := session(t, shared, "postgres"), session(t, shared, "postgres")
	pid := query(t, conn, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
	stolen := make(chan error, 1)
	go func() {
		_, err := queryRow(context.Background(), thief, fmt.Sprintf("SELECT pg_advisory_lock(%d)", l.key))
		stolen <- err
	}()
	eventually(t, "somebody waits for the lock", func() bool {
		return query(t, conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == "1"
	})
	query(t, conn, "SELECT pg_terminate_backend("+pid+")")
	if err := <-stolen; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lock is lost", func() bool { return isClosed(l.Lost()) })
	if err := l.Err(); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "was lost") {
		t.Error(err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("release of a lost lock: %v", err)
	}
}

// TestLockUnlocked: the session lives, but somebody released the lock in it.
func TestLockUnlocked(t *testing.T) {
	s := connect(t, Config{DSN: shared.DSN("postgres")})
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release(t.Context())
	if err := l.check(t.Context()); err != nil {
		t.Error(err)
	}
	query(t, l.conn, "SELECT pg_advisory_unlock_all(), pg_advisory_lock(1)") // another lock does not count
	if err := l.check(t.Context()); err == nil {
		t.Error("it is still said to be held")
	}
}

func TestLockServerStopped(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	s := connect(t, Config{DSN: c.DSN("postgres"), LockInterval: 5 * time.Millisecond})
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	if l.Err() != nil {
		t.Error(l.Err())
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lock is lost", func() bool { return isClosed(l.Lost()) })
	if l.Err() == nil {
		t.Error("no cause")
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLockBehindPooler: PgBouncer in transaction mode hands every statement to any server process.
func TestLockBehindPooler(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "dump-bouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := fmt.Sprintf(`[databases]
* = host=%s port=%d
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = %s
auth_type = trust
auth_file = %s/users
pool_mode = transaction
`, shared.SocketDir(), shared.Port(), dir, dir)
	for name, text := range map[string]string{"config": config, "users": `"postgres" ""` + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u, err := unprivileged() // it refuses to run as root, too
	if err != nil {
		t.Fatal(err)
	}
	if u != nil {
		if err := os.Chown(dir, int(u.Uid), int(u.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer"
	}
	bouncer := exec.Command(program, filepath.Join(dir, "config"))
	bouncer.Dir = dir
	bouncer.SysProcAttr = &syscall.SysProcAttr{Credential: u}
	var log lines
	bouncer.Stdout, bouncer.Stderr = &log, &log
	if err := bouncer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		bouncer.Process.Signal(os.Interrupt)
		bouncer.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	c := Config{DSN: fmt.Sprintf("host=%s port=6432 user=postgres", dir), LockInterval: time.Millisecond}
	var s *Server
	eventually(t, "PgBouncer answers", func() bool {
		s, err = Connect(t.Context(), c)
		return err == nil
	})
	defer s.Close()
	l, err := s.Lock(t.Context(), "guid")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, l.Warning(), "pooler", "connect to the server itself")
	// Nothing may stay behind in the pooled server process, and no second run be turned away by it.
	if n := query(t, session(t, shared, "postgres"), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); n != "0" {
		t.Errorf("%s locks are held", n)
	}
	if isClosed(l.Lost()) {
		t.Error("lost")
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	// PgBouncer does not take the settings that a dump needs; the error says the way out.
	d, err := s.DumpAll(t.Context(), DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := drain(d); err == nil || !strings.Contains(hintOf(err), "connect to the server itself") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
}

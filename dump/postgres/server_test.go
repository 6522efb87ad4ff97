package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestConnectInfo(t *testing.T) {
	s := connect(t, Config{DSN: shared.DSN("ignored")})
	info := s.Info()
	conn := session(t, shared, "template1")
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(info.Version) != query(t, conn, "SHOW server_version_num") || info.VersionText != shared.Version() ||
		info.Host != hostname || info.Port != 5432 || info.User != "postgres" || info.Database != "postgres" || info.Standby {
		t.Errorf("%+v", info)
	}
	if info.Databases < 2 || info.Size < 1<<20 {
		t.Errorf("%d databases of %d bytes", info.Databases, info.Size)
	}
	id, err := s.SystemIdentifier()
	if want := query(t, conn, "SELECT system_identifier FROM pg_control_system()"); err != nil || fmt.Sprint(id) != want {
		t.Errorf("system identifier %d, want %s: %v", id, want, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// TestConnectEnvironment: an empty DSN means libpq's environment.
func TestConnectEnvironment(t *testing.T) {
	t.Setenv("PGHOST", shared.SocketDir())
	t.Setenv("PGUSER", "postgres")
	t.Setenv("PGOPTIONS", "-c geqo=off")
	s := connect(t, Config{})
	conn, err := s.Open(t.Context(), "template1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if got := query(t, conn, "SELECT current_database() || current_setting('geqo') || current_setting('application_name')"); got != "template1offdump" {
		t.Error(got)
	}
}

// TestUnprivileged: what a role may not see is left out, and said where it matters.
func TestUnprivileged(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	conn := session(t, c, "postgres")
	query(t, conn, "CREATE DATABASE closed")
	query(t, conn, "CREATE ROLE plain LOGIN; REVOKE CONNECT ON DATABASE closed FROM PUBLIC; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
	s := connect(t, Config{DSN: c.DSN("postgres") + " user=plain"})
	if _, err := s.SystemIdentifier(); err == nil || hintOf(err) == "" {
		t.Errorf("system identifier: %v", err)
	}
	if info := s.Info(); info.Size != -1 || info.Databases < 3 {
		t.Errorf("%+v", info)
	}
}

// TestOtherDatabases: without postgres there is template1, and then the database that the operator names.
func TestOtherDatabases(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	conn := session(t, c, "template1")
	query(t, conn, "ALTER DATABASE postgres RENAME TO mine")
	s := connect(t, Config{DSN: c.DSN("mine")})
	if got := s.Info().Database; got != "template1" {
		t.Error(got)
	}
	query(t, conn, "UPDATE pg_database SET datallowconn = false WHERE datname = 'template1'")
	if _, err := Connect(t.Context(), Config{DSN: c.DSN("postgres")}); err == nil {
		t.Error("there is no database to connect to")
	} else {
		contains(t, err.Error(), `database "postgres"`, "does not exist")
	}
	s = connect(t, Config{DSN: c.DSN("mine")})
	if got := s.Info().Database; got != "mine" {
		t.Error(got)
	}
	// pg_dumpall has to be led there too.
	d, err := s.DumpAll(t.Context(), DumpOptions{Args: []string{"--roles-only"}})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, readAll(t, d), "CREATE ROLE postgres")
}

func TestConnectErrors(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	conn := session(t, c, "postgres")
	query(t, conn, "CREATE ROLE locked LOGIN PASSWORD 'Right-Password'")
	hba := filepath.Join(c.dataDir(), "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("local all locked scram-sha-256\nlocal all postgres trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	query(t, conn, "SELECT pg_reload_conf()")
	dsn := fmt.Sprintf("host=%s user=locked sslmode=disable ", c.SocketDir())
	eventually(t, "a wrong password is refused", func() bool {
		_, err := Connect(t.Context(), Config{DSN: dsn + "password=Wrong-Password"})
		if err != nil {
			contains(t, err.Error(), c.SocketDir(), "port 5432", `user "locked"`, `database "postgres"`, "password authentication failed")
			if strings.Contains(err.Error(), "Wrong-Password") {
				t.Errorf("the error tells the password: %v", err)
			}
			contains(t, hintOf(err), "PGPASSWORD")
		}
		return err != nil
	})
	connect(t, Config{DSN: dsn + "password=Right-Password"})

	t.Run("password file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "pass")
		if err := os.WriteFile(file, []byte(c.SocketDir()+":*:*:locked:Right-Password\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PGPASSFILE", file)
		s := connect(t, Config{DSN: dsn})
		// libpq reads the same file.
		d, err := s.DumpAll(t.Context(), DumpOptions{Args: []string{"-r", "--no-role-passwords"}})
		if err != nil {
			t.Fatal(err)
		}
		contains(t, readAll(t, d), "CREATE ROLE locked")
	})
	t.Run("password to the child", func(t *testing.T) {
		s := connect(t, Config{DSN: dsn + "password=Right-Password"})
		d, err := s.DumpAll(t.Context(), DumpOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		err = drain(d)
		var failed *DumpError
		if !errors.As(err, &failed) {
			t.Fatalf("a role without privileges dumps: %v", err)
		}
		contains(t, err.Error(), "exit status 1", "pg_authid")
		contains(t, failed.Hint(), "--no-role-passwords")
	})

	_, err := Connect(t.Context(), Config{DSN: "host=127.0.0.1 hostaddr=127.0.0.1 port=1 user=u password=Some-Password"})
	if err == nil {
		t.Fatal("there is a server on port 1")
	}
	contains(t, err.Error(), "127.0.0.1", "port 1", `user "u"`, "refused")
	if strings.Contains(err.Error(), "Some-Password") || strings.Contains(err.Error(), "\n") || hintOf(err) == "" {
		t.Errorf("%q, hint %q", err, hintOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, Config{DSN: c.DSN("postgres")}); !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancellation: %v", err)
	}
}

// TestSeveralHosts: the first that answers is taken, and children are led to it and nowhere else.
func TestSeveralHosts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	c := startCluster(t, ClusterOptions{Settings: map[string]string{"listen_addresses": "127.0.0.1", "port": fmt.Sprint(port)}})
	query(t, session(t, c, "postgres"), "CREATE ROLE this_one")

	dsn := fmt.Sprintf("postgresql://postgres@127.0.0.1:1,localhost:%d,%s:5432/?sslmode=prefer", port, strings.ReplaceAll(shared.SocketDir(), "/", "%2F"))
	s := connect(t, Config{DSN: dsn})
	if s.Info().Host != "localhost" || s.Info().Port != port {
		t.Errorf("%+v", s.Info())
	}
	env, _, err := s.settings.childConn(s.target, s.user, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"PGHOST=localhost", "PGHOSTADDR=127.0.0.1", fmt.Sprintf("PGPORT=%d", port)} {
		if !slices.Contains(env, v) {
			t.Errorf("%s is missing in %q", v, env)
		}
	}
	d, err := s.DumpAll(t.Context(), DumpOptions{Args: []string{"-r"}})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, readAll(t, d), "CREATE ROLE this_one")

	// Its own connections stay there too.
	conn, err := s.Open(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	query(t, conn, "SELECT 'this_one'::regrole")

	// hostaddr stands in for a name that nobody can resolve.
	s = connect(t, Config{DSN: fmt.Sprintf("host=db.invalid hostaddr=127.0.0.1 port=%d user=postgres", port)})
	if s.Info().Host != "db.invalid" {
		t.Error(s.Info().Host)
	}

	_, err = Connect(t.Context(), Config{DSN: "host=127.0.0.1,127.0.0.2 port=1,2 user=u"})
	if err == nil {
		t.Fatal("there is a server on port 1")
	}
	contains(t, err.Error(), `host "127.0.0.1", port 1`, `host "127.0.0.2", port 2`)
	if hintOf(err) == "" {
		t.Error("no hint")
	}
}

// startStandby starts a cluster that is in recovery for ever: a standby without a primary.
func startStandby(t *testing.T) *Cluster {
	t.Helper()
	c := startCluster(t, ClusterOptions{})
	if err := os.WriteFile(filepath.Join(c.dataDir(), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	restart(t, c)
	return c
}

// restart stops the server of a cluster and starts it again on the same data.
func restart(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-c.exited
	c.exited = make(chan struct{})
	u, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.start(ClusterOptions{}, u); err != nil {
		t.Fatal(err)
	}
	if err := c.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStandby(t *testing.T) {
	c := startStandby(t)
	s := connect(t, Config{DSN: c.DSN("postgres")})
	if !s.Info().Standby {
		t.Error("it is not said to be a standby")
	}
	l, err := s.Lock(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release(t.Context())
	if _, err := s.Lock(t.Context(), "g"); !errors.Is(err, ErrLocked) {
		t.Errorf("locked twice: %v", err)
	}
	// A primary later in the list, and the operator's wish for a standby or a primary.
	both := fmt.Sprintf("host=%s,%s user=postgres target_session_attrs=", shared.SocketDir(), c.SocketDir())
	for attrs, standby := range map[string]bool{"prefer-standby": true, "standby": true, "primary": false, "any": false, "read-only": true} {
		if s := connect(t, Config{DSN: both + attrs}); s.Info().Standby != standby {
			t.Errorf("%s: standby %v", attrs, s.Info().Standby)
		}
	}
	alone := connect(t, Config{DSN: shared.DSN("postgres") + " target_session_attrs=prefer-standby"})
	if alone.Info().Standby {
		t.Error("prefer-standby without one")
	}
	if _, err := Connect(t.Context(), Config{DSN: shared.DSN("postgres") + " target_session_attrs=standby"}); !errors.Is(err, pgconn.ErrPrimaryConnection) {
		t.Errorf("no standby: %v", err)
	}
	d, err := s.DumpAll(t.Context(), DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, readAll(t, d), "PostgreSQL database cluster dump complete")
}

package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// leftovers are the directories of clusters under a parent.
func leftovers(t *testing.T, parent string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parent, "dump-pg-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// parentDir is a directory for clusters that their user can pass through, as t.TempDir is not.
func parentDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCluster(t *testing.T) {
	parent := parentDir(t)
	c, err := StartCluster(t.Context(), ClusterOptions{Parent: parent, Settings: map[string]string{"work_mem": "5MB"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	conn := session(t, c, "postgres")
	for setting, want := range map[string]string{"work_mem": "5MB", "fsync": "off", "listen_addresses": "", "server_encoding": "UTF8", "lc_collate": "C", "server_version": c.Version()} {
		if got, _, _ := strings.Cut(query(t, conn, "SHOW "+setting), " "); got != want {
			t.Errorf("%s is %q", setting, got)
		}
	}
	info, err := os.Stat(c.Dir())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if os.Geteuid() == 0 && info.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Error("it belongs to root")
	}
	if filepath.Dir(c.Dir()) != parent || c.SocketDir() != c.Dir() || c.Port() != 5432 {
		t.Errorf("%s %s %d", c.Dir(), c.SocketDir(), c.Port())
	}
	contains(t, c.Log(), "ready to accept connections")
	for range 2 { // with a connection open
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}
	if left := leftovers(t, parent); left != nil {
		t.Errorf("left: %q", left)
	}
	if err := syscall.Kill(c.PID(), 0); err != syscall.ESRCH {
		t.Errorf("the server lives: %v", err)
	}
	<-c.Exited()
}

// TestClusterLogsNoStatements: they may hold passwords.
func TestClusterLogsNoStatements(t *testing.T) {
	c := startCluster(t, ClusterOptions{})
	conn := session(t, c, "postgres")
	for _, sql := range []string{"CREATE ROLE postgres PASSWORD 'hushhush'", "ALTER ROLE nobody PASSWORD 'hushhush'", "SELECT 'hushhush' FROM"} {
		if err := runSQL(t.Context(), conn, sql); err == nil {
			t.Errorf("%s succeeded", sql)
		}
	}
	contains(t, c.Log(), `role "nobody" does not exist`)
	if strings.Contains(c.Log(), "hushhush") {
		t.Errorf("the log tells the password:\n%s", c.Log())
	}
}

func TestClusterOptions(t *testing.T) {
	// So long a path cannot hold a socket.
	parent := filepath.Join(parentDir(t), strings.Repeat("long-", 20))
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(parent, 0o777); err != nil {
		t.Fatal(err)
	}
	major, _, _ := strings.Cut(shared.Version(), ".")
	c := startCluster(t, ClusterOptions{
		Parent: parent, Durable: true, Encoding: "SQL_ASCII", Locale: "C.UTF-8", Version: major,
		BinDir: shared.BinDir(), InitdbArgs: []string{"--data-checksums"},
	})
	conn := session(t, c, "postgres")
	for setting, want := range map[string]string{"fsync": "on", "synchronous_commit": "on", "server_encoding": "SQL_ASCII", "lc_collate": "C.UTF-8", "data_checksums": "on"} {
		if got := query(t, conn, "SHOW "+setting); got != want {
			t.Errorf("%s is %q", setting, got)
		}
	}
	sockets := c.SocketDir()
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sockets); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's directory is left: %v", err)
	}
}

// TestClusterFails: nothing is left behind, and the error says what the programs said.
func TestClusterFails(t *testing.T) {
	for name, c := range map[string]struct {
		o    ClusterOptions
		want string
	}{
		"bad setting":     {ClusterOptions{Settings: map[string]string{"no_such_setting": "1"}}, "no_such_setting"},
		"bad port":        {ClusterOptions{Settings: map[string]string{"port": "x"}}, "port"},
		"bad locale":      {ClusterOptions{Locale: "no_such_locale"}, "locale"},
		"unknown version": {ClusterOptions{Version: "8"}, "no PostgreSQL server of version 8"},
		"no version":      {ClusterOptions{Version: "new"}, "not a version"},
		"other version":   {ClusterOptions{Version: "9.6", BinDir: shared.BinDir()}, shared.BinDir()},
		"no binaries":     {ClusterOptions{BinDir: "/nonexistent"}, "no initdb"},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Parent = parentDir(t)
			cluster, err := StartCluster(t.Context(), c.o)
			if err == nil {
				cluster.Stop()
				t.Fatal("it started")
			}
			contains(t, err.Error(), c.want)
			if left := leftovers(t, c.o.Parent); left != nil {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestClusterCancelled cancels as soon as initdb has made something, and while the server is not ready.
func TestClusterCancelled(t *testing.T) {
	for _, file := range []string{"data/PG_VERSION", "data/postmaster.pid"} {
		parent := parentDir(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("the reason")
		done := make(chan error, 1)
		go func() {
			c, err := StartCluster(ctx, ClusterOptions{Parent: parent, Settings: map[string]string{
				"local_preload_libraries": "no_such_library",
			}}) // it starts, but lets nobody in
			if err == nil {
				c.Stop()
			}
			done <- err
		}()
		eventually(t, file+" exists", func() bool {
			found, _ := filepath.Glob(filepath.Join(parent, "*", file))
			return found != nil
		})
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("%s: %v", file, err)
		}
		if left := leftovers(t, parent); left != nil {
			t.Errorf("left: %q", left)
		}
	}
}

// TestClusterParentClosed: a directory that the server's user cannot reach is refused if it was named, and passed over
// if not.
func TestClusterParentClosed(t *testing.T) {
	closed := parentDir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	u := &syscall.Credential{Uid: 12345, Gid: 12345}
	if dir, err := clusterDir(closed, u); err == nil {
		t.Errorf("made %s", dir)
	} else if contains(t, err.Error(), closed); hintOf(err) == "" {
		t.Error("no hint")
	}
	t.Setenv("TMPDIR", closed)
	if os.Geteuid() != 0 {
		u = nil // only root can give a directory away
	}
	dir, err := clusterDir("", u)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	if u != nil && strings.HasPrefix(dir, closed) {
		t.Error(dir)
	}
}

// TestClusterDiesWithUs kills a process that has a cluster. The server must not go on for ever.
func TestClusterDiesWithUs(t *testing.T) {
	parent := parentDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_ORPHAN_CLUSTER="+parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server ends", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	// What it leaves goes with the next one, which leaves alone what lives.
	alive, err := StartCluster(t.Context(), ClusterOptions{Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Stop()
	next, err := StartCluster(t.Context(), ClusterOptions{Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Stop()
	if left, err := filepath.Glob(filepath.Join(parent, "dump-pg-*", "data", "PG_VERSION")); err != nil || len(left) != 2 {
		t.Errorf("clusters: %q, %v", left, err)
	}
}

// orphanCluster is the process that is killed.
func orphanCluster(parent string) {
	c, err := StartCluster(context.Background(), ClusterOptions{Parent: parent})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(c.PID())
	select {}
}

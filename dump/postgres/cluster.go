//go:build unix

package postgres

// A throwaway cluster: a server of our own that leaves nothing behind.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ClusterOptions are what may be chosen about a throwaway cluster. The zero value is a good one.
type ClusterOptions struct {
	// BinDir is the directory of initdb and postgres; empty means that PATH and the usual places are searched.
	BinDir string
	// Version is the wanted version, "15" or "9.6"; empty means the newest that is found.
	Version string
	// Parent is the directory in which the cluster gets a directory of its own; empty means the one for temporary
	// files. All that is restored into the cluster lies there until Stop.
	Parent string
	// Encoding and Locale of the cluster; empty means UTF8 and C.
	Encoding, Locale string
	// InitdbArgs are further arguments for initdb.
	InitdbArgs []string
	// Settings are settings of the server, as in postgresql.conf: listen_addresses and port for connections by TCP.
	Settings map[string]string
	// Durable makes the cluster survive a crash of the machine, which costs time.
	Durable bool
	// Logger receives what initdb and the server say, at level debug. Nil is silent.
	Logger *slog.Logger
}

// Cluster is a running throwaway cluster. It accepts connections without a password, on a socket that only its own
// operating system user and root can reach, and elsewhere if the settings say so. Methods may be called concurrently.
type Cluster struct {
	dir       string
	socketDir string
	port      uint16
	binDir    string
	version   version
	logger    *slog.Logger
	tail      *tail
	cmd       *exec.Cmd
	exited    chan struct{} // closed when the server has been waited for
	stop      sync.Once
	stopErr   error
	claimed   *os.File // locked as long as this process lives
}

const clusterPrefix = "dump-pg-"

// maxSocketDir leaves room for "/.s.PGSQL.65535.lock" in the 107 bytes (103 on some systems) that a socket's path may
// have.
const maxSocketDir = 80

// StartCluster makes a cluster and starts its server. For root, the programs run as the user postgres or, where that
// does not exist, nobody. When it returns, the server accepts connections; when it fails or ctx ends before that,
// nothing is left behind, and the error holds what the programs said last. Later, ctx has no influence. The caller
// calls Stop. If this process dies without that, the server ends too (on Linux), and the next cluster that is started in
// the same place removes its directory.
func StartCluster(ctx context.Context, o ClusterOptions) (_ *Cluster, err error) {
	server, err := findServer(ctx, o)
	if err != nil {
		return nil, err
	}
	credential, err := unprivileged()
	if err != nil {
		return nil, err
	}
	if err := passable(filepath.Dir(server.path), credential); err != nil {
		return nil, fmt.Errorf("throwaway cluster: %w", err)
	}
	c := &Cluster{binDir: filepath.Dir(server.path), version: server.version, logger: o.Logger, exited: make(chan struct{})}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	if c.port, err = clusterPort(o.Settings["port"]); err != nil {
		return nil, err
	}
	c.tail = &tail{logger: c.logger, source: "postgres", redact: func(s string) string { return s }}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if c.dir, err = clusterDir(o.Parent, credential); err != nil {
		return nil, fmt.Errorf("throwaway cluster: %w", err)
	}
	if err := c.claim(); err != nil {
		return nil, fmt.Errorf("throwaway cluster: %w", err)
	}
	sweep(filepath.Dir(c.dir), c.logger)
	c.socketDir = c.dir
	if len(c.socketDir) > maxSocketDir {
		if c.socketDir, err = clusterDir("/tmp", credential); err != nil {
			return nil, fmt.Errorf("throwaway cluster: %w", err)
		}
	}
	if err := c.initdb(ctx, o, credential); err != nil {
		return nil, err
	}
	if err := c.start(o, credential); err != nil {
		return nil, err
	}
	if err := c.waitReady(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// DSN is the connection string for a database of the cluster, as its superuser postgres.
func (c *Cluster) DSN(db string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", quoteValue(c.socketDir), c.port, quoteValue(db))
}

// Dir is the directory that holds the cluster, and that Stop removes.
func (c *Cluster) Dir() string { return c.dir }

// SocketDir is the directory of the server's socket: the value for PGHOST.
func (c *Cluster) SocketDir() string { return c.socketDir }

// Port is the value for PGPORT.
func (c *Cluster) Port() int { return int(c.port) }

// BinDir is the directory that the cluster's programs were found in.
func (c *Cluster) BinDir() string { return c.binDir }

// Version is the version of the server: "15.18".
func (c *Cluster) Version() string { return c.version.text }

// PID is the process number of the server.
func (c *Cluster) PID() int { return c.cmd.Process.Pid }

// Log returns the last 64 KiB of the server's log.
func (c *Cluster) Log() string { return c.tail.String() }

// Exited is closed when the server has ended, by Stop or by itself.
func (c *Cluster) Exited() <-chan struct{} { return c.exited }

// Stop ends the server, with its connections, and removes everything. It takes at most a minute. Stopping twice is no
// error.
func (c *Cluster) Stop() error {
	c.stop.Do(func() { c.stopErr = c.stopNow() })
	return c.stopErr
}

func (c *Cluster) stopNow() error {
	var errs []error
	if c.cmd != nil {
		ended := false
		for _, step := range []struct {
			sig   syscall.Signal
			grace time.Duration
		}{{syscall.SIGINT, 30 * time.Second}, {syscall.SIGQUIT, 10 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
			c.cmd.Process.Signal(step.sig) // fails when it has ended
			select {
			case <-c.exited:
				ended = true
			case <-time.After(step.grace):
			}
			if ended {
				break
			}
		}
		if !ended {
			errs = append(errs, fmt.Errorf("throwaway cluster: server process %d does not end", c.cmd.Process.Pid))
		}
	}
	for _, dir := range []string{c.dir, c.socketDir} {
		if dir == "" {
			continue
		}
		if err := removeAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("throwaway cluster: %w", err))
		}
	}
	if c.claimed != nil {
		c.claimed.Close()
	}
	return errors.Join(errs...)
}

// claimName is a file of a cluster's directory on which its process holds a lock (flock).
const claimName = "claim"

// claim makes it, so that nobody sees it without the lock.
func (c *Cluster) claim() error {
	path := filepath.Join(c.dir, claimName)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	c.claimed = f
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}

// sweep removes the directories of clusters whose processes were killed.
func sweep(parent string, logger *slog.Logger) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), clusterPrefix) {
			continue
		}
		path := filepath.Join(parent, e.Name(), claimName)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // without one, another user's, or gone
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			err := removeAll(filepath.Dir(path))
			logger.Info("removed the cluster of a run that was killed", "directory", filepath.Dir(path), "err", err)
		}
		f.Close()
	}
}

// removeAll removes a directory in which the last processes of a killed server may still write for a moment.
func removeAll(dir string) (err error) {
	for pause := time.Millisecond; pause < 2*time.Second; pause *= 2 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(pause)
	}
	return err
}

// clusterPort is the port that the settings ask for. Without TCP it is only part of the socket's name, and the directory
// is the cluster's own.
func clusterPort(setting string) (uint16, error) {
	if setting == "" {
		return 5432, nil
	}
	n, err := strconv.ParseUint(setting, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("throwaway cluster: port %q is not a number from 1 to 65535", setting)
	}
	return uint16(n), nil
}

// findServer finds the postgres to run, which has its initdb beside it.
func findServer(ctx context.Context, o ClusterOptions) (program, error) {
	var found []program
	if o.BinDir != "" {
		path, err := filepath.Abs(filepath.Join(o.BinDir, "postgres"))
		if err != nil {
			return program{}, err
		}
		if !hasBeside(path, "initdb") {
			return program{}, withHint(fmt.Errorf("throwaway cluster: there is no initdb in %s", o.BinDir), "name the directory of the server's programs, as /usr/lib/postgresql/15/bin, or none, so that they are looked for")
		}
		p, err := inspect(ctx, path)
		if err != nil {
			return program{}, fmt.Errorf("throwaway cluster: %w", err)
		}
		found = []program{p}
	} else {
		found = findPrograms(ctx, "postgres", "initdb")
	}
	wanted := 0
	if o.Version != "" {
		v, err := parseVersion("postgres (wanted) " + o.Version)
		if err != nil {
			return program{}, fmt.Errorf("throwaway cluster: %q is not a version of PostgreSQL", o.Version)
		}
		wanted = v.major
	}
	if p, ok := newest(found, func(v version) bool { return wanted == 0 || v.major == wanted }); ok {
		return p, nil
	}
	if ctx.Err() != nil {
		return program{}, context.Cause(ctx)
	}
	what, pkg := "no PostgreSQL server", "postgresql"
	if wanted != 0 {
		what += " of version " + majorText(wanted)
		pkg += "-" + majorText(wanted)
	}
	return program{}, withHint(fmt.Errorf("throwaway cluster: %s: %s", what, describe("postgres with an initdb beside it", found)), "install "+pkg)
}

// unprivileged returns the user to run a server as, which refuses to run as root; nil means as ourselves.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("throwaway cluster: a server cannot run as root, and there is neither a user postgres nor nobody")
}

// clusterDir makes a fresh directory for a user under a parent that the user can pass through.
func clusterDir(parent string, u *syscall.Credential) (string, error) {
	parents := []string{parent}
	if parent == "" {
		parents = []string{os.TempDir(), "/tmp", "/var/tmp"}
	}
	var failure error
	for _, p := range parents {
		p, err := filepath.Abs(p)
		if err == nil {
			p, err = filepath.EvalSymlinks(p)
		}
		if err == nil {
			err = passable(p, u)
		}
		if err == nil {
			var dir string
			if dir, err = os.MkdirTemp(p, clusterPrefix); err == nil { // mode 0700
				if u != nil {
					if err := os.Chown(dir, int(u.Uid), int(u.Gid)); err != nil {
						os.Remove(dir)
						return "", err
					}
				}
				return dir, nil
			}
		}
		if failure == nil {
			failure = err
		}
	}
	return "", failure
}

// passable checks that a user can pass through a directory and all above it.
func passable(dir string, u *syscall.Credential) error {
	if u == nil {
		return nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return err
		}
		need := os.FileMode(0o001)
		if st := info.Sys().(*syscall.Stat_t); st.Uid == u.Uid {
			need = 0o100
		} else if st.Gid == u.Gid {
			need = 0o010
		}
		if info.Mode().Perm()&need == 0 {
			return withHint(fmt.Errorf("user %d, which the server runs as, cannot pass through %s", u.Uid, d), "choose another directory for temporary files (TMPDIR) or for the server's programs, or let others pass there")
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}

// prepare makes a command of the cluster, without anything of our environment that would lead it elsewhere.
func (c *Cluster) prepare(ctx context.Context, u *syscall.Credential, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.binDir, name), args...)
	cmd.Dir = c.dir // ours may not be readable for the user
	cmd.Env = slices.DeleteFunc(baseEnv(), func(v string) bool { return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") })
	cmd.Env = append(cmd.Env, "HOME="+c.dir, "LC_ALL=C", "PG_COLOR=never")
	// A group of its own: an interrupt from the terminal is for us, who then call Stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u, Setpgid: true}
	return cmd
}

func (c *Cluster) dataDir() string { return filepath.Join(c.dir, "data") }

func (c *Cluster) initdb(ctx context.Context, o ClusterOptions, u *syscall.Credential) error {
	encoding, locale := o.Encoding, o.Locale
	if encoding == "" {
		encoding = "UTF8"
	}
	if locale == "" {
		locale = "C"
	}
	args := []string{"-D", c.dataDir(), "-A", "trust", "-U", "postgres", "--encoding=" + encoding, "--locale=" + locale}
	if !o.Durable {
		args = append(args, "--no-sync")
	}
	cmd := c.prepare(ctx, u, "initdb", append(args, o.InitdbArgs...)...)
	// initdb runs postgres: the whole group ends with it.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killGrace
	cmd.Stdout, cmd.Stderr = c.tail, c.tail
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("throwaway cluster: initdb: %w", context.Cause(ctx))
		}
		return fmt.Errorf("throwaway cluster: initdb: %w: %s", err, strings.TrimSpace(c.tail.String()))
	}
	return nil
}

// start starts the server and the goroutine that waits for it.
func (c *Cluster) start(o ClusterOptions, u *syscall.Credential) error {
	settings := map[string]string{
		"listen_addresses": "", "logging_collector": "off", "log_destination": "stderr",
		// Statements may hold passwords, details rows.
		"log_min_error_statement": "panic", "log_error_verbosity": "terse",
	}
	if !o.Durable {
		maps.Copy(settings, map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
	}
	maps.Copy(settings, o.Settings)
	args := []string{"-D", c.dataDir(), "-k", c.socketDir, "-p", strconv.Itoa(int(c.port))}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	cmd := c.prepare(context.Background(), u, "postgres", args...)
	stderr, finish, err := c.tail.stderrPipe()
	if err != nil {
		return fmt.Errorf("throwaway cluster: %w", err)
	}
	cmd.Stdout, cmd.Stderr = stderr, stderr
	// The server ends with the thread that started it, so that it does not outlive us. The thread therefore is kept
	// until the server ends.
	dieWithParent(cmd.SysProcAttr, syscall.SIGQUIT)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		stderr.Close()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		finish()
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("throwaway cluster: %w", err)
	}
	c.cmd = cmd
	return nil
}

// waitReady connects until that works.
func (c *Cluster) waitReady(ctx context.Context) error {
	st := &settings{values: map[string]string{"user": "postgres", "sslmode": "disable"}}
	for pause := 5 * time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		conn, err := st.connect(ctx, target{host: c.socketDir, port: c.port}, "postgres", "any")
		if err == nil {
			conn.Close(ctx)
			return nil
		}
		select {
		case <-c.exited:
			return fmt.Errorf("throwaway cluster: the server did not start: %s: %s", c.cmd.ProcessState, strings.TrimSpace(c.tail.String()))
		case <-ctx.Done():
			return fmt.Errorf("throwaway cluster: wait for the server: %w: %s", context.Cause(ctx), strings.TrimSpace(c.tail.String()))
		case <-time.After(pause):
		}
	}
}

//go:build unix

package postgres

// pg_dumpall as a stream.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DumpSettings are the server settings that every dump is made with, whatever roles and databases set, so that the
// same rows always give the same text.
const DumpSettings = "-c TimeZone=UTC -c bytea_output=hex"

// DumpOptions are what may be chosen about a dump.
type DumpOptions struct {
	// Program is the pg_dumpall to use; empty means the newest that is found and not older than the server.
	Program string
	// Args are options for pg_dumpall, as CheckDumpOptions accepts them.
	Args []string
	// LockWaitTimeout bounds the wait for a lock on a table; 0 means 5 minutes, a negative one no bound. An option
	// --lock-wait-timeout in Args wins.
	LockWaitTimeout time.Duration
}

// DumpError is the failure of pg_dumpall or of one of its processes.
type DumpError struct {
	Program string // path
	Status  string // "exit status 1", "signal: killed"
	Stderr  string // the last 64 KiB of standard error, without passwords
}

// Error is one line: what happened, and what the programs called errors.
func (e *DumpError) Error() string {
	text := "pg_dumpall failed: " + e.Status
	lines := strings.Split(strings.TrimSpace(e.Stderr), "\n")
	errs := slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
		return !slices.ContainsFunc([]string{"error:", "detail:", "ERROR:", "FATAL:"}, func(word string) bool { return strings.Contains(l, word) })
	})
	if len(errs) == 0 {
		errs = lines[max(0, len(lines)-3):]
	}
	for _, line := range errs[max(0, len(errs)-4):] {
		if line = strings.TrimSpace(line); line != "" {
			text += ": " + line[:min(len(line), 300)]
		}
	}
	return text
}

// Hint knows the ways out of the most frequent failures.
func (e *DumpError) Hint() string {
	for _, h := range []struct{ text, hint string }{
		{"due to lock timeout", "another session holds a lock on the table (see pg_locks); wait for it, or add -- --lock-wait-timeout=MILLISECONDS"},
		{"due to statement timeout", "another session holds a lock on the table (see pg_locks); wait for it, or add -- --lock-wait-timeout=MILLISECONDS"},
		{"permission denied for table pg_authid", "connect as a superuser, or add -- --no-role-passwords"},
		{"unsupported startup parameter", "a connection pooler stands between; connect to the server itself"},
		{"no password supplied", "give the password in PGPASSWORD or ~/.pgpass"},
		{"aborting because of server version mismatch", "name a newer pg_dumpall with --pg-dumpall"},
	} {
		if strings.Contains(e.Stderr, h.text) {
			return h.hint
		}
	}
	return ""
}

// Dump is the output of a running pg_dumpall. Read is for one goroutine at a time; Close may be called from another.
type Dump struct {
	program program
	pgid    int
	ctx     context.Context
	tail    *tail
	log     func(msg string, args ...any)

	out      *os.File // read end
	pipeSize int      // of out, in bytes
	wake     *os.File // becomes readable when nothing more will come: read end of a pipe whose other end is closed then
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when no process is left; err is set before
	err      error

	reading sync.Mutex // held while the descriptors are in use
	end     error      // what Read returned last: sticky
	closed  bool
}

// errClosed is the cause of the end after Close.
var errClosed = fmt.Errorf("dump: %w", os.ErrClosed)

// DumpAll starts pg_dumpall against the server. The result yields the SQL script; its last Read returns io.EOF only
// after pg_dumpall and all its processes ended well, and their failure otherwise (a *DumpError, or the cause of ctx when
// that ended first). The caller closes it, in any case.
//
// While a dump runs, this process adopts orphaned descendants (PR_SET_CHILD_SUBREAPER) on Linux.
func (s *Server) DumpAll(ctx context.Context, o DumpOptions) (*Dump, error) {
	names, _, err := parseDumpOptions(o.Args)
	if err != nil {
		return nil, err
	}
	p, err := findDumpall(ctx, o.Program, s.info)
	if err != nil {
		return nil, err
	}
	env, dsn, err := s.settings.childConn(s.target, s.user, DumpSettings)
	if err != nil {
		return nil, err
	}
	args := []string{"--no-password"}
	if !slices.Contains(names, "lock-wait-timeout") && o.LockWaitTimeout >= 0 {
		timeout := o.LockWaitTimeout
		if timeout == 0 {
			timeout = 5 * time.Minute
		}
		args = append(args, "--lock-wait-timeout="+strconv.FormatInt(max(1, timeout.Milliseconds()), 10))
	}
	if s.info.Database != "postgres" && s.info.Database != "template1" && !slices.Contains(names, "database") {
		args = append(args, "--database="+s.info.Database)
	}
	if dsn != "" {
		args = append(args, "--dbname="+dsn)
	}
	env = append(env, "PG_COLOR=never") // its messages end up in ours
	return s.start(ctx, p, append(args, o.Args...), env)
}

// start starts the program and the goroutine that looks after it.
func (s *Server) start(ctx context.Context, p program, args, env []string) (_ *Dump, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	logger := s.cfg.logger()
	d := &Dump{program: p, done: make(chan struct{}), log: func(msg string, args ...any) { logger.Warn(msg, args...) }}
	d.tail = &tail{logger: logger, source: "pg_dumpall", redact: func(text string) string { return s.settings.redact(text) }}

	var files []*os.File
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	out, outW, err := newPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	files = append(files, out, outW)
	wake, wakeW, err := newPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	files = append(files, wake, wakeW)
	stderr, finishStderr, err := d.tail.stderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	d.pipeSize = enlargePipe(int(out.Fd()))
	d.out, d.wake = out, wake

	cmd := exec.Command(p.path, args...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = outW, stderr // files: no goroutine copies, and Wait waits for the process alone
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	disown := adoptOrphans()
	err = cmd.Start()
	stderr.Close()
	if err != nil {
		disown()
		finishStderr()
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	batch(cmd.Process.Pid)
	outW.Close()
	d.pgid = cmd.Process.Pid
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	go func() {
		defer disown()
		d.lookAfter(cmd, wakeW, finishStderr)
	}()
	return d, nil
}

// lookAfter waits for the end, brings it about when that is asked for, and reaps everything.
func (d *Dump) lookAfter(cmd *exec.Cmd, wakeW *os.File, finishStderr func()) {
	exited, gone, giveUp := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var status string // of the first process that ended badly
	go func() {
		defer close(gone)
		err := cmd.Wait() // before anything else waits for the group, which would take the status away
		if err != nil {
			status = strings.TrimPrefix(err.Error(), "wait: ")
		}
		close(exited)
		reapGroup(d.pgid, giveUp, func(w syscall.WaitStatus) {
			if status != "" {
				return
			}
			status = fmt.Sprintf("one of its processes ended with exit status %d", w.ExitStatus())
			if w.Signaled() {
				status = fmt.Sprintf("one of its processes ended by signal: %v", w.Signal())
			}
		})
	}()

	select {
	case <-d.ctx.Done():
		wakeW.Close() // a Read must not wait for the processes to end
	case <-exited:
		// When its status is bad, pg_dump may still be writing: what comes is worthless. When it is good, nothing is left
		// in the group, or something that ends at once.
		if cmd.ProcessState.Success() {
			select {
			case <-gone:
			case <-d.ctx.Done():
			case <-time.After(termGrace):
			}
		}
	}
	cut, ended := false, true
	select {
	case <-gone:
	default:
		cut = true
		ended = endGroup(d.pgid, gone)
	}
	if !ended {
		close(giveUp)
		d.log("processes of pg_dumpall could not be ended", "pgid", d.pgid)
	}
	finishStderr()

	// A program that was cut short may still have called that a success.
	switch {
	case !cut && status == "":
	case cut && d.ctx.Err() != nil:
		d.err = context.Cause(d.ctx)
		if d.err != errClosed {
			d.err = fmt.Errorf("pg_dumpall: %w", d.err)
		}
	case ended && status != "":
		d.err = &DumpError{d.program.path, status, d.tail.String()}
	default:
		d.err = &DumpError{d.program.path, "it left processes behind", d.tail.String()}
	}
	close(d.done)
	wakeW.Close()
}

// Read reads what pg_dumpall writes, straight into p. See DumpAll for its errors.
func (d *Dump) Read(p []byte) (int, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	if d.closed {
		return 0, errClosed
	}
	if d.end != nil {
		return 0, d.end
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := d.read(p)
	d.end = err
	return n, err
}

func (d *Dump) read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(d.out.Fd()), Events: unix.POLLIN}, {Fd: int32(d.wake.Fd()), Events: unix.POLLIN}}
	last := false
	for {
		if d.ctx.Err() != nil {
			select {
			case <-d.done: // maybe it ended well before
			default:
				return 0, fmt.Errorf("pg_dumpall: %w", context.Cause(d.ctx))
			}
		}
		timeout := -1
		if last {
			timeout = 0
		}
		if _, err := unix.Poll(fds, timeout); err != nil {
			if err == unix.EINTR {
				continue
			}
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[0].Revents != 0 {
			if fds[0].Revents == unix.POLLIN {
				d.letFill(fds[1:])
			}
			n, err := unix.Read(int(fds[0].Fd), p)
			switch {
			case err == unix.EINTR:
				continue
			case err != nil:
				return 0, fmt.Errorf("read from pg_dumpall: %w", os.NewSyscallError("read", err))
			case n > 0:
				return n, nil
			}
			break // the end of the pipe
		}
		// Nothing will come any more. But something may have come between the looks at the two descriptors.
		if last {
			break
		}
		last = fds[1].Revents != 0
	}
	// The end of the pipe says nothing: pg_dumpall may have died.
	<-d.done
	if d.err != nil {
		return 0, d.err
	}
	return 0, io.EOF
}

// letFill waits a moment where there is little in the pipe. pg_dump writes 4 kB at a time, so a reader that takes each of
// them at once costs both sides, and the processor, far more in waking than in reading. The moment is so short that the
// pipe is not full at its end.
func (d *Dump) letFill(wake []unix.PollFd) {
	if n := pending(int(d.out.Fd())); n >= 0 && n < d.pipeSize/4 {
		unix.Poll(wake, d.pipeSize>>19) // milliseconds: 2 for a pipe of 1 MiB
	}
}

// Close ends the dump. Before its end, all processes get SIGTERM, and SIGKILL 5 seconds later; Close returns when none
// is left. It never fails for that reason: what went wrong with a dump is what Read returned. Closing twice is no error.
func (d *Dump) Close() error {
	d.cancel(errClosed)
	<-d.done
	d.reading.Lock()
	defer d.reading.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return errors.Join(d.out.Close(), d.wake.Close())
}

// ProgramVersion is the version of pg_dumpall: "15.18".
func (d *Dump) ProgramVersion() string { return d.program.version.text }

// Program is the path of pg_dumpall.
func (d *Dump) Program() string { return d.program.path }

// Stderr returns the last 64 KiB of what the programs wrote to standard error so far, without passwords. After a good
// dump it holds warnings, if anything.
func (d *Dump) Stderr() string { return d.tail.String() }

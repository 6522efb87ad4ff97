//go:build unix

package postgres

// Processes: a group of them that ends as a whole, and the tail of what they say.

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Variables, so that tests need not wait.
var (
	termGrace = 5 * time.Second  // between SIGTERM and SIGKILL
	killGrace = 10 * time.Second // after SIGKILL; only a process stuck in the kernel takes that long
)

// signalGroup sends a signal to every process of a group. It reports false when there is none.
func signalGroup(pgid int, sig syscall.Signal) bool {
	return !errors.Is(syscall.Kill(-pgid, sig), syscall.ESRCH)
}

// endGroup ends what is left of a group whose leader has been waited for. gone is closed when nothing is left.
// It returns false when something outlived even SIGKILL.
func endGroup(pgid int, gone <-chan struct{}) bool {
	for _, step := range []struct {
		sig   syscall.Signal
		grace time.Duration
	}{{syscall.SIGTERM, termGrace}, {syscall.SIGKILL, killGrace}} {
		select {
		case <-gone:
			return true
		default:
		}
		signalGroup(pgid, step.sig)
		select {
		case <-gone:
			return true
		case <-time.After(step.grace):
		}
	}
	return false
}

// waitGroupGone polls until a group has no process any more, not even one that waits to be reaped.
func waitGroupGone(pgid int, stop <-chan struct{}) {
	for pause := time.Millisecond; signalGroup(pgid, 0); pause = min(pause*2, 50*time.Millisecond) {
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// tail keeps the end of what is written to it, and logs its lines at level debug.
type tail struct {
	logger *slog.Logger
	source string
	redact func(string) string

	mu   sync.Mutex
	kept []byte
	line []byte
}

const tailSize = 64 << 10

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	t.line = append(t.line, p...)
	for {
		before, after, found := strings.Cut(string(t.line), "\n")
		if !found && len(t.line) < tailSize {
			return len(p), nil
		}
		t.logger.Debug(t.redact(before), "program", t.source)
		t.line = []byte(after)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.redact(string(t.kept))
}

// stderrPipe makes a pipe whose read end is copied into t. The caller gives w to a process and closes it, and calls
// finish when the process has ended: it waits for the rest, but not for a process that holds the pipe open for ever.
func (t *tail) stderrPipe() (w *os.File, finish func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			t.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return w, func() {
		r.SetReadDeadline(time.Now().Add(time.Second))
		<-done
		r.Close()
	}, nil
}

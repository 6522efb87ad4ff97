package postgres

// The lock that keeps two runs for one GUID apart, and the watch over it.

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrLocked is matched by the error of Lock when another session holds the lock.
var ErrLocked = errors.New("another run holds the lock")

const (
	closeTimeout = 5 * time.Second  // for a farewell to a server that may not answer
	checkTimeout = 30 * time.Second // for one look at the lock; a server that takes longer has lost it
)

// LockedError tells who holds a lock. It matches ErrLocked.
type LockedError struct {
	PID             int       // of the server process; 0 when the holder was gone before it could be looked at
	ApplicationName string    // empty when it may not be seen
	Client          string    // address, or "local" for a socket; empty when it may not be seen
	Since           time.Time // when the session that holds it began; zero when it may not be seen
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return ErrLocked.Error()
	}
	text := fmt.Sprintf("%v: server process %d", ErrLocked, e.PID)
	if e.ApplicationName != "" {
		text += fmt.Sprintf(", application %q", e.ApplicationName)
	}
	if e.Client != "" {
		text += ", client " + e.Client
	}
	if !e.Since.IsZero() {
		text += ", since " + e.Since.UTC().Format(time.RFC3339)
	}
	return text
}

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Hint tells how to get rid of the holder.
func (e *LockedError) Hint() string {
	if e.PID == 0 {
		return "try again later"
	}
	return fmt.Sprintf("wait for it, or end that program on its host; ending only its server process %d would give the lock away and stop nothing", e.PID)
}

// Lock is an advisory lock in a session of its own. It is watched until Release.
type Lock struct {
	server  *Server
	key     int64
	warning string

	stop    chan struct{} // closed by Release
	stopped chan struct{} // closed when the watch has ended
	lost    chan struct{}
	once    sync.Once

	mu   sync.Mutex
	conn *pgconn.PgConn // nil behind a pooler, and when lost
	pid  string         // of the server process, as the server says
	err  error
}

// LockKey is the number of the advisory lock for a GUID: the first 8 bytes of the SHA-256 of "dump lock " and the GUID.
func LockKey(guid string) int64 {
	sum := sha256.Sum256([]byte("dump lock " + guid))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// Lock takes the lock for a GUID, without waiting. It works on standbys, but a standby and its primary do not see each
// other's locks. When another session holds it, the error matches ErrLocked and is a *LockedError. Behind a connection
// pooler the lock cannot be held: then it is not taken, and Warning says so. The caller calls Release.
func (s *Server) Lock(ctx context.Context, guid string) (*Lock, error) {
	l := &Lock{server: s, key: LockKey(guid), stop: make(chan struct{}), stopped: make(chan struct{}), lost: make(chan struct{})}
	pooled, err := l.acquire(ctx)
	if err != nil {
		return nil, err
	}
	if pooled {
		l.warning = "a connection pooler stands between this program and the server: the lock that keeps two runs apart cannot be held; " +
			"connect to the server itself"
		close(l.stopped)
		return l, nil
	}
	interval := s.cfg.LockInterval
	if interval <= 0 {
		interval = 15 * time.Second
	}
	go l.watch(interval)
	return l, nil
}

// Warning is a sentence for the operator, with the way out, when the lock cannot be relied on; empty otherwise.
func (l *Lock) Warning() string { return l.warning }

// Lost is closed when the lock was lost and could not be taken again at once. Err then says why.
func (l *Lock) Lost() <-chan struct{} { return l.lost }

// Err returns nil while the lock is held, and why it was lost afterwards.
func (l *Lock) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// PID is the number of the server process that holds the lock; 0 when none does.
func (l *Lock) PID() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	pid, _ := strconv.Atoi(l.pid)
	return pid
}

// Release gives the lock back and ends its session, within 5 seconds and also when ctx was cancelled. Releasing a lost
// lock or a second time is no error.
func (l *Lock) Release(ctx context.Context) error {
	l.once.Do(func() { close(l.stop) })
	<-l.stopped
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn == nil {
		return nil
	}
	// Also after a cancellation, which is when it matters. The end of the session releases the lock anyway; unlocking
	// makes it free before the server has noticed the end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_, err := queryRow(ctx, conn, fmt.Sprintf("SELECT pg_advisory_unlock(%d)", l.key))
	if cerr := conn.Close(ctx); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("release the lock: %w", err)
	}
	return nil
}

// acquire opens the session and takes the lock.
func (l *Lock) acquire(ctx context.Context) (pooled bool, err error) {
	conn, err := l.server.Open(ctx, l.server.info.Database)
	if err != nil {
		return false, fmt.Errorf("take the lock: %w", err)
	}
	defer func() {
		if err != nil || pooled {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			conn.Close(closing)
		}
	}()
	r, err := queryRow(ctx, conn, "SELECT pg_backend_pid()")
	if err != nil {
		return false, fmt.Errorf("take the lock: %w", err)
	}
	pid := r.at(0)
	// A pooler invents the process number that it gives to its clients. In such a session nothing may be locked or
	// set: it would stay behind in the server process, where nobody can release it.
	if pid != strconv.FormatUint(uint64(conn.PID()), 10) {
		return true, nil
	}
	// The session is idle most of the time; neither the server nor a firewall may end it for that.
	settings := "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6"
	if l.server.info.Version >= 140000 {
		settings += "; SET idle_session_timeout = 0"
	}
	if _, err := queryRow(ctx, conn, settings); err != nil {
		return false, fmt.Errorf("take the lock: %w", err)
	}
	r, err = queryRow(ctx, conn, fmt.Sprintf("SELECT pg_try_advisory_lock(%d)", l.key))
	if err != nil {
		return false, fmt.Errorf("take the lock: %w", err)
	}
	if r.at(0) != "t" {
		return false, l.holder(ctx, conn)
	}
	l.mu.Lock()
	l.conn, l.pid = conn, pid
	l.mu.Unlock()
	return false, nil
}

// held is the condition on pg_locks for this lock.
func (l *Lock) held() string {
	return fmt.Sprintf("l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = %d AND l.objid = %d"+
		" AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
		uint32(uint64(l.key)>>32), uint32(l.key))
}

// holder makes the error that tells who holds the lock.
func (l *Lock) holder(ctx context.Context, conn *pgconn.PgConn) error {
	r, err := queryRow(ctx, conn, "SELECT l.pid, a.application_name, CASE WHEN a.backend_start IS NOT NULL THEN coalesce(host(a.client_addr), 'local') END,"+
		" extract(epoch FROM a.backend_start)::bigint FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE "+l.held())
	if err != nil {
		return fmt.Errorf("ask who holds the lock: %w", err)
	}
	e := &LockedError{ApplicationName: r.at(1), Client: r.at(2)}
	e.PID, _ = strconv.Atoi(r.at(0))
	if seconds, err := strconv.ParseInt(r.at(3), 10, 64); err == nil {
		e.Since = time.Unix(seconds, 0).UTC()
	}
	return e
}

// watch looks at the lock until Release.
func (l *Lock) watch(interval time.Duration) {
	defer close(l.stopped)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // Release need not wait for a server that does not answer
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-ticker.C:
		}
		cause := l.check(ctx)
		if cause == nil || ctx.Err() != nil {
			continue // on Release the next round ends
		}
		if err := l.retake(ctx, cause); err != nil && ctx.Err() == nil {
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			close(l.lost)
			return
		}
	}
}

// check asks the session whether it still holds the lock.
func (l *Lock) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	r, err := queryRow(ctx, l.conn, "SELECT count(*) FROM pg_locks l WHERE l.pid = pg_backend_pid() AND "+l.held())
	if err != nil {
		return err
	}
	if r.at(0) != "1" {
		return errors.New("the session no longer holds it")
	}
	return nil
}

// retake tries once to take a lock again that was lost for the cause given.
func (l *Lock) retake(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	l.mu.Lock()
	old, pid := l.conn, l.pid
	l.conn = nil
	l.mu.Unlock()
	closing, cancelClosing := context.WithTimeout(ctx, closeTimeout)
	old.Close(closing)
	cancelClosing()

	pooled, err := l.acquire(ctx)
	var locked *LockedError
	switch {
	case err == nil && !pooled:
		l.server.cfg.logger().Warn("the lock was lost for a moment and taken again", "cause", cause)
		return nil
	case pooled:
		err = errors.New("a connection pooler stands between now")
	case errors.As(err, &locked) && strconv.Itoa(locked.PID) == pid:
		err = errors.New("the server has not noticed yet that our former session is gone")
	}
	return fmt.Errorf("the lock was lost (%w) and could not be taken again: %w", cause, err)
}

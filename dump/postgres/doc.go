// Package postgres is the room that knows a PostgreSQL server: its address and version, the lock that keeps two runs
// apart, pg_dumpall as a stream, and throwaway clusters to restore into.
//
// Connection settings are libpq's, from a connection string, a service file or the environment (config.go). Our own
// connections go through pgconn; child processes get the same settings through environment variables of their own,
// so that no password is ever an argument.
//
// The package returns errors and logs to an injected logger; it prints nothing. Errors that have a way out implement
// HintError.
package postgres

// HintError is an error that knows a way out. Use errors.As to find one in a chain; an empty hint means none.
type HintError interface {
	error
	Hint() string
}

// hintError adds a hint to an error without touching its text or its identity.
type hintError struct {
	error
	hint string
}

func (e *hintError) Hint() string  { return e.hint }
func (e *hintError) Unwrap() error { return e.error }

func withHint(err error, hint string) error {
	return &hintError{err, hint}
}

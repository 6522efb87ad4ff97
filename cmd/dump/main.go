// Dump makes encrypted logical backups of PostgreSQL clusters, and restores them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
	"encdump/storage"
)

// Exit statuses. They are part of the interface.
const (
	statusDone        = 0
	statusFailed      = 1
	statusUsage       = 2
	statusInPart      = 3 // some destination failed, or a check was inconclusive
	statusNotFound    = 4
	statusKey         = 5
	statusLocked      = 6
	statusDamaged     = 7
	statusInterrupted = 130
	statusTerminated  = 143
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as nohup has it
			signal.Notify(signals, s)
		}
	}
	go func() {
		cancel(signalError{(<-signals).(syscall.Signal)})
		// The first signal ends the work in order, and cleans up. A second one is
		// from somebody who does not want to wait for that.
		os.Exit(signalError{(<-signals).(syscall.Signal)}.status())
	}()
	os.Exit(run(ctx, os.Args[1:]))
}

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string {
	if e.signal == syscall.SIGINT {
		return "interrupted"
	}
	return e.signal.String()
}
func (e signalError) status() int { return 128 + int(e.signal) }

// run executes the command line and returns the exit status.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusDone
	}
	var s signalError
	if errors.As(context.Cause(ctx), &s) {
		if !errors.As(err, &s) {
			err = fmt.Errorf("%w: %w", s, err)
		}
		report(err, "")
		return s.status()
	}
	var silent *statusError
	if errors.As(err, &silent) && silent.err == nil {
		return silent.status // everything has been said
	}
	hint, status := explain(err)
	report(err, hint)
	return status
}

// statusError ends the program with a status. A nil err prints nothing more.
type statusError struct {
	err    error
	hint   string
	status int
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("status %d", e.status)
	}
	return e.err.Error()
}
func (e *statusError) Unwrap() error { return e.err }

// usage returns an error of wrong usage.
func usage(hint, format string, args ...any) error {
	return &statusError{fmt.Errorf(format, args...), hint, statusUsage}
}

// explain is the one place that turns an error into a hint and an exit status.
func explain(err error) (hint string, status int) {
	var (
		given    *statusError
		hinter   interface{ Hint() string }
		notFound *archive.NotFoundError
		noName   *script.NameError
		wrongKey *archive.WrongKeyError
		unsigned *archive.UnsignedError
		damage   *archive.DamageError
	)
	if errors.As(err, &hinter) {
		hint = hinter.Hint()
	}
	switch {
	case errors.As(err, &given):
		return given.hint, given.status
	case errors.Is(err, postgres.ErrLocked):
		if hint == "" {
			hint = "wait until the other run has ended; nothing was changed"
		}
		return hint, statusLocked
	case errors.As(err, &notFound) && notFound.Ambiguous:
		return "name one of them with --guid or --backup-id; dump list shows them", statusUsage
	case errors.As(err, &notFound):
		if len(notFound.Choice) == 0 {
			return "the store holds no such backup; dump list --store URL shows what it holds", statusNotFound
		}
		return "there are: " + joinWords(notFound.Choice), statusNotFound
	case errors.As(err, &noName):
		return "dump show --contents lists what the backup holds", statusNotFound
	case errors.As(err, &unsigned):
		return "name its maker's public key with --trusted-signer; --allow-unauthenticated reads it by its ID all the same", statusDamaged
	case errors.As(err, &wrongKey) && len(wrongKey.Recipients) > 0:
		return "give the private key with --identity FILE.pem; openssl pkey -in FILE.pem -pubout -outform DER | sha256sum prints its ID", statusKey
	case errors.As(err, &wrongKey) && wrongKey.Needed == "":
		return "is it the key of this backup? --kdf and --iter name a derivation other than md5, sha256 and pbkdf2 with 10000 rounds", statusKey
	case errors.As(err, &wrongKey):
		return "give the key file that \"dump key id\" shows that ID for with --key-file", statusKey
	case errors.Is(err, archive.ErrNoKey):
		return "give the key with --key-file", statusKey
	case errors.As(err, &damage) && strings.HasSuffix(damage.Object, ".json"):
		return "nothing vouches for the rest now; an older backup or another store may be whole, and the parts themselves may be: the README has the recovery by hand", statusDamaged
	case errors.As(err, &damage):
		return "the objects are left as they are; \"dump verify --level digest\" says what is damaged, another store or an older backup may be whole", statusDamaged
	case errors.Is(err, archive.ErrForeign):
		return "it was made by another program and carries no proof of its content; --allow-unauthenticated reads it all the same", statusDamaged
	case errors.Is(err, archive.ErrIncomplete):
		return "its dump was cut off or is still being made; dump list shows the complete ones", statusDamaged
	case errors.Is(err, archive.ErrCutShort):
		return "a connection that broke, or a pg_dumpall that failed? --allow-partial stores such a stream all the same", statusFailed
	case errors.Is(err, os.ErrExist):
		return "nothing is overwritten; move the file away or name another", statusFailed
	case errors.Is(err, storage.ErrExists):
		return orHint(hint, "nothing is overwritten; choose another destination"), statusFailed
	case errors.Is(err, syscall.ENOSPC):
		return "the disk is full; nothing incomplete was left there", statusFailed
	case errors.Is(err, storage.ErrPermission), errors.Is(err, os.ErrPermission):
		return orHint(hint, "check who may read and write there"), statusFailed
	case errors.Is(err, storage.ErrNotFound):
		return orHint(hint, "check --store: nothing is there"), statusFailed
	}
	return hint, statusFailed
}

func orHint(hint, other string) string {
	if hint == "" {
		return other
	}
	return hint
}

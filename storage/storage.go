// Package storage is where backups are kept: a flat namespace of objects behind one small interface, and the
// errors and URLs that all backends share.
//
// The package knows no backend. A backend announces itself with Register, as a driver of database/sql does, and
// whoever wants to open its URLs imports it:
//
//	import _ "encdump/storage/file"
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// What went wrong, as far as callers act on it. Errors of a Bucket match these under errors.Is.
var (
	// ErrNotFound: there is no such object, or no such store.
	ErrNotFound = errors.New("not found")
	// ErrExists: a Put with IfAbsent found its key taken.
	ErrExists = errors.New("already exists")
	// ErrPermission: the store refuses this operation to this user. Trying again does not help.
	ErrPermission = errors.New("permission denied")
	// ErrTemporary: the same operation may succeed a little later.
	ErrTemporary = errors.New("temporarily unavailable")
	// ErrRange: an Open began beyond the end of the object, which is therefore shorter than the caller believed.
	ErrRange = errors.New("offset beyond the end of the object")
)

// Bucket is a flat namespace of objects.
//
// All methods must be safe for concurrent use, must refuse a key that ValidKey refuses, and must return errors
// that are, or wrap, an *Error. Where ctx is done, a method must fail with an error that matches ctx.Err().
// No error and no String may contain a credential.
type Bucket interface {
	// Put stores what r yields until io.EOF under key, replacing what was there. The length need not be known,
	// and memory must be bounded, whatever the length.
	//
	// Put is all or nothing: after an error from r, from ctx or from the store, nothing new may be visible under
	// key, and what was there before must still be there, whole. Any error of r's but io.EOF itself is a failure,
	// io.ErrUnexpectedEOF included, and must be found in Put's error by errors.Is. An object must never be
	// visible in part, not even while Put runs and not after the process was killed.
	//
	// With o.IfAbsent Put must fail with ErrExists where key is taken, and of several such calls at once, by
	// whatever process, exactly one must succeed. It may find this out before or after it read r.
	//
	// Put must look at ctx between reads and again before the object becomes visible. It cannot interrupt a Read
	// that blocks: a caller whose reader may block makes that Read return. Put must not read from r any more once
	// it has returned, and must not close r. A nil o is the zero value.
	Put(ctx context.Context, key string, r io.Reader, o *PutOptions) error

	// Open reads length bytes from offset on, both in bytes; a negative length reads to the end of the object.
	//
	// A length that reaches beyond the end is not an error and yields what there is; so is an offset that is
	// exactly the object's size, which yields nothing. An offset beyond that must fail with ErrRange, a negative
	// one with any error, a missing object with ErrNotFound.
	//
	// The caller must close the reader. It must yield io.EOF only at the end of the range, so a transfer
	// that breaks off is another error, io.ErrUnexpectedEOF for want of a better one. Reads must fail once ctx is
	// done; data that had already arrived may still be handed out.
	Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// List yields the objects whose keys begin with prefix, in the byte order of their keys. A prefix that
	// nothing has is not an error; a store that does not exist is ErrNotFound. Objects that come or go meanwhile
	// may be seen or not, all others must be yielded exactly once. After an error, which is yielded with a zero
	// Object, the sequence must end. It may be ranged over several times, and lists anew each time.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Delete removes the object. An absent one is not an error. When Delete returns nil, the object must not
	// come back after a crash of the machine that runs this program.
	Delete(ctx context.Context, key string) error

	// String names the store for people: its URL without credentials, or the path as the user wrote it. Given
	// to OpenURL, it must open the same store.
	String() string
}

// Object is an entry of a listing.
type Object struct {
	Key      string
	Size     int64     // in bytes
	Modified time.Time // when it was last put, by the clock of the store
}

// PutOptions modifies a Put. The zero value stores unconditionally.
type PutOptions struct {
	// IfAbsent makes Put fail with ErrExists where the key is taken, instead of replacing the object.
	IfAbsent bool
	// Transient says that the object will be deleted before long, so that a retention which the store was told to put
	// on what it takes must not be put on this.
	Transient bool
}

// Options are what the user may choose for all stores that are reached through a network. nil and zero values stand for
// the defaults. What one service alone knows stands in the query of its URL.
type Options struct {
	// Patience is how long one request, such as a chunk of an upload, is tried again while its errors are temporary,
	// before it fails with an error that matches ErrTemporary. 0 is DefaultPatience.
	Patience time.Duration
	// Timeout is how long one attempt of a request may make no progress at all before it counts as a temporary failure.
	// 0 is DefaultTimeout.
	Timeout time.Duration
	// Logger is told of attempts that failed; nil is silent.
	Logger *slog.Logger
}

// Defaults of Options.
const (
	DefaultPatience = 5 * time.Minute
	DefaultTimeout  = time.Minute
)

// WithDefaults returns o, which may be nil, with the defaults where it leaves something out.
func (o *Options) WithDefaults() Options {
	var out Options
	if o != nil {
		out = *o
	}
	if out.Patience <= 0 {
		out.Patience = DefaultPatience
	}
	if out.Timeout <= 0 {
		out.Timeout = DefaultTimeout
	}
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	return out
}

// What only some stores can do. As finds these in a Bucket.
type (
	// Uploader is a store where an upload that was cut off, as by a crash, leaves something behind that no listing
	// shows and that is paid for.
	Uploader interface {
		// Uploads yields the uploads that were begun and neither completed nor aborted, of keys that begin with
		// prefix, in no order. An error, yielded with a zero Upload, ends the sequence.
		Uploads(ctx context.Context, prefix string) iter.Seq2[Upload, error]
		// AbortUpload removes what the upload left. One that is gone is no error.
		AbortUpload(ctx context.Context, u Upload) error
	}

	// Locker is a store that can forbid for a while that an object is deleted.
	Locker interface {
		// LockedUntil returns the time from which on the object may be deleted; the zero time where nothing
		// forbids it now, and FarFuture where it has no end, as of a legal hold.
		LockedUntil(ctx context.Context, key string) (time.Time, error)
	}

	// Inspector is a store that tells of its settings.
	Inspector interface {
		// Inspect returns the settings that matter to backups, such as versioning, lock and encryption, in a
		// sensible order. What may not be asked, or is not known to the service, is a Setting with Err.
		Inspect(ctx context.Context) []Setting
	}

	// Wholer is a store where a backup is one object unless the user wants parts.
	Wholer interface{ PrefersWhole() bool }
)

// Upload is an upload under way, or abandoned.
type Upload struct {
	Key     string
	ID      string    // names it to the service
	Started time.Time // by the clock of the store
}

// Setting is what Inspect tells.
type Setting struct {
	Name  string // as "versioning"
	Value string // for people, as "enabled"
	Err   error  // why it is not known
}

// FarFuture stands for a lock without end.
var FarFuture = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// As returns b as a T where b, or what it wraps by a method Unwrap() Bucket, is one.
func As[T any](b Bucket) (T, bool) {
	for b != nil {
		if t, ok := b.(T); ok {
			return t, true
		}
		w, ok := b.(interface{ Unwrap() Bucket })
		if !ok {
			break
		}
		b = w.Unwrap()
	}
	var zero T
	return zero, false
}

// Error is what the methods of a Bucket return: which operation failed on what, and why.
type Error struct {
	Op     string // put, open, read, list or delete
	Key    string // the object; may be empty for list
	Bucket string // the store, as its String says; Error leaves out the options of a URL
	Kind   error  // one of this package's Err variables, or nil where none fits
	Err    error  // the cause, without operation, path and URL, which are named already; nil where Kind says it all
}

// Error reads like "put 1234-0 to /var/backups/pg: no space left on device".
func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString(e.Op)
	if e.Key != "" {
		preposition := "in"
		switch e.Op {
		case "put":
			preposition = "to"
		case "open", "read", "delete":
			preposition = "from"
		}
		fmt.Fprintf(&s, " %s %s", printable(e.Key), preposition)
	}
	s.WriteString(" " + printable(Redact(e.Bucket)))
	if e.Err != nil {
		s.WriteString(": " + e.Err.Error())
	} else if e.Kind != nil {
		s.WriteString(": " + e.Kind.Error())
	}
	return s.String()
}

// Unwrap returns Kind and Err, so that errors.Is and errors.As find either.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// printable quotes s where it would spoil a line or a terminal, as a key that was refused may do.
func printable(s string) string {
	if s == "" || !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// MaxKey is the length of the longest key, in bytes. It leaves file systems, whose names mostly end at 255 bytes, and
// services with prefixes room of their own.
const MaxKey = 200

// ValidKey returns nil if every backend can hold an object of this name: valid UTF-8 of 1 to MaxKey bytes without
// "/" and control characters. A leading dot is refused too: such names are temporary files to the file backend and
// hidden from a person's "cat".
func ValidKey(key string) error {
	switch {
	case key == "":
		return errors.New("invalid key: empty")
	case len(key) > MaxKey:
		return fmt.Errorf("invalid key: %d bytes, more than %d", len(key), MaxKey)
	case !utf8.ValidString(key):
		return errors.New("invalid key: not UTF-8")
	case key[0] == '.':
		return errors.New("invalid key: begins with a dot")
	case strings.Contains(key, "/"):
		return errors.New("invalid key: contains a slash")
	case strings.IndexFunc(key, unicode.IsControl) >= 0:
		return errors.New("invalid key: contains a control character")
	}
	return nil
}

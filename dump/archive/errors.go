package archive

import (
	"errors"
	"fmt"
	"strings"

	"encdump/dump/script"
)

var (
	// ErrCutShort says that a stream of SQL does not end as a whole dump does.
	ErrCutShort = script.ErrCutShort
	// ErrNoKey says that no key is at hand where one is needed.
	ErrNoKey = errors.New("no key given")
	// ErrForeign says that a backup has no metadata of ours, so that nothing
	// vouches for it, and that the caller did not ask for such.
	ErrForeign = errors.New("foreign backup: nothing vouches for its content")
	// ErrIncomplete says that a backup was never finished.
	ErrIncomplete = errors.New("incomplete backup: it was never finished")
)

// DamageError says that an object of a backup is not what it was when the
// backup was made, or is missing.
type DamageError struct {
	Object string // name of the object
	Reason string
	Err    error // may be nil
	// Stored is the damaged range of the stored stream, where it is known; otherwise its length is 0.
	Stored script.Range
}

func (e *DamageError) Error() string {
	s := e.Object + ": " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DamageError) Unwrap() error { return e.Err }

func damaged(object, format string, args ...any) error {
	return &DamageError{Object: object, Reason: fmt.Sprintf(format, args...)}
}

// damagedRange is damaged with the place in the stored stream.
func damagedRange(offset, length int64, object, format string, args ...any) error {
	return &DamageError{
		Object: object, Reason: fmt.Sprintf(format, args...),
		Stored: script.Range{Offset: script.Number(offset), Length: script.Number(length)},
	}
}

// WrongKeyError says that a backup was encrypted with none of the keys given.
type WrongKeyError struct {
	Object string
	Needed string   // key ID; empty where it is not known, as with foreign backups
	Given  []string // key IDs
	// Recipients that a sealed backup can be read by.
	Recipients []string
}

func (e *WrongKeyError) Error() string {
	if e.Needed == "" {
		return e.Object + ": wrong key or damaged start"
	}
	needed := "key " + e.Needed + " is needed"
	if len(e.Recipients) > 0 {
		needed = "sealed; the private key of recipient " + strings.Join(e.Recipients, " or ") + " is needed"
	}
	if len(e.Given) == 0 {
		return fmt.Sprintf("%s: %s, none is given", e.Object, needed)
	}
	return fmt.Sprintf("%s: %s, given is %s", e.Object, needed, strings.Join(e.Given, ", "))
}

func (e *WrongKeyError) Is(target error) bool {
	return target == ErrNoKey && len(e.Given) == 0 && e.Needed != ""
}

// UnsignedError says that a backup is not signed by a trusted signer, where only
// a signature tells who made it, or where signers were named.
type UnsignedError struct {
	Object string // ID of the backup
	Reason string
}

func (e *UnsignedError) Error() string { return e.Object + ": not authenticated: " + e.Reason }

// NotFoundError says that a bucket holds no backup as asked for.
type NotFoundError struct {
	What   string   // what was asked for
	Choice []string // what there is to choose from
	// Ambiguous: several match, and Choice names them.
	Ambiguous bool
}

func (e *NotFoundError) Error() string {
	if e.Ambiguous {
		return fmt.Sprintf("%s is ambiguous: %s", e.What, strings.Join(e.Choice, ", "))
	}
	return "no such backup: " + e.What
}

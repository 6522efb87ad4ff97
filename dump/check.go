package dump

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"encdump/storage"
)

// probePrefix begins the keys of probes. No backup's objects are named so.
const probePrefix = "dump-check-"

// ErrNotTried says that a step of a check could not be tried, because one before it failed.
var ErrNotTried = errors.New("not tried")

// CheckReport tells what may be done in a store.
type CheckReport struct {
	Bucket storage.Bucket
	Steps  []CheckStep // write, list, read, delete
	// Skew is how far the store's clock is ahead of the local one, as far as that can be told from a listing, which may
	// know whole seconds only; 0 where the probe was not listed.
	Skew     time.Duration
	Settings []storage.Setting // where the store tells them
	Left     string            // the key of a probe that could not be removed
}

// CheckStep is an operation that was tried.
type CheckStep struct {
	Name string
	Err  error // matches storage.ErrPermission where it is not permitted; nil where it went well
}

// OK tells whether backups can be made: writing and listing went well, and the rest too, or is not permitted, as to a
// user who may only add.
func (r *CheckReport) OK() bool {
	for i, s := range r.Steps {
		if s.Err != nil && (i < 2 || !errors.Is(s.Err, storage.ErrPermission) && !errors.Is(s.Err, ErrNotTried)) {
			return false
		}
	}
	return true
}

// Check puts, lists, reads and deletes a small object, and asks for the settings of the store. The object is removed
// in any case, also when ctx is done meanwhile, which is the only error.
func Check(ctx context.Context, b storage.Bucket) (*CheckReport, error) {
	r := &CheckReport{Bucket: b}
	step := func(name string, err error) { r.Steps = append(r.Steps, CheckStep{name, err}) }
	key := probePrefix + rand.Text()
	text := []byte("This object was made by dump check, which removes it if it may.\n")

	before := time.Now()
	stored := b.Put(ctx, key, bytes.NewReader(text), &storage.PutOptions{IfAbsent: true, Transient: true})
	after := time.Now()
	step("write", stored)
	step("list", func() error {
		for o, err := range b.List(ctx, key) {
			if err != nil {
				return err
			}
			if o.Key == key {
				r.Skew = skew(o.Modified, before, after)
				return nil
			}
		}
		if stored != nil {
			return nil
		}
		return errors.New("what was written is not listed")
	}())
	if stored == nil {
		step("read", readBack(ctx, b, key, text))
	} else {
		step("read", ErrNotTried)
	}
	// Also after a Put that failed: its answer may have been lost.
	err := b.Delete(ctx, key)
	if err != nil && ctx.Err() != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = b.Delete(clean, key)
	}
	if err != nil && stored == nil {
		r.Left = key
	}
	step("delete", err)
	if i, ok := storage.As[storage.Inspector](b); ok && ctx.Err() == nil {
		r.Settings = i.Inspect(ctx)
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// skew returns how far t is off the time from before to after. A clock that tells whole seconds is not behind.
func skew(t, before, after time.Time) time.Duration {
	switch {
	case t.After(after):
		return t.Sub(after)
	case t.Before(before.Truncate(time.Second)):
		return t.Sub(before)
	}
	return 0
}

func readBack(ctx context.Context, b storage.Bucket, key string, want []byte) error {
	r, err := b.Open(ctx, key, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadAll(io.LimitReader(r, int64(len(want))+1))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s: what is read is not what was written", key)
	}
	return err
}

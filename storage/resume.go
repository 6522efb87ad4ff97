package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"
)

// Bounds of the wait before another attempt; it doubles from one to the next.
const (
	firstWait   = 500 * time.Millisecond
	longestWait = 30 * time.Second
)

// Resume returns b such that what can be repeated is repeated while its errors match ErrTemporary: Open, List, which goes
// on behind the last key that it yielded, Delete, and reading, which goes on at the byte where it broke off, also after
// io.ErrUnexpectedEOF and where it ended before the length that was asked for though the object has more. OpenURL
// does this to every store.
//
// It gives up when Options.Patience has passed without progress, which is counted from the beginning of the call or the
// last byte or entry, with an error that matches ErrTemporary. That is the same patience as a backend's own, and does
// not come on top: a backend that tried a request for that long before it failed has used it up. Other errors come
// through as they are, and so does Put, whose reader cannot be read twice: backends send their chunks again themselves.
//
// An object must not change between the attempts; whoever reads compares digests.
func Resume(b Bucket, o *Options) Bucket { return &resuming{b, o.WithDefaults()} }

type resuming struct {
	Bucket
	o Options
}

// Unwrap lets As find what the store inside can do.
func (b *resuming) Unwrap() Bucket { return b.Bucket }

// attempts of one operation.
type attempts struct {
	b       *resuming
	op, key string
	since   time.Time // the last progress
	failed  int       // attempts since then
}

func (b *resuming) attempts(op, key string) *attempts {
	return &attempts{b: b, op: op, key: key, since: time.Now()}
}

// progress says that something arrived.
func (a *attempts) progress() { a.since, a.failed = time.Now(), 0 }

// wait returns nil when it is time for another attempt, and otherwise the error to fail with. where tells how far the
// operation got.
func (a *attempts) wait(ctx context.Context, err error, where string) error {
	if ctx.Err() != nil || !errors.Is(err, ErrTemporary) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	for _, permanent := range []error{ErrNotFound, ErrExists, ErrPermission, ErrRange} {
		if errors.Is(err, permanent) {
			return err
		}
	}
	// The error names operation, object and store; so will the one that is made here.
	var e *Error
	if errors.As(err, &e) {
		if err = e.Err; err == nil {
			err = e.Kind
		}
	}
	left := a.b.o.Patience - time.Since(a.since)
	if left <= 0 {
		return a.fail(ErrTemporary, fmt.Errorf("%sno progress for %v: %w", where, time.Since(a.since).Round(time.Second), err))
	}
	pause := min(firstWait<<min(a.failed, 10), longestWait)
	pause -= rand.N(pause / 2) // so that many do not come back at once
	pause = min(pause, left)
	a.failed++
	a.b.o.Logger.Info("the store is tried again", "operation", a.op, "object", a.key, "store", a.b.String(), "in", pause.Round(time.Millisecond), "err", err)
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return a.fail(nil, ctx.Err())
	}
}

func (a *attempts) fail(kind, err error) error {
	return &Error{Op: a.op, Key: a.key, Bucket: a.b.String(), Kind: kind, Err: err}
}

// Open implements Bucket.
func (b *resuming) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	a := b.attempts("open", key)
	for {
		r, err := b.Bucket.Open(ctx, key, offset, length)
		if err == nil {
			a.op = "read"
			return &resumingReader{attempts: a, ctx: ctx, r: r, offset: offset, left: length}, nil
		}
		if err := a.wait(ctx, err, ""); err != nil {
			return nil, err
		}
	}
}

// resumingReader reads on where a reader broke off.
type resumingReader struct {
	*attempts
	ctx    context.Context
	r      io.ReadCloser // nil: to be opened again
	offset int64         // of the next byte
	left   int64         // bytes of the range; negative: to the end of the object
	asked  bool          // whether the object really ends at offset
	err    error         // sticks
}

func (r *resumingReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	// What the caller did since the last byte is not the store's fault.
	r.progress()
	for {
		n, err := r.attempt(p)
		if n > 0 {
			r.offset += int64(n)
			if r.left > 0 {
				r.left -= int64(n)
			}
			r.asked = false
			if err != nil {
				r.drop(err)
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		r.drop(err)
		if r.err != nil {
			return 0, r.err
		}
		if err == io.EOF {
			continue // to ask again
		}
		if r.err = r.wait(r.ctx, err, fmt.Sprintf("at byte %d: ", r.offset)); r.err != nil {
			return 0, r.err
		}
	}
}

// attempt reads once.
func (r *resumingReader) attempt(p []byte) (n int, err error) {
	if r.r == nil {
		if r.r, err = r.b.Bucket.Open(r.ctx, r.key, r.offset, r.left); err != nil {
			r.r = nil
			return 0, err
		}
	}
	return r.r.Read(p)
}

// drop closes a reader that ended in err. The end of the range is final; one before it is believed when it was
// found twice.
func (r *resumingReader) drop(err error) {
	if err == io.EOF && (r.left <= 0 || r.asked) {
		r.err = io.EOF
		return
	}
	r.asked = err == io.EOF
	if r.r != nil {
		r.r.Close()
		r.r = nil
	}
}

func (r *resumingReader) Close() error {
	r.err = errors.New("read from a closed reader")
	if r.r == nil {
		return nil
	}
	err := r.r.Close()
	r.r = nil
	return err
}

// List implements Bucket.
func (b *resuming) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		a := b.attempts("list", prefix)
		last := "" // no key is empty
		for {
			var failed error
			for o, err := range b.Bucket.List(ctx, prefix) {
				if err != nil {
					failed = err
					break
				}
				if o.Key <= last {
					continue
				}
				last = o.Key
				if !yield(o, nil) {
					return
				}
				a.progress()
			}
			if failed == nil {
				return
			}
			where := ""
			if last != "" {
				where = "after " + last + ": "
			}
			if err := a.wait(ctx, failed, where); err != nil {
				yield(Object{}, err)
				return
			}
		}
	}
}

// Delete implements Bucket.
func (b *resuming) Delete(ctx context.Context, key string) error {
	a := b.attempts("delete", key)
	for {
		err := b.Bucket.Delete(ctx, key)
		if err == nil {
			return nil
		}
		if err := a.wait(ctx, err, ""); err != nil {
			return err
		}
	}
}

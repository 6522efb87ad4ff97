package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"encdump/storage"
	"encdump/storage/storagetest"
)

func TestResumeConformance(t *testing.T) {
	storagetest.Conformance(t, func(t *testing.T) storage.Bucket { return storage.Resume(storagetest.Mem(), nil) })
}

const patience = 5 * time.Minute

var resumed = []byte(strings.Repeat("0123456789", 1000))

// resume returns a bucket that holds an object, what stands between it and the wrapper, and the wrapper.
func resume(t *testing.T) (*storagetest.Faulty, storage.Bucket) {
	t.Helper()
	f := storagetest.NewFaulty(storagetest.Mem())
	if err := f.Put(t.Context(), "object", bytes.NewReader(resumed), nil); err != nil {
		t.Fatal(err)
	}
	return f, storage.Resume(f, &storage.Options{Patience: patience})
}

func readAll(ctx context.Context, b storage.Bucket, offset, length int64) ([]byte, error) {
	r, err := b.Open(ctx, "object", offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestResumeReads(t *testing.T) {
	for name, test := range map[string]struct {
		faults []storagetest.Fault
		calls  int
	}{
		"all is well":       {nil, 1},
		"open":              {[]storagetest.Fault{{Nth: 1, Err: storage.ErrTemporary}}, 2},
		"first byte":        {[]storagetest.Fault{{Nth: 1, Err: storage.ErrTemporary, After: -1}}, 2},
		"on the way":        {[]storagetest.Fault{{Nth: 1, Err: storage.ErrTemporary, After: 3000}}, 2},
		"cut off":           {[]storagetest.Fault{{Nth: 1, Err: io.ErrUnexpectedEOF, After: 3000}}, 2},
		"ends early":        {[]storagetest.Fault{{Nth: 1, Cut: 3000}}, 2},
		"ends at the start": {[]storagetest.Fault{{Nth: 1, Cut: -1}}, 2},
		"again and again": {[]storagetest.Fault{
			{Nth: 1, Err: storage.ErrTemporary},
			{Nth: 2, Err: storage.ErrTemporary, After: 1},
			{Nth: 3, Cut: 999},
			{Nth: 4, Err: io.ErrUnexpectedEOF},
			{Nth: 5, Err: io.ErrUnexpectedEOF, After: 4000, MaxRead: 7},
			{Nth: 6, MaxRead: 1},
		}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, b := resume(t)
				for _, fault := range test.faults {
					fault.Op = storagetest.Open
					f.Add(fault)
				}
				got, err := readAll(t.Context(), b, 1000, 8500)
				if err != nil || !bytes.Equal(got, resumed[1000:9500]) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if n := f.Calls(storagetest.Open); n != test.calls {
					t.Errorf("%d calls, want %d", n, test.calls)
				}
				// What arrived is not read a second time.
				if n := f.BytesRead(); n != 8500 {
					t.Errorf("%d bytes were transferred", n)
				}
			})
		})
	}
}

// An object that really ends before the length that was asked for is what there is.
func TestResumeEndOfObject(t *testing.T) {
	f, b := resume(t)
	for _, length := range []int64{-1, 5000, 5001, 1 << 40} {
		if got, err := readAll(t.Context(), b, 5000, length); err != nil || !bytes.Equal(got, resumed[5000:]) {
			t.Errorf("length %d: %d bytes, %v", length, len(got), err)
		}
	}
	if n := f.Calls(storagetest.Open); n != 6 {
		t.Errorf("%d calls, want one each, and one more where the end came early", n)
	}
	r, err := b.Open(t.Context(), "object", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := iotest.TestReader(r, resumed); err != nil {
		t.Error(err)
	}
}

// TestResumePatience ends an outage just before and lets it go on beyond the patience.
func TestResumePatience(t *testing.T) {
	do := map[string]func(ctx context.Context, b storage.Bucket) error{
		"open": func(ctx context.Context, b storage.Bucket) error {
			_, err := b.Open(ctx, "object", 0, -1)
			return err
		},
		"read": func(ctx context.Context, b storage.Bucket) error {
			_, err := readAll(ctx, b, 10, -1)
			return err
		},
		"list": func(ctx context.Context, b storage.Bucket) error {
			for _, err := range b.List(ctx, "") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"delete": func(ctx context.Context, b storage.Bucket) error { return b.Delete(ctx, "object") },
	}
	for name, do := range do {
		outage := func(f *storagetest.Faulty) {
			f.Add(storagetest.Fault{Err: storage.ErrTemporary})
			if name == "read" {
				f.Add(storagetest.Fault{Op: storagetest.Open, Nth: 1, Err: io.ErrUnexpectedEOF, After: 3000})
			}
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, b := resume(t)
				outage(f)
				began := time.Now()
				time.AfterFunc(patience-time.Second, f.Heal)
				if err := do(t.Context(), b); err != nil {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				f, b := resume(t)
				outage(f)
				began := time.Now()
				err := do(t.Context(), b)
				if !errors.Is(err, storage.ErrTemporary) || time.Since(began) != patience {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
				if n := f.Calls(storagetest.Open) + f.Calls(storagetest.List) + f.Calls(storagetest.Delete); n < 10 || n > 40 {
					t.Errorf("%d attempts", n)
				}
				var e *storage.Error
				if !errors.As(err, &e) || e.Op != name || name != "list" && e.Key != "object" || strings.Count(err.Error(), f.String()) != 1 {
					t.Errorf("error %v", err)
				}
				if name == "read" && !strings.Contains(err.Error(), "at byte 3010: ") {
					t.Errorf("error %v does not tell the offset", err)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				f, b := resume(t)
				outage(f)
				ctx, cancel := context.WithCancel(t.Context())
				began := time.Now()
				time.AfterFunc(10*time.Second, cancel)
				if err := do(ctx, b); !errors.Is(err, context.Canceled) || time.Since(began) != 10*time.Second {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			})
			for _, permanent := range []error{storage.ErrNotFound, storage.ErrPermission, storage.ErrRange, errors.New("boom")} {
				synctest.Test(t, func(t *testing.T) {
					f, b := resume(t)
					f.Add(storagetest.Fault{Err: permanent})
					began := time.Now()
					if err := do(t.Context(), b); !errors.Is(err, permanent) || errors.Is(err, storage.ErrTemporary) || time.Since(began) != 0 {
						t.Errorf("%v: %v after %v", permanent, err, time.Since(began))
					}
				})
			}
		})
	}
}

// patient is a backend that uses up the patience by itself before it fails.
type patient struct{ storage.Bucket }

func (p patient) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if offset > 0 {
		time.Sleep(patience)
		return nil, &storage.Error{Op: "open", Key: key, Bucket: p.String(), Kind: storage.ErrTemporary, Err: context.DeadlineExceeded}
	}
	return p.Bucket.Open(ctx, key, offset, length)
}

func TestResumeDoesNotMultiplyPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := resume(t)
		f.Add(storagetest.Fault{Op: storagetest.Open, Err: io.ErrUnexpectedEOF, After: 100})
		b := storage.Resume(patient{f}, &storage.Options{Patience: patience})
		began := time.Now()
		_, err := readAll(t.Context(), b, 0, -1)
		if d := time.Since(began); !errors.Is(err, storage.ErrTemporary) || d > patience+time.Second {
			t.Errorf("after %v: %v", d, err)
		}
	})
}

// A connection that is lost while the reader's user does something else has all of the patience.
func TestResumeAfterPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, b := resume(t)
		f.Add(storagetest.Fault{Op: storagetest.Open, Err: storage.ErrTemporary})
		f.Add(storagetest.Fault{Op: storagetest.Open, Nth: 1, Err: storage.ErrTemporary, After: 5000})
		r, err := b.Open(t.Context(), "object", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadFull(r, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		time.AfterFunc(patience-time.Second, f.Heal)
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(rest, resumed[5000:]) {
			t.Errorf("%d bytes, %v", len(rest), err)
		}
	})
}

// brokenList ends each listing in a temporary error after some entries, and each listing begins anew.
type brokenList struct {
	storage.Bucket
	after []int // entries; then all
}

func (b *brokenList) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		left := -1
		if len(b.after) > 0 {
			left, b.after = b.after[0], b.after[1:]
		}
		for o, err := range b.Bucket.List(ctx, prefix) {
			if left == 0 {
				yield(storage.Object{}, &storage.Error{Op: "list", Bucket: b.String(), Kind: storage.ErrTemporary})
				return
			}
			left--
			if !yield(o, err) {
				return
			}
		}
	}
}

func TestResumeList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := storagetest.Mem()
		want := []string{"a", "b", "c", "d"}
		for _, key := range want {
			if err := mem.Put(t.Context(), key, strings.NewReader(""), nil); err != nil {
				t.Fatal(err)
			}
		}
		list := func(b *brokenList) (keys []string) {
			for o, err := range storage.Resume(b, nil).List(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, o.Key)
			}
			return keys
		}
		for _, after := range [][]int{{}, {0}, {1}, {3}, {2, 0, 1, 3, 2}} {
			if got := list(&brokenList{mem, after}); !slices.Equal(got, want) {
				t.Errorf("broken after %v: %q", after, got)
			}
		}
	})
}

// Put is not repeated: its reader is.
func TestResumeLeavesPut(t *testing.T) {
	f, b := resume(t)
	f.Add(storagetest.Fault{Op: storagetest.Put, Err: storage.ErrTemporary, After: 3})
	if err := b.Put(t.Context(), "other", strings.NewReader("content"), nil); !errors.Is(err, storage.ErrTemporary) || f.Calls(storagetest.Put) != 2 {
		t.Errorf("%d calls: %v", f.Calls(storagetest.Put), err)
	}
}

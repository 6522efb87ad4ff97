package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"encdump/storage"
)

func TestMem(t *testing.T) {
	t.Parallel()
	Conformance(t, func(*testing.T) storage.Bucket { return Mem() })
}

// A Faulty without faults is as good as what it wraps.
func TestFaultyWithoutFaults(t *testing.T) {
	t.Parallel()
	Conformance(t, func(*testing.T) storage.Bucket { return NewFaulty(Mem()) })
}

// faulty returns a bucket in which "key" holds "0123456789".
func faulty(t *testing.T, faults ...Fault) *Faulty {
	f := NewFaulty(Mem())
	put(t, f, "key", []byte("0123456789"))
	for _, fault := range faults {
		f.Add(fault)
	}
	return f
}

// read returns what Open yields, and the error of Open or of reading.
func read(t *testing.T, b storage.Bucket, offset, length int64) (string, error) {
	t.Helper()
	r, err := b.Open(t.Context(), "key", offset, length)
	if err != nil {
		return "", err
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	return string(got), err
}

func TestFaultyRead(t *testing.T) {
	tests := []struct {
		name           string
		fault          Fault
		offset, length int64
		want           string
		fails          bool
	}{
		{"open", Fault{Op: Open, Err: errBoom}, 0, -1, "", true},
		{"any operation", Fault{Err: errBoom}, 0, -1, "", true},
		{"another operation", Fault{Op: Delete, Err: errBoom}, 0, -1, "0123456789", false},
		{"another key", Fault{Key: "other", Err: errBoom}, 0, -1, "0123456789", false},
		{"another call", Fault{Op: Open, Nth: 2, Err: errBoom}, 0, -1, "0123456789", false},
		{"first read", Fault{Op: Open, Err: errBoom, After: -1}, 0, -1, "", true},
		{"after 3", Fault{Op: Open, Err: errBoom, After: 3}, 2, -1, "234", true},
		{"after the last", Fault{Op: Open, Err: errBoom, After: 10}, 0, -1, "0123456789", true},
		{"after more than there is", Fault{Op: Open, Err: errBoom, After: 11}, 0, -1, "0123456789", false},
		{"cut", Fault{Op: Open, Cut: 4}, 1, -1, "1234", false},
		{"cut behind the range", Fault{Op: Open, Cut: 4}, 1, 2, "12", false},
		{"cut at once", Fault{Op: Open, Cut: -1}, 0, -1, "", false},
		{"one byte a read", Fault{Op: Open, MaxRead: 1}, 0, -1, "0123456789", false},
		{"corrupt", Fault{Op: Open, Corrupt: map[int64]byte{0: 'x', 3: '3' ^ 'x', 9: '9' ^ 'y'}, MaxRead: 2}, 1, -1, "12x45678y", false},
		{"corrupt outside", Fault{Op: Open, Corrupt: map[int64]byte{0: 1, 9: 1}}, 1, 8, "12345678", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := faulty(t, test.fault)
			got, err := read(t, f, test.offset, test.length)
			if got != test.want || test.fails != (err != nil) || err != nil && !errors.Is(err, errBoom) {
				t.Errorf("got %q, %v; want %q, failure %v", got, err, test.want, test.fails)
			}
			if f.Calls(Open) != 1 || f.BytesRead() != int64(len(test.want)) {
				t.Errorf("counted %d calls and %d bytes, want 1 and %d", f.Calls(Open), f.BytesRead(), len(test.want))
			}
		})
	}
	f := faulty(t, Fault{Op: Open, MaxRead: 3})
	r, err := f.Open(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 10)); n != 3 || err != nil {
		t.Errorf("Read returned %d, %v, want 3", n, err)
	}
}

func TestFaultyNth(t *testing.T) {
	f := faulty(t, Fault{Op: Open, Nth: 2, Err: errBoom}, Fault{Op: List, Err: storage.ErrTemporary}, Fault{Op: Delete, Nth: 1, Err: errBoom})
	for i := range 3 {
		if _, err := read(t, f, 0, -1); (i == 1) != errors.Is(err, errBoom) {
			t.Errorf("Open %d: %v", i+1, err)
		}
		for _, err := range f.List(t.Context(), "") {
			wantError(t, err, storage.ErrTemporary, "list", f)
		}
		if err := f.Delete(t.Context(), "other"); (i == 0) != errors.Is(err, errBoom) {
			t.Errorf("Delete %d: %v", i+1, err)
		}
	}
	if f.Calls(Open) != 3 || f.Calls(List) != 3 || f.Calls(Delete) != 3 || f.Calls(Put) != 1 {
		t.Errorf("counted %v", f.calls)
	}
	f.Heal()
	wantObject(t, f, "key", []byte("0123456789"))
}

func TestFaultyPut(t *testing.T) {
	for _, fault := range []Fault{{Op: Put, Err: errBoom}, {Op: Put, Err: errBoom, After: 5}, {Op: Put, Err: errBoom, After: 10}, {Op: Put, Err: errBoom, After: -1}} {
		f := faulty(t, fault)
		err := f.Put(t.Context(), "key", strings.NewReader("abcdefghij"), nil)
		wantError(t, err, errBoom, "put", f)
		if want := "put key to " + f.String() + ": boom"; err.Error() != want {
			t.Errorf("error reads %q, want %q", err, want)
		}
		wantObject(t, f.inner, "key", []byte("0123456789"))
		if got, want := f.BytesPut(), 10+max(fault.After, 0); got != want {
			t.Errorf("%+v: %d bytes were put, want %d", fault, got, want)
		}
	}
	// The answer is lost, the work is done.
	f := faulty(t, Fault{Op: Put, Err: storage.ErrTemporary, Late: true}, Fault{Op: Delete, Err: storage.ErrTemporary, Late: true})
	wantError(t, f.Put(t.Context(), "late", strings.NewReader("x"), nil), storage.ErrTemporary, "put", f)
	wantObject(t, f, "late", []byte("x"))
	wantError(t, f.Delete(t.Context(), "late"), storage.ErrTemporary, "delete", f)
	wantAbsent(t, f, "late")
	// The reader's own failure comes through.
	wantError(t, f.Put(t.Context(), "key", iotest.ErrReader(errBoom), nil), errBoom, "put", f)
}

func TestFaultyGate(t *testing.T) {
	for _, after := range []int64{0, 5} {
		// Released.
		g := NewGate()
		f := faulty(t, Fault{Op: Put, Key: "new", Gate: g, After: after})
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- f.Put(ctx, "new", strings.NewReader("abcdefghij"), nil) }()
		<-g.Reached()
		if got := f.BytesPut() - 10; got != after {
			t.Errorf("%d bytes passed before the gate, want %d", got, after)
		}
		g.Release()
		g.Release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantObject(t, f, "new", []byte("abcdefghij"))

		// Cancelled, and a reader under the same context, with a gate of its own.
		g = NewGate()
		f = faulty(t, Fault{Op: Put, Key: "new", Gate: g, After: after}, Fault{Op: Open, Key: "key", Gate: NewGate(), After: 5})
		r, err := f.Open(ctx, "key", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- f.Put(ctx, "new", bytes.NewReader(data(0, 1000)), nil) }()
		<-g.Reached()
		cancel()
		wantError(t, <-done, context.Canceled, "put", f)
		wantAbsent(t, f, "new")
		got, err := io.ReadAll(r)
		wantError(t, err, context.Canceled, "read", f)
		if len(got) > 5 {
			t.Errorf("%q passed a gate behind 5 bytes", got)
		}
	}
}

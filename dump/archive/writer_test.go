package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// Tests of what runs in several goroutines stand in a bubble of synctest: there,
// time passes only when all of them wait, synctest.Wait says when nothing moves
// any more, and a goroutine that is left behind fails the test.

// bubble runs a test in one. What has not ended after a day will never end.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		testKey.ID() // slow, so before the bubble
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			test(t)
			if d := time.Since(began); d >= day {
				t.Errorf("it hung: it ended after %v only, when what held it up was let go", d)
			}
		})
	})
}

const day = 24 * time.Hour

// newGate returns a gate that opens at the end of the day.
func newGate(t *testing.T) *storagetest.Gate {
	g := storagetest.NewGate()
	timer := time.AfterFunc(day, g.Release)
	t.Cleanup(func() { timer.Stop() })
	return g
}

// recorder is a bucket that tells what is done with it. on, where not nil, is
// called at the beginning of each operation and may refuse it.
type recorder struct {
	storage.Bucket
	on func(event string) error

	mu     sync.Mutex
	events []string
}

func (r *recorder) event(format string, args ...any) error {
	e := strings.ReplaceAll(fmt.Sprintf(format, args...), testID.String(), "ID")
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	if r.on != nil {
		return r.on(e)
	}
	return nil
}

func (r *recorder) Put(ctx context.Context, key string, src io.Reader, o *storage.PutOptions) error {
	verb := "put"
	if o != nil && o.IfAbsent {
		verb = "new"
	}
	if err := r.event("%s %s", verb, key); err != nil {
		return err
	}
	return r.Bucket.Put(ctx, key, src, o)
}

func (r *recorder) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := r.event("open %s", key); err != nil {
		return nil, err
	}
	return r.Bucket.Open(ctx, key, offset, length)
}

func (r *recorder) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	if err := r.event("list %s", prefix); err != nil {
		return func(yield func(storage.Object, error) bool) { yield(storage.Object{}, err) }
	}
	return r.Bucket.List(ctx, prefix)
}

func (r *recorder) Delete(ctx context.Context, key string) error {
	if err := r.event("delete %s", key); err != nil {
		return err
	}
	return r.Bucket.Delete(ctx, key)
}

func wantEvents(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("events:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestWriterOrder(t *testing.T) {
	t.Parallel()
	bubble(t, "parts", func(t *testing.T) {
		r := &recorder{Bucket: storagetest.Mem()}
		sql := noiseOf(1, 1000)
		if id := mustBackUp(t, sql, WriterOptions{PartSize: 500, FrameSize: 300}, r); id != testID {
			t.Fatal(id)
		}
		wantEvents(t, r.events, "new ID.incomplete", "list ID", "put ID-0", "put ID-1", "put ID-2",
			"put ID.sums", "put ID.toc", "list ID", "put ID.json", "delete ID.incomplete")
		wantRestored(t, r.Bucket, testID, sql)
	})
	bubble(t, "whole", func(t *testing.T) {
		r := &recorder{Bucket: storagetest.Mem()}
		mustBackUp(t, noiseOf(1, 1000), WriterOptions{PartSize: WholeObject, FrameSize: 300}, r)
		wantEvents(t, r.events, "new ID.incomplete", "list ID", "put ID",
			"put ID.sums", "put ID.toc", "list ID", "put ID.json", "delete ID.incomplete")
	})
	bubble(t, "as the stream flows", func(t *testing.T) {
		r := &recorder{Bucket: storagetest.Mem()}
		w, err := NewWriter(t.Context(), []storage.Bucket{r}, options(WriterOptions{PartSize: 500, FrameSize: 100}))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort(nil)
		wantEvents(t, r.events, "new ID.incomplete", "list ID")
		if _, err := w.Write(noiseOf(1, 1000)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := contents(t, r.Bucket).names(); !slices.Equal(got, []string{"ID-0", "ID-1", "ID.incomplete"}) {
			t.Errorf("in the middle of the stream there is %q", got)
		}
		wantNoBackup(t, r.Bucket)
	})
}

// faultyDump is a backup of three parts that the tests of failures make again
// and again. What it yields takes the way through frames that are not full.
var (
	faultyDump    = noiseOf(2, 1000)
	faultyOptions = WriterOptions{PartSize: 500, FrameSize: 300, Jobs: 2}
)

// TestWriterSourceFails checks that a dump that fails, or that stops early,
// leaves nothing behind.
func TestWriterSourceFails(t *testing.T) {
	t.Parallel()
	broken := func(n int) io.Reader {
		return io.MultiReader(bytes.NewReader(faultyDump[:n]), iotest.ErrReader(errBoom))
	}
	for name, test := range map[string]struct {
		src  io.Reader
		want error
	}{
		"at once":               {broken(0), errBoom},
		"in the first frame":    {broken(10), errBoom},
		"in the middle":         {broken(750), errBoom},
		"with the last frame":   {broken(900), errBoom},
		"at the end":            {broken(len(faultyDump)), errBoom},
		"unexpected EOF":        {iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(faultyDump))), iotest.ErrTimeout},
		"cut short":             {bytes.NewReader(faultyDump[:950]), ErrCutShort},
		"cut at a frame":        {bytes.NewReader(faultyDump[:600]), ErrCutShort},
		"cut in the completion": {bytes.NewReader(faultyDump[:len(faultyDump)-8]), ErrCutShort},
		"empty":                 {bytes.NewReader(nil), ErrCutShort},
	} {
		bubble(t, name, func(t *testing.T) {
			a, b := &recorder{Bucket: storagetest.Mem()}, &recorder{Bucket: storagetest.Mem()}
			w, err := backUp(t.Context(), test.src, options(faultyOptions), a, b)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			for i, r := range []*recorder{a, b} {
				if err := w.Destinations()[i].Err; !errors.Is(err, test.want) {
					t.Errorf("the destination's error is %v, want %v", err, test.want)
				}
				if slices.Contains(r.events, "put ID.json") {
					t.Error("the metadata were written")
				}
				wantEmpty(t, r.Bucket)
			}
			if err := context.Cause(w.Context()); !errors.Is(err, test.want) {
				t.Errorf("the context's cause is %v, want %v", err, test.want)
			}
		})
	}
}

// TestWriterStoreFails lets each operation on the store fail in turn.
func TestWriterStoreFails(t *testing.T) {
	t.Parallel()
	all := &recorder{Bucket: storagetest.Mem()}
	mustBackUp(t, faultyDump, faultyOptions, all)
	count := map[storagetest.Op]int{}
	for _, event := range all.events {
		op, object, _ := strings.Cut(event, " ")
		if op == "new" {
			op = "put"
		}
		count[storagetest.Op(op)]++
		fault := storagetest.Fault{Op: storagetest.Op(op), Nth: count[storagetest.Op(op)], Err: errBoom}
		faults := map[string]storagetest.Fault{"before": fault}
		if op == "put" {
			fault.After = 1
			faults["after a byte"] = fault
			fault.After = 30
			faults["after 30 bytes"] = fault
			fault.After, fault.Late = 0, true
			faults["answer lost"] = fault
		}
		for when, fault := range faults {
			bubble(t, fmt.Sprintf("%s, %s", event, when), func(t *testing.T) {
				b := storagetest.Mem()
				w, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), storagetest.NewFaulty(b).Add(fault))
				if op == "delete" {
					// The backup exists, and the marker does no harm.
					if err != nil {
						t.Fatal(err)
					}
					wantRestored(t, b, w.ID(), faultyDump)
					return
				}
				if !errors.Is(err, errBoom) {
					t.Fatalf("error %v, want %v", err, errBoom)
				}
				wantNoBackup(t, b)
				if object == "ID.incomplete" && when == "answer lost" {
					return // nobody knows whose marker that is
				}
				wantEmpty(t, b)
			})
		}
	}
}

// TestWriterStoreChanges has stores that say yes and do something else.
func TestWriterStoreChanges(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error{
		"part cut": func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return b.Put(ctx, key, bytes.NewReader(data[:len(data)-1]), o)
		},
		"part extended": func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			return b.Put(ctx, key, io.MultiReader(r, strings.NewReader("x")), o)
		},
		"part lost": func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			_, err := io.Copy(io.Discard, r)
			return err
		},
		"part not read": func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			return nil
		},
		"part read to its middle": func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			return b.Put(ctx, key, io.LimitReader(r, 100), o)
		},
	} {
		for _, part := range []string{"-0", "-1", "-2"} {
			bubble(t, name+" "+part, func(t *testing.T) {
				b := storagetest.Mem()
				_, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), putter{b, testID.String() + part, put})
				if err == nil || !strings.Contains(err.Error(), testID.String()+part) {
					t.Errorf("error %v, want one that names the part", err)
				}
				wantEmpty(t, b)
			})
		}
	}
}

// putter does something else for one object.
type putter struct {
	storage.Bucket
	key string
	put func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error
}

func (p putter) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	if key == p.key {
		return p.put(ctx, p.Bucket, key, r, o)
	}
	return p.Bucket.Put(ctx, key, r, o)
}

// TestWriterPermissions has stores that do not permit everything.
func TestWriterPermissions(t *testing.T) {
	t.Parallel()
	deny := func(op storagetest.Op) *storagetest.Faulty {
		return storagetest.NewFaulty(storagetest.Mem()).Add(storagetest.Fault{Op: op, Err: storage.ErrPermission})
	}
	bubble(t, "no delete", func(t *testing.T) {
		b := deny(storagetest.Delete)
		id := mustBackUp(t, faultyDump, faultyOptions, b)
		wantRestored(t, b, id, faultyDump)
		if names := contents(t, b).names(); !slices.Contains(names, "ID.incomplete") {
			t.Fatalf("there is %q", names)
		}
		// A failed one stays, and is seen for what it is.
		w, err := backUp(t.Context(), bytes.NewReader(faultyDump[:900]), options(WriterOptions{PartSize: 500, FrameSize: 300, TriggeredAt: testTime.Add(time.Second)}), b)
		if !errors.Is(err, ErrCutShort) {
			t.Fatal(err)
		}
		failed := find(t, b, w.ID().String())
		if _, err := failed.Reader(t.Context(), &ReadOptions{AllowUnauthenticated: true}); failed.Status != Incomplete || !errors.Is(err, ErrIncomplete) {
			t.Errorf("the failed backup is %s and reads as %v", failed.Status, err)
		}
		if latest := find(t, b, Latest); latest.ID != id {
			t.Errorf("latest is %s, want %s", latest.ID, id)
		}
	})
	bubble(t, "no delete, ID taken", func(t *testing.T) {
		b := deny(storagetest.Delete)
		put(t, b, testID.String()+"-0", "something")
		if _, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), b); !errors.Is(err, storage.ErrPermission) {
			t.Errorf("error %v", err)
		}
	})
	bubble(t, "no read", func(t *testing.T) {
		b := deny(storagetest.Open)
		id := mustBackUp(t, faultyDump, faultyOptions, b)
		b.Heal()
		wantRestored(t, b, id, faultyDump)
	})
	bubble(t, "no list", func(t *testing.T) {
		b := deny(storagetest.List)
		if _, err := NewWriter(t.Context(), []storage.Bucket{b}, options(faultyOptions)); !errors.Is(err, storage.ErrPermission) {
			t.Errorf("error %v", err)
		}
		b.Heal()
		wantEmpty(t, b)
	})
	bubble(t, "no put", func(t *testing.T) {
		b := deny(storagetest.Put)
		if _, err := NewWriter(t.Context(), []storage.Bucket{b}, options(faultyOptions)); !errors.Is(err, storage.ErrPermission) {
			t.Errorf("error %v", err)
		}
		wantEmpty(t, b)
	})
}

// TestWriterClash checks that an ID that is taken in one destination is used in none.
func TestWriterClash(t *testing.T) {
	t.Parallel()
	next := NewID(testGUID, testTime.Add(time.Millisecond))
	for name, test := range map[string]struct {
		taken []string // in the second of two destinations
		want  ID
	}{
		"marker":           {[]string{testID.String() + ".incomplete"}, next},
		"metadata":         {[]string{testID.String() + ".json"}, next},
		"part":             {[]string{testID.String() + "-7"}, next},
		"whole object":     {[]string{testID.String()}, next},
		"record":           {[]string{testID.String() + ".verified-1"}, next},
		"two milliseconds": {[]string{testID.String() + ".json", next.String() + ".incomplete"}, NewID(testGUID, testTime.Add(2*time.Millisecond))},
		"longer stamp":     {[]string{testID.String() + "0.json"}, testID},
		"other GUID":       {[]string{NewID(otherGUID, testTime).String() + ".json"}, testID},
		"next one":         {[]string{next.String() + ".json"}, testID},
	} {
		bubble(t, name, func(t *testing.T) {
			a, b := storagetest.Mem(), storagetest.Mem()
			for _, name := range test.taken {
				put(t, b, name, "taken")
			}
			if id := mustBackUp(t, faultyDump, faultyOptions, a, b); id != test.want {
				t.Errorf("ID %s, want %s", id, test.want)
			}
			for _, bucket := range []storage.Bucket{a, b} {
				wantRestored(t, bucket, test.want, faultyDump)
			}
			got := contents(t, b)
			for _, name := range test.taken {
				if got[name] != "taken" {
					t.Errorf("%s holds %q", name, got[name])
				}
				delete(got, name)
			}
			if want := contents(t, a); !maps.Equal(got, want) {
				t.Errorf("there is %q and %q", want.names(), got.names())
			}
		})
	}
	bubble(t, "and a destination that fails", func(t *testing.T) {
		// The first takes the marker and then fails; the second knows the ID already.
		a, b := storagetest.Mem(), storagetest.Mem()
		put(t, b, testID.String()+".json", "taken")
		faulty := storagetest.NewFaulty(a).Add(storagetest.Fault{Op: storagetest.List, Nth: 1, Err: errBoom})
		w, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), faulty, b)
		if err != nil {
			t.Fatal(err)
		}
		if w.ID() != next || !errors.Is(w.Destinations()[0].Err, errBoom) {
			t.Errorf("ID %s, error of the first %v", w.ID(), w.Destinations()[0].Err)
		}
		wantEmpty(t, a)
		wantRestored(t, b, next, faultyDump)
	})
	bubble(t, "at once", func(t *testing.T) {
		b := storagetest.Mem()
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids := map[ID]bool{}
		for range 5 {
			wg.Go(func() {
				w, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), b)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ids[w.ID()] = true
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(ids) != 5 {
			t.Errorf("IDs %v", ids)
		}
		for id := range ids {
			wantRestored(t, b, id, faultyDump)
		}
	})
}

// TestWriterCancelled ends the context at each operation on the store.
func TestWriterCancelled(t *testing.T) {
	t.Parallel()
	all := &recorder{Bucket: storagetest.Mem()}
	mustBackUp(t, faultyDump, faultyOptions, all)
	for _, at := range append(all.events, "never begun") {
		bubble(t, at, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if at == "never begun" {
				cancel(errBoom)
			}
			r := &recorder{Bucket: storagetest.Mem()}
			seen := 0
			r.on = func(event string) error {
				if event == at {
					if seen++; at != "list ID" || seen == 2 { // once more at the end
						cancel(errBoom)
					}
				}
				return nil
			}
			w, err := backUp(ctx, bytes.NewReader(faultyDump), options(faultyOptions), r)
			if strings.HasPrefix(at, "delete") {
				// Nothing that comes after the metadata unmakes the backup.
				if err != nil {
					t.Fatal(err)
				}
				wantRestored(t, r.Bucket, w.ID(), faultyDump)
				return
			}
			if !errors.Is(err, errBoom) && !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			wantEmpty(t, r.Bucket)
		})
	}
	bubble(t, "between writes", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		b := storagetest.Mem()
		w, err := NewWriter(ctx, []storage.Bucket{b}, options(faultyOptions))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(faultyDump[:700]); err != nil {
			t.Fatal(err)
		}
		cancel(errBoom)
		endlessly(t, w)
		if err := w.Commit(); !errors.Is(err, errBoom) {
			t.Errorf("Commit: %v", err)
		}
		wantEmpty(t, b)
	})
}

// endlessly writes until that fails, as it must before long.
func endlessly(t *testing.T, w *Writer) {
	t.Helper()
	for range 1000 {
		if _, err := w.Write(faultyDump); err != nil {
			if cause := context.Cause(w.Context()); cause == nil || !errors.Is(err, cause) {
				t.Errorf("Write fails with %v, the context with %v", err, cause)
			}
			return
		}
	}
	t.Error("Write does not fail")
}

// TestWriterAbort gives backups up, from this goroutine and from another one.
func TestWriterAbort(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 10, 700, len(faultyDump)} {
		bubble(t, fmt.Sprintf("after %d bytes", n), func(t *testing.T) {
			b := storagetest.Mem()
			w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(faultyOptions))
			if err != nil {
				t.Fatal(err)
			}
			w.Write(faultyDump[:n])
			w.Abort(errBoom)
			if err := w.Destinations()[0].Err; err != errBoom {
				t.Errorf("the destination's error is %v", err)
			}
			wantEmpty(t, b)
			if err := w.Commit(); !errors.Is(err, errBoom) {
				t.Errorf("Commit of what was given up: %v", err)
			}
			wantEmpty(t, b)
		})
	}
	bubble(t, "while it is written", func(t *testing.T) {
		b := storagetest.Mem()
		w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(faultyOptions))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := w.Write(faultyDump); err != nil {
					return
				}
			}
		})
		w.Abort(errBoom)
		wg.Wait()
		wantEmpty(t, b)
	})
	bubble(t, "while the source blocks", func(t *testing.T) {
		// As with standard input, nobody waits for a read that never returns.
		b := storagetest.Mem()
		w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(faultyOptions))
		if err != nil {
			t.Fatal(err)
		}
		src, feed := io.Pipe()
		read := make(chan error)
		go func() { _, err := w.ReadFrom(src); read <- err }()
		feed.Write(faultyDump[:700])
		w.Abort(errBoom)
		wantEmpty(t, b)
		feed.Close()
		<-read
	})
	bubble(t, "while it is committed", func(t *testing.T) {
		gate := newGate(t)
		b := storagetest.Mem()
		faulty := storagetest.NewFaulty(b).Add(storagetest.Fault{Key: testID.String() + ".toc", Gate: gate})
		w, err := NewWriter(t.Context(), []storage.Bucket{faulty}, options(faultyOptions))
		if err != nil {
			t.Fatal(err)
		}
		w.Write(faultyDump)
		committed := make(chan error)
		go func() { committed <- w.Commit() }()
		<-gate.Reached()
		w.Abort(errBoom)
		if err := <-committed; !errors.Is(err, errBoom) {
			t.Errorf("Commit: %v", err)
		}
		wantEmpty(t, b)
	})
	for name, more := range map[string]func(t *testing.T, w *Writer){
		"abort after commit": func(t *testing.T, w *Writer) { w.Abort(errBoom) },
		"commit twice": func(t *testing.T, w *Writer) {
			if w.Commit() == nil {
				t.Error("a second Commit succeeds")
			}
		},
		"write after commit": func(t *testing.T, w *Writer) {
			if _, err := w.Write([]byte("x")); err == nil {
				t.Error("Write succeeds")
			}
		},
	} {
		bubble(t, name, func(t *testing.T) {
			b := storagetest.Mem()
			w, err := backUp(t.Context(), bytes.NewReader(faultyDump), options(faultyOptions), b)
			if err != nil {
				t.Fatal(err)
			}
			want := contents(t, b)
			more(t, w)
			if got := contents(t, b); !maps.Equal(got, want) {
				t.Fatalf("of a finished backup there is left %q", got.names())
			}
			if err := w.Destinations()[0].Err; err != nil {
				t.Errorf("a finished destination has error %v", err)
			}
		})
	}
}

// manyChunks is large enough to fill all queues several times.
var manyChunks = sync.OnceValue(func() []byte { return noiseOf(3, 17<<20) })

// TestWriterDestinations gives three destinations, of which the second fails.
func TestWriterDestinations(t *testing.T) {
	t.Parallel()
	id := testID.String()
	large := WriterOptions{PartSize: 6 << 20, FrameSize: 1 << 20, Jobs: 2}
	type test struct {
		name    string
		fault   storagetest.Fault
		stalled bool
		large   bool
	}
	var tests []test
	for _, object := range []string{".incomplete", "-0", "-1", "-2", ".sums", ".toc", ".json"} {
		tests = append(
			tests,
			test{name: object, fault: storagetest.Fault{Op: storagetest.Put, Key: id + object, Err: errBoom}},
			test{name: object + " after a byte", fault: storagetest.Fault{Op: storagetest.Put, Key: id + object, Err: errBoom, After: 1}},
			test{name: object + " stalls", fault: storagetest.Fault{Op: storagetest.Put, Key: id + object}, stalled: true},
			test{name: object + " stalls after a byte", fault: storagetest.Fault{Op: storagetest.Put, Key: id + object, After: 1}, stalled: true},
		)
	}
	for _, object := range []string{"-0", "-1", "-2"} {
		for _, after := range []int64{0, 3<<20 + 5} {
			tests = append(
				tests,
				test{name: fmt.Sprintf("large %s after %d", object, after), fault: storagetest.Fault{Op: storagetest.Put, Key: id + object, After: after, Err: errBoom}, large: true},
				test{name: fmt.Sprintf("large %s stalls after %d", object, after), fault: storagetest.Fault{Op: storagetest.Put, Key: id + object, After: after}, stalled: true, large: true},
			)
		}
	}
	tests = append(
		tests,
		test{name: ".json, answer lost", fault: storagetest.Fault{Op: storagetest.Put, Key: id + ".json", Err: errBoom, Late: true}},
		test{name: "first listing", fault: storagetest.Fault{Op: storagetest.List, Nth: 1, Err: errBoom}},
		test{name: "second listing", fault: storagetest.Fault{Op: storagetest.List, Nth: 2, Err: errBoom}},
		test{name: "first listing stalls", fault: storagetest.Fault{Op: storagetest.List, Nth: 1}, stalled: true},
		test{name: "second listing stalls", fault: storagetest.Fault{Op: storagetest.List, Nth: 2}, stalled: true},
	)
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			sql, o := faultyDump, faultyOptions
			if test.large {
				sql, o = manyChunks(), large
			}
			if test.stalled {
				test.fault.Gate = newGate(t)
			}
			a, b, c := storagetest.Mem(), storagetest.Mem(), storagetest.Mem()
			w, err := backUp(t.Context(), bytes.NewReader(sql), options(o), a, storagetest.NewFaulty(b).Add(test.fault), c)
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range w.Destinations() {
				switch {
				case i != 1 && d.Err != nil:
					t.Errorf("destination %d: %v", i, d.Err)
				case i == 1 && d.Err == nil:
					t.Error("the failed destination has no error")
				case i == 1 && !test.stalled && !errors.Is(d.Err, errBoom):
					t.Errorf("the failed destination has error %v", d.Err)
				case i == 1 && test.stalled && !strings.Contains(d.Err.Error(), b.String()):
					t.Errorf("the stalled destination has error %v", d.Err)
				}
			}
			wantEmpty(t, b)
			wantRestored(t, a, testID, sql)
			if !maps.Equal(contents(t, a), contents(t, c)) {
				t.Error("the other destinations differ")
			}
		})
	}
}

// wholer is a store that prefers whole objects.
type wholer struct {
	storage.Bucket
	whole bool
}

func (w wholer) PrefersWhole() bool { return w.whole }

// TestWriterLayouts lets each destination have its own layout, unless the size of parts is given.
func TestWriterLayouts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name             string
		partSize         int64
		inParts, inWhole int64 // what is expected
		sql              []byte
		defaultPartSize  int64
	}{
		{"each its own", 0, 500, WholeObject, faultyDump, 500},
		{"parts of one segment and a bit", 0, SegmentSize + 5, WholeObject, manyChunks(), SegmentSize + 5},
		{"parts everywhere", 300, 300, 300, faultyDump, 500},
		{"whole everywhere", WholeObject, WholeObject, WholeObject, faultyDump, 500},
	} {
		bubble(t, test.name, func(t *testing.T) {
			a, b, c, d := storagetest.Mem(), storagetest.Mem(), storagetest.Mem(), storagetest.Mem()
			o := options(WriterOptions{PartSize: test.partSize, Jobs: 2, AllowPartial: true, defaultPartSize: test.defaultPartSize})
			w, err := backUp(t.Context(), bytes.NewReader(test.sql), o,
				// The first is given up, so it is the second whose metadata the writer tells.
				storagetest.NewFaulty(a).Add(storagetest.Fault{Op: storagetest.Put, Key: testID.String() + ".json", Err: errBoom}),
				storage.Resume(wholer{b, true}, nil), wholer{c, false}, d)
			if err != nil {
				t.Fatal(err)
			}
			all := make(map[storage.Bucket]objects)
			for bucket, size := range map[storage.Bucket]int64{b: test.inWhole, c: test.inParts, d: test.inParts} {
				backup := wantRestored(t, bucket, testID, test.sql)
				all[bucket] = contents(t, bucket)
				wantFormat(t, all[bucket], backup, test.sql, size)
				wantStock(t, all[bucket], backup, test.sql)
				if bucket == b && (!slices.Equal(backup.Metadata.Parts, w.Metadata.Parts) || backup.Metadata.Recover != w.Metadata.Recover) {
					t.Errorf("the writer tells of parts %v", w.Metadata.Parts)
				}
			}
			if !maps.Equal(all[c], all[d]) {
				t.Error("destinations of one layout differ")
			}
			for _, suffix := range []string{".sums", ".toc"} {
				if all[b][full(suffix)] != all[c][full(suffix)] {
					t.Errorf("%s differs between layouts", suffix)
				}
			}
			wantEmpty(t, a)
		})
	}
}

// TestWriterMarkerStays checks that a marker that cannot be removed holds nothing up.
func TestWriterMarkerStays(t *testing.T) {
	t.Parallel()
	bubble(t, "stalls", func(t *testing.T) {
		a, b := storagetest.Mem(), storagetest.Mem()
		mustBackUp(t, faultyDump, faultyOptions, a, storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.Delete, Gate: newGate(t)}))
		wantRestored(t, a, testID, faultyDump)
		wantRestored(t, b, testID, faultyDump)
	})
}

// TestWriterAllFail checks that whoever produces the SQL is told at once when
// no destination is left.
func TestWriterAllFail(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		bubble(t, fmt.Sprintf("%d destinations", n), func(t *testing.T) {
			var buckets, faulty []storage.Bucket
			for i := range n {
				b := storagetest.Mem()
				buckets = append(buckets, b)
				faulty = append(faulty, storagetest.NewFaulty(b).Add(storagetest.Fault{
					Op: storagetest.Put, Key: fmt.Sprintf("%s-%d", testID, i), Err: fmt.Errorf("%w %d", errBoom, i), After: int64(i),
				}))
			}
			w, err := NewWriter(t.Context(), faulty, options(faultyOptions))
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			// A producer that waits for something else must stop, too.
			src, feed := io.Pipe()
			context.AfterFunc(w.Context(), func() { feed.CloseWithError(context.Cause(w.Context())) })
			go func() { feed.Write(noiseOf(1, 3000)) }()
			_, err = w.ReadFrom(src)
			if !errors.Is(err, errBoom) {
				t.Errorf("ReadFrom: %v", err)
			}
			if d := time.Since(began); d > 0 {
				t.Errorf("that took %v", d)
			}
			endlessly(t, w)
			err = w.Commit()
			for i, d := range w.Destinations() {
				if want := fmt.Sprintf("boom %d", i); !strings.Contains(d.Err.Error(), want) || !strings.Contains(err.Error(), want) {
					t.Errorf("destination %d: %v, Commit: %v", i, d.Err, err)
				}
				wantEmpty(t, buckets[i])
			}
		})
	}
	bubble(t, "none takes the marker", func(t *testing.T) {
		a, b := storagetest.Mem(), storagetest.Mem()
		_, err := NewWriter(t.Context(), []storage.Bucket{
			storagetest.NewFaulty(a).Add(storagetest.Fault{Op: storagetest.Put, Err: errBoom}),
			storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.List, Err: errBoom}),
		}, options(faultyOptions))
		if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), a.String()) || !strings.Contains(err.Error(), b.String()) {
			t.Errorf("error %v", err)
		}
		wantEmpty(t, a)
		wantEmpty(t, b)
	})
	bubble(t, "only one, which stalls", func(t *testing.T) {
		b := storagetest.Mem()
		faulty := storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.Put, Key: testID.String() + "-0", After: 1, Gate: newGate(t)})
		began := time.Now()
		_, err := backUp(t.Context(), bytes.NewReader(manyChunks()), options(WriterOptions{FrameSize: 1 << 20}), faulty)
		if err == nil || time.Since(began) != DefaultStallTimeout {
			t.Errorf("error %v after %v", err, time.Since(began))
		}
		wantEmpty(t, b)
	})
}

// TestWriterSlow checks that a destination that takes data now and then is not
// given up, and that the others wait for it.
func TestWriterSlow(t *testing.T) {
	t.Parallel()
	bubble(t, "slow", func(t *testing.T) {
		a, b := storagetest.Mem(), storagetest.Mem()
		slow := putter{b, testID.String() + "-0", func(ctx context.Context, b storage.Bucket, key string, r io.Reader, o *storage.PutOptions) error {
			return b.Put(ctx, key, slowReader{r, 9 * time.Minute}, o)
		}}
		mustBackUp(t, manyChunks(), WriterOptions{FrameSize: 1 << 20}, a, slow)
		wantRestored(t, b, testID, manyChunks())
		if !maps.Equal(contents(t, a), contents(t, b)) {
			t.Error("the destinations differ")
		}
	})
}

// slowReader takes its time for each megabyte.
type slowReader struct {
	r io.Reader
	d time.Duration
}

func (s slowReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	time.Sleep(s.d * time.Duration(n) / (1 << 20)) // the bubble's time
	return n, err
}

// endless yields noise without end and counts it.
type endless struct {
	mu sync.Mutex
	n  int
}

func (e *endless) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := copy(p, manyChunks()[e.n%(16<<20):])
	e.n += n
	return n, nil
}

// TestWriterMemory checks that no more is read from the dump than there are
// buffers for, when no destination takes anything.
func TestWriterMemory(t *testing.T) {
	t.Parallel()
	manyChunks()
	for _, test := range []struct{ frame, jobs, destinations int }{
		{1 << 20, 1, 1}, {1 << 20, 4, 1}, {100_000, 2, 1}, {4 << 20, 2, 1}, {1 << 20, 2, 3},
	} {
		bubble(t, fmt.Sprint(test), func(t *testing.T) {
			var dst []storage.Bucket
			for range test.destinations {
				dst = append(dst, storagetest.NewFaulty(storagetest.Mem()).Add(
					storagetest.Fault{Op: storagetest.Put, Key: testID.String() + "-0", After: 1, Gate: newGate(t)}))
			}
			w, err := NewWriter(t.Context(), dst, options(WriterOptions{FrameSize: test.frame, Jobs: test.jobs}))
			if err != nil {
				t.Fatal(err)
			}
			src := new(endless)
			done := make(chan error)
			go func() { _, err := w.ReadFrom(src); done <- err }()
			synctest.Wait()
			// Frames plain and compressed, and the chunks of the stored stream: two
			// queues' worth, one that is filled, and what encryption holds.
			bound := (2*test.jobs+12)*test.frame + (2*chunkQueue+3)*chunkSize
			if src.n > bound || src.n < chunkQueue*chunkSize {
				t.Errorf("%d bytes were read, want at most %d", src.n, bound)
			}
			w.Abort(errBoom)
			if err := <-done; !errors.Is(err, errBoom) {
				t.Errorf("ReadFrom: %v", err)
			}
		})
	}
}

// TestReaderMemory checks the same of reading, when nobody takes what is read.
func TestReaderMemory(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	sql := bytes.Join([][]byte{sqlOf(1, 10_000), manyChunks(), manyChunks()}, nil) // text first, or it does not pass for a dump
	mustBackUp(t, sql, WriterOptions{FrameSize: 100_000, PartSize: 5_000_000, AllowPartial: true}, b)
	foreign := objects{}
	for name, data := range contents(t, b) {
		if strings.Contains(name, "00000-") {
			foreign[name] = data
		}
	}
	for _, jobs := range []int{1, 3} {
		for _, how := range []string{"ours", "foreign"} {
			bubble(t, fmt.Sprintf("%s, %d jobs", how, jobs), func(t *testing.T) {
				all := b
				if how == "foreign" {
					all = foreign.bucket(t)
				}
				counting := storagetest.NewFaulty(all)
				backup := find(t, counting, testID.String())
				r, err := backup.Reader(t.Context(), &ReadOptions{Jobs: jobs, Connections: jobs, AllowUnauthenticated: true})
				if err != nil {
					t.Fatal(err)
				}
				before := counting.BytesRead()
				synctest.Wait()
				n := counting.BytesRead() - before
				bound := int64((jobs+2)*SegmentSize + (2*jobs+4)*100_100 + 64<<10)
				if n > bound || n < int64(jobs*SegmentSize) {
					t.Errorf("%d bytes were read, want at most %d", n, bound)
				}
				r.Close()
			})
		}
	}
}

// TestReaderConnections counts the requests under way, which do not depend on the number of processors.
func TestReaderConnections(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	sql := bytes.Join([][]byte{sqlOf(1, 10_000), manyChunks(), manyChunks()}, nil) // nine segments
	mustBackUp(t, sql, WriterOptions{FrameSize: 1 << 20, AllowPartial: true}, b)
	for _, test := range []struct{ connections, want int }{{0, DefaultConnections}, {1, 1}, {3, 3}, {7, 7}} {
		for _, jobs := range []int{1, 4} {
			bubble(t, fmt.Sprintf("%d connections, %d jobs", test.connections, jobs), func(t *testing.T) {
				counting := &concurrent{Bucket: b, gate: newGate(t)}
				backup := find(t, counting, testID.String())
				r, err := backup.Reader(t.Context(), &ReadOptions{Jobs: jobs, Connections: test.connections})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				synctest.Wait()
				if n := counting.now.Load(); n != int64(test.want) {
					t.Errorf("%d requests are under way", n)
				}
				counting.gate.Release()
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, sql) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if n := counting.most.Load(); n != int64(test.want) {
					t.Errorf("%d requests were under way at once", n)
				}
			})
		}
	}
}

// TestShareConnections does the same of a reader that is one of several: it has its part of the requests, and at least two.
func TestShareConnections(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	sql := bytes.Join([][]byte{sqlOf(1, 10_000), manyChunks(), manyChunks()}, nil) // nine segments
	mustBackUp(t, sql, WriterOptions{FrameSize: 1 << 20, AllowPartial: true}, b)
	for _, test := range []struct{ connections, jobs, want int }{{8, 1, 8}, {8, 2, 4}, {0, 4, 2}, {1, 1, 2}, {8, 32, 2}} {
		bubble(t, fmt.Sprintf("%d connections, %d jobs", test.connections, test.jobs), func(t *testing.T) {
			counting := &concurrent{Bucket: b, gate: newGate(t)}
			backup := find(t, counting, testID.String())
			toc, err := backup.TOC(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ranges, err := backup.Ranges(t.Context(), toc, &ReadOptions{Jobs: test.jobs, Connections: test.connections})
			if err != nil {
				t.Fatal(err)
			}
			r, err := ranges.Share().Open(t.Context(), 0, int64(len(sql)))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			synctest.Wait()
			if n := counting.now.Load(); n != int64(test.want) {
				t.Errorf("%d requests are under way", n)
			}
			counting.gate.Release()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, sql) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestDigestsConnections does the same of the check of digests.
func TestDigestsConnections(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	sql := bytes.Join([][]byte{sqlOf(1, 10_000), manyChunks(), manyChunks()}, nil)
	mustBackUp(t, sql, WriterOptions{FrameSize: 1 << 20, AllowPartial: true}, b)
	for _, n := range []int{1, 3, 7} {
		bubble(t, fmt.Sprint(n), func(t *testing.T) {
			counting := &concurrent{Bucket: b, gate: newGate(t)}
			backup := find(t, counting, testID.String())
			done := make(chan error)
			go func() {
				damage, err := backup.Digests(t.Context(), &ReadOptions{Connections: n})
				done <- errors.Join(append(damage, err)...)
			}()
			synctest.Wait()
			if now := counting.now.Load(); now != int64(n) {
				t.Errorf("%d requests are under way", now)
			}
			counting.gate.Release()
			if err := <-done; err != nil || counting.most.Load() != int64(n) {
				t.Errorf("%v, at most %d requests", err, counting.most.Load())
			}
		})
	}
}

// concurrent counts the requests for parts that are under way, and holds the first ones up at a gate.
type concurrent struct {
	storage.Bucket
	gate      *storagetest.Gate
	now, most atomic.Int64
}

func (c *concurrent) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := c.Bucket.Open(ctx, key, offset, length)
	if err != nil || !strings.HasSuffix(key, "-0") {
		return r, err
	}
	if n := c.now.Add(1); n > c.most.Load() {
		c.most.Store(n)
	}
	gated, err := storagetest.NewFaulty(c.Bucket).Add(storagetest.Fault{Gate: c.gate}).Open(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	return &counted{gated, c}, nil
}

type counted struct {
	io.ReadCloser
	c *concurrent
}

func (r *counted) Close() error {
	r.c.now.Add(-1)
	return r.ReadCloser.Close()
}

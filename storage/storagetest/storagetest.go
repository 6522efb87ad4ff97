// Package storagetest holds what tests of buckets share: the conformance suite that every backend passes, a bucket in
// memory, and one that goes wrong where it is told to.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"encdump/storage"
)

// big is larger than any buffer and than the chunks that services take uploads in.
const big = 20 << 20

// Conformance checks that a backend keeps the obligations of storage.Bucket. open is called for every test and returns
// a bucket that exists and holds nothing, and is cleaned up by t.Cleanup.
func Conformance(t *testing.T, open func(t *testing.T) storage.Bucket) {
	tests := []struct {
		name string
		run  func(*testing.T, storage.Bucket)
	}{
		{"RoundTrip", testRoundTrip},
		{"Keys", testKeys},
		{"InvalidKeys", testInvalidKeys},
		{"List", testList},
		{"ListMany", testListMany},
		{"Ranges", testRanges},
		{"NotFound", testNotFound},
		{"Readers", testReaders},
		{"FailingReaders", testFailingReaders},
		{"Overwrite", testOverwrite},
		{"IfAbsent", testIfAbsent},
		{"IfAbsentRace", testIfAbsentRace},
		{"ConcurrentPuts", testConcurrentPuts},
		{"Delete", testDelete},
		{"CancelledBefore", testCancelledBefore},
		{"CancelledInPut", testCancelledInPut},
		{"CancelledInOpen", testCancelledInOpen},
		{"CancelledInList", testCancelledInList},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

var errBoom = errors.New("boom")

var ifAbsent = &storage.PutOptions{IfAbsent: true}

// data returns n bytes that do not repeat and are the same for the same seed.
func data(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func put(t *testing.T, b storage.Bucket, key string, content []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, bytes.NewReader(content), nil); err != nil {
		t.Fatal(err)
	}
}

// wantObject checks that key holds content, and that the listing knows it.
func wantObject(t *testing.T, b storage.Bucket, key string, content []byte) {
	t.Helper()
	r, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf, pos := make([]byte, 64<<10), 0
	for {
		n, err := r.Read(buf)
		if !bytes.HasPrefix(content[pos:], buf[:n]) {
			t.Fatalf("%s holds something else than what was put, from %d on", key, pos)
		}
		pos += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if pos != len(content) {
		t.Fatalf("%s ends after %d bytes of %d", key, pos, len(content))
	}
	objects := slices.DeleteFunc(list(t, b, key), func(o storage.Object) bool { return o.Key != key })
	if len(objects) != 1 || objects[0].Size != int64(len(content)) {
		t.Fatalf("listing of %s: %v; want it once with size %d", key, objects, len(content))
	}
	if objects[0].Modified.IsZero() {
		t.Fatalf("listing of %s has no time", key)
	}
}

// wantAbsent checks that neither Open nor List knows key.
func wantAbsent(t *testing.T, b storage.Bucket, key string) {
	t.Helper()
	if r, err := b.Open(t.Context(), key, 0, -1); !errors.Is(err, storage.ErrNotFound) {
		if err == nil {
			r.Close()
		}
		t.Fatalf("Open of %s: %v, want ErrNotFound", key, err)
	}
	for _, o := range list(t, b, key) {
		if o.Key == key {
			t.Fatalf("%s is listed", key)
		}
	}
}

func readRange(t *testing.T, b storage.Bucket, key string, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := b.Open(t.Context(), key, offset, length)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("reading %s from %d: %v", key, offset, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return got, nil
}

func list(t *testing.T, b storage.Bucket, prefix string) []storage.Object {
	t.Helper()
	var objects []storage.Object
	for o, err := range b.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	return objects
}

func keysOf(objects []storage.Object) []string {
	keys := []string{}
	for _, o := range objects {
		keys = append(keys, o.Key)
	}
	return keys
}

// wantError checks that err is a *storage.Error of this operation, and matches target if that is not nil.
func wantError(t *testing.T, err, target error, op string, b storage.Bucket) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s succeeded, want %v", op, target)
	}
	if target != nil && !errors.Is(err, target) {
		t.Fatalf("error %q does not match %q", err, target)
	}
	var e *storage.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %q (%T) is not a *storage.Error", err, err)
	}
	if e.Op != op || e.Bucket != b.String() {
		t.Fatalf("error %q has operation %q and bucket %q, want %q and %q", err, e.Op, e.Bucket, op, b)
	}
}

// once wraps a reader, and notes when it is read after Put returned.
type once struct {
	io.Reader
	mu       sync.Mutex
	returned bool
	late     bool
}

func (o *once) Read(p []byte) (int, error) {
	o.mu.Lock()
	o.late = o.late || o.returned
	o.mu.Unlock()
	return o.Reader.Read(p)
}

// putReader puts from r, and hides other methods than Read.
func putReader(t *testing.T, ctx context.Context, b storage.Bucket, key string, r io.Reader, opts *storage.PutOptions) error {
	o := &once{Reader: r}
	err := b.Put(ctx, key, o, opts)
	o.mu.Lock()
	o.returned = true
	o.mu.Unlock()
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.late {
			t.Errorf("Put of %s read after it had returned", key)
		}
	})
	return err
}

func testRoundTrip(t *testing.T, b storage.Bucket) {
	for _, n := range []int{0, 1, 1000, 32<<10 - 1, 32 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5 << 20, 8<<20 + 1, big} {
		content := data(byte(n), n)
		put(t, b, "plain", content) // a *bytes.Reader, which has a WriteTo
		wantObject(t, b, "plain", content)
		if err := putReader(t, t.Context(), b, "read", bytes.NewReader(content), &storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		wantObject(t, b, "read", content)
	}
}

// oddKeys has no backslash and no dot at the end, which Azure changes.
var oddKeys = []string{
	"0", "-dash", "~", "a b", " leading", "trailing ", "a+b", "a%b", "100%", "%2F", "%2e%2e", "%00", "a#b", "#", "a?b=c&d",
	"a&b", "a=b", "a;b", "a:b", "a,b", "a@b", "a*b", "a'b", `a"b`, "a<b>", "a|b", "a^b", "a`b", "$a", "{a}", "[a]", "(a)!",
	"a..b", "ä-ñ-ø", "日本語", "Ωмега", "😀", "e\u0301", strings.Repeat("k", storage.MaxKey), strings.Repeat("日", storage.MaxKey/3),
	"0d6f0c4e-9a3b-4f6e-8f0e-1f2a3b4c5d6e-1700000000000-12", "0d6f0c4e-9a3b-4f6e-8f0e-1f2a3b4c5d6e-1700000000000.json",
}

func testKeys(t *testing.T, b storage.Bucket) {
	for _, key := range oddKeys {
		put(t, b, key, []byte("content of "+key))
	}
	want := slices.Sorted(slices.Values(oddKeys))
	if got := keysOf(list(t, b, "")); !slices.Equal(got, want) {
		t.Fatalf("listed\n%q, want\n%q", got, want)
	}
	for _, key := range oddKeys {
		wantObject(t, b, key, []byte("content of "+key))
	}
	for _, key := range oddKeys {
		if err := b.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, b, key)
	}
	if got := keysOf(list(t, b, "")); len(got) > 0 {
		t.Fatalf("left after deletion: %q", got)
	}
}

func testInvalidKeys(t *testing.T, b storage.Bucket) {
	for _, key := range []string{"", ".", "..", ".hidden", "a/b", "/", "/a", "a/", "../a", "a\x00", "a\nb", "a\x7f", "a\u0085", "\xff", strings.Repeat("k", storage.MaxKey+1)} {
		err := b.Put(t.Context(), key, strings.NewReader("x"), nil)
		wantError(t, err, nil, "put", b)
		_, err = b.Open(t.Context(), key, 0, -1)
		wantError(t, err, nil, "open", b)
		if errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Open of %q: %v; an invalid key is not just absent", key, err)
		}
		wantError(t, b.Delete(t.Context(), key), nil, "delete", b)
	}
	if got := keysOf(list(t, b, "")); len(got) > 0 {
		t.Fatalf("listed: %q", got)
	}
}

func testList(t *testing.T, b storage.Bucket) {
	if got := list(t, b, ""); len(got) > 0 {
		t.Fatalf("an empty bucket lists %v", got)
	}
	// Unlike in UTF-8, the halfwidth tilde sorts behind the emoji in UTF-16.
	want := []string{"a", "a-0", "a-1", "a-10", "a-2", "a.json", "ab", "b%", "b%25", "b_", "ba", "é", "\uff5e", "😀"}
	for i, j := range rand.New(rand.NewPCG(1, 2)).Perm(len(want)) {
		put(t, b, want[j], data(0, i))
	}
	if got := keysOf(list(t, b, "")); !slices.Equal(got, want) {
		t.Fatalf("listed\n%q, want\n%q", got, want)
	}
	for prefix, want := range map[string][]string{
		"a":     {"a", "a-0", "a-1", "a-10", "a-2", "a.json", "ab"},
		"a-":    {"a-0", "a-1", "a-10", "a-2"},
		"a-1":   {"a-1", "a-10"},
		"a-10":  {"a-10"},
		"b%":    {"b%", "b%25"},
		"b_":    {"b_"},
		"none":  {},
		"a-100": {},
		"a/":    {},
		".":     {},
		"*":     {},
		"zzz":   {},
	} {
		if got := keysOf(list(t, b, prefix)); !slices.Equal(got, want) {
			t.Errorf("prefix %q listed %q, want %q", prefix, got, want)
		}
	}

	// A sequence may be left early, and ranged over again, when it sees what is new.
	seq := b.List(t.Context(), "a-")
	for o, err := range seq {
		if err != nil || o.Key != "a-0" {
			t.Fatalf("first of a-: %v, %v", o, err)
		}
		break
	}
	put(t, b, "a-3", nil)
	var got []string
	for o, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if want := []string{"a-0", "a-1", "a-10", "a-2", "a-3"}; !slices.Equal(got, want) {
		t.Errorf("second range listed %q, want %q", got, want)
	}
}

// testListMany needs more objects than services list in one answer.
func testListMany(t *testing.T, b storage.Bucket) {
	const n = 2500
	var want []string
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range n {
		want = append(want, fmt.Sprintf("many-%d", i))
	}
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				errs[w] = b.Put(t.Context(), want[i], strings.NewReader("x"), nil)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if got := keysOf(list(t, b, "many-")); !slices.Equal(got, want) {
		t.Fatalf("listed %d keys other than the %d that were put, or in another order", len(got), len(want))
	}
}

func testRanges(t *testing.T, b storage.Bucket) {
	const n = 3<<20 + 7
	content := data(1, n)
	put(t, b, "empty", nil)
	put(t, b, "small", []byte("0123456789"))
	put(t, b, "large", content)
	check := func(key string, content []byte, offset, length int64) {
		t.Helper()
		got, err := readRange(t, b, key, offset, length)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(len(content))
		if length >= 0 {
			end = min(end, offset+min(length, end))
		}
		if want := content[offset:end]; !bytes.Equal(got, want) {
			t.Fatalf("%s from %d, %d bytes: got %d bytes, want %d, or others", key, offset, length, len(got), len(want))
		}
	}
	const huge = 1<<63 - 1
	for _, length := range []int64{-1, 0, 1, huge} {
		check("empty", nil, 0, length)
		for _, offset := range []int64{0, 1, 9, 10} {
			check("small", []byte("0123456789"), offset, length)
		}
	}
	for offset := range int64(11) {
		for length := range 12 - offset { // up to one beyond the end
			check("small", []byte("0123456789"), offset, length)
		}
	}
	for _, offset := range []int64{0, 1, 4095, 4096, 1 << 20, n - 1, n} {
		for _, length := range []int64{-1, -1 << 63, 0, 1, 4096, 1<<20 + 1, n - offset, n - offset + 1, huge} {
			check("large", content, offset, length)
		}
	}
	for key, beyond := range map[string]int64{"empty": 1, "small": 11, "large": n + 1} {
		for _, offset := range []int64{beyond, huge} {
			for _, length := range []int64{-1, 0, 1, huge} {
				_, err := b.Open(t.Context(), key, offset, length)
				wantError(t, err, storage.ErrRange, "open", b)
			}
		}
		_, err := b.Open(t.Context(), key, -1, 1)
		wantError(t, err, nil, "open", b)
	}
	// Left before the end, and two readers at once.
	r1, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	r2, err := b.Open(t.Context(), "large", 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	var p [2]byte
	for i, r := range []io.ReadCloser{r1, r2} {
		if _, err := io.ReadFull(r, p[:]); err != nil || !bytes.Equal(p[:], content[i:i+2]) {
			t.Fatalf("reader %d: %x, %v", i, p, err)
		}
	}
	for _, r := range []io.ReadCloser{r1, r2} {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testNotFound(t *testing.T, b storage.Bucket) {
	put(t, b, "here-1", nil)
	for _, key := range []string{"here", "here-10", "Here-1-", "none"} {
		for _, length := range []int64{-1, 0, 1} {
			_, err := b.Open(t.Context(), key, 0, length)
			wantError(t, err, storage.ErrNotFound, "open", b)
			if !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), storage.Redact(b.String())) {
				t.Errorf("error %q does not name object %s and store %s", err, key, b)
			}
		}
		wantAbsent(t, b, key)
	}
}

// oddReader yields its data in pieces of at most step bytes, with nothing read every other time, and its error either
// with the last piece or after it.
type oddReader struct {
	data  []byte
	step  int
	empty bool
	with  bool
	err   error

	wasEmpty bool
}

func (o *oddReader) Read(p []byte) (int, error) {
	if o.empty && !o.wasEmpty {
		o.wasEmpty = true
		return 0, nil
	}
	o.wasEmpty = false
	if len(o.data) == 0 {
		return 0, o.err
	}
	n := copy(p[:min(len(p), o.step)], o.data)
	o.data = o.data[n:]
	if len(o.data) == 0 && o.with {
		return n, o.err
	}
	return n, nil
}

func testReaders(t *testing.T, b storage.Bucket) {
	content := data(2, 100_000)
	for name, r := range map[string]io.Reader{
		"eof with data":  &oddReader{data: content, step: 1 << 30, with: true, err: io.EOF},
		"eof after data": &oddReader{data: content, step: 999, err: io.EOF},
		"one byte":       &oddReader{data: content, step: 1, err: io.EOF},
		"one, with eof":  &oddReader{data: content, step: 1, with: true, err: io.EOF},
		"empty reads":    &oddReader{data: content, step: 4096, empty: true, err: io.EOF},
	} {
		if err := putReader(t, t.Context(), b, name, r, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantObject(t, b, name, content)
	}
	// A backend may use WriteTo or hide it behind Read; a reader that has both must work either way.
	if err := b.Put(t.Context(), "buffer", bytes.NewBuffer(bytes.Clone(content)), nil); err != nil {
		t.Fatal(err)
	}
	wantObject(t, b, "buffer", content)
}

func testFailingReaders(t *testing.T, b storage.Bucket) {
	for _, n := range []int{0, 1, 1000, 1 << 20, 5 << 20, big} {
		content := data(3, n)
		for _, with := range []bool{false, true} {
			for i, target := range []error{errBoom, io.ErrUnexpectedEOF, fmt.Errorf("wrapped: %w", io.EOF)} {
				if n == big && i > 0 {
					break
				}
				r := &oddReader{data: content, step: 1 << 20, with: with, err: target}
				opts := &storage.PutOptions{IfAbsent: i == 0}
				wantError(t, putReader(t, t.Context(), b, "failed", r, opts), target, "put", b)
				wantAbsent(t, b, "failed")
			}
		}
	}
	// The name is free after all that.
	if err := b.Put(t.Context(), "failed", strings.NewReader("x"), ifAbsent); err != nil {
		t.Fatal(err)
	}
	// What r says about another store says nothing about this one, but must be found.
	source := &storage.Error{Op: "read", Key: "source", Bucket: "elsewhere", Err: errBoom}
	err := putReader(t, t.Context(), b, "copy", &oddReader{err: source}, nil)
	wantError(t, err, errBoom, "put", b)
	if !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("error %q does not name the source", err)
	}
}

func testOverwrite(t *testing.T, b storage.Bucket) {
	long, short := data(4, 2<<20), data(5, 1000)
	for _, content := range [][]byte{short, long, short, nil, long} {
		put(t, b, "key", content)
		wantObject(t, b, "key", content)
	}
	// A failed one leaves the old object.
	for _, n := range []int{0, 1, 1 << 20, big} {
		err := putReader(t, t.Context(), b, "key", &oddReader{data: data(6, n), step: 1 << 20, err: errBoom}, nil)
		wantError(t, err, errBoom, "put", b)
		wantObject(t, b, "key", long)
	}
	// While one is under way the old object is seen.
	reading, resume, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		r := io.MultiReader(bytes.NewReader(data(7, 1<<20)), &hook{f: func() { close(reading); <-resume }}, bytes.NewReader(short))
		done <- b.Put(t.Context(), "key", r, nil)
	}()
	<-reading
	wantObject(t, b, "key", long)
	close(resume)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantObject(t, b, "key", append(data(7, 1<<20), short...))
}

// hook is an empty reader that calls f when it is read first.
type hook struct {
	f    func()
	once sync.Once
}

func (h *hook) Read([]byte) (int, error) {
	h.once.Do(h.f)
	return 0, io.EOF
}

func testIfAbsent(t *testing.T, b storage.Bucket) {
	first := data(8, 1000)
	if err := b.Put(t.Context(), "key", bytes.NewReader(first), ifAbsent); err != nil {
		t.Fatal(err)
	}
	wantObject(t, b, "key", first)
	for _, n := range []int{0, 1000, big} {
		err := b.Put(t.Context(), "key", bytes.NewReader(data(9, n)), ifAbsent)
		wantError(t, err, storage.ErrExists, "put", b)
		wantObject(t, b, "key", first)
	}
	// An empty object takes a name, too.
	put(t, b, "empty", nil)
	wantError(t, b.Put(t.Context(), "empty", bytes.NewReader(first), ifAbsent), storage.ErrExists, "put", b)
	wantObject(t, b, "empty", nil)
	// Keys that only begin alike do not.
	if err := b.Put(t.Context(), "ke", bytes.NewReader(first), ifAbsent); err != nil {
		t.Fatal(err)
	}
	// Taken while the data come.
	r := io.MultiReader(bytes.NewReader(data(10, 1<<20)), &hook{f: func() { put(t, b, "late", first) }})
	wantError(t, b.Put(t.Context(), "late", r, ifAbsent), storage.ErrExists, "put", b)
	wantObject(t, b, "late", first)
	// Free again after Delete.
	if err := b.Delete(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "key", strings.NewReader("again"), ifAbsent); err != nil {
		t.Fatal(err)
	}
	wantObject(t, b, "key", []byte("again"))
}

func testIfAbsentRace(t *testing.T, b storage.Bucket) {
	const racers, rounds = 16, 5
	for round := range rounds {
		key := fmt.Sprintf("race-%d", round)
		// All have read their data, and found the name free, before one may end.
		var arrived sync.WaitGroup
		arrived.Add(racers)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				wait := &hook{f: func() { arrived.Done(); arrived.Wait() }}
				errs[i] = b.Put(t.Context(), key, io.MultiReader(bytes.NewReader(data(byte(i), 1000)), wait), ifAbsent)
			})
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			if err == nil && winner >= 0 {
				t.Fatalf("round %d: %d and %d won", round, winner, i)
			} else if err == nil {
				winner = i
			} else {
				wantError(t, err, storage.ErrExists, "put", b)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: none won: %v", round, errs)
		}
		wantObject(t, b, key, data(byte(winner), 1000))
	}
}

func testConcurrentPuts(t *testing.T, b storage.Bucket) {
	const n, size = 8, 3 << 20
	errs := make([]error, 2*n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { // keys of their own
			errs[i] = b.Put(t.Context(), fmt.Sprintf("own-%d", i), bytes.NewReader(data(byte(i), size)), nil)
		})
		wg.Go(func() { // one key for all
			errs[n+i] = b.Put(t.Context(), "shared", bytes.NewReader(data(byte(i), size)), nil)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		wantObject(t, b, fmt.Sprintf("own-%d", i), data(byte(i), size))
	}
	got, err := readRange(t, b, "shared", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if bytes.Equal(got, data(byte(i), size)) {
			return
		}
	}
	t.Fatal("the object under one key is none of those put there")
}

func testDelete(t *testing.T, b storage.Bucket) {
	for range 2 { // on an empty bucket, and once more
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
	}
	put(t, b, "key", []byte("x"))
	put(t, b, "key-1", []byte("y"))
	for range 2 {
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, b, "key")
		wantObject(t, b, "key-1", []byte("y"))
	}
}

func testCancelledBefore(t *testing.T, b storage.Bucket) {
	put(t, b, "old", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, opts := range []*storage.PutOptions{nil, ifAbsent} {
		for _, content := range [][]byte{nil, data(11, 1000), data(11, big)} {
			wantError(t, b.Put(ctx, "new", bytes.NewReader(content), opts), context.Canceled, "put", b)
			wantAbsent(t, b, "new")
		}
	}
	_, err := b.Open(ctx, "old", 0, -1)
	wantError(t, err, context.Canceled, "open", b)
	wantError(t, b.Delete(ctx, "old"), context.Canceled, "delete", b)
	wantObject(t, b, "old", []byte("x"))
	for _, prefix := range []string{"", "old", "none"} {
		n := 0
		for _, err := range b.List(ctx, prefix) {
			n++
			wantError(t, err, context.Canceled, "list", b)
		}
		if n != 1 {
			t.Errorf("a cancelled List yielded %d times, want one error", n)
		}
	}
}

// endless yields zeros; but at a limit it gives up, so that a Put that should stop fails the test instead of the machine.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), e.left)]
	clear(p)
	e.left -= int64(len(p))
	return len(p), nil
}

func (e *endless) WriteTo(w io.Writer) (n int64, err error) {
	p := make([]byte, 64<<10)
	for e.left > 0 {
		m, _ := e.Read(p)
		m, err := w.Write(p[:m])
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// putCancelled puts what makeReader makes of the function that cancels its context, and wants that to fail.
func putCancelled(t *testing.T, b storage.Bucket, opts *storage.PutOptions, makeReader func(cancel func()) io.Reader) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wantError(t, b.Put(ctx, "key", makeReader(cancel), opts), context.Canceled, "put", b)
}

// lastWords cancels in the very call that returns the last byte and io.EOF.
type lastWords struct{ cancel func() }

func (l lastWords) Read(p []byte) (int, error) {
	l.cancel()
	return copy(p, "x"), io.EOF
}

// cancelWriterTo cancels when it has yielded n bytes, and goes on with rest, whether by Read or by WriteTo.
type cancelWriterTo struct {
	io.Reader
	n      int
	cancel func()
	rest   *endless
}

func newCancelWriterTo(n int, cancel func(), rest int64) *cancelWriterTo {
	e := &endless{rest}
	return &cancelWriterTo{io.MultiReader(&endless{int64(n)}, &hook{f: cancel}, e), n, cancel, e}
}

func (c *cancelWriterTo) WriteTo(w io.Writer) (int64, error) {
	n, err := (&endless{int64(c.n)}).WriteTo(w)
	if err != nil {
		return n, err
	}
	c.cancel()
	m, err := c.rest.WriteTo(w)
	return n + m, err
}

func testCancelledInPut(t *testing.T, b storage.Bucket) {
	const limit = 512 << 20
	check := func(verify func(), opts *storage.PutOptions, sizes ...int) {
		t.Helper()
		for _, n := range sizes {
			// Goes on after it was cancelled between two reads.
			var rest *endless
			putCancelled(t, b, opts, func(cancel func()) io.Reader {
				rest = &endless{limit}
				return &once{Reader: io.MultiReader(&endless{int64(n)}, &hook{f: cancel}, rest)}
			})
			if rest.left == 0 {
				t.Errorf("Put read to the end after it was cancelled at %d bytes", n)
			}
			verify()
			putCancelled(t, b, opts, func(cancel func()) io.Reader {
				return newCancelWriterTo(n, cancel, limit)
			})
			verify()
			// Cancelled when all is read, and nothing is left but to make the object visible.
			putCancelled(t, b, opts, func(cancel func()) io.Reader {
				return &once{Reader: io.MultiReader(&endless{int64(n)}, lastWords{cancel})}
			})
			verify()
			putCancelled(t, b, opts, func(cancel func()) io.Reader {
				return newCancelWriterTo(n, cancel, 0)
			})
			verify()
		}
		// Cancelled by another goroutine, while Put waits for data.
		reading, resume, done := make(chan struct{}), make(chan struct{}), make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			r := io.MultiReader(&endless{1000}, &hook{f: func() { close(reading); <-resume }}, &endless{limit})
			done <- b.Put(ctx, "key", &once{Reader: r}, opts)
		}()
		<-reading
		cancel()
		close(resume)
		wantError(t, <-done, context.Canceled, "put", b)
		verify()
	}
	check(func() { t.Helper(); wantAbsent(t, b, "key") }, nil, 0, 1, 1<<20, big)
	check(func() { t.Helper(); wantAbsent(t, b, "key") }, ifAbsent, 0, 1<<20)
	put(t, b, "key", []byte("old"))
	check(func() { t.Helper(); wantObject(t, b, "key", []byte("old")) }, nil, 0, 1<<20)
}

func testCancelledInOpen(t *testing.T, b storage.Bucket) {
	put(t, b, "key", data(12, big))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := b.Open(ctx, "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p [1]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		t.Fatal(err)
	}
	cancel()
	n, err := io.Copy(io.Discard, r)
	wantError(t, err, context.Canceled, "read", b)
	if n == big-1 {
		t.Error("all was read after the context was cancelled")
	}
}

func testCancelledInList(t *testing.T, b storage.Bucket) {
	for i := range 3 {
		put(t, b, fmt.Sprint(i), nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	objects, errs := 0, 0
	for _, err := range b.List(ctx, "") {
		cancel()
		if last = err; err != nil {
			errs++
		} else {
			objects++
		}
	}
	if errs != 1 || last == nil {
		t.Fatalf("%d objects, %d errors, last %v; want an error at the end", objects, errs, last)
	}
	wantError(t, last, context.Canceled, "list", b)
}

package archive

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"encdump/crypto"
	"encdump/dump/script"
	"encdump/storage"
	"encdump/storage/storagetest"
)

// makeRanges makes a backup whose stream has several segments, and returns its
// SQL, itself and its bucket, which counts.
func makeRanges(t *testing.T) ([]byte, *Backup, *storagetest.Faulty) {
	t.Helper()
	noise := make([]byte, 11<<20)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n"[random.IntN(63)]
	}
	sql := []byte("--\n-- PostgreSQL database cluster dump\n--\n\n" + "SELECT $x$" + string(noise) + "$x$;\n" +
		"--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	mem := storagetest.Mem()
	key := crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for ranges")), "test")
	w, err := NewWriter(t.Context(), []storage.Bucket{mem}, &WriterOptions{
		GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Key: key, FrameSize: 50_001, PartSize: 3_000_001, Jobs: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(sql)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	counting := storagetest.NewFaulty(mem)
	b, err := OpenCatalog(counting, crypto.Keyring{key}, nil).Find(t.Context(), Ref{})
	if err != nil {
		t.Fatal(err)
	}
	return sql, b, counting
}

// TestRanges reads ranges at frames' and segments' boundaries and beside them,
// and some in between, and counts what is read for them.
func TestRanges(t *testing.T) {
	sql, b, bucket := makeRanges(t)
	toc, err := b.TOC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Ranges(t.Context(), toc, &ReadOptions{Jobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(sql))
	offsets := []int64{0, 1, size - 1, size}
	var plain, compressed int64
	for _, f := range toc.Frames {
		before := compressed / SegmentSize
		plain += int64(f[0])
		compressed += int64(f[1])
		if compressed/SegmentSize != before || plain < 200_000 { // beside a segment's boundary
			offsets = append(offsets, plain-int64(f[0]), plain-1, plain, min(plain+1, size))
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		offsets = append(offsets, random.Int64N(size))
	}
	for _, from := range offsets {
		for _, to := range offsets {
			if to < from {
				continue
			}
			if to-from > 200_000 && random.IntN(20) > 0 {
				continue // a few long ones will do
			}
			read := bucket.BytesRead()
			got := readRangeOf(t, r, from, to-from)
			if !bytes.Equal(got, sql[from:to]) {
				t.Fatalf("bytes %d to %d are others", from, to)
			}
			if n := bucket.BytesRead() - read; to-from < 100_000 && n > 3*SegmentSize {
				t.Errorf("%d bytes were read for %d", n, to-from)
			}
		}
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, size + 1}, {size, 1}, {1, -1}, {1, 1<<63 - 1}} {
		if _, err := r.Open(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("range %v is taken", bad)
		}
	}
}

func readRangeOf(t *testing.T, r *Ranges, offset, length int64) []byte {
	t.Helper()
	rc, err := r.Open(t.Context(), offset, length)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if err != nil {
		t.Fatalf("range %d, %d: %v", offset, length, err)
	}
	return got
}

// TestRangesDamage: a range is released only where the segments that it depends
// on are right; damage elsewhere does not matter to it.
func TestRangesDamage(t *testing.T) {
	sql, b, bucket := makeRanges(t)
	toc, err := b.TOC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Ranges(t.Context(), toc, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The second part ends in the second segment.
	bucket.Add(storagetest.Fault{Op: storagetest.Open, Key: b.Parts[1].Name, Corrupt: map[int64]byte{2_900_000: 1}})
	if got := readRangeOf(t, r, 1000, 100); !bytes.Equal(got, sql[1000:1100]) {
		t.Error("a range of the first segment is wrong")
	}
	middle := int64(len(sql)) / 2
	for ; ; middle += 100_000 {
		rc, err := r.Open(t.Context(), middle, 100)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		rc.Close()
		if err == nil {
			if !bytes.Equal(got, sql[middle:middle+100]) {
				t.Fatalf("wrong bytes at %d", middle)
			}
			if middle > int64(len(sql))-200_000 {
				t.Fatal("the damage was not met")
			}
			continue
		}
		var damage *DamageError
		if len(got) > 0 || !errors.As(err, &damage) || !strings.Contains(damage.Object, b.Parts[1].Name) {
			t.Errorf("%d bytes and %v", len(got), err)
		}
		return
	}
}

// TestLost: a frame is lost with any segment that it needs, that of the cipher block before it included.
func TestLost(t *testing.T) {
	t.Parallel()
	segment := func(i int64) error { return damagedRange(i*SegmentSize, SegmentSize, "x", "changed") }
	for _, c := range []struct {
		first  int // compressed bytes of the first of two frames, which has 100 plain bytes
		damage error
		want   []script.Range
	}{
		{SegmentSize - 16, segment(0), []script.Range{{Offset: 0, Length: 300}}},      // begins with segment 1
		{SegmentSize - 16 + 15, segment(0), []script.Range{{Offset: 0, Length: 300}}}, // in its first block
		{SegmentSize, segment(0), []script.Range{{Offset: 0, Length: 100}}},           // in its second
		{SegmentSize - 16, segment(1), []script.Range{{Offset: 100, Length: 200}}},
		{SegmentSize - 15, segment(1), []script.Range{{Offset: 0, Length: 300}}},
		{SegmentSize - 16, damagedRange(SegmentSize-1, 1, "x", "cut"), []script.Range{{Offset: 0, Length: 300}}},
		{SegmentSize - 16, damagedRange(SegmentSize, 1, "x", "cut"), []script.Range{{Offset: 100, Length: 200}}},
		{SegmentSize, damaged("x", "somewhere"), nil},
	} {
		toc := &TOC{Frames: [][2]int{{100, c.first}, {200, 5000}}}
		if got := new(Backup).Lost(toc, []error{c.damage}); !slices.Equal(got, c.want) {
			t.Errorf("%d bytes, %v: %v, want %v", c.first, c.damage, got, c.want)
		}
	}
}

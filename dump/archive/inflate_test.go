package archive

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// deflateOf compresses with the standard library.
func deflateOf(t testing.TB, plain []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	// Several blocks, of which some are empty.
	for len(plain) > 0 {
		n := min(len(plain), 100_000)
		w.Write(plain[:n])
		w.Flush()
		plain = plain[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inflateInto gives inflateRaw the room that it wants, filled with what must not be seen.
func inflateInto(size int, deflated []byte) ([]byte, error) {
	out := bytes.Repeat([]byte{0xAA}, size+inflateSlack)
	err := inflateRaw(out, append(bytes.Clone(deflated), bytes.Repeat([]byte{0x55}, inflateTrailer)...))
	return out[:size], err
}

func TestInflate(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	skewed := make([]byte, 300_000) // its rare bytes have codes longer than a table's first level
	for i := range skewed {
		for skewed[i] < 250 && random.IntN(100) < 62 {
			skewed[i]++
		}
	}
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	samples := map[string][]byte{"nothing": nil, "one byte": {'x'}, "skewed": skewed, "noise": noise}
	for distance := 1; distance <= 40; distance++ {
		samples[fmt.Sprintf("runs of %d", distance)] = bytes.Repeat(noise[:distance], 1+5_000/distance)
	}
	var rows strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&rows, "%d\tcustomer %x\t2024-01-%02d 12:00:00+00\t\\N\n", i, random.Uint64(), 1+i%28)
	}
	samples["rows"] = []byte(rows.String())
	samples["far"] = append(append(bytes.Clone(noise[:32768]), noise[:300]...), rows.String()...)

	for name, plain := range samples {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			deflated := deflateOf(t, plain, level)
			got, err := inflateInto(len(plain), deflated)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, level %d: %v", name, level, err)
			}
			if _, err := inflateInto(len(plain)+1, deflated); err != errInflateShort {
				t.Errorf("%s, level %d, into more: %v", name, level, err)
			}
			if len(plain) > 0 {
				if _, err := inflateInto(len(plain)-1, deflated); err != errInflateLong {
					t.Errorf("%s, level %d, into less: %v", name, level, err)
				}
			}
			if _, err := inflateInto(len(plain), append(deflated, 0)); err != errInflateLong {
				t.Errorf("%s, level %d, with one byte more: %v", name, level, err)
			}
			for _, n := range []int{0, 1, len(deflated) / 2, len(deflated) - 1} {
				if _, err := inflateInto(len(plain), deflated[:n]); err == nil {
					t.Errorf("%s, level %d, cut to %d bytes: no error", name, level, n)
				}
			}
		}
	}
}

// FuzzInflateRaw compares with the standard library: what is valid, and what it stands for.
func FuzzInflateRaw(f *testing.F) {
	for _, plain := range []string{"", "x", strings.Repeat("hello ", 100), "abcdefghijklmnopqrstuvwxyz", strings.Repeat("a", 3000)} {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 9} {
			b := deflateOf(f, []byte(plain), level)
			f.Add(b, byte(0))
			f.Add(append(b, 1), byte(0))
			f.Add(b[:len(b)-1], byte(0))
			f.Add(b, byte(1))
		}
	}
	f.Add([]byte("\x05\xc0\x81\x08\x00\x00\x00\x00 \x7f\xeb\x0b\x00\x00"), byte(0)) // a distance code of one symbol
	f.Fuzz(func(t *testing.T, deflated []byte, more byte) {
		const most = 1 << 20
		r := bytes.NewReader(deflated)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(r), most))
		if len(want) == most {
			return
		}
		got, err := inflateInto(len(want)+int(more), deflated)
		valid := wantErr == nil && r.Len() == 0 && more == 0
		if (err == nil) != valid {
			t.Fatalf("%v; the standard library: %v, %d bytes left, %d more wanted", err, wantErr, r.Len(), more)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("other bytes than the standard library's")
		}
	})
}

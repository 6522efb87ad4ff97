package script

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// frame is the size of the pieces that a dump is written in when a backup is
// made.
const frame = 2 << 20

// shopRows makes COPY data of 70 to 200 bytes a row.
func shopRows(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&b, "%d\tCustomer %032x\tu%d@example.com\t2021-03-%02d 11:22:33.%06d+00\tBerlin\t{\"tags\": [\"%032x\"], \"tier\": %d, \"score\": %d.%03d}\n",
				i, r.Uint64(), i, 1+r.IntN(28), r.IntN(1e6), r.Uint64(), r.IntN(5), r.IntN(1000), r.IntN(1000))
		case 1:
			fmt.Fprintf(&b, "%d\t%d\t2023-01-%02d 01:02:03.%06d+00\t%d.%02d\tshipped\tgift wrap please, leave at the door number %d\n",
				i, r.IntN(1e6), 1+r.IntN(28), r.IntN(1e6), r.IntN(10000), r.IntN(100), r.IntN(500))
		default:
			fmt.Fprintf(&b, "2024-01-%02d 00:00:0%d+00\t%d\t%v\t\\\\x%016x%016x\n", 1+r.IntN(28), r.IntN(10), r.IntN(1000), r.Float64()*100, r.Uint64(), r.Uint64())
		}
	}
	return b.Bytes()
}

func shopCopy(size int) []byte {
	return append(append([]byte("COPY public.t (a, b) FROM stdin;\n"), shopRows(size)...), "\\.\n"...)
}

func shopInserts(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "INSERT INTO public.customers VALUES (%d, 'Customer %d', 'it''s at %d, Street', '2021-03-01 11:22:33+00', 'Berlin', '{\"tier\": 1}');\n", i, i, i)
	}
	return b.Bytes()
}

// feed writes data again and again in frames.
func feed(b *testing.B, w io.Writer, data []byte) {
	b.Helper()
	for p := data; len(p) > 0; p = p[min(frame, len(p)):] {
		if _, err := w.Write(p[:min(frame, len(p))]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	data := shopCopy(64 << 20)
	b.Run("pull", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			s := NewScanner(bytes.NewReader(data))
			for {
				if _, err := s.Next(); err == io.EOF {
					break
				}
			}
		}
	})
	b.Run("push", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		f := NewFeeder(func(Item) error { return nil })
		for b.Loop() {
			feed(b, f, data)
		}
	})
	b.Run("gather", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var g Gatherer
			f := NewFeeder(func(it Item) error { g.Add(it); return nil })
			feed(b, f, data)
		}
	})
	b.Run("guard", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		g := NewGuard(io.Discard)
		for b.Loop() {
			feed(b, g, data)
		}
	})
}

func BenchmarkInserts(b *testing.B) {
	data := shopInserts(64 << 20)
	b.SetBytes(int64(len(data)))
	f := NewFeeder(func(Item) error { return nil })
	for b.Loop() {
		feed(b, f, data)
	}
}

func BenchmarkRows(b *testing.B) {
	rows := shopRows(frame)
	b.SetBytes(int64(len(rows)))
	for b.Loop() {
		Rows(rows)
	}
}

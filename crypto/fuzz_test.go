package crypto

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// fuzzDerivation makes one of the derivations of a byte, none of them slow.
func fuzzDerivation(b byte) Derivation {
	switch b % 3 {
	case 0:
		return MD5
	case 1:
		return SHA256
	}
	return NewPBKDF2(1 + int(b)/3)
}

// FuzzReader: whatever comes in, nothing panics, no more comes out than went in,
// and how the source divides it does not matter. What is read without an error
// is a stream: written again it is the same.
func FuzzReader(f *testing.F) {
	f.Add([]byte(""), "x", byte(0))
	f.Add([]byte("Salted__"), "x", byte(1))
	f.Add([]byte("Salted__12345678"), "x", byte(2))
	f.Add([]byte("Salted__12345678 and not a whole block"), "", byte(0))
	f.Add([]byte("Salted__12345678sixteen bytes ..thirty-two bytes"), "x", byte(0))
	salt := [SaltSize]byte([]byte("12345678"))
	for i, n := range []int{0, 1, 15, 16, 17, 200} {
		o := &Options{fuzzDerivation(byte(i)), &salt}
		stream := seal(f, bytes.Repeat([]byte{'a'}, n), NewPassphrase([]byte("seed")), o, allAtOnce)
		f.Add(stream, "seed", byte(i))
		f.Add(stream[:len(stream)-1], "seed", byte(i))
		f.Add(stream[:len(stream)-BlockSize], "seed", byte(i))
		f.Add(append(bytes.Clone(stream), stream[HeaderSize:]...), "seed", byte(i))
	}
	f.Fuzz(func(t *testing.T, data []byte, secret string, kdf byte) {
		p, d := NewPassphrase([]byte(secret)), fuzzDerivation(kdf)
		plain, err := open(bytes.NewReader(data), p, &Options{Derivation: d})
		if len(data) < HeaderSize && !errors.Is(err, ErrHeader) {
			t.Fatalf("%d bytes are a header: %v", len(data), err)
		}
		if n := max(0, len(data)-HeaderSize); len(plain) > n {
			t.Fatalf("%d plain bytes of %d encrypted ones", len(plain), n)
		}
		if err != nil && !errors.Is(err, ErrHeader) && !errors.Is(err, ErrPadding) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("error %v", err)
		}
		other, otherErr := open(iotest.OneByteReader(bytes.NewReader(data)), p, &Options{Derivation: d})
		if !bytes.Equal(other, plain) || !errors.Is(otherErr, err) {
			t.Fatalf("byte by byte: %d bytes and %v, at once %d bytes and %v", len(other), otherErr, len(plain), err)
		}
		if err != nil {
			return
		}
		salt, err := ParseHeader(data)
		if err != nil {
			t.Fatal(err)
		}
		if again := seal(t, plain, p, &Options{d, &salt}, allAtOnce); !bytes.Equal(again, data) {
			t.Fatalf("written again:\n%x\n%x", again, data)
		}
	})
}

// FuzzRoundTrip: what was written is read, in whatever steps, and cut anywhere
// it is never read as a whole.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte(""), "x", []byte("saltsalt"), byte(0), uint16(1), uint16(0))
	f.Add([]byte("SELECT 1;\n"), "Größe", []byte(""), byte(1), uint16(3), uint16(20))
	f.Add([]byte("sixteen bytes .."), " ' ", []byte("a salt that is too long"), byte(2), uint16(16), uint16(16))
	f.Add(bytes.Repeat([]byte("-- text\n"), 500), "\r", []byte{0}, byte(255), uint16(1000), uint16(33))
	f.Fuzz(func(t *testing.T, plain []byte, secret string, salted []byte, kdf byte, step, cut uint16) {
		var salt [SaltSize]byte
		copy(salt[:], salted)
		p, o := NewPassphrase([]byte(secret)), &Options{fuzzDerivation(kdf), &salt}
		stream := seal(t, plain, p, o, func() int { return 1 + int(step) })
		if want := HeaderSize + (len(plain)/BlockSize+1)*BlockSize; len(stream) != want {
			t.Fatalf("%d plain bytes make %d, want %d", len(plain), len(stream), want)
		}
		if got, err := open(bytes.NewReader(stream), p, o); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("read %q, %v", got, err)
		}
		n := int(cut) % len(stream)
		got, err := open(bytes.NewReader(stream[:n]), p, o)
		if !bytes.HasPrefix(plain, got) {
			t.Fatalf("cut to %d bytes: %q is no beginning", n, got)
		}
		// Only where the plain bytes before the cut happen to be padding does a cut
		// at the end of a block look like an end.
		end := n - HeaderSize
		looksWhole := n > HeaderSize && n%BlockSize == 0
		if looksWhole {
			unpadded, padErr := Unpad(plain[:end])
			looksWhole = padErr == nil && len(got) == len(unpadded)
		}
		if (err == nil) != looksWhole {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	})
}

package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// openssl runs the real program, which is what this package must agree with. It
// must succeed.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// opensslEnc runs "openssl enc" with the derivation, or with what stands for
// it, and the first line of keyFile.
func opensslEnc(t testing.TB, in []byte, keyFile, derivation string, args ...string) []byte {
	t.Helper()
	args = append([]string{"enc", "-aes256", "-pass", "file:" + keyFile}, args...)
	return openssl(t, in, append(args, strings.Fields(derivation)...)...)
}

// keyFile writes a key file and returns its path.
func keyFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const testSecret = "NYHD8MVmA55HEqoaYHpQaxfwEMcQ1wkI"

var testPass = NewPassphrase([]byte(testSecret))

// derivations and the options of openssl that stand for them.
var derivations = []struct {
	d     Derivation
	flags string
}{
	{Derivation{}, "-md md5"},
	{MD5, "-md md5"},
	{SHA256, "-md sha256"},
	{NewPBKDF2(OpenSSLIterations), "-pbkdf2"},
	{NewPBKDF2(1), "-pbkdf2 -md sha256 -iter 1"},
	{NewPBKDF2(4321), "-pbkdf2 -md sha256 -iter 4321"},
}

// boundaries are sizes around those of blocks and buffers.
func boundaries() []int {
	sizes := []int{0, 1, 15, 16, 17, 31, 32, 33, 3<<20 + 5, 2 << 20}
	for n := writerBuffer - 17; n <= writerBuffer+17; n++ {
		sizes = append(sizes, n)
	}
	return sizes
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// seal writes plain in steps of the sizes that step returns.
func seal(t testing.TB, plain []byte, p Passphrase, o *Options, step func() int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, p, o)
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n := min(step(), len(rest))
		if k, err := w.Write(rest[:n]); k != n || err != nil {
			t.Fatalf("Write of %d bytes: %d, %v", n, k, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func allAtOnce() int { return 1 << 30 }

// open reads a whole stream.
func open(src io.Reader, p Passphrase, o *Options) ([]byte, error) {
	r, err := NewReader(src, p, o)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestWriterToOpenSSL(t *testing.T) {
	t.Parallel()
	key := keyFile(t, testSecret+"\n")
	for _, d := range derivations {
		t.Run(fmt.Sprint(d.flags), func(t *testing.T) {
			t.Parallel()
			r := random(1)
			for _, n := range boundaries() {
				plain := randomBytes(r, n)
				stream := seal(t, plain, testPass, &Options{Derivation: d.d}, allAtOnce)
				if want := HeaderSize + (n/BlockSize+1)*BlockSize; len(stream) != want {
					t.Fatalf("%d bytes: the stream has %d, want %d", n, len(stream), want)
				}
				if got := opensslEnc(t, stream, key, d.flags, "-d"); !bytes.Equal(got, plain) {
					t.Fatalf("%d bytes: openssl reads something else", n)
				}
			}
		})
	}
}

func TestReaderFromOpenSSL(t *testing.T) {
	t.Parallel()
	key := keyFile(t, testSecret+"\n")
	for _, d := range derivations {
		t.Run(fmt.Sprint(d.flags), func(t *testing.T) {
			t.Parallel()
			r := random(2)
			for _, n := range boundaries() {
				plain := randomBytes(r, n)
				stream := opensslEnc(t, plain, key, d.flags)
				got, err := open(bytes.NewReader(stream), testPass, &Options{Derivation: d.d})
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%d bytes: read %d, %v", n, len(got), err)
				}
				salt, err := ParseHeader(stream)
				if err != nil {
					t.Fatal(err)
				}
				if again := seal(t, plain, testPass, &Options{d.d, &salt}, allAtOnce); !bytes.Equal(again, stream) {
					t.Fatalf("%d bytes: with the same salt the writer makes another stream than openssl", n)
				}
			}
		})
	}
}

// The options that Flags returns are what recovers a backup by hand.
func TestFlags(t *testing.T) {
	t.Parallel()
	key := keyFile(t, testSecret+"\n")
	plain := []byte("SELECT 1;\n")
	for _, d := range []Derivation{MD5, SHA256, NewPBKDF2(1), NewPBKDF2(777)} {
		stream := seal(t, plain, testPass, &Options{Derivation: d}, allAtOnce)
		if got := opensslEnc(t, stream, key, d.Flags(), "-d"); !bytes.Equal(got, plain) {
			t.Errorf("%v: openssl with %q read %q", d, d.Flags(), got)
		}
	}
}

func TestSteps(t *testing.T) {
	t.Parallel()
	r := random(3)
	salt := [SaltSize]byte{1, 2, 3}
	o := &Options{SHA256, &salt}
	for _, n := range []int{0, 1, 16, 100, writerBuffer - 1, writerBuffer, writerBuffer + 1, 300_001} {
		plain := randomBytes(r, n)
		stream := seal(t, plain, testPass, o, allAtOnce)
		for name, step := range map[string]func() int{
			"one byte":  func() int { return 1 },
			"15":        func() int { return 15 },
			"16":        func() int { return 16 },
			"17":        func() int { return 17 },
			"random":    func() int { return r.IntN(100) },
			"random up": func() int { return r.IntN(2 * writerBuffer) },
		} {
			if !bytes.Equal(seal(t, plain, testPass, o, step), stream) {
				t.Errorf("%d bytes written in steps of %s give another stream", n, name)
			}
		}
		for name, src := range map[string]io.Reader{
			"one byte":           iotest.OneByteReader(bytes.NewReader(stream)),
			"halves":             iotest.HalfReader(bytes.NewReader(stream)),
			"EOF with last data": iotest.DataErrReader(bytes.NewReader(stream)),
			"random":             &stepReader{bytes.NewReader(stream), r},
		} {
			got, err := open(src, testPass, o)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes from a source of %s: read %d, %v", n, name, len(got), err)
			}
		}
		// Read calls of random sizes, 0 included.
		reader, err := NewReader(bytes.NewReader(stream), testPass, o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(&stepReader{reader, r})
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes in random steps: read %d, %v", n, len(got), err)
		}
	}
	plain := randomBytes(r, 5000)
	reader, err := NewReader(bytes.NewReader(seal(t, plain, testPass, o, allAtOnce)), testPass, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(reader, plain); err != nil {
		t.Error(err)
	}
}

// stepReader reads in steps of random size, some of which are empty.
type stepReader struct {
	r    io.Reader
	rand *rand.Rand
}

func (s *stepReader) Read(p []byte) (int, error) {
	return s.r.Read(p[:s.rand.IntN(min(len(p), 5000)+1)])
}

// Secrets that the stream's readers must take as openssl does, new backups or not.
func passphrases() []string {
	secrets := []string{
		"x", "a b", " leading and trailing ", `it's`, `"quoted"`, "`id` $HOME \\n", "pass:word", "-d", "file:/dev/null",
		"Größe", "日本語 🐘", "tab\there", "carriage\rreturn", "ends in carriage return\r", "\r", "\x7f\x01\xff\xfe",
	}
	for _, n := range []int{2, 15, 16, 17, 31, 32, 33, 55, 56, 63, 64, 65, 127, 128, 511, 512, 513, 1022, 1023} {
		secrets = append(secrets, strings.Repeat("0123456789abcdef", 64)[:n])
	}
	return secrets
}

func TestPassphrases(t *testing.T) {
	t.Parallel()
	plain := []byte("-- PostgreSQL database cluster dump\n")
	for i, secret := range passphrases() {
		for _, end := range []string{"\n", "", "\nsecond line\n"} {
			path := keyFile(t, secret+end)
			k, err := ReadKeyFile(path)
			if err != nil {
				t.Errorf("%q: %v", secret, err)
				continue
			}
			if k.Passphrase().Reveal() != secret || k.Source != path {
				t.Errorf("%q: the key file gives %q from %s", secret, k.Passphrase().Reveal(), k.Source)
			}
			d := derivations[1+i%(len(derivations)-1)]
			o := &Options{Derivation: d.d}
			if got := opensslEnc(t, seal(t, plain, k.Passphrase(), o, allAtOnce), path, d.flags, "-d"); !bytes.Equal(got, plain) {
				t.Errorf("%q: openssl reads %q", secret, got)
			}
			if got, err := open(bytes.NewReader(opensslEnc(t, plain, path, d.flags)), k.Passphrase(), o); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%q: read %q, %v from openssl", secret, got, err)
			}
		}
	}
}

func TestRandomSalt(t *testing.T) {
	t.Parallel()
	seen := make(map[[SaltSize]byte]bool)
	for range 1000 {
		var out bytes.Buffer
		w, err := NewWriter(&out, testPass, nil)
		if err != nil {
			t.Fatal(err)
		}
		salt, err := ParseHeader(out.Bytes())
		if err != nil || salt != w.Salt() {
			t.Fatalf("header has salt %x (%v), Salt returns %x", salt, err, w.Salt())
		}
		if seen[salt] {
			t.Fatalf("salt %x twice", salt)
		}
		seen[salt] = true
	}
}

func TestDecryptAnyRun(t *testing.T) {
	t.Parallel()
	const blocks = 12
	plain := randomBytes(random(4), blocks*BlockSize-1) // one byte of padding
	for _, d := range []Derivation{MD5, SHA256, NewPBKDF2(2)} {
		stream := seal(t, plain, testPass, &Options{Derivation: d}, allAtOnce)
		salt, err := ParseHeader(stream)
		if err != nil {
			t.Fatal(err)
		}
		c := NewCipher(testPass, salt, d)
		body := stream[HeaderSize:]
		want := append(bytes.Clone(plain), 1)
		for from := range blocks {
			for to := from; to <= blocks; to++ {
				src := bytes.Clone(body[from*BlockSize : to*BlockSize])
				var previous []byte
				if from > 0 {
					previous = body[(from-1)*BlockSize : from*BlockSize]
				}
				before := bytes.Clone(body)
				dst := make([]byte, len(src)+3)
				c.Decrypt(dst, src, previous)
				if w := want[from*BlockSize : to*BlockSize]; !bytes.Equal(dst[:len(src)], w) || dst[len(src)] != 0 {
					t.Fatalf("%v: blocks %d to %d differ", d, from, to)
				} else if c.Decrypt(src, src, previous); !bytes.Equal(src, w) {
					t.Fatalf("%v: blocks %d to %d differ in place", d, from, to)
				}
				if !bytes.Equal(body, before) {
					t.Fatal("Decrypt changed the block before")
				}
			}
		}
	}
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("INSERT INTO t VALUES (1);\n", 6000)
	for _, size := range []int{0, 1, 15, 16, 17, 100, writerBuffer - 16, writerBuffer + 1} {
		plain := []byte(text[:size])
		stream := seal(t, plain, testPass, nil, allAtOnce)
		for n := range stream {
			if n > 300 && n < len(stream)-70 && n != writerBuffer && n != writerBuffer+HeaderSize {
				continue
			}
			for name, src := range map[string]io.Reader{
				"all at once":        bytes.NewReader(stream[:n]),
				"one byte":           iotest.OneByteReader(bytes.NewReader(stream[:n])),
				"EOF with last data": iotest.DataErrReader(bytes.NewReader(stream[:n])),
			} {
				got, err := open(src, testPass, nil)
				var want error
				switch {
				case n < HeaderSize:
					want = ErrHeader
				case n == HeaderSize || n%BlockSize != 0:
					want = io.ErrUnexpectedEOF
				default:
					want = ErrPadding
				}
				if !errors.Is(err, want) {
					t.Fatalf("%d of %d bytes, %s: error %v, want %v", n, len(stream), name, err, want)
				}
				if !bytes.HasPrefix(plain, got) {
					t.Fatalf("%d of %d bytes, %s: what was read is not the beginning", n, len(stream), name)
				}
			}
		}
	}
}

// A connection that breaks is not the end of a stream, even where what came of it
// looks whole.
func TestReaderSourceBreaks(t *testing.T) {
	t.Parallel()
	stream := seal(t, make([]byte, 100), testPass, nil, allAtOnce)
	for _, broken := range []error{io.ErrUnexpectedEOF, fmt.Errorf("connection lost: %w", io.EOF), errors.New("boom")} {
		for _, n := range []int{0, 5, HeaderSize, HeaderSize + 5, 96, len(stream)} {
			got, err := open(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)), testPass, nil)
			if err != broken {
				t.Errorf("%v after %d bytes: read %d, %v", broken, n, len(got), err)
			}
		}
	}
}

// An error of the reader stays.
func TestReaderErrorSticks(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	stream := seal(t, make([]byte, 1000), testPass, nil, allAtOnce)
	for name, c := range map[string]struct {
		src  io.Reader
		want error
	}{
		"end":     {bytes.NewReader(stream), io.EOF},
		"cut":     {bytes.NewReader(stream[:100]), io.ErrUnexpectedEOF},
		"padding": {bytes.NewReader(stream[:96]), ErrPadding},
		"source":  {io.MultiReader(bytes.NewReader(stream[:96]), iotest.ErrReader(boom), bytes.NewReader(stream[96:])), boom},
	} {
		r, err := NewReader(c.src, testPass, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != c.want && !(err == nil && c.want == io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		for range 3 {
			if n, err := r.Read(make([]byte, 10)); n != 0 || err != c.want {
				t.Errorf("%s: after the end %d, %v; want %v", name, n, err, c.want)
			}
		}
	}
	if _, err := NewReader(io.MultiReader(strings.NewReader("Salted__"), iotest.ErrReader(boom)), testPass, nil); err != boom {
		t.Errorf("an error within the header: %v", err)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "S", "Salted__", "Salted__1234567", "salted__12345678", "Salted_-12345678", "\x1f\x8b\x08 and more than a header"} {
		if _, err := ParseHeader([]byte(s)); err != ErrHeader {
			t.Errorf("ParseHeader(%q): %v", s, err)
		}
		if _, err := NewReader(strings.NewReader(s), testPass, nil); err != ErrHeader {
			t.Errorf("NewReader(%q): %v", s, err)
		}
	}
	if salt, err := ParseHeader([]byte("Salted__12345678 and more")); err != nil || string(salt[:]) != "12345678" {
		t.Errorf("%q, %v", salt, err)
	}
}

func TestWrongKey(t *testing.T) {
	t.Parallel()
	plain := bytes.Repeat([]byte("COPY public.t (id) FROM stdin;\n"), 50)
	salt := [SaltSize]byte{7}
	stream := seal(t, plain, testPass, &Options{MD5, &salt}, allAtOnce)
	for name, r := range map[string]struct {
		p Passphrase
		d Derivation
	}{
		"another passphrase":   {NewPassphrase([]byte(testSecret + "x")), MD5},
		"a shorter one":        {NewPassphrase([]byte(testSecret[1:])), MD5},
		"with carriage return": {NewPassphrase([]byte(testSecret + "\r")), MD5},
		"another digest":       {testPass, SHA256},
		"another way":          {testPass, NewPBKDF2(10)},
		"other rounds":         {testPass, NewPBKDF2(11)},
	} {
		// The salt is fixed, so which of these end in something like padding is too: none.
		if got, err := open(bytes.NewReader(stream), r.p, &Options{Derivation: r.d}); err != ErrPadding || bytes.Contains(got, plain[:BlockSize]) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

var errSink = errors.New("sink is full")

// sink takes so many bytes and fails then. It counts calls and tells of Close.
type sink struct {
	bytes.Buffer
	room, calls int
	closed      bool
}

func (s *sink) Write(p []byte) (int, error) {
	s.calls++
	if len(p) > s.room {
		n, _ := s.Buffer.Write(p[:s.room])
		s.room = 0
		return n, errSink
	}
	s.room -= len(p)
	return s.Buffer.Write(p)
}

func (s *sink) Close() error { s.closed = true; return nil }

func TestWriterErrorsStick(t *testing.T) {
	t.Parallel()
	if _, err := NewWriter(&sink{room: HeaderSize - 1}, testPass, nil); err != errSink {
		t.Errorf("NewWriter: %v", err)
	}
	plain := make([]byte, 3*writerBuffer)
	for _, room := range []int{HeaderSize, HeaderSize + 1, HeaderSize + writerBuffer, HeaderSize + 2*writerBuffer + 5, HeaderSize + len(plain)} {
		s := &sink{room: room}
		w, err := NewWriter(s, testPass, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(plain)
		if room < HeaderSize+len(plain) && err != errSink {
			t.Errorf("room for %d: Write: %v", room, err)
		}
		if err == nil {
			if err := w.Close(); err != errSink {
				t.Errorf("room for %d: first Close: %v", room, err)
			}
		}
		calls := s.calls
		s.room = 1 << 30 // it would work again, but the stream has a hole
		if n, err := w.Write(plain[:100]); n != 0 || err != errSink {
			t.Errorf("room for %d: a later Write: %d, %v", room, n, err)
		}
		for range 2 {
			if err := w.Close(); err != errSink {
				t.Errorf("room for %d: Close: %v", room, err)
			}
		}
		if s.calls != calls {
			t.Errorf("room for %d: written to after it failed", room)
		}
	}
}

func TestWriterClose(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 5, 16} {
		s := &sink{room: 1 << 30}
		w, err := NewWriter(s, testPass, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := w.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if s.closed {
			t.Error("Close closed the destination")
		}
		if k, err := w.Write([]byte("more")); k != 0 || err == nil {
			t.Errorf("Write after Close: %d, %v", k, err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("Close after a late Write: %v", err)
		}
		if got, err := open(&s.Buffer, testPass, nil); err != nil || len(got) != n {
			t.Errorf("%d bytes: read %d, %v", n, len(got), err)
		}
	}
}

func TestWriterLeavesInput(t *testing.T) {
	t.Parallel()
	plain := randomBytes(random(5), 2*writerBuffer+100)
	before := bytes.Clone(plain)
	seal(t, plain, testPass, nil, allAtOnce)
	if !bytes.Equal(plain, before) {
		t.Error("Write changed what it was given")
	}
}

func TestUnpad(t *testing.T) {
	t.Parallel()
	block := func(data string, padding ...byte) []byte { return append([]byte(data), padding...) }
	fifteen := "fifteen bytes.."
	full := bytes.Repeat([]byte{16}, 16)
	for i, c := range []struct {
		in   []byte
		want string
		ok   bool
	}{
		{block(fifteen, 1), fifteen, true},
		{block(fifteen[:14], 2, 2), fifteen[:14], true},
		{block(fifteen[:1], bytes.Repeat([]byte{15}, 15)...), "f", true},
		{full, "", true},
		{slices.Concat(full, full), string(full), true},
		{block(fifteen+"x"+fifteen, 1), fifteen + "x" + fifteen, true},
		{block(fifteen[:13], 1, 1, 1), fifteen[:13] + "\x01\x01", true}, // the last byte counts
		{nil, "", false},
		{[]byte{1}, "", false},
		{full[:15], "", false},
		{append(bytes.Clone(full), 1), "", false},
		{block(fifteen, 0), "", false},
		{block(fifteen, 2), "", false},
		{block(fifteen, 17), "", false},
		{block(fifteen, 255), "", false},
		{block(fifteen[:14], 1, 2), "", false},
		{block(fifteen[:12], 4, 3, 4, 4), "", false},
		{append([]byte{15}, full[1:]...), "", false},
		{bytes.Repeat([]byte{17}, 32), "", false},
		{bytes.Repeat([]byte{32}, 32), "", false},
	} {
		got, err := Unpad(c.in)
		if c.ok && (err != nil || string(got) != c.want) || !c.ok && (err != ErrPadding || got != nil) {
			t.Errorf("%d: Unpad(%x) = %x, %v", i, c.in, got, err)
		}
	}
}

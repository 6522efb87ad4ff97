// Package crypto speaks the container of "openssl enc": a salted stream under
// AES-256-CBC whose key comes from a passphrase, as the OpenSSL manual page
// openssl-enc(1) and its source apps/enc.c have it. It also holds the
// passphrases themselves, where they come from, and what is derived from them.
//
// Everything here is sequential; running it on several cores is the caller's
// affair, for which [Cipher] decrypts any run of blocks given the one before.
package crypto

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
)

const (
	// BlockSize is the block size of AES in bytes.
	BlockSize = aes.BlockSize
	// SaltSize is the size of the salt of the container in bytes.
	SaltSize = 8
	// HeaderSize is the size of what stands before the first cipher block:
	// the magic and the salt.
	HeaderSize = len(magic) + SaltSize

	magic = "Salted__"
)

var (
	// ErrHeader says that a stream does not begin with "Salted__" and a salt.
	ErrHeader = errors.New("not a stream of openssl enc: it does not begin with Salted__")
	// ErrPadding says that the last block does not end in PKCS#7 padding: the
	// passphrase or the derivation is wrong, or the end is damaged.
	ErrPadding = errors.New("bad padding at the end of the encrypted stream")
)

// Options of a container. The zero value is what "openssl enc -aes256 -md md5"
// does, with a random salt.
type Options struct {
	// Derivation of key and IV; the zero value stands for [MD5].
	Derivation Derivation
	// Salt to write; nil takes a random one. A reader ignores it.
	Salt *[SaltSize]byte
}

// Cipher is AES-256-CBC under the key and IV of one stream. It is safe for
// concurrent use.
type Cipher struct {
	block cipher.Block
	iv    [BlockSize]byte
}

// NewCipher derives key and IV of the stream with that salt.
func NewCipher(p Passphrase, salt [SaltSize]byte, d Derivation) *Cipher {
	key, iv := d.derive(p, salt)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key is always 32 bytes
	}
	return &Cipher{block: block, iv: iv}
}

// Decrypt decrypts src, whole blocks of the stream, into dst, which is at
// least as long and may be src itself. previous is the cipher block that
// stands before src in the stream; nil where src begins at the first block
// after the header.
func (c *Cipher) Decrypt(dst, src, previous []byte) {
	if previous == nil {
		previous = c.iv[:]
	}
	cipher.NewCBCDecrypter(c.block, previous).CryptBlocks(dst, src)
}

// ParseHeader returns the salt of a stream that begins with b, or [ErrHeader].
func ParseHeader(b []byte) (salt [SaltSize]byte, err error) {
	if len(b) < HeaderSize || string(b[:len(magic)]) != magic {
		return salt, ErrHeader
	}
	copy(salt[:], b[len(magic):])
	return salt, nil
}

// Unpad returns b, the decrypted end of a stream in whole blocks, without its
// PKCS#7 padding (RFC 5652, 6.3), or [ErrPadding].
func Unpad(b []byte) ([]byte, error) {
	if len(b) == 0 || len(b)%BlockSize != 0 {
		return nil, ErrPadding
	}
	n := int(b[len(b)-1])
	if n == 0 || n > BlockSize || !bytes.Equal(b[len(b)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, ErrPadding
	}
	return b[:len(b)-n], nil
}

// Writer encrypts what is written to it. It is not safe for concurrent use.
type Writer struct {
	dst  io.Writer
	mode cipher.BlockMode
	salt [SaltSize]byte
	// buf holds what waits for encryption or, while it is handed on, the
	// encrypted blocks; pending bytes of a block not yet full stand at its start.
	buf     []byte
	pending int
	err     error
}

// writerBuffer is how much a [Writer] hands to its destination at once.
const writerBuffer = 64 << 10

// NewWriter writes the header to dst and returns a writer that encrypts to it.
// Close pads and flushes; it leaves dst open. Errors of dst stick.
func NewWriter(dst io.Writer, p Passphrase, o *Options) (*Writer, error) {
	if o == nil {
		o = &Options{}
	}
	w := &Writer{dst: dst, buf: make([]byte, writerBuffer)}
	if o.Salt != nil {
		w.salt = *o.Salt
	} else if _, err := rand.Read(w.salt[:]); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	c := NewCipher(p, w.salt, o.Derivation)
	w.mode = cipher.NewCBCEncrypter(c.block, c.iv[:])
	if _, err := dst.Write(append([]byte(magic), w.salt[:]...)); err != nil {
		return nil, err
	}
	return w, nil
}

// Salt returns the salt of the stream.
func (w *Writer) Salt() [SaltSize]byte { return w.salt }

// Write encrypts p; up to 15 bytes wait for more.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && w.err == nil {
		if w.pending > 0 || len(p) < BlockSize {
			n := copy(w.buf[w.pending:BlockSize], p)
			w.pending += n
			written += n
			p = p[n:]
			if w.pending < BlockSize {
				break
			}
			w.pending = 0
			w.flush(w.buf[:BlockSize])
			continue
		}
		n := min(len(p), len(w.buf)) / BlockSize * BlockSize
		w.flush(p[:n])
		written += n
		p = p[n:]
	}
	return written, w.err
}

// flush encrypts whole blocks into the buffer and hands them on.
func (w *Writer) flush(blocks []byte) {
	out := w.buf[:len(blocks)]
	w.mode.CryptBlocks(out, blocks)
	_, w.err = w.dst.Write(out)
}

// Close writes the padding. A second Close does nothing.
func (w *Writer) Close() error {
	if w.err != nil {
		if w.err == errClosed {
			return nil
		}
		return w.err
	}
	n := BlockSize - w.pending
	for i := w.pending; i < BlockSize; i++ {
		w.buf[i] = byte(n)
	}
	w.pending = 0
	w.flush(w.buf[:BlockSize])
	if w.err != nil {
		return w.err
	}
	w.err = errClosed
	return nil
}

var errClosed = errors.New("write to a closed encrypted stream")

// Reader decrypts a container. It is not safe for concurrent use.
//
// What it returns is not authenticated: damage is noticed at the end at best.
// The end of the stream is io.EOF only where the padding was right, and
// io.ErrUnexpectedEOF where the stream is cut inside a block or before one.
type Reader struct {
	src    io.Reader
	cipher *Cipher
	prev   [BlockSize]byte
	// buf holds ciphertext from the source; plain is the part of out not yet
	// returned. The last block of what was read waits in held, since it may be
	// the padding.
	buf, out []byte
	plain    []byte
	fill     int
	err      error
}

// NewReader reads the header of src and returns a reader of the decrypted
// stream. A src that ends within the header gives [ErrHeader].
func NewReader(src io.Reader, p Passphrase, o *Options) (*Reader, error) {
	if o == nil {
		o = &Options{}
	}
	var header [HeaderSize]byte
	if _, err := readFull(src, header[:]); err != nil {
		if err == io.EOF {
			err = ErrHeader
		}
		return nil, err
	}
	salt, err := ParseHeader(header[:])
	if err != nil {
		return nil, err
	}
	r := &Reader{
		src: src, cipher: NewCipher(p, salt, o.Derivation),
		buf: make([]byte, writerBuffer), out: make([]byte, writerBuffer),
	}
	r.prev = r.cipher.iv
	return r, nil
}

// Read returns decrypted bytes.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.next()
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// next decrypts what the source yields, all but the last whole block, which
// may be the padding.
func (r *Reader) next() {
	n, err := readFull(r.src, r.buf[r.fill:])
	r.fill += n
	switch err {
	case nil:
		keep := BlockSize
		r.decrypt(r.fill - keep)
	case io.EOF:
		if r.fill == 0 || r.fill%BlockSize != 0 {
			r.decrypt(max(0, r.fill/BlockSize-1) * BlockSize)
			r.err = io.ErrUnexpectedEOF
			return
		}
		r.decrypt(r.fill)
		if r.plain, err = Unpad(r.plain); err != nil {
			r.err = err
			return
		}
		r.err = io.EOF
	default:
		r.err = err
	}
}

// readFull reads until buf is full or src fails, with the very error of src:
// io.ReadFull calls the end of src what is also the name of a connection that broke.
func readFull(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = src.Read(buf[n:])
		n += k
	}
	if n == len(buf) {
		err = nil
	}
	return n, err
}

// decrypt decrypts the first n bytes of the buffer and moves the rest to its start.
func (r *Reader) decrypt(n int) {
	r.plain = r.out[:n]
	if n == 0 {
		return
	}
	r.cipher.Decrypt(r.plain, r.buf[:n], r.prev[:])
	copy(r.prev[:], r.buf[n-BlockSize:n])
	r.fill = copy(r.buf, r.buf[n:r.fill])
}

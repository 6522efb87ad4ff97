package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/flate"
)

// A frame is a gzip member (RFC 1952) without name and time, whose extra field
// holds one subfield, DF: the size of the whole member in 4 bytes, little-endian.
// With it a stream is cut into members without decoding any.
const (
	// DefaultFrameSize is the number of plain bytes of a frame.
	DefaultFrameSize = 2 << 20
	// maxFrame bounds both sizes of a frame that a reader takes.
	maxFrame = 64 << 20

	frameHeader  = 20
	frameTrailer = 8
)

var frameStart = [frameHeader]byte{
	0x1f, 0x8b, 8 /* deflate */, 4 /* FEXTRA */, 0, 0, 0, 0, 0, 255, /* unknown system */
	8, 0, 'D', 'F', 4, 0, // XLEN, subfield, its length
}

// compressors of one level, kept since each holds more than a megabyte of tables.
type compressors struct {
	level int
	pool  sync.Pool
}

// frame appends the frame of plain to dst.
func (c *compressors) frame(dst, plain []byte) ([]byte, error) {
	out := &appendWriter{append(dst, frameStart[:]...)}
	start := len(dst)
	w, _ := c.pool.Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriter(out, c.level); err != nil {
			return nil, err
		}
	} else {
		w.Reset(out)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	c.pool.Put(w)
	b := binary.LittleEndian.AppendUint32(out.b, crc32.ChecksumIEEE(plain))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
	binary.LittleEndian.PutUint32(b[start+frameHeader-4:], uint32(len(b)-start))
	return b, nil
}

type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// frameLength returns the size of the frame that begins with header, of
// frameHeader bytes; false where it is another gzip member.
func frameLength(header []byte) (int, bool) {
	if !bytes.Equal(header[:3], frameStart[:3]) || header[3] != 4 ||
		!bytes.Equal(header[10:16], frameStart[10:16]) {
		return 0, false
	}
	return int(binary.LittleEndian.Uint32(header[16:])), true
}

// inflate appends to dst what a whole frame holds.
func inflate(dst, frame []byte) ([]byte, error) {
	n := len(frame)
	size := binary.LittleEndian.Uint32(frame[n-4:])
	if size > maxFrame {
		return nil, fmt.Errorf("a frame claims %d bytes", size)
	}
	start, end := len(dst), len(dst)+int(size)
	if cap(dst)-end < inflateSlack {
		dst = append(make([]byte, 0, end+inflateSlack), dst...)
	}
	// The trailer is what must be readable behind the input.
	if err := inflateRaw(dst[start:end+inflateSlack], frame[frameHeader:]); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(dst[start:end]) != binary.LittleEndian.Uint32(frame[n-8:]) {
		return nil, errors.New("the checksum of a frame is wrong")
	}
	return dst[:end], nil
}

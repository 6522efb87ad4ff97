package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"encdump/crypto"
	"encdump/dump/script"
)

// Digests reads every object of the backup once and compares its digest with
// the metadata, and each segment with .sums. It needs no key: the metadata that
// it compares with may themselves be nobody's word, see Backup.Authenticated.
// Damage comes back as a list of *DamageError; err is why the check could not go on.
// Of o, which may be nil, it heeds Connections and Progress.
func (b *Backup) Digests(ctx context.Context, o *ReadOptions) (damage []error, err error) {
	if o == nil {
		o = &ReadOptions{}
	}
	m := b.Metadata
	if m == nil {
		return nil, b.Problem
	}
	note := func(err error) error {
		var e *DamageError
		if errors.As(err, &e) {
			damage = append(damage, err)
			return nil
		}
		return err
	}
	if m.TOC != nil {
		if err := copyDescribed(ctx, b.bucket, m.TOC, io.Discard); note(err) != nil {
			return damage, err
		}
	}
	sums, err := readDescribed(ctx, b.bucket, &m.Sums.Object)
	if note(err) != nil {
		return damage, err
	}
	s := newStream(b.bucket, m.Parts)
	s.sums = sums // nil where lost
	check := newSegmentChecker(ctx, s, o)
	defer check.cancel()
	for i := range m.Parts {
		if err := check.part(i); note(err) != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return damage, err
		}
	}
	return append(damage, check.damage...), nil
}

// segmentChecker takes parts in order and checks segments across them. They are
// read in pieces, no longer than a segment and each within one part, several at once.
type segmentChecker struct {
	stream   *stream
	progress func(int)
	cancel   context.CancelFunc
	pieces   *ordered[pieceOfPart]
	next     pieceOfPart // taken, but of a later part
	free     *buffers
	failed   []atomic.Bool // parts of which a piece could not be read

	buf    []byte // of the current segment
	lost   bool   // some of it could not be read
	offset int64  // in the stream
	damage []error
}

// pieceOfPart is what was read of a part; data are nil for no piece at all.
type pieceOfPart struct {
	part int
	data []byte
	err  error
}

func newSegmentChecker(ctx context.Context, s *stream, o *ReadOptions) *segmentChecker {
	n := o.connections()
	ctx, cancel := context.WithCancel(ctx)
	c := &segmentChecker{
		stream: s, progress: o.Progress, cancel: cancel, buf: make([]byte, 0, SegmentSize), failed: make([]atomic.Bool, len(s.parts)),
		pieces: newOrdered[pieceOfPart](ctx, n, n+1), free: newBuffers(n+2, int(min(SegmentSize, s.size()))),
	}
	go func() {
		defer c.pieces.close()
		for offset := int64(0); offset < s.size(); {
			i := s.partAt(offset)
			if c.failed[i].Load() {
				offset = s.offsets[i+1]
				continue
			}
			within, n := offset-s.offsets[i], min(SegmentSize-offset%SegmentSize, s.offsets[i+1]-offset)
			buf, err := c.free.get(ctx)
			if err != nil {
				return
			}
			if c.pieces.do(func() (pieceOfPart, error) {
				p := pieceOfPart{part: i, data: buf[:n]}
				if p.err = readRange(ctx, s.bucket, s.parts[i].Name, within, p.data); p.err != nil {
					c.failed[i].Store(true)
				}
				return p, nil
			}) != nil {
				return
			}
			offset += n
		}
	}()
	return c
}

// take returns the next piece of part i, nil data behind the last.
func (c *segmentChecker) take(i int) (pieceOfPart, error) {
	if c.next.data == nil {
		var err error
		if c.next, err = c.pieces.next(); err != nil && err != io.EOF {
			return pieceOfPart{}, err
		}
	}
	if c.next.data == nil || c.next.part != i {
		return pieceOfPart{}, nil
	}
	p := c.next
	c.next = pieceOfPart{}
	return p, nil
}

// part checks a part. Where a piece of it cannot be read, the next part is looked
// at all the same, at its place.
func (c *segmentChecker) part(i int) error {
	digest := sha256.New()
	var failed error
	for {
		p, err := c.take(i)
		if err != nil {
			return err
		}
		if p.data == nil {
			break
		}
		if failed == nil && p.err != nil {
			failed = p.err
			var e *DamageError
			if end := c.stream.offsets[i+1]; errors.As(p.err, &e) {
				failed = damagedRange(c.offset, end-c.offset, e.Object, "%s", e.Reason)
			}
			c.offset = c.stream.offsets[i+1]
			c.buf = c.buf[:c.offset%SegmentSize]
			c.lost = len(c.buf) > 0
		}
		if failed == nil {
			c.add(p.data)
			digest.Write(p.data)
		}
		c.free.put(p.data)
	}
	if failed != nil {
		return failed
	}
	if sum := digest.Sum(nil); hex.EncodeToString(sum) != c.stream.parts[i].SHA256 {
		return damaged(c.stream.parts[i].Name, "changed since it was written: its digest is wrong")
	}
	return nil
}

// add checks the current segment, when it is whole.
func (c *segmentChecker) add(data []byte) {
	c.buf = append(c.buf, data...)
	c.offset += int64(len(data))
	if c.progress != nil {
		c.progress(len(data))
	}
	if len(c.buf) == SegmentSize || c.offset == c.stream.size() {
		if !c.lost {
			if err := c.stream.checkSegment((c.offset-1)/SegmentSize, c.buf); err != nil {
				c.damage = append(c.damage, err)
			}
		}
		c.buf, c.lost = c.buf[:0], false
	}
}

// Lost returns the ranges of plain bytes that damage reaches, in order and apart from each other: those of the frames that need
// a segment of which anything is damaged, since a segment is authenticated as a whole.
func (b *Backup) Lost(toc *TOC, damage []error) []script.Range {
	var out []script.Range
	var at frameAt
	for _, f := range toc.Frames {
		from := int64(crypto.HeaderSize) + at.compressed
		end := (from + int64(f[1]) + crypto.BlockSize - 1) / crypto.BlockSize * crypto.BlockSize
		from = from/crypto.BlockSize*crypto.BlockSize - crypto.BlockSize // a block needs the one before it
		if f[0] > 0 && slices.ContainsFunc(damage, func(err error) bool {
			var e *DamageError
			return errors.As(err, &e) && e.Stored.Length > 0 && int64(e.Stored.Offset)/SegmentSize*SegmentSize < end && (e.Stored.End()+SegmentSize-1)/SegmentSize*SegmentSize > from
		}) {
			if n := len(out); n > 0 && out[n-1].End() == at.plain {
				out[n-1].Length += script.Number(f[0])
			} else {
				out = append(out, script.Range{Offset: script.Number(at.plain), Length: script.Number(f[0])})
			}
		}
		at.plain += int64(f[0])
		at.compressed += int64(f[1])
	}
	return out
}

// TOC reads the index of the backup, which must be authenticated; nil where it has none.
func (b *Backup) TOC(ctx context.Context) (*TOC, error) {
	if err := b.Usable(false); err != nil {
		return nil, err
	}
	return b.toc(ctx)
}

// toc is TOC of a backup whose MAC was right, signed or not.
func (b *Backup) toc(ctx context.Context) (*TOC, error) {
	if b.Metadata.TOC == nil {
		return nil, nil
	}
	text, err := readDescribed(ctx, b.bucket, b.Metadata.TOC)
	if err != nil {
		return nil, err
	}
	return parseTOC(b.ID, text, b.key.Passphrase(), b.Metadata.Encryption.Derivation())
}

// Probe looks at a backup before much depends on it: all parts must be there in their sizes, and the first and the
// last frame must decode, from segments with the right digests.
func (b *Backup) Probe(ctx context.Context, toc *TOC, o *ReadOptions) error {
	ranges, err := b.Ranges(ctx, toc, o)
	if err != nil {
		return err
	}
	end := b.Metadata.Sizes.Plain
	if end == 0 {
		return nil
	}
	for _, at := range []int64{0, end - 1} {
		r, err := ranges.Open(ctx, at, 1)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Decode decodes the whole backup and throws it away, which proves that it can
// be read, and compares the index with the metadata. It returns the number of
// plain bytes.
func (b *Backup) Decode(ctx context.Context, o *ReadOptions) (int64, error) {
	r, err := b.Reader(ctx, o)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err != nil || b.key == nil {
		return n, err
	}
	toc, err := b.toc(ctx)
	if err != nil || toc == nil {
		return n, err
	}
	var plain, compressed int64
	for _, f := range toc.Frames {
		plain += int64(f[0])
		compressed += int64(f[1])
	}
	if sizes := b.Metadata.Sizes; plain != sizes.Plain || compressed != sizes.Compressed {
		return n, damaged(b.Metadata.TOC.Name, "its frames do not add up to the stream")
	}
	return n, nil
}

package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
)

// Digests reads every object of the backup once and compares its digest with
// the metadata, and each segment with .sums. It needs no key: the metadata that
// it compares with may themselves be nobody's word, see Backup.Authenticated.
// Damage comes back as a list of *DamageError; err is why the check could not go on.
// progress, which may be nil, is told of stored bytes.
func (b *Backup) Digests(ctx context.Context, progress func(n int)) (damage []error, err error) {
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
		if _, err := readDescribed(ctx, b.bucket, m.TOC); note(err) != nil {
			return damage, err
		}
	}
	sums, err := readDescribed(ctx, b.bucket, &m.Sums.Object)
	if note(err) != nil {
		return damage, err
	}
	s := newStream(b.bucket, m.Parts)
	s.sums = sums // nil where lost
	check := &segmentChecker{stream: s, progress: progress, buf: make([]byte, 0, SegmentSize)}
	for _, p := range m.Parts {
		if err := check.part(ctx, p); note(err) != nil {
			return damage, err
		}
	}
	return append(damage, check.damage...), nil
}

// segmentChecker reads parts in order and checks segments across them.
type segmentChecker struct {
	stream   *stream
	progress func(int)
	buf      []byte // of the current segment
	lost     bool   // some of it could not be read
	offset   int64  // in the stream
	damage   []error
}

func (c *segmentChecker) part(ctx context.Context, p Part) error {
	digest := sha256.New()
	start, end := c.offset, c.offset+p.Size
	for c.offset < end {
		n := min(int64(SegmentSize-len(c.buf)), end-c.offset)
		piece := c.buf[len(c.buf) : int64(len(c.buf))+n]
		err := readRange(ctx, c.stream.bucket, p.Name, c.offset-start, piece)
		if err != nil {
			// The next part is looked at all the same, at its place.
			c.offset, c.lost = end, true
			c.buf = c.buf[:end%SegmentSize]
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		digest.Write(piece)
		c.buf = c.buf[:int64(len(c.buf))+n]
		c.offset += n
		if c.progress != nil {
			c.progress(int(n))
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
	if sum := digest.Sum(nil); hex.EncodeToString(sum) != p.SHA256 {
		return damaged(p.Name, "changed since it was written: its digest is wrong")
	}
	return nil
}

// TOC reads the index of the backup, which must be authenticated; nil where it has none.
func (b *Backup) TOC(ctx context.Context) (*TOC, error) {
	if err := b.Usable(false); err != nil {
		return nil, err
	}
	if b.Metadata.TOC == nil {
		return nil, nil
	}
	text, err := readDescribed(ctx, b.bucket, b.Metadata.TOC)
	if err != nil {
		return nil, err
	}
	return parseTOC(b.ID, text, b.key.Passphrase(), b.Metadata.Encryption.Derivation())
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
	if err != nil || !b.Authenticated {
		return n, err
	}
	toc, err := b.TOC(ctx)
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

package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"

	"encdump/crypto"
	"encdump/dump/script"
	"encdump/storage"
)

// ReadOptions says how a backup is read. nil stands for the zero value.
type ReadOptions struct {
	// Jobs is the number of segments and of frames decoded at once; 0 stands for 1.
	Jobs int
	// Connections is the number of segments fetched at once, each into 4 MiB of
	// memory; 0 is [DefaultConnections].
	Connections int
	// AllowUnauthenticated releases what nothing vouches for: foreign backups, those
	// that want a signature, see [Catalog.Trust], and ours where .sums is lost.
	AllowUnauthenticated bool
	// SkipDamaged has ranges read though other parts of the stream are missing. What is released
	// is authenticated all the same.
	SkipDamaged bool
	// Derivation of a foreign backup; nil tries those in use.
	Derivation *crypto.Derivation
	// Progress is told of stored bytes as they are read; nil is silent.
	Progress func(n int)
}

// DefaultConnections is the number of segments fetched at once: enough to hide
// the way to a far store, whatever the number of processors.
const DefaultConnections = 8

func (o *ReadOptions) connections() int {
	if o.Connections > 0 {
		return o.Connections
	}
	return DefaultConnections
}

// StoredSize returns the size of the stored stream in bytes.
func (b *Backup) StoredSize() int64 {
	var n int64
	for _, p := range b.Parts {
		n += p.Size
	}
	return n
}

// Usable returns why nothing of the backup may be released; nil if it may.
func (b *Backup) Usable(allowUnauthenticated bool) error {
	switch {
	case b.Status == Foreign && allowUnauthenticated:
		return b.checkForeignParts()
	case b.Status == Complete && (b.Authenticated || b.key != nil && allowUnauthenticated):
		return nil
	case b.Problem != nil:
		return b.Problem
	}
	return ErrNoKey
}

// Reader returns the SQL of the backup, all of it. Before anything is read all parts are
// looked for; after that a segment's plain text is released only when its digest
// and those of all before it were right. io.EOF comes only after the whole
// stream was decoded and as long as it should be. The caller closes the reader,
// which frees whatever is under way; ctx ends it too.
func (b *Backup) Reader(ctx context.Context, o *ReadOptions) (io.ReadCloser, error) {
	d, err := b.decoder(ctx, o)
	if err != nil {
		return nil, err
	}
	d.last = segments(d.stream.size()) - 1
	if b.key != nil {
		d.size = b.Metadata.Sizes.Plain
	}
	d.start(ctx)
	return d, nil
}

// Ranges reads ranges of the SQL of an authenticated backup by its toc.
type Ranges struct {
	template *decoder
	frames   []frameAt
}

// frameAt is where a frame begins in the plain and in the compressed stream; the
// last of a list is the end of both.
type frameAt struct{ plain, compressed int64 }

// Ranges returns a reader of ranges. What goes before the reading of a whole
// backup goes before this too.
func (b *Backup) Ranges(ctx context.Context, toc *TOC, o *ReadOptions) (*Ranges, error) {
	if !b.Authenticated {
		return nil, b.Usable(false)
	}
	d, err := b.decoder(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &Ranges{d, make([]frameAt, 1, len(toc.Frames)+1)}
	var at frameAt
	for _, f := range toc.Frames {
		at.plain += int64(f[0])
		at.compressed += int64(f[1])
		r.frames = append(r.frames, at)
	}
	if sizes := b.Metadata.Sizes; at.plain != sizes.Plain || at.compressed != sizes.Compressed {
		return nil, damaged(b.Metadata.TOC.Name, "its frames do not add up to the stream")
	}
	return r, nil
}

// Share returns a reader of ranges for one of several at once, as many as there are jobs.
func (r *Ranges) Share() *Ranges {
	d := *r.template
	d.connections, d.jobs = max(d.connections/d.jobs, 2), 1
	return &Ranges{&d, r.frames}
}

// frame returns the frame that holds a plain offset: the last that begins at or
// before it.
func (r *Ranges) frame(plain int64) int {
	return sort.Search(len(r.frames), func(i int) bool { return r.frames[i].plain > plain }) - 1
}

// from returns where in the stored stream the first cipher block of a frame
// begins, and how much of that comes before the frame.
func (r *Ranges) from(frame int) (from, skip int64) {
	at := int64(crypto.HeaderSize) + r.frames[frame].compressed
	skip = at % int64(crypto.BlockSize)
	return at - skip, skip
}

// segments returns the first and the last segment that frames need.
func (r *Ranges) segments(first, last int) (from, to int64) {
	at, _ := r.from(first)
	return max(at-int64(crypto.BlockSize), 0) / SegmentSize, (int64(crypto.HeaderSize) + r.frames[last+1].compressed - 1) / SegmentSize
}

// Join tells whether two ranges, which are not empty, are better read at once:
// the second begins in the segment that the first ends in, or in the next one,
// so that no other is read for what lies between them.
func (r *Ranges) Join(a, b script.Range) bool {
	_, last := r.segments(r.frame(int64(a.Offset)), r.frame(a.End()-1))
	first, _ := r.segments(r.frame(int64(b.Offset)), r.frame(b.End()-1))
	return a.End() <= int64(b.Offset) && first <= last+1
}

// Open returns the plain bytes of a range. Only the segments are read that hold
// its frames, and the one before where the first cipher block of these is the
// first of its segment; each is checked before anything of it is released. The
// caller closes the reader; ctx ends it too.
func (r *Ranges) Open(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	end := offset + length
	if offset < 0 || length < 0 || end < offset || end > r.frames[len(r.frames)-1].plain {
		return nil, fmt.Errorf("bytes %d to %d are not all in the dump", offset, end)
	}
	if length == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	first, last := r.frame(offset), r.frame(end-1)
	d := *r.template
	d.from, d.skip = r.from(first)
	d.first, d.last = r.segments(first, last)
	d.frameCount = last - first + 1
	d.trim = offset - r.frames[first].plain
	d.size = length
	d.start(ctx)
	return &d, nil
}

// decoder makes the decoder of the backup's stream, not started yet, after what
// must be right before anything is read.
func (b *Backup) decoder(ctx context.Context, o *ReadOptions) (*decoder, error) {
	if o == nil {
		o = &ReadOptions{}
	}
	if err := b.Usable(o.AllowUnauthenticated); err != nil {
		return nil, err
	}
	s := newStream(b.bucket, b.Parts)
	d := &decoder{
		stream: s, name: b.ID.String(), progress: o.Progress, size: -1, jobs: max(o.Jobs, 1), connections: o.connections(),
		from: int64(crypto.HeaderSize), frameCount: -1,
	}
	if b.key != nil {
		if damage := b.CheckObjects(); len(damage) > 0 && !o.SkipDamaged {
			if err := fatal(damage, b.Metadata, o); err != nil {
				return nil, err
			}
		}
		sums, err := readDescribed(ctx, b.bucket, &b.Metadata.Sums.Object)
		if err != nil {
			if !o.AllowUnauthenticated {
				return nil, err
			}
			b.log.Warn("the digests are lost, so the content is not authenticated", "err", err)
			sums = nil
		}
		s.sums = sums
		salt, _ := hex.DecodeString(b.Metadata.Encryption.Salt) // checked
		copy(s.salt[:], salt)
		d.cipher = crypto.NewCipher(b.key.Passphrase(), s.salt, b.Metadata.Encryption.Derivation())
	} else {
		var err error
		if d.cipher, err = b.guess(ctx, s, o.Derivation); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// fatal returns the first damage that forbids reading: a lost toc does not, and
// lost sums do not where the operator said so.
func fatal(damage []error, m *Metadata, o *ReadOptions) error {
	for _, err := range damage {
		var e *DamageError
		if errors.As(err, &e) && (m.TOC != nil && e.Object == m.TOC.Name || e.Object == m.Sums.Name) {
			continue // not needed here, or looked at more closely
		}
		return err
	}
	return nil
}

// stream is the stored stream across its parts.
type stream struct {
	bucket  storage.Bucket
	parts   []Part
	offsets []int64 // of each part, and the end
	salt    [crypto.SaltSize]byte
	sums    []byte // nil: nothing vouches for the stream
}

func newStream(bucket storage.Bucket, parts []Part) *stream {
	s := &stream{bucket: bucket, parts: parts, offsets: make([]int64, 1, len(parts)+1)}
	for _, p := range parts {
		s.offsets = append(s.offsets, s.size()+p.Size)
	}
	return s
}

func (s *stream) size() int64 { return s.offsets[len(s.offsets)-1] }

// partAt returns the index of the part that holds that offset.
func (s *stream) partAt(offset int64) int {
	return sort.Search(len(s.parts), func(i int) bool { return s.offsets[i+1] > offset })
}

// readAt fills buf from the stream.
func (s *stream) readAt(ctx context.Context, buf []byte, offset int64) error {
	for len(buf) > 0 {
		i := s.partAt(offset)
		within := offset - s.offsets[i]
		n := min(int64(len(buf)), s.parts[i].Size-within)
		if err := readRange(ctx, s.bucket, s.parts[i].Name, within, buf[:n]); err != nil {
			return err
		}
		buf = buf[n:]
		offset += n
	}
	return nil
}

func readRange(ctx context.Context, bucket storage.Bucket, name string, offset int64, buf []byte) error {
	r, err := bucket.Open(ctx, name, offset, int64(len(buf)))
	if errors.Is(err, storage.ErrNotFound) {
		return damaged(name, "missing")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if n, err := io.ReadFull(r, buf); err == io.EOF || err == io.ErrUnexpectedEOF {
		return damaged(name, "ends after %d bytes", offset+int64(n))
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// where names the objects that hold a range of the stream.
func (s *stream) where(offset, length int64) string {
	first, last := s.partAt(offset), s.partAt(offset+length-1)
	if first == last {
		return s.parts[first].Name
	}
	return s.parts[first].Name + " to " + s.parts[last].Name
}

// checkSegment compares a segment with its digest.
func (s *stream) checkSegment(i int64, data []byte) error {
	if s.sums == nil {
		return nil
	}
	sum := sha256.Sum256(data)
	if !bytes.Equal(sum[:], s.sums[i*sha256.Size:(i+1)*sha256.Size]) {
		offset := i * SegmentSize
		object := s.where(offset, int64(len(data)))
		return damagedRange(offset, int64(len(data)), object,
			"changed since it was written: the digest of segment %d, bytes %d to %d of the stream, is wrong", i, offset, offset+int64(len(data))-1)
	}
	return nil
}

// guess finds the derivation and the key of a foreign stream: right are those
// under which its start is a gzip header that inflates to text.
func (b *Backup) guess(ctx context.Context, s *stream, d *crypto.Derivation) (*crypto.Cipher, error) {
	if len(b.keys.Passphrases()) == 0 {
		return nil, ErrNoKey
	}
	start := make([]byte, min(64<<10, s.size()))
	if err := s.readAt(ctx, start, 0); err != nil {
		return nil, err
	}
	salt, err := crypto.ParseHeader(start)
	if err != nil {
		return nil, &DamageError{Object: s.parts[0].Name, Reason: "wrong start", Err: err}
	}
	s.salt = salt
	try := []crypto.Derivation{crypto.MD5, crypto.SHA256, crypto.NewPBKDF2(crypto.OpenSSLIterations)}
	if d != nil {
		try = []crypto.Derivation{*d}
	}
	start = start[crypto.HeaderSize:]
	start = start[:len(start)/crypto.BlockSize*crypto.BlockSize]
	plain := make([]byte, len(start))
	var given []string
	for _, k := range b.keys.Passphrases() {
		for _, d := range try {
			c := crypto.NewCipher(k.Passphrase(), salt, d)
			c.Decrypt(plain, start, nil)
			if looksLikeDump(plain) {
				b.log.Debug("derivation found", "kdf", d.String(), "key", k.Source)
				return c, nil
			}
		}
		given = append(given, k.ID())
	}
	return nil, &WrongKeyError{Object: b.ID.String(), Given: given}
}

// looksLikeDump tells whether b begins with a gzip header and inflates to text.
// Its end, which may be cut or damaged, does not matter.
func looksLikeDump(b []byte) bool {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return false
	}
	text := make([]byte, 512)
	n, err := io.ReadFull(z, text)
	return bytes.IndexByte(text[:n], 0) < 0 && (n > 0 || err == io.EOF)
}

// decoder is a backup's reader: segments are fetched, checked and decrypted, and
// frames inflated, each in parallel and handed on in order.
type decoder struct {
	connections int           // segments being fetched at once
	processors  chan struct{} // holds one for each segment being checked or decrypted
	ctx         context.Context
	cancel      context.CancelCauseFunc
	stream      *stream
	cipher      *crypto.Cipher
	name        string
	progress    func(int)
	jobs        int
	size        int64 // plain bytes that there should be; -1: not known

	// What is read of the stream: segments first to last, decrypted from the block
	// at offset from on; of that skip bytes are passed over, then frameCount frames
	// inflated, or all for -1, and of these trim bytes passed over.
	first, last int64
	from, skip  int64
	frameCount  int
	trim        int64

	segments *buffers
	zipped   *buffers
	plain    *buffers
	fetch    *ordered[segment]
	frames   *ordered[[]byte]

	buf, rest []byte // the frame being read, and what is left of it
	offset    int64
	err       error
}

// segment of the compressed stream. err, where set, follows after the data.
type segment struct {
	buf, data []byte
	err       error
}

// tail is the last cipher block of a segment, which the next one needs. It is
// there when done is closed.
type tail struct {
	done  chan struct{}
	block [crypto.BlockSize]byte
}

func (d *decoder) start(ctx context.Context) {
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	jobs := d.jobs
	d.processors = make(chan struct{}, jobs)
	d.segments = newBuffers(d.connections+2, int(min(SegmentSize, d.stream.size())))
	d.zipped = newBuffers(jobs+2, 0)
	d.plain = newBuffers(jobs+2, 0)
	d.fetch = newOrdered[segment](d.ctx, d.connections, d.connections+1)
	d.frames = newOrdered[[]byte](d.ctx, jobs, jobs+1)
	go d.fetchAll()
	go func() {
		defer d.frames.close()
		if err := d.split(&compressed{d: d}); err != nil {
			d.frames.do(func() ([]byte, error) { return nil, err })
		}
	}()
}

// fetchAll has the segments fetched, checked and decrypted.
func (d *decoder) fetchAll() {
	defer d.fetch.close()
	var before *tail
	size := d.stream.size()
	for i := d.first; i <= d.last; i++ {
		buf, err := d.segments.get(d.ctx)
		if err != nil {
			return
		}
		buf = buf[:min(SegmentSize, size-i*SegmentSize)]
		previous, own := before, &tail{done: make(chan struct{})}
		before = own
		if d.fetch.do(func() (segment, error) { return d.segment(i, buf, previous, own) }) != nil {
			return
		}
	}
}

// segment fetches, checks and decrypts segment i in place. The block before it
// is the previous job's, which has been checked: it is not read a second time,
// when the store might answer with another one.
func (d *decoder) segment(i int64, buf []byte, previous, own *tail) (segment, error) {
	err := d.stream.readAt(d.ctx, buf, i*SegmentSize)
	if err == nil {
		d.processors <- struct{}{}
		err = d.stream.checkSegment(i, buf)
		<-d.processors
	}
	if err != nil {
		close(own.done) // whoever waits is never handed on, since this error comes first
		return segment{}, err
	}
	whole := len(buf) / crypto.BlockSize * crypto.BlockSize
	if whole > 0 {
		copy(own.block[:], buf[whole-crypto.BlockSize:whole])
	}
	close(own.done)
	if d.progress != nil {
		d.progress(len(buf))
	}

	data := buf[:whole]
	if i == 0 {
		if salt, err := crypto.ParseHeader(buf); err != nil || salt != d.stream.salt {
			return segment{}, damaged(d.stream.parts[0].Name, "does not begin with the salt of this backup")
		}
	}
	if previous == nil {
		// The block before is in this segment, unless it is the stream's first.
		start := d.from - i*SegmentSize
		data = data[start:]
		var before []byte
		if d.from > int64(crypto.HeaderSize) {
			before = bytes.Clone(buf[start-crypto.BlockSize : start])
		}
		d.decrypt(data, before)
	} else {
		select {
		case <-previous.done:
		case <-d.ctx.Done():
			return segment{}, context.Cause(d.ctx)
		}
		d.decrypt(data, previous.block[:])
	}
	s := segment{buf: buf, data: data}
	if i == segments(d.stream.size())-1 {
		last := d.stream.parts[len(d.stream.parts)-1].Name
		if whole < len(buf) {
			s.err = &DamageError{Object: last, Reason: "cut short", Err: io.ErrUnexpectedEOF}
		} else if len(data) == 0 && i == 0 {
			s.err = &DamageError{Object: last, Reason: "cut short", Err: io.ErrUnexpectedEOF}
		} else if unpadded, err := crypto.Unpad(data); err != nil {
			s.err = &DamageError{Object: last, Reason: "cut short or damaged", Err: err}
		} else {
			s.data = unpadded
		}
	}
	return s, nil
}

// decrypt works in place. Nothing that holds a processor waits for another job.
func (d *decoder) decrypt(data, before []byte) {
	d.processors <- struct{}{}
	d.cipher.Decrypt(data, data, before)
	<-d.processors
}

// compressed is the decrypted stream in order.
type compressed struct {
	d   *decoder
	cur segment
}

func (c *compressed) Read(p []byte) (int, error) {
	for len(c.cur.data) == 0 {
		if c.cur.err != nil {
			return 0, c.cur.err
		}
		if c.cur.buf != nil {
			c.d.segments.put(c.cur.buf)
		}
		var err error
		if c.cur, err = c.d.fetch.next(); err != nil {
			c.cur.err = err
			return 0, err
		}
	}
	n := copy(p, c.cur.data)
	c.cur.data = c.cur.data[n:]
	return n, nil
}

// split cuts the stream into frames and has them inflated. From a member that
// is no frame on, all is inflated in one go.
func (d *decoder) split(src io.Reader) error {
	r := bufio.NewReaderSize(src, 64<<10)
	if _, err := r.Discard(int(d.skip)); err != nil {
		return err
	}
	for done := 0; done != d.frameCount; done++ {
		header, err := r.Peek(frameHeader)
		if len(header) == 0 && err == io.EOF {
			if done == 0 || d.frameCount > 0 {
				return damaged(d.name, "holds no gzip stream, or less of it than its index says")
			}
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		n, ok := 0, false
		if len(header) == frameHeader {
			n, ok = frameLength(header)
		}
		if !ok {
			return d.inflateRest(r, done > 0)
		}
		if n < frameHeader+frameTrailer || n > maxFrame {
			return damaged(d.name, "a frame claims %d compressed bytes", n)
		}
		buf, err := d.zipped.get(d.ctx)
		if err != nil {
			return err
		}
		if cap(buf) < n {
			buf = make([]byte, 0, n+n/8) // the next ones are of about that size
		}
		buf = buf[:n]
		if _, err := io.ReadFull(r, buf); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return damaged(d.name, "cut short within a frame")
			}
			return err
		}
		out, err := d.plain.get(d.ctx)
		if err != nil {
			return err
		}
		err = d.frames.do(func() ([]byte, error) {
			out, err := inflate(out, buf)
			d.zipped.put(buf)
			if err != nil {
				return nil, &DamageError{Object: d.name, Reason: "damaged frame", Err: err}
			}
			return out, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inflateRest inflates what other programs compressed, one member after the
// other. behind says that others came before.
func (d *decoder) inflateRest(r *bufio.Reader, behind bool) error {
	fail := func(err error) error {
		var e *DamageError
		if errors.As(err, &e) || d.ctx.Err() != nil {
			return err
		}
		return &DamageError{Object: d.name, Reason: "not valid gzip", Err: err}
	}
	var z *pgzip.Reader
	for ; ; behind = true {
		if behind {
			if ended, err := d.ended(r); err != nil {
				return fail(err)
			} else if ended {
				return nil
			}
		}
		var err error
		if z == nil {
			if z, err = pgzip.NewReaderN(r, 1<<20, 4); err == nil {
				defer z.Close()
			}
		} else {
			err = z.Reset(r)
		}
		if err != nil {
			return fail(err)
		}
		z.Multistream(false) // what follows is looked at first
		if err := d.inflateMember(z); err != nil {
			return fail(err)
		}
	}
}

// ended tells whether nothing comes behind a member. As gunzip does, it passes
// over zero bytes at the end of what another program made, as tapes and blocks
// of a fixed size leave them.
func (d *decoder) ended(r *bufio.Reader) (bool, error) {
	next, err := r.Peek(1)
	if err == io.EOF {
		return true, nil
	}
	if err != nil || next[0] != 0 || d.size >= 0 {
		return false, err
	}
	for {
		switch c, err := r.ReadByte(); {
		case err == io.EOF:
			return true, nil
		case err != nil:
			return false, err
		case c != 0:
			return false, damaged(d.name, "holds other bytes behind its gzip stream")
		}
	}
}

// inflateMember inflates one gzip member.
func (d *decoder) inflateMember(z *pgzip.Reader) error {
	for {
		buf, err := d.plain.get(d.ctx)
		if err != nil {
			return err
		}
		if cap(buf) == 0 {
			buf = make([]byte, 0, 1<<20)
		}
		n, readErr := io.ReadFull(z, buf[:cap(buf)])
		if n == 0 {
			d.plain.put(buf)
		} else if err := d.frames.do(func() ([]byte, error) { return buf[:n], nil }); err != nil {
			return err
		}
		switch {
		case readErr == io.EOF || readErr == io.ErrUnexpectedEOF && n > 0 && n < cap(buf):
			// io.ReadFull says the same of a stream that ended and of one that was
			// cut; the reader itself tells them apart when it is asked again.
			var more [1]byte
			if _, err := z.Read(more[:]); err != io.EOF {
				return err
			}
			return nil
		case readErr != nil:
			return readErr
		}
	}
}

// next gets the next frame that is not empty.
func (d *decoder) next() error {
	for len(d.rest) == 0 {
		if d.err != nil {
			return d.err
		}
		if d.buf != nil {
			d.plain.put(d.buf)
			d.buf = nil
		}
		buf, err := d.frames.next()
		if err == io.EOF && d.size >= 0 && d.offset != d.size {
			err = damaged(d.name, "has %d plain bytes, %d were written", d.offset, d.size)
		}
		if err != nil {
			d.err = err
			continue
		}
		d.buf, d.rest = buf, buf
		if d.frameCount >= 0 { // a range, whose first and last frame hold more
			n := min(d.trim, int64(len(buf)))
			d.trim -= n
			d.rest = buf[n:]
			d.rest = d.rest[:min(int64(len(d.rest)), d.size-d.offset)]
		}
		d.offset += int64(len(d.rest))
		if d.size >= 0 && d.offset > d.size {
			d.rest = nil
			d.err = damaged(d.name, "has more than the %d plain bytes that were written", d.size)
		}
	}
	return nil
}

func (d *decoder) Read(p []byte) (int, error) {
	if err := d.next(); err != nil {
		return 0, err
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// WriteTo spares a copy.
func (d *decoder) WriteTo(w io.Writer) (written int64, err error) {
	for {
		if err := d.next(); err == io.EOF {
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := w.Write(d.rest)
		written += int64(n)
		d.rest = d.rest[n:]
		if err != nil {
			return written, err
		}
	}
}

// Close frees what is under way. It is safe to call more than once.
func (d *decoder) Close() error {
	d.cancel(errors.New("read from a closed backup"))
	return nil
}

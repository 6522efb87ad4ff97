package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"encdump/crypto"
	"encdump/storage"
)

const (
	// DefaultPartSize is the size of a part in bytes, where a store does not
	// prefer whole objects.
	DefaultPartSize = 1_000_000_000
	// WholeObject as a part size stores the stream as one object.
	WholeObject = -1
	// DefaultLevel of compression, chosen by measurement: of all levels that
	// make no larger dumps than gzip -6 the one that costs least.
	DefaultLevel = 2
	// DefaultStallTimeout is how long a destination may take nothing.
	DefaultStallTimeout = 15 * time.Minute
	// SegmentSize is the number of stored bytes of which .sums holds one digest.
	SegmentSize = 4 << 20

	maxTries    = 20 // at an ID that is free in all destinations
	chunkSize   = 1 << 20
	chunkQueue  = 4               // chunks that wait for a destination
	cleanupTime = 2 * time.Minute // for removing what a failed backup left
)

// segments returns the number of segments of a stored stream of n bytes.
func segments(n int64) int64 { return (n + SegmentSize - 1) / SegmentSize }

// WriterOptions says how a backup is made. GUID and either Key or Recipients are
// needed, the rest has defaults.
type WriterOptions struct {
	GUID string
	Key  *crypto.Key
	// Recipients of a sealed backup, which gets a key of its own that only they can
	// open; at most MaxRecipients, of whom doubles count once.
	Recipients []*crypto.Recipient
	// Sign makes <backup-id>.sig; nil: nobody signs.
	Sign *crypto.SigningKey
	// Derivation of the key; the zero value stands for [crypto.MD5].
	Derivation crypto.Derivation
	// Level of compression, 1 to 9; 0 is [DefaultLevel].
	Level int
	// PartSize in bytes, or [WholeObject] for one object. 0 leaves it to each
	// store: one object where it is a storage.Wholer that prefers that, else
	// parts of [DefaultPartSize].
	PartSize int64
	// FrameSize in plain bytes; 0 is [DefaultFrameSize].
	FrameSize int
	// Jobs is the number of frames compressed at once; 0 stands for 1.
	Jobs int
	// AllowPartial takes a stream that does not end as a whole dump does; the
	// backup's kind is then [KindPartial].
	AllowPartial bool
	// Settings go into the toc.
	Settings map[string]string
	// StallTimeout is how long a destination may take nothing before it is given
	// up. It must be longer than the store tries a request again. 0 is [DefaultStallTimeout].
	StallTimeout time.Duration
	// TriggeredAt gives the backup its timestamp; zero is now.
	TriggeredAt time.Time
	// Progress is told of plain bytes as they are compressed; nil is silent.
	Progress func(n int)
	// Logger; nil discards.
	Logger *slog.Logger

	defaultPartSize int64 // for tests, in place of [DefaultPartSize]
}

// Destination is one bucket that a backup is written to, and how that went.
type Destination struct {
	Bucket storage.Bucket
	// Err is why the destination was given up; nil while it is well. It is
	// set when Commit or Abort has returned.
	Err error

	layout int // of its objects, an index of storer.layouts
	ctx    context.Context
	cancel context.CancelCauseFunc
	marked bool // its marker is ours, and so is all that has the ID there
	queue  chan *chunk
	done   chan struct{} // closed when the goroutine has ended
	failed chan struct{} // closed when it was given up
	taken  atomic.Int64  // chunks
}

// Writer makes a backup: SQL is written to it, then Commit or Abort called.
// Write and ReadFrom are for one goroutine; Abort may be called from another.
type Writer struct {
	// Metadata of the backup. The caller completes Name, Previous, Replaces,
	// Tool and Source before Commit, and may set StartedAt and FinishedAt; the rest is the writer's. Where destinations
	// differ in their parts, it is in the end that of the first which has the backup.
	Metadata Metadata

	id     ID
	o      WriterOptions
	dst    []*Destination
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc

	plain   *buffers
	zipped  *buffers
	frame   []byte // plain bytes of the frame being filled
	ordered *ordered[frame]
	comp    *compressors
	scan    *scan
	closed  bool
	ended   atomic.Bool // Commit or Abort was called

	store storer
	wg    sync.WaitGroup // the goroutine that stores
}

// frame is a compressed frame on its way.
type frame struct {
	data  []byte
	plain int
}

// NewWriter begins a backup in every destination: it finds an ID that is free
// in all and creates the marker <backup-id>.incomplete. It fails where no
// destination takes it; one of several that does not is given up. The context
// bounds the whole writing, not only this call.
func NewWriter(ctx context.Context, dst []storage.Bucket, o *WriterOptions) (*Writer, error) {
	w := &Writer{o: *o, log: o.Logger}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	recipients, err := w.o.seal()
	if err != nil {
		return nil, err
	}
	if err := w.o.setDefaults(); err != nil {
		return nil, err
	}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	for _, b := range dst {
		d := &Destination{
			Bucket: b, queue: make(chan *chunk, chunkQueue),
			done: make(chan struct{}), failed: make(chan struct{}),
		}
		d.ctx, d.cancel = context.WithCancelCause(w.ctx)
		w.dst = append(w.dst, d)
	}
	if err := w.mark(); err != nil {
		w.cancel(err)
		w.removeMarkers()
		return nil, err
	}

	var salted bytes.Buffer
	enc, err := crypto.NewWriter(&salted, w.o.Key.Passphrase(), &crypto.Options{Derivation: w.o.Derivation})
	if err != nil {
		w.cancel(err)
		return nil, err
	}
	salt := enc.Salt()
	w.store = storer{w: w, layouts: w.layOut(), segmentHash: sha256.New(), chunks: newBuffers(2+chunkQueue*2, chunkSize)}
	// The header alone may be more parts than a queue holds.
	for _, d := range w.dst {
		go w.run(d)
	}
	if w.store.enc, err = crypto.NewWriter(&w.store, w.o.Key.Passphrase(), &crypto.Options{Derivation: w.o.Derivation, Salt: &salt}); err != nil {
		w.cancel(err)
		return nil, err
	}

	w.Metadata = Metadata{
		Version: Version, BackupID: w.id.String(), BackupGUID: w.id.GUID,
		TriggeredAt: stamp(w.o.TriggeredAt), StartedAt: stamp(time.Now()), Status: statusDone,
		Compression: Compression{gzipAlgorithm, w.o.Level, w.o.FrameSize},
		Encryption: Encryption{
			Cipher: aesCipher, KDF: w.o.Derivation.KDF, Digest: w.o.Derivation.Digest,
			Iterations: w.o.Derivation.Iterations, Salt: hex.EncodeToString(salt[:]),
			Recipients: recipients,
		},
	}

	// The key ID is slow to come by, and not needed before the end.
	go w.o.Key.ID()

	ahead := w.o.Jobs + 2
	w.plain = newBuffers(w.o.Jobs+6, w.o.FrameSize)
	w.zipped = newBuffers(ahead+1, w.o.FrameSize/2)
	w.comp = &compressors{level: w.o.Level}
	w.scan = newScan()
	w.ordered = newOrdered[frame](w.ctx, w.o.Jobs, ahead)
	w.wg.Go(w.storeFrames)
	return w, nil
}

// seal makes the key of a sealed backup, which nothing but the writer and what
// it returns for the metadata ever has.
func (o *WriterOptions) seal() ([]Recipient, error) {
	if len(o.Recipients) == 0 {
		return nil, nil
	}
	if o.Key != nil {
		return nil, errors.New("a sealed backup has a key of its own, and one is given")
	}
	o.Key = crypto.NewSealedKey()
	var out []Recipient
	for _, r := range o.Recipients {
		if slices.ContainsFunc(out, func(other Recipient) bool { return other.ID == r.ID }) {
			continue
		}
		sealed, err := r.Seal(o.Key)
		if err != nil {
			return nil, fmt.Errorf("sealing to %s: %w", r.Source, err)
		}
		out = append(out, Recipient{r.ID, base64.StdEncoding.EncodeToString(sealed)})
	}
	if len(out) > MaxRecipients {
		return nil, fmt.Errorf("%d recipients, %d at most are allowed", len(out), MaxRecipients)
	}
	return out, nil
}

func (o *WriterOptions) setDefaults() error {
	if !ValidGUID(o.GUID) {
		return fmt.Errorf("%q is not a GUID in lower case", o.GUID)
	}
	if o.Derivation == (crypto.Derivation{}) {
		o.Derivation = crypto.MD5
	}
	if err := o.Derivation.Check(); err != nil {
		return err
	}
	if err := o.Key.Passphrase().CheckNew(o.Derivation); err != nil {
		return fmt.Errorf("%s: %w", o.Key.Source, err)
	}
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.Level < 1 || o.Level > 9 {
		return fmt.Errorf("compression level %d is not within 1 and 9", o.Level)
	}
	if o.PartSize < 0 && o.PartSize != WholeObject {
		return fmt.Errorf("part size %d is not positive", o.PartSize)
	}
	if o.defaultPartSize == 0 {
		o.defaultPartSize = DefaultPartSize
	}
	if o.FrameSize == 0 {
		o.FrameSize = DefaultFrameSize
	}
	if o.FrameSize < 1 || o.FrameSize > maxFrame/2 {
		return fmt.Errorf("frame size %d is not within 1 and %d", o.FrameSize, maxFrame/2)
	}
	o.Jobs = max(o.Jobs, 1)
	if o.StallTimeout == 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	if o.TriggeredAt.IsZero() {
		o.TriggeredAt = time.Now()
	}
	return nil
}

// layOut chooses the layout of each destination, and returns those in use.
func (w *Writer) layOut() []*layout {
	var all []*layout
	for _, d := range w.dst {
		size := w.o.PartSize
		if size == 0 {
			size = w.o.defaultPartSize
			if s, ok := storage.As[storage.Wholer](d.Bucket); ok && s.PrefersWhole() {
				size = WholeObject
			}
		}
		d.layout = slices.IndexFunc(all, func(l *layout) bool { return l.size == size })
		if d.layout < 0 {
			d.layout = len(all)
			all = append(all, &layout{size: size, hash: sha256.New()})
		}
	}
	return all
}

// stamp cuts t to what metadata record.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// ID returns the ID of the backup.
func (w *Writer) ID() ID { return w.id }

// Key returns the key that the backup is encrypted with.
func (w *Writer) Key() *crypto.Key { return w.o.Key }

// Context is done when nothing more can be written: every destination was given
// up, or the caller's context is done. Its cause says why. Whoever produces the
// SQL should run under it.
func (w *Writer) Context() context.Context { return w.ctx }

// Destinations returns the destinations in the order of NewWriter.
func (w *Writer) Destinations() []*Destination { return w.dst }

// mark finds the ID and creates the markers.
func (w *Writer) mark() error {
	for t, tries := w.o.TriggeredAt, 0; ; t, tries = t.Add(time.Millisecond), tries+1 {
		w.id = NewID(w.o.GUID, t)
		taken := false
		for _, d := range w.live() {
			note := "This backup is being made, or was never finished. It is complete when " + w.id.String() + ".json exists.\n"
			err := w.within(d, func(ctx context.Context) error { return d.mark(ctx, w.id, note) })
			switch {
			case err == nil:
			case errors.Is(err, storage.ErrExists) && tries < maxTries:
				taken = true
			case errors.Is(err, storage.ErrExists):
				// Another destination's marker, most likely.
				w.giveUp(d, fmt.Errorf("%s: no ID is free there; is it the same place as another store? %w", d.Bucket, err))
			case w.ctx.Err() != nil:
				return context.Cause(w.ctx)
			default:
				w.giveUp(d, err)
				w.removeMarker(d)
			}
		}
		if len(w.live()) == 0 {
			return w.allFailed()
		}
		if !taken {
			return nil
		}
		for _, d := range w.live() {
			if err := w.within(d, func(ctx context.Context) error { return d.unmark(ctx, w.id) }); err != nil {
				w.giveUp(d, err)
				w.removeMarker(d)
			}
		}
	}
}

// unmark removes the marker, if it is ours.
func (d *Destination) unmark(ctx context.Context, id ID) error {
	if !d.marked {
		return nil
	}
	if err := d.Bucket.Delete(ctx, id.String()+incompleteSuffix); err != nil {
		return err
	}
	d.marked = false
	return nil
}

// within runs an operation on a destination, which may take no longer than the
// stall time-out.
func (w *Writer) within(d *Destination, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(d.ctx, w.o.StallTimeout, w.stalled(d))
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // of which err only tells
	}
	return err
}

func (w *Writer) stalled(d *Destination) error {
	return fmt.Errorf("%s: nothing moved for %v", d.Bucket, w.o.StallTimeout)
}

// removeMarkers removes what a backup that could not begin has left.
func (w *Writer) removeMarkers() {
	for _, d := range w.dst {
		w.removeMarker(d)
	}
}

func (w *Writer) removeMarker(d *Destination) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), cleanupTime)
	defer cancel()
	if err := d.unmark(ctx, w.id); err != nil {
		w.log.Warn("marker not removed", "store", d.Bucket.String(), "err", err)
	}
}

// mark creates the marker. A bucket where anything else has the ID already is as
// good as taken.
func (d *Destination) mark(ctx context.Context, id ID, note string) error {
	key := id.String() + incompleteSuffix
	if err := d.Bucket.Put(ctx, key, strings.NewReader(note), &storage.PutOptions{IfAbsent: true, Transient: true}); err != nil {
		return err
	}
	d.marked = true
	for o, err := range d.Bucket.List(ctx, id.String()) {
		if err != nil {
			return err
		}
		if other, _, ok := cutID(o.Key); ok && other == id && o.Key != key {
			if err := d.unmark(ctx, id); err != nil {
				return err
			}
			return storage.ErrExists
		}
	}
	return nil
}

// live returns the destinations that were not given up.
func (w *Writer) live() []*Destination {
	var out []*Destination
	for _, d := range w.dst {
		select {
		case <-d.failed:
		default:
			out = append(out, d)
		}
	}
	return out
}

// giveUp drops a destination. For each destination it is called by one
// goroutine at a time; only the first error counts.
func (w *Writer) giveUp(d *Destination, err error) {
	select {
	case <-d.failed:
		return
	default:
	}
	d.Err = err
	close(d.failed)
	d.cancel(err)
	if len(w.dst) > 1 && w.ctx.Err() == nil {
		w.log.Info("destination given up", "store", d.Bucket.String(), "err", err)
	}
	if len(w.live()) == 0 {
		w.cancel(w.allFailed())
	}
}

func (w *Writer) allFailed() error {
	var errs []error
	for _, d := range w.dst {
		errs = append(errs, d.Err)
	}
	return errors.Join(errs...)
}

// Write takes SQL.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if err := w.room(); err != nil {
			return written, err
		}
		n := min(w.o.FrameSize-len(w.frame), len(p))
		w.frame = append(w.frame, p[:n]...)
		written += n
		p = p[n:]
		if len(w.frame) == w.o.FrameSize {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// ReadFrom takes SQL from r until io.EOF. It reads straight into the buffers
// that are compressed, and is apart from compressing, so that r waits only when
// all buffers are full.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	var read int64
	for {
		if err := w.room(); err != nil {
			return read, err
		}
		n, err := r.Read(w.frame[len(w.frame):w.o.FrameSize])
		w.frame = w.frame[:len(w.frame)+n]
		read += int64(n)
		if len(w.frame) == w.o.FrameSize {
			if err := w.flush(); err != nil {
				return read, err
			}
		}
		if err == io.EOF {
			return read, nil
		}
		if err != nil {
			return read, err
		}
	}
}

// room makes sure that there is a buffer with room.
func (w *Writer) room() (err error) {
	if w.closed {
		return errors.New("write to a finished backup")
	}
	if w.frame == nil {
		w.frame, err = w.plain.get(w.ctx)
	}
	return err
}

// flush hands the current frame to the compressors.
func (w *Writer) flush() error {
	plain := w.frame
	w.frame = nil
	w.scan.write(plain)
	return w.ordered.do(func() (frame, error) {
		n := len(plain)
		buf, err := w.zipped.get(w.ctx)
		if err != nil {
			return frame{}, err
		}
		buf, err = w.comp.frame(buf, plain)
		w.plain.put(plain)
		if w.o.Progress != nil {
			w.o.Progress(n)
		}
		return frame{buf, n}, err
	})
}

// storeFrames encrypts and stores frames in order, until there are no more.
func (w *Writer) storeFrames() {
	s := &w.store
	for {
		f, err := w.ordered.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			_, err = s.enc.Write(f.data)
			w.zipped.put(f.data)
		}
		if err != nil {
			w.cancel(err)
			return
		}
		s.frames = append(s.frames, [2]int{f.plain, len(f.data)})
		s.plain += int64(f.plain)
		s.compressed += int64(len(f.data))
	}
	err := s.enc.Close()
	if err == nil {
		err = s.finish()
	}
	if err != nil {
		w.cancel(err)
	}
}

// Commit finishes the backup: the rest of the stream is stored, then sums and
// toc, the parts are looked at once more, and the metadata written, upon which
// the backup exists. It fails, and leaves nothing behind if it can, where the
// stream was not a whole dump or where no destination has the backup in the end;
// otherwise Destinations tells which have it.
func (w *Writer) Commit() error {
	if w.ended.Swap(true) {
		if err := context.Cause(w.ctx); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return errors.New("the backup is finished already")
	}
	err := w.commit()
	if err != nil {
		w.cancel(err)
		err = context.Cause(w.ctx) // the first failure, of which the others follow
	}
	w.cleanUp(err)
	return err
}

func (w *Writer) commit() error {
	if len(w.frame) > 0 || w.scan.bytes == 0 {
		// Even an empty stream has one frame: gunzip refuses no input at all.
		if err := w.room(); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.closed = true
	w.ordered.close()
	w.wg.Wait()
	for _, d := range w.dst {
		close(d.queue)
	}
	for _, d := range w.dst {
		w.await(d)
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}

	m := &w.Metadata
	kind, err := w.scan.kind()
	switch {
	case err != nil && w.o.AllowPartial:
		m.Source.Kind = KindPartial
	case err != nil:
		return err
	case m.Source.Kind == "":
		m.Source.Kind = kind
	}
	m.Encryption.KeyID = w.o.Key.ID()
	s := &w.store
	m.Sizes = Sizes{s.plain, s.compressed, s.stored}
	index := &TOC{
		Version: Version, BackupID: m.BackupID, Settings: w.o.Settings, Frames: s.frames,
		Contents: w.scan.contents, Outline: w.scan.outliner.Outline(),
	}
	toc, err := index.encode(w.o.Key.Passphrase(), w.o.Derivation)
	if err != nil {
		return err
	}
	m.TOC = describe(m.BackupID+tocSuffix, toc)
	m.Sums = &Sums{*describe(m.BackupID+sumsSuffix, s.sums), SegmentSize}
	if m.FinishedAt.IsZero() {
		m.FinishedAt = stamp(time.Now())
	}
	metadata := make([][]byte, len(s.layouts))
	for i, l := range s.layouts {
		w.describeLayout(l)
		if metadata[i], err = m.encode(w.o.Key); err != nil {
			return err
		}
		// What we are about to promise must be what a reader takes.
		if _, _, err := parseMetadata(w.id, metadata[i], crypto.Keyring{w.o.Key}); err != nil {
			return err
		}
	}

	var wg sync.WaitGroup
	for _, d := range w.live() {
		wg.Go(func() {
			if err := w.seal(d, toc, metadata[d.layout]); err != nil {
				w.giveUp(d, err)
			}
		})
	}
	wg.Wait()
	live := w.live()
	if len(live) == 0 {
		return w.allFailed()
	}
	w.describeLayout(s.layouts[live[0].layout])
	return nil
}

// describeLayout completes the metadata by what differs between layouts.
func (w *Writer) describeLayout(l *layout) {
	w.Metadata.Parts = l.parts
	w.Metadata.Recover = recoverScript(w.id, l.size == WholeObject, &w.Metadata.Encryption)
}

// await waits for the end of a destination's goroutine, as long as it takes
// something now and then.
func (w *Writer) await(d *Destination) {
	tick := time.NewTicker(w.o.StallTimeout)
	defer tick.Stop()
	for taken := int64(-1); ; {
		select {
		case <-d.done:
			return
		case <-tick.C:
			now := d.taken.Load()
			if now == taken {
				d.cancel(w.stalled(d))
				<-d.done
				return
			}
			taken = now
		}
	}
}

func describe(name string, b []byte) *Object {
	sum := sha256.Sum256(b)
	return &Object{name, int64(len(b)), hex.EncodeToString(sum[:])}
}

// seal writes what follows the parts in one destination. Errors after the
// metadata are none: the backup exists.
func (w *Writer) seal(d *Destination, toc, metadata []byte) error {
	id := w.id.String()
	put := func(suffix string, b []byte) error {
		return w.within(d, func(ctx context.Context) error {
			return d.Bucket.Put(ctx, id+suffix, bytes.NewReader(b), nil)
		})
	}
	if err := put(sumsSuffix, w.store.sums); err != nil {
		return err
	}
	if err := put(tocSuffix, toc); err != nil {
		return err
	}
	if err := w.within(d, func(ctx context.Context) error {
		return compareParts(ctx, d.Bucket, w.id, w.store.layouts[d.layout].parts)
	}); err != nil {
		return err
	}
	if w.o.Sign != nil {
		if err := put(signatureSuffix, w.o.Sign.Sign(metadata)); err != nil {
			return err
		}
	}
	if err := put(metadataSuffix, metadata); err != nil {
		return err
	}
	if err := w.within(d, func(ctx context.Context) error { return d.unmark(ctx, w.id) }); err != nil {
		w.log.Info("marker not removed, which does no harm", "store", d.Bucket.String(), "err", err)
	}
	return nil
}

// compareParts lists the parts once more and compares their sizes with those that were written.
func compareParts(ctx context.Context, bucket storage.Bucket, id ID, parts []Part) error {
	want := make(map[string]int64)
	for _, p := range parts {
		want[p.Name] = p.Size
	}
	for o, err := range bucket.List(ctx, id.String()) {
		if err != nil {
			return err
		}
		if size, ok := want[o.Key]; ok {
			if size != o.Size {
				return fmt.Errorf("part %s has %d bytes in %s, %d were written", o.Key, o.Size, bucket, size)
			}
			delete(want, o.Key)
		}
	}
	for name := range want {
		return fmt.Errorf("part %s is missing in %s after it was written", name, bucket)
	}
	return nil
}

// Abort gives the backup up and removes what it left, as far as that is
// permitted. cause is why; it is what the destinations' uploads fail with. A
// Commit under way then fails; after one that succeeded it does nothing.
func (w *Writer) Abort(cause error) {
	w.cancel(cause)
	if w.ended.Swap(true) {
		return
	}
	w.cleanUp(cause)
}

// cleanUp ends the destinations' goroutines and removes what those hold that
// have no backup. It uses a context of its own, since the writer's is done.
func (w *Writer) cleanUp(cause error) {
	if cause == nil && len(w.live()) == len(w.dst) {
		w.cancel(nil)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), cleanupTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, d := range w.dst {
		wg.Go(func() {
			if cause == nil {
				select {
				case <-d.failed:
				default:
					return // it has the backup
				}
			}
			d.cancel(cause)
			<-d.done
			if d.Err == nil {
				d.Err = cause
			}
			if !d.marked {
				return
			}
			if err := remove(ctx, d.Bucket, w.id); err != nil {
				w.log.Warn("the incomplete backup could not be removed", "store", d.Bucket.String(), "backup", w.id.String(), "err", err)
			}
		})
	}
	wg.Wait()
	w.cancel(cause)
}

// storer cuts the stored stream into segments, parts and chunks.
type storer struct {
	w       *Writer
	enc     *crypto.Writer
	layouts []*layout
	chunks  *buffers

	segmentHash hash.Hash
	segmentFill int
	chunk       []byte

	plain, compressed, stored int64
	frames                    [][2]int
	sums                      []byte
}

// layout is a way to cut the stream into objects.
type layout struct {
	size  int64 // of a part, or WholeObject
	hash  hash.Hash
	fill  int64 // bytes in the current part
	parts []Part
}

// name returns the name of the current part.
func (l *layout) name(id ID) string {
	if l.size == WholeObject {
		return id.String()
	}
	return fmt.Sprintf("%s-%d", id, len(l.parts))
}

// full tells whether the current part is.
func (l *layout) full() bool { return l.fill == l.size }

// chunk is a piece of the stream that is on its way to all destinations. It is
// never changed; the last to release it gives the buffer back.
type chunk struct {
	data   []byte
	pieces []piece      // of what it is one, by layout
	refs   atomic.Int32 // destinations that are not done with it
	pool   *buffers
}

// piece tells where a chunk belongs.
type piece struct {
	part string // name of the part
	last bool   // of its part
}

// release says that one destination is done with the chunk.
func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		c.pool.put(c.data)
	}
}

// Write takes ciphertext.
func (s *storer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(s.chunk) == chunkSize || slices.ContainsFunc(s.layouts, (*layout).full) {
			if err := s.emit(false); err != nil {
				return written, err
			}
		}
		if s.chunk == nil {
			var err error
			if s.chunk, err = s.chunks.get(s.w.ctx); err != nil {
				return written, err
			}
		}
		n := min(len(p), chunkSize-len(s.chunk), SegmentSize-s.segmentFill)
		for _, l := range s.layouts {
			if l.size > 0 {
				n = int(min(int64(n), l.size-l.fill))
			}
		}
		s.chunk = append(s.chunk, p[:n]...)
		s.segmentHash.Write(p[:n])
		for _, l := range s.layouts {
			l.hash.Write(p[:n])
			l.fill += int64(n)
		}
		s.segmentFill += n
		s.stored += int64(n)
		if s.segmentFill == SegmentSize {
			s.endSegment()
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

func (s *storer) endSegment() {
	s.sums = s.segmentHash.Sum(s.sums)
	s.segmentHash.Reset()
	s.segmentFill = 0
}

// finish stores what is left.
func (s *storer) finish() error {
	if s.segmentFill > 0 {
		s.endSegment()
	}
	return s.emit(true)
}

// emit hands the current chunk to the destinations; end tells that it is the
// stream's last.
func (s *storer) emit(end bool) error {
	w := s.w
	live := w.live()
	c := &chunk{data: s.chunk, pool: s.chunks}
	c.refs.Store(int32(len(live)))
	for _, l := range s.layouts {
		c.pieces = append(c.pieces, piece{l.name(w.id), end || l.full()})
	}
	s.chunk = nil
	for _, d := range live {
		if err := w.hand(d, c); err != nil {
			return err
		}
	}
	for i, l := range s.layouts {
		if !c.pieces[i].last {
			continue
		}
		l.parts = append(l.parts, Part{c.pieces[i].part, l.fill, hex.EncodeToString(l.hash.Sum(nil))})
		l.hash.Reset()
		l.fill = 0
		if len(l.parts) > maxParts {
			return fmt.Errorf("the dump needs more than %d parts of %d bytes: choose a larger part size", maxParts, l.size)
		}
	}
	return nil
}

// hand puts a chunk into the queue of a destination, waiting no longer than
// the stall time-out. It fails only with the writer's context.
func (w *Writer) hand(d *Destination, c *chunk) error {
	select {
	case d.queue <- c:
		return nil
	default:
	}
	t := time.NewTimer(w.o.StallTimeout)
	defer t.Stop()
	select {
	case d.queue <- c:
	case <-d.ctx.Done(): // it was given up, or is about to be
		c.release()
	case <-t.C:
		d.cancel(w.stalled(d))
		c.release()
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
	return nil
}

// run is the goroutine of a destination: one Put a part. It ends when the queue
// is closed or the writer done; what is queued for a destination that was given
// up is thrown away.
func (w *Writer) run(d *Destination) {
	defer close(d.done)
	for {
		select {
		case c, ok := <-d.queue:
			if !ok {
				return
			}
			select {
			case <-d.failed:
				c.release()
				continue
			default:
			}
			r := &partReader{d: d, chunk: c, rest: c.data}
			part := c.pieces[d.layout].part
			err := d.Bucket.Put(d.ctx, part, r, nil)
			if err == nil && !r.ended {
				err = fmt.Errorf("%s stopped reading part %s before its end", d.Bucket, part)
			}
			r.drop()
			if err == nil {
				err = d.ctx.Err() // it missed a chunk, whatever Put made of the rest
			}
			if err != nil {
				if cause := context.Cause(d.ctx); cause != nil {
					err = cause // of which the failure of Put only tells
				}
				w.giveUp(d, err)
			}
		case <-w.ctx.Done():
			return
		}
	}
}

// partReader is a part as a stream: chunks from the queue up to the last.
type partReader struct {
	d     *Destination
	chunk *chunk
	rest  []byte
	ended bool
}

// next makes sure that rest holds something, or returns io.EOF at the end of
// the part.
func (r *partReader) next() error {
	for len(r.rest) == 0 {
		if r.ended {
			return io.EOF
		}
		if r.chunk != nil {
			r.ended = r.chunk.pieces[r.d.layout].last
			r.chunk.release()
			r.chunk = nil
			continue
		}
		select {
		case c, ok := <-r.d.queue:
			if !ok {
				// Only the last chunk of a part ends it.
				return io.ErrUnexpectedEOF
			}
			r.d.taken.Add(1)
			r.chunk, r.rest = c, c.data
		case <-r.d.ctx.Done():
			return context.Cause(r.d.ctx)
		}
	}
	return nil
}

func (r *partReader) Read(p []byte) (int, error) {
	if err := r.next(); err != nil {
		return 0, err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// WriteTo spares a copy.
func (r *partReader) WriteTo(dst io.Writer) (written int64, err error) {
	for {
		if err := r.next(); err == io.EOF {
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := dst.Write(r.rest)
		written += int64(n)
		r.rest = r.rest[n:]
		if err != nil {
			return written, err
		}
	}
}

// drop gives back what is held.
func (r *partReader) drop() {
	if r.chunk != nil {
		r.chunk.release()
		r.chunk, r.rest = nil, nil
	}
}

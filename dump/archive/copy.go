package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"sync"

	"encdump/storage"
)

// CopyOptions says how a backup is copied. nil stands for the zero value.
type CopyOptions struct {
	// Jobs is the number of parts under way at once; 0 stands for 1.
	Jobs int
	// Quick looks at a copy that is complete already in the listing only, and
	// not at the digests of what is there.
	Quick bool
	// Progress is told of bytes of the source that are done with, copied or found
	// to be there; nil is silent.
	Progress func(n int)
}

// CopyReport tells what a copy did. It counts objects.
type CopyReport struct {
	Copied  int
	Present int   // those that were there, and right
	Bytes   int64 // of those that were copied
}

// OtherBackupError says that something else has the backup's ID at the destination.
type OtherBackupError struct {
	ID     ID
	Bucket storage.Bucket
	Reason string
	hint   string
}

func (e *OtherBackupError) Error() string {
	return fmt.Sprintf("%s in %s: %s", e.ID, e.Bucket, e.Reason)
}
func (e *OtherBackupError) Unwrap() error { return storage.ErrExists }

// Hint is the way out.
func (e *OtherBackupError) Hint() string { return e.hint }

// copying is a copy under way.
type copying struct {
	b      *Backup
	dst    storage.Bucket
	o      CopyOptions
	there  map[string]storage.Object // what the destination held at the beginning
	digest map[string]string         // of the objects whose digests are known, in hex

	mu     sync.Mutex
	report CopyReport
}

// CopyTo brings the objects of the backup into another bucket as they are, in the order of a backup that is being
// made: marker, parts, the rest, metadata. Digests are checked on the way as far as there are any. It needs no key;
// whether anything vouches for the metadata is for the caller to say.
//
// What dst holds already in the right size and with the right digest is not sent again: so a copy that was cut off
// goes on, and one that lost an object is mended. A different backup of that ID is an *OtherBackupError.
// Where the source is damaged, a *DamageError, nothing stays at dst that was not a complete backup there before.
// After other failures what has arrived stays for the next time, with the marker.
func (b *Backup) CopyTo(ctx context.Context, dst storage.Bucket, o *CopyOptions) (CopyReport, error) {
	c := &copying{b: b, dst: dst, there: make(map[string]storage.Object), digest: make(map[string]string)}
	if o != nil {
		c.o = *o
	}
	if c.o.Progress == nil {
		c.o.Progress = func(int) {}
	}
	err := c.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // of which err only tells
	}
	return c.report, err
}

func (c *copying) run(ctx context.Context) error {
	b := c.b
	if b.Status == Incomplete || b.Status == Damaged || b.Status == Unreadable {
		return b.Problem
	}
	if damage := b.CheckObjects(); len(damage) > 0 {
		return damage[0]
	}
	if b.Metadata == nil {
		if err := b.checkForeignParts(); err != nil {
			return err
		}
	}
	var metadata []byte
	if b.has(metadataSuffix) {
		var err error
		if metadata, err = readObject(ctx, b.bucket, b.ID.String()+metadataSuffix, maxMetadata); err != nil {
			return err
		}
		if sha256.Sum256(metadata) != b.metadataDigest {
			return damaged(b.ID.String()+metadataSuffix, "changed while it was being copied")
		}
	}
	parts, rest := c.names()
	complete, err := c.look(ctx, metadata)
	if err != nil {
		return err
	}
	if complete {
		return c.objects(ctx, slices.Concat(parts, rest))
	}

	goesOn := c.has(incompleteSuffix)
	d := &Destination{Bucket: c.dst, marked: goesOn}
	if !goesOn {
		if err := d.mark(ctx, b.ID, c.note()); errors.Is(err, storage.ErrExists) {
			return c.other("another run took the ID just now", "run the same command again when that has ended")
		} else if err != nil {
			clean, cancel := cleanup(ctx)
			defer cancel()
			return errors.Join(err, d.unmark(clean, b.ID))
		}
	}
	err = c.objects(ctx, parts)
	if err == nil {
		err = c.objects(ctx, rest)
	}
	if err == nil {
		err = compareParts(ctx, c.dst, b.ID, b.Parts)
	}
	if err == nil && metadata != nil {
		err = c.put(ctx, b.ID.String()+metadataSuffix, bytes.NewReader(metadata), int64(len(metadata)))
		c.o.Progress(len(metadata))
	}
	var damage *DamageError
	switch {
	case err == nil:
		if err := d.unmark(ctx, b.ID); err != nil {
			b.log.Info("marker not removed, which does no harm", "store", c.dst.String(), "err", err)
		}
		return nil
	case errors.As(err, &damage), !goesOn && c.report.Copied == 0: // or there is nothing to go on with
		// Not the marker alone: an object may be there whose Put failed because its answer was lost.
		clean, cancel := cleanup(ctx)
		defer cancel()
		return errors.Join(err, remove(clean, c.dst, b.ID))
	}
	return err
}

// cleanup returns a context for what must be done even though ctx is done.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

// names returns what is to be copied beside the metadata, in order, and fills in the digests that are known.
func (c *copying) names() (parts, rest []string) {
	for _, p := range c.b.Parts {
		parts = append(parts, p.Name)
		c.digest[p.Name] = p.SHA256
	}
	if m := c.b.Metadata; m != nil {
		for _, o := range []*Object{&m.Sums.Object, m.TOC} {
			if o != nil {
				rest = append(rest, o.Name)
				c.digest[o.Name] = o.SHA256
			}
		}
	}
	for _, name := range c.b.Objects() {
		suffix := strings.TrimPrefix(name, c.b.ID.String())
		if suffix == signatureSuffix || strings.HasPrefix(suffix, verifiedSuffix) {
			rest = append(rest, name)
		}
	}
	return parts, rest
}

func (c *copying) has(suffix string) bool {
	_, ok := c.there[c.b.ID.String()+suffix]
	return ok
}

func (c *copying) other(reason, hint string) error {
	return &OtherBackupError{c.b.ID, c.dst, reason, hint}
}

// note is the text of the marker. A copy goes on only with what a copy of the same backup began.
func (c *copying) note() string {
	source := sha256.New()
	if c.b.has(metadataSuffix) {
		source.Write(c.b.metadataDigest[:])
	} else {
		for _, p := range c.b.Parts {
			fmt.Fprintln(source, p.Name, p.Size)
		}
	}
	return fmt.Sprintf("This backup is being copied, or was never finished: dump copy goes on with it.\nsource: %x\n", source.Sum(nil))
}

// look finds out what the destination has of the backup, and whether that is, or was, complete.
func (c *copying) look(ctx context.Context, metadata []byte) (complete bool, err error) {
	id := c.b.ID.String()
	for o, err := range c.dst.List(ctx, id) {
		if errors.Is(err, storage.ErrNotFound) {
			break // a folder that is not there yet
		}
		if err != nil {
			return false, err
		}
		if other, _, ok := cutID(o.Key); ok && other == c.b.ID {
			c.there[o.Key] = o
		}
	}
	if len(c.there) == 0 {
		return false, nil
	}
	for name := range c.there {
		_, rest, _ := cutID(name)
		_, isPart := partIndex(rest)
		if _, known := c.digest[name]; (isPart || rest == "") && !known {
			return false, c.other(name+" is no part of the backup that is to be copied", "it is another backup, or one that was damaged; nothing was changed")
		}
	}
	const unfinished = "dump delete removes it, if no other run is making it just now"
	switch {
	case c.has(metadataSuffix) && metadata == nil:
		return false, c.other("another backup has this ID", "nothing was changed")
	case c.has(metadataSuffix):
		there, err := readObject(ctx, c.dst, id+metadataSuffix, maxMetadata)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(there, metadata) {
			return false, c.other("another backup has this ID, or its metadata are damaged", "nothing was changed; dump verify tells which of the two is right")
		}
		c.present(int64(len(metadata)))
		return true, nil
	case c.has(incompleteSuffix):
		text, err := readObject(ctx, c.dst, id+incompleteSuffix, 1<<10)
		var long *DamageError // not ours then
		if err != nil && !errors.As(err, &long) {
			return false, err
		}
		if string(text) != c.note() {
			return false, c.other("it is being made there, or was never finished", unfinished)
		}
		return false, nil
	case metadata != nil:
		return false, c.other("objects of this ID are there, without metadata and marker", "nothing was changed")
	}
	// A foreign backup without metadata is complete or not as its parts are.
	for _, p := range c.b.Parts {
		if same, err := c.same(ctx, p.Name); err != nil {
			return false, err
		} else if !same {
			return false, c.other(p.Name+" differs", "nothing was changed")
		}
	}
	return true, nil
}

// same tells whether the destination has the object in its size and with its digest, which is that of the source's
// object where the metadata do not tell it.
func (c *copying) same(ctx context.Context, name string) (bool, error) {
	o, ok := c.there[name]
	if !ok || o.Size != c.b.objects[name].Size {
		return false, nil
	}
	if c.o.Quick && c.has(metadataSuffix) {
		return true, nil
	}
	want := c.digest[name]
	if want == "" {
		var err error
		if want, err = digestOf(ctx, c.b.bucket, name); err != nil {
			return false, err
		}
	}
	got, err := digestOf(ctx, c.dst, name)
	return got == want, err
}

func digestOf(ctx context.Context, bucket storage.Bucket, name string) (string, error) {
	r, err := bucket.Open(ctx, name, 0, -1)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// objects brings objects over, several at once, and stops at the first failure.
func (c *copying) objects(ctx context.Context, names []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan string)
	var wg sync.WaitGroup
	for range min(max(c.o.Jobs, 1), len(names)) {
		wg.Go(func() {
			for name := range queue {
				if err := c.object(ctx, name); err != nil {
					cancel(err) // the first one counts
				}
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		queue <- name
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

// object brings one object over, unless it is there.
func (c *copying) object(ctx context.Context, name string) error {
	if same, err := c.same(ctx, name); err != nil {
		return err
	} else if same {
		c.present(c.b.objects[name].Size)
		return nil
	}
	r, err := c.b.bucket.Open(ctx, name, 0, -1)
	if errors.Is(err, storage.ErrNotFound) {
		return damaged(name, "missing")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	size := c.b.objects[name].Size
	return c.put(ctx, name, &checkedReader{r, name, c.digest[name], size, sha256.New(), c.o.Progress}, size)
}

func (c *copying) put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := c.dst.Put(ctx, name, r, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Copied++
	c.report.Bytes += size
	return nil
}

// present counts an object that was there.
func (c *copying) present(size int64) {
	c.o.Progress(int(size))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Present++
}

// checkedReader reads an object and ends well only where it has its size and digest.
type checkedReader struct {
	r        io.Reader
	name     string
	digest   string // hex; empty: none is known
	left     int64
	hash     hash.Hash
	progress func(int)
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.hash.Write(p[:n])
	c.left -= int64(n)
	c.progress(n)
	if err == io.EOF {
		switch {
		case c.left != 0:
			return n, damaged(c.name, "has another size than listed")
		case c.digest != "" && hex.EncodeToString(c.hash.Sum(nil)) != c.digest:
			return n, damaged(c.name, "changed since it was written: its digest is wrong")
		}
	}
	return n, err
}

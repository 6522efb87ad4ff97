package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"

	"encdump/crypto"
	"encdump/storage"
)

// Status of a backup.
type Status string

const (
	Complete   Status = "complete"   // its metadata exist; see Backup.Authenticated
	Foreign    Status = "foreign"    // made by another program; completeness unknown
	Incomplete Status = "incomplete" // being made, or never finished
	Damaged    Status = "damaged"    // its metadata are not what was written
	Unreadable Status = "unreadable" // its metadata cannot be read
)

// Catalog is what a bucket holds.
type Catalog struct {
	bucket  storage.Bucket
	keys    crypto.Keyring
	trusted []*crypto.Signer
	log     *slog.Logger
}

// OpenCatalog returns the catalog of a bucket. keys may be empty; then nothing
// is authenticated. log, which may be nil, is told what Find passes over.
func OpenCatalog(b storage.Bucket, keys crypto.Keyring, log *slog.Logger) *Catalog {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Catalog{bucket: b, keys: keys, log: log}
}

// Trust names the signers of backups. Once there are any, only what one of them
// has signed is authenticated. Without, that holds for sealed backups, which anyone could
// have made, and which then are not authenticated at all.
func (c *Catalog) Trust(signers []*crypto.Signer) { c.trusted = signers }

// Backup is one backup in a bucket.
type Backup struct {
	ID     ID
	Status Status
	// Metadata as stored; nil unless Status is Complete.
	Metadata *Metadata
	// Authenticated: the MAC of the metadata was checked with one of the keys, and the
	// signature where one is asked for; see [Catalog.Trust].
	Authenticated bool
	// Signer is the trusted one who signed the metadata; nil where there is none.
	Signer *crypto.Signer
	// Problem is why the backup is not authenticated or not usable: a
	// *WrongKeyError, an *UnsignedError, a *DamageError, or why the metadata could not be read.
	Problem error
	// Parts of the stored stream in order: from the metadata, or as found.
	Parts []Part
	// Bytes of all objects of the backup in the bucket.
	Bytes int64
	// Modified is when the newest of them was put, by the clock of the store.
	Modified time.Time
	// Drill is the newest record of a restore drill; nil where there is none. Without
	// the key it is nobody's word.
	Drill *Record
	// Verified is when that drill was, where it was passed and the key is at hand, which
	// tells that nobody made it up; otherwise the zero time.
	Verified time.Time

	bucket  storage.Bucket
	key     *crypto.Key // that made it, where the MAC was right
	keys    crypto.Keyring
	trusted []*crypto.Signer
	objects map[string]storage.Object
	log     *slog.Logger

	metadataDigest [sha256.Size]byte // of the metadata object as it was read
	metadataMAC    string            // the digits in it
}

// Bucket returns where the backup is.
func (b *Backup) Bucket() storage.Bucket { return b.bucket }

// DrillChecked tells whether the MAC of Drill was checked.
func (b *Backup) DrillChecked() bool { return b.Drill != nil && b.key != nil }

// Keys returns the keys that are at hand for reading it.
func (b *Backup) Keys() crypto.Keyring { return b.keys }

// Vouched tells whether anything vouches for the metadata: Authenticated, or, where the key is
// not at hand, the signature of a trusted signer. The content may be out of reach.
func (b *Backup) Vouched() bool { return b.Authenticated || b.Signer != nil }

// Checked tells whether there was anything to check the metadata with.
func (b *Backup) Checked() bool { return len(b.keys) > 0 || len(b.trusted) > 0 }

// HasSignature tells whether there is a signature, right or not.
func (b *Backup) HasSignature() bool { return b.has(signatureSuffix) }

// StartedAt returns when the dump began, as well as it is known.
func (b *Backup) StartedAt() time.Time {
	if b.Metadata != nil {
		return b.Metadata.StartedAt
	}
	return b.ID.Time()
}

// scan lists the backups whose names begin with prefix, oldest first, by the
// names of their objects alone.
func (c *Catalog) scan(ctx context.Context, prefix string) ([]*Backup, error) {
	found := make(map[ID]*Backup)
	for o, err := range c.bucket.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		id, _, ok := cutID(o.Key)
		if !ok {
			continue
		}
		b := found[id]
		if b == nil {
			b = &Backup{ID: id, bucket: c.bucket, keys: c.keys, trusted: c.trusted, objects: make(map[string]storage.Object), log: c.log}
			found[id] = b
		}
		b.objects[o.Key] = o
		b.Bytes += o.Size
		if o.Modified.After(b.Modified) {
			b.Modified = o.Modified
		}
	}
	var out []*Backup
	for id, b := range found {
		switch {
		case b.has(metadataSuffix):
			b.Status = Complete // until load has looked
		case b.has(incompleteSuffix):
			b.Status = Incomplete
			b.Problem = fmt.Errorf("%s: %w", id, ErrIncomplete)
		case len(b.foundParts()) > 0:
			b.Status = Foreign
			b.Problem = fmt.Errorf("%s: %w", id, ErrForeign)
		default:
			continue // remains of nothing
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b *Backup) int { return a.ID.Compare(b.ID) })
	return out, nil
}

func (b *Backup) has(suffix string) bool {
	_, ok := b.objects[b.ID.String()+suffix]
	return ok
}

// foundParts returns the objects that hold the stream, by index.
func (b *Backup) foundParts() []Part {
	type indexed struct {
		Part
		index int
	}
	var parts []indexed
	for name, o := range b.objects {
		_, rest, _ := cutID(name)
		if n, ok := partIndex(rest); ok {
			parts = append(parts, indexed{Part{Name: name, Size: o.Size}, n})
		} else if rest == "" {
			parts = append(parts, indexed{Part{Name: name, Size: o.Size}, -1})
		}
	}
	slices.SortFunc(parts, func(a, b indexed) int {
		return cmp.Or(cmp.Compare(a.index, b.index), strings.Compare(a.Name, b.Name))
	})
	out := make([]Part, len(parts))
	for i, p := range parts {
		out[i] = p.Part
	}
	return out
}

// load reads the metadata, as far as there are any.
func (b *Backup) load(ctx context.Context) {
	if b.Status == Complete && b.Metadata == nil && b.Problem == nil {
		b.loadMetadata(ctx)
	}
	if b.Metadata == nil {
		b.Parts = b.foundParts()
	}
	if b.Metadata != nil {
		if b.Drill = b.newestRecord(ctx); b.Drill != nil && b.Drill.Passed() && b.key != nil {
			b.Verified = b.Drill.VerifiedAt
		}
	}
}

func (b *Backup) loadMetadata(ctx context.Context) {
	text, err := readObject(ctx, b.bucket, b.ID.String()+metadataSuffix, maxMetadata)
	if err != nil {
		b.Status, b.Problem = Unreadable, err
		return
	}
	b.metadataDigest = sha256.Sum256(text)
	m, key, err := parseMetadata(b.ID, text, b.keys)
	switch {
	case m != nil:
		b.Metadata, b.key, b.Authenticated, b.Problem = m, key, err == nil, err
		b.Parts = m.Parts
		_, mac, _ := cutMAC(text) // parsed already
		b.metadataMAC = hex.EncodeToString(mac)
		b.checkSignature(ctx, text)
	case errors.Is(err, errForeignMetadata), errors.Is(err, errNotJSON) && !b.has(sumsSuffix) && !b.has(tocSuffix):
		b.Status, b.Problem = Foreign, fmt.Errorf("%s: %w", b.ID, ErrForeign)
	default:
		b.Status, b.Problem = Damaged, err
	}
}

// checkSignature looks for the signature of a trusted signer over the metadata, as they were read.
func (b *Backup) checkSignature(ctx context.Context, text []byte) {
	unsigned := func(reason string) {
		b.Authenticated, b.Problem = false, &UnsignedError{b.ID.String(), reason}
	}
	switch {
	case len(b.trusted) == 0 && !b.Metadata.Encryption.Sealed():
		return
	case len(b.trusted) == 0:
		if b.key != nil {
			unsigned("it is sealed, which anyone can do who has the public key, and no signer is trusted here")
		}
		return
	case !b.has(signatureSuffix):
		unsigned("it is not signed")
		return
	}
	signature, err := readObject(ctx, b.bucket, b.ID.String()+signatureSuffix, crypto.SignatureSize)
	var long *DamageError
	if err != nil && !errors.As(err, &long) {
		b.Authenticated, b.Status, b.Problem = false, Unreadable, err
		b.Metadata = nil
		return
	}
	for _, s := range b.trusted {
		if s.Verify(text, signature) {
			b.Signer = s
			return
		}
	}
	unsigned("its signature is not by a trusted signer, or the metadata were changed")
}

// readObject reads a whole object of at most limit bytes.
func readObject(ctx context.Context, bucket storage.Bucket, name string, limit int64) ([]byte, error) {
	r, err := bucket.Open(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, damaged(name, "larger than %d bytes", limit)
	}
	return b, nil
}

// readDescribed reads an object that the metadata describe and compares its digest.
func readDescribed(ctx context.Context, bucket storage.Bucket, o *Object) ([]byte, error) {
	var b bytes.Buffer
	if err := copyDescribed(ctx, bucket, o, &b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// copyDescribed writes an object that the metadata describe to w, and compares its digest.
func copyDescribed(ctx context.Context, bucket storage.Bucket, o *Object, w io.Writer) error {
	r, err := bucket.Open(ctx, o.Name, 0, -1)
	if errors.Is(err, storage.ErrNotFound) {
		return damaged(o.Name, "missing")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, o.Size+1))
	if err != nil {
		return err
	}
	if n != o.Size || hex.EncodeToString(sum.Sum(nil)) != o.SHA256 {
		return damaged(o.Name, "changed since it was written: its digest is wrong")
	}
	return nil
}

// Backups yields all backups, oldest first, with their metadata. guid, where
// not empty, selects as in [Ref].
func (c *Catalog) Backups(ctx context.Context, guid string) iter.Seq2[*Backup, error] {
	return func(yield func(*Backup, error) bool) {
		all, err := c.scan(ctx, "")
		if err == nil && guid != "" {
			guid, err = c.resolveGUID(ctx, all, guid)
		}
		if err != nil {
			yield(nil, err)
			return
		}
		for _, b := range all {
			if guid != "" && b.ID.GUID != guid {
				continue
			}
			b.load(ctx)
			if err := ctx.Err(); err != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			if !yield(b, nil) {
				return
			}
		}
	}
}

// Ref names a backup as an operator does.
type Ref struct {
	// ID is a backup ID, a unique beginning of one, "latest", or empty, which is
	// latest too.
	ID string
	// GUID, a unique beginning of one, or the name of one's backups. Needed for
	// latest where a bucket holds several.
	GUID string
	// At, where not zero, selects the newest that started at or before it.
	At time.Time
	// Unauthenticated lets latest be a backup whose MAC was not checked, for
	// want of a key, where there is no key at all.
	Unauthenticated bool
	// Newest makes latest the newest complete backup even where its metadata are
	// damaged or need another key, instead of passing over it.
	Newest bool
}

// Latest is the name of the newest complete, authenticated backup.
const Latest = "latest"

// Find returns the backup that ref names, with its metadata. The error is a
// *NotFoundError where there is none, or more than one.
func (c *Catalog) Find(ctx context.Context, ref Ref) (*Backup, error) {
	name := strings.ToLower(ref.ID)
	if name == "" || name == Latest {
		return c.latest(ctx, ref)
	}
	if !ref.At.IsZero() {
		return nil, errors.New("a time selects among all backups; give it without an ID")
	}
	all, err := c.scan(ctx, name)
	if err != nil {
		return nil, err
	}
	// What was listed begins with it, but the name of an object is longer than an ID.
	all = slices.DeleteFunc(all, func(b *Backup) bool { return !strings.HasPrefix(b.ID.String(), name) })
	if ref.GUID != "" {
		guid, err := c.resolveGUID(ctx, all, ref.GUID)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(b *Backup) bool { return b.ID.GUID != guid })
	}
	for _, b := range all {
		if b.ID.String() == name {
			all = []*Backup{b}
		}
	}
	switch len(all) {
	case 1:
		all[0].load(ctx)
		return all[0], nil
	case 0:
		choice, err := c.scan(ctx, "")
		if err != nil {
			return nil, err
		}
		return nil, &NotFoundError{What: ref.ID, Choice: names(choice)}
	}
	return nil, &NotFoundError{What: ref.ID, Choice: names(all), Ambiguous: true}
}

// names returns the newest IDs, not too many to be read.
func names(all []*Backup) []string {
	var out []string
	for _, b := range slices.Backward(all) {
		if len(out) == 10 {
			return append(out, "…")
		}
		out = append(out, b.ID.String())
	}
	return out
}

func (c *Catalog) latest(ctx context.Context, ref Ref) (*Backup, error) {
	all, err := c.scan(ctx, "")
	if err != nil {
		return nil, err
	}
	what := Latest
	if !ref.At.IsZero() {
		what = "one that started at or before " + ref.At.UTC().Format(time.RFC3339)
	}
	guids := guidsOf(all)
	switch {
	case ref.GUID != "":
		guid, err := c.resolveGUID(ctx, all, ref.GUID)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(b *Backup) bool { return b.ID.GUID != guid })
	case len(guids) > 1:
		return nil, &NotFoundError{What: what, Choice: guids, Ambiguous: true}
	}
	var passed error // why the newest was passed over
	for _, b := range slices.Backward(all) {
		if !ref.At.IsZero() && b.ID.Time().After(ref.At) {
			continue
		}
		if b.Status != Complete {
			continue
		}
		b.load(ctx)
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if b.Status == Foreign || !ref.At.IsZero() && b.StartedAt().After(ref.At) {
			continue
		}
		if b.Authenticated || b.Metadata != nil && ref.Unauthenticated && len(c.keys) == 0 && (b.Signer != nil || len(c.trusted) == 0) {
			if passed != nil {
				c.log.Warn("a newer backup was passed over", "err", passed)
			}
			return b, nil
		}
		if ref.Newest {
			return b, nil
		}
		if passed == nil {
			passed = b.Problem
		}
	}
	if passed != nil {
		return nil, passed
	}
	return nil, &NotFoundError{What: what, Choice: names(all)}
}

func guidsOf(all []*Backup) []string {
	var out []string
	for _, b := range all {
		if !slices.Contains(out, b.ID.GUID) {
			out = append(out, b.ID.GUID)
		}
	}
	slices.Sort(out)
	return out
}

// resolveGUID returns the GUID that s names: itself, by a unique beginning, or
// by the name of backups under it.
func (c *Catalog) resolveGUID(ctx context.Context, all []*Backup, s string) (string, error) {
	guids := guidsOf(all)
	var match []string
	for _, g := range guids {
		if strings.HasPrefix(g, strings.ToLower(s)) {
			match = append(match, g)
		}
	}
	if len(match) == 0 {
		for _, b := range all {
			b.load(ctx)
			if b.Metadata != nil && b.Metadata.Name == s && !slices.Contains(match, b.ID.GUID) {
				match = append(match, b.ID.GUID)
			}
		}
	}
	switch len(match) {
	case 1:
		return match[0], nil
	case 0:
		return "", &NotFoundError{What: "GUID or name " + s, Choice: guids}
	}
	return "", &NotFoundError{What: "GUID or name " + s, Choice: match, Ambiguous: true}
}

// Previous returns the newest complete backup of guid, whoever made it, with
// its metadata as far as they can be read, nil where there is none; and the
// number of backups of guid, complete or not.
func (c *Catalog) Previous(ctx context.Context, guid string) (*Backup, int, error) {
	all, err := c.scan(ctx, guid)
	if err != nil {
		return nil, 0, err
	}
	for _, b := range slices.Backward(all) {
		if b.Status == Complete {
			b.load(ctx)
			return b, len(all), nil
		}
	}
	return nil, len(all), nil
}

// LockedUntil returns when all objects of the backup may be deleted: the zero
// time where nothing forbids it, see [storage.Locker].
func (b *Backup) LockedUntil(ctx context.Context) (time.Time, error) {
	var latest time.Time
	locker, ok := storage.As[storage.Locker](b.bucket)
	if !ok {
		return latest, nil
	}
	for _, name := range b.Objects() {
		t, err := locker.LockedUntil(ctx, name)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		if t.After(latest) {
			latest = t
		}
	}
	return latest, nil
}

// beingDeleted is the beginning of the marker of a backup that is being deleted.
const beingDeleted = "This backup is being deleted.\n"

// BeingDeleted tells whether the backup is incomplete because its deletion was
// cut off. Where the marker cannot be read, it is not known to be.
func (b *Backup) BeingDeleted(ctx context.Context) bool {
	if b.Status != Incomplete {
		return false
	}
	text, err := readObject(ctx, b.bucket, b.ID.String()+incompleteSuffix, int64(len(beingDeleted)))
	return err == nil && string(text) == beingDeleted
}

// Delete removes the backup: first it stops being one, then its objects go. A
// removal that was cut off leaves an incomplete backup, and can be repeated.
func (b *Backup) Delete(ctx context.Context) error {
	return remove(ctx, b.bucket, b.ID)
}

// remove deletes all objects of id in the order that format.md has: marker,
// metadata, parts from the last to the first, the rest, marker.
func remove(ctx context.Context, bucket storage.Bucket, id ID) error {
	all, err := (&Catalog{bucket: bucket}).scan(ctx, id.String())
	if err != nil {
		return err
	}
	marker := id.String() + incompleteSuffix
	for _, b := range all {
		if b.ID != id {
			continue
		}
		if !b.has(incompleteSuffix) {
			transient := &storage.PutOptions{Transient: true}
			err := bucket.Put(ctx, marker, strings.NewReader(beingDeleted), transient)
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				err = bucket.Put(ctx, marker, strings.NewReader(""), transient) // a name still fits on a full disk
			}
			if err != nil {
				return err
			}
		}
		order := []string{id.String() + metadataSuffix}
		for _, p := range slices.Backward(b.foundParts()) {
			order = append(order, p.Name)
		}
		var rest []string
		for name := range b.objects {
			if name != marker && !slices.Contains(order, name) {
				rest = append(rest, name)
			}
		}
		slices.Sort(rest)
		for _, name := range append(order, rest...) {
			if _, ok := b.objects[name]; !ok {
				continue
			}
			if err := bucket.Delete(ctx, name); err != nil {
				if name == order[0] && !b.has(incompleteSuffix) {
					// It is still a backup; as of a user who may not delete.
					bucket.Delete(ctx, marker)
				}
				return err
			}
		}
		return bucket.Delete(ctx, marker)
	}
	return nil
}

// Objects returns the names of all objects of the backup, in order of name.
func (b *Backup) Objects() []string {
	var out []string
	for name := range b.objects {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// CheckObjects compares what the bucket lists with what the metadata say and
// returns each difference as a *DamageError.
func (b *Backup) CheckObjects() []error {
	m := b.Metadata
	if m == nil {
		return nil
	}
	var found []error
	want := make(map[string]bool)
	compare := func(name string, size int64) {
		want[name] = true
		if o, ok := b.objects[name]; !ok {
			found = append(found, damaged(name, "missing"))
		} else if o.Size != size {
			found = append(found, damaged(name, "has %d bytes, %d were written", o.Size, size))
		}
	}
	var offset int64
	for _, p := range m.Parts {
		if o, ok := b.objects[p.Name]; !ok {
			want[p.Name] = true
			found = append(found, damagedRange(offset, p.Size, p.Name, "missing"))
		} else if o.Size < p.Size {
			want[p.Name] = true
			found = append(found, damagedRange(offset+o.Size, p.Size-o.Size, p.Name, "has %d bytes, %d were written", o.Size, p.Size))
		} else {
			compare(p.Name, p.Size)
		}
		offset += p.Size
	}
	for _, p := range b.foundParts() {
		if !want[p.Name] {
			// Harmless for this program, but cat would join it to the others.
			found = append(found, damaged(p.Name, "not a part of this backup"))
		}
	}
	if m.TOC != nil {
		compare(m.TOC.Name, m.TOC.Size)
	}
	compare(m.Sums.Name, m.Sums.Size)
	return found
}

// checkForeignParts returns an error unless the parts found can be a stream:
// one whole object, or indexes from 0 or 1 without gaps.
func (b *Backup) checkForeignParts() error {
	if len(b.Parts) == 0 {
		return fmt.Errorf("%s has no parts", b.ID)
	}
	var first, last int
	for i, p := range b.Parts {
		_, rest, _ := cutID(p.Name)
		n, ok := partIndex(rest)
		switch {
		case !ok && len(b.Parts) > 1:
			return damaged(p.Name, "there are both a whole object and parts")
		case !ok:
			return nil
		case i == 0 && n > 1:
			return damaged(fmt.Sprintf("%s-0", b.ID), "missing: the first part is %s", p.Name)
		case i == 0:
			first = n
		case n == last:
			return damaged(p.Name, "there are two parts with index %d", n)
		case n != first+i:
			return damaged(fmt.Sprintf("%s-%d", b.ID, first+i), "missing")
		case i < len(b.Parts)-1 && p.Size != b.Parts[0].Size:
			// Whatever cut the stream made them of one size.
			b.log.Warn("a part before the last has another size than the first: is it whole?", "part", p.Name)
		}
		last = n
	}
	return nil
}

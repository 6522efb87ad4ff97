package dump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"time"

	"encdump/dump/archive"
)

// Level of verification; each includes those before it.
type Level string

const (
	LevelMetadata Level = "metadata" // the metadata are right, and all objects are there in their size
	LevelDigest   Level = "digest"   // every object has the digest that the metadata tell
	LevelDecode   Level = "decode"   // the stream decrypts and inflates to the length that it had
	LevelRestore  Level = "restore"  // it was restored, and what came back is what was dumped
)

// Levels in order.
var Levels = []Level{LevelMetadata, LevelDigest, LevelDecode, LevelRestore}

// reaches tells whether l includes other.
func (l Level) reaches(other Level) bool {
	return slices.Index(Levels, l) >= slices.Index(Levels, other)
}

// VerifyOptions says how a backup is verified.
type VerifyOptions struct {
	Level Level
	Read  archive.ReadOptions
	// NotBefore is when the dump must have started at the earliest; the zero time is no limit.
	NotBefore time.Time
	Drill     DrillOptions // of LevelRestore
	Progress  Progress
	Logger    *slog.Logger
}

// VerifyReport tells what was found.
type VerifyReport struct {
	Level         Level
	Authenticated bool    // the metadata's MAC was checked, or a trusted signer's signature
	Damage        []error // each names its object; empty where all is well
	// Lost is what the damage reaches of the dump, as far as an index tells.
	Lost       []Loss
	PlainBytes int64 // decoded
	// Stale is why the backup is too old; empty where it is not.
	Stale string
	// Findings are what differs between the dump and what was restored.
	Findings []string
	// Inconclusive is what could not be found out; the backup is neither good nor bad for it.
	Inconclusive []Problem
	Drill        *DrillReport // nil where it did not come to that
}

// OK tells whether all that was to be checked was, and is well.
func (r *VerifyReport) OK() bool {
	return len(r.Damage)+len(r.Findings)+len(r.Inconclusive) == 0 && r.Stale == ""
}

// Verify checks a backup. Damage is in the report; the error is why the check
// could not be made, such as a missing key.
func Verify(ctx context.Context, b *archive.Backup, o *VerifyOptions) (*VerifyReport, error) {
	r, err := verify(ctx, b, o)
	if err == nil && o.Level == LevelRestore && len(r.Damage) > 0 {
		recordDamage(ctx, b, r, o)
	}
	return r, err
}

func verify(ctx context.Context, b *archive.Backup, o *VerifyOptions) (*VerifyReport, error) {
	p, log := orSilent(o.Progress), o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	defer p.Done()
	read := o.Read
	r := &VerifyReport{Level: o.Level, Authenticated: b.Vouched(), Stale: stale(b, o.NotBefore)}
	var damage *archive.DamageError
	switch b.Status {
	case archive.Damaged:
		r.Damage = append(r.Damage, b.Problem)
		return r, nil
	case archive.Incomplete, archive.Unreadable:
		return nil, b.Problem
	case archive.Foreign:
		if !o.Level.reaches(LevelDecode) || !read.AllowUnauthenticated {
			return nil, b.Problem
		}
	}
	if b.Checked() && !b.Vouched() || o.Level.reaches(LevelDecode) {
		// With a key at hand that does not fit, "not checked" would be too little.
		if err := b.Usable(read.AllowUnauthenticated); errors.As(err, &damage) {
			r.Damage = append(r.Damage, err)
			return r, nil
		} else if err != nil {
			return nil, err
		}
	}
	r.Damage = b.CheckObjects()
	if o.Level == LevelMetadata {
		return r, locate(ctx, b, r)
	}
	if b.Metadata != nil {
		p.Start("checking digests", b.StoredSize())
		read.Progress = adder(p)
		found, err := b.Digests(ctx, &read)
		for _, e := range found {
			// What is missing has been found already.
			if !slices.ContainsFunc(r.Damage, func(known error) bool { return known.Error() == e.Error() }) {
				r.Damage = append(r.Damage, e)
			}
		}
		if err != nil {
			return r, err
		}
	}
	if o.Level == LevelDigest || len(r.Damage) > 0 {
		return r, locate(ctx, b, r)
	}
	p.Start("decoding", b.StoredSize())
	read.Progress = adder(p)
	n, err := b.Decode(ctx, &read)
	r.PlainBytes = n
	if err == nil && o.Level == LevelRestore {
		err = runDrill(ctx, b, r, o, p, log)
	}
	if errors.As(err, &damage) {
		r.Damage = append(r.Damage, err)
		return r, locate(ctx, b, r)
	}
	return r, err
}

// clockSlack is how far the clocks of two machines may differ.
const clockSlack = 5 * time.Minute

// stale says why a backup is not as recent as it should be.
func stale(b *archive.Backup, limit time.Time) string {
	started := b.StartedAt()
	switch {
	case limit.IsZero():
		return ""
	case started.Before(limit):
		return fmt.Sprintf("too old: the dump started %s, %v ago", started.UTC().Format(time.DateTime+"Z"), time.Since(started).Round(time.Second))
	case time.Until(started) > clockSlack:
		return fmt.Sprintf("the dump started %s, which is still to come: is a clock wrong?", started.UTC().Format(time.DateTime+"Z"))
	}
	return ""
}

// Sample picks n backups of each cluster, fewer where there are fewer, in the order given: the newest, and others by age. Ages are sorted into
// classes that double: up to 1 day, 2, 4, 8, … days. From one day to the next the classes take turns, and in each class the
// backups do, so that a daily run comes to all of them.
func Sample(all []*archive.Backup, n int, now time.Time) []*archive.Backup {
	clusters := map[string][]*archive.Backup{}
	for _, b := range all {
		clusters[b.ID.GUID] = append(clusters[b.ID.GUID], b)
	}
	day := int(now.Unix() / (24 * 60 * 60))
	picked := map[*archive.Backup]bool{}
	for _, bs := range clusters {
		slices.SortStableFunc(bs, func(a, b *archive.Backup) int { return b.StartedAt().Compare(a.StartedAt()) })
		picked[bs[0]] = n > 0
		classes := classesOf(bs[1:], now)
		for i := range n - 1 {
			turn := day*(n-1) + i
			if b := nextOf(classes, turn, picked); b != nil {
				picked[b] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(b *archive.Backup) bool { return !picked[b] })
}

// nextOf returns the backup whose turn it is, or the next one where it was picked already; nil where all were.
func nextOf(classes [][]*archive.Backup, turn int, picked map[*archive.Backup]bool) *archive.Backup {
	for c := range classes {
		class := classes[(turn+c)%len(classes)]
		for i := range class {
			if b := class[(turn/len(classes)+i)%len(class)]; !picked[b] {
				return b
			}
		}
	}
	return nil
}

// classesOf sorts backups, newest first, into classes of age; none is empty.
func classesOf(bs []*archive.Backup, now time.Time) (classes [][]*archive.Backup) {
	last := -1
	for _, b := range bs {
		class := bits.Len(uint(max(now.Sub(b.StartedAt()), 0) / (24 * time.Hour)))
		if class != last {
			classes, last = append(classes, nil), class
		}
		classes[len(classes)-1] = append(classes[len(classes)-1], b)
	}
	return classes
}

package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"encdump/dump/archive"
	"encdump/storage"
)

// DefaultGrace is how long what belongs to no complete backup is left alone.
const DefaultGrace = 24 * time.Hour

// Policy says which backups are kept. A backup is kept when one rule keeps it. Each rule is about the complete backups
// of one cluster (GUID), partial ones excepted; zero values are no rule.
type Policy struct {
	// Last keeps the newest n.
	Last int
	// Within keeps those that started no longer ago than this.
	Within Span
	// Hourly and so on keep the newest of each of the last n hours, days, ISO weeks, months and years that have
	// one, in UTC.
	Hourly, Daily, Weekly, Monthly, Yearly int
	// FullCount and FullDays are the kinds of retention of pgBackRest (repo-retention-full, type count and time): the
	// newest n; all that are younger than n days, and the newest of those that are not, so that there is always one
	// that is n days old.
	FullCount, FullDays int
	// Min keeps the newest n whatever the other rules say; less than 1 counts as 1.
	Min int
	// RequireVerified keeps the newest that a restore drill has verified.
	RequireVerified bool
	// IncompleteOnly removes no complete backup at all.
	IncompleteOnly bool
	// Grace is how long ago the last object of an incomplete backup must have been put for it to be removed; 0 is DefaultGrace.
	Grace time.Duration
}

// IsZero tells whether no rule is given, so that everything but the minimum would be removed.
func (p *Policy) IsZero() bool {
	return p.Within.IsZero() && max(p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly, p.FullCount, p.FullDays) <= 0
}

func (p *Policy) grace() time.Duration { return cmp.Or(p.Grace, DefaultGrace) }

// Span is a length of time by the calendar.
type Span struct{ Years, Months, Days, Hours int }

// ParseSpan reads numbers with units, as 14d, 6m or 1y6m: h are hours, d days, w weeks, m months, y years.
func ParseSpan(s string) (Span, error) {
	var out Span
	rest := s
	for rest != "" {
		i := 0
		for i < len(rest) && '0' <= rest[i] && rest[i] <= '9' {
			i++
		}
		n, err := strconv.Atoi(rest[:i])
		if err != nil || n > 100_000 || i == len(rest) {
			return Span{}, fmt.Errorf("%q is not a number of hours, days, weeks, months or years, as 36h, 14d, 8w, 6m, 1y or 1y6m", s)
		}
		switch rest[i] {
		case 'h':
			out.Hours += n
		case 'd':
			out.Days += n
		case 'w':
			out.Days += 7 * n
		case 'm':
			out.Months += n
		case 'y':
			out.Years += n
		default:
			return Span{}, fmt.Errorf("%q: unit %q is none of h, d, w, m and y", s, rest[i])
		}
		rest = rest[i+1:]
	}
	return out, nil
}

// IsZero tells whether s is no time at all.
func (s Span) IsZero() bool { return s == Span{} }

// Before returns the time that is s before t.
func (s Span) Before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}

// Plan is what is to become of each backup, in the order that they were given in.
type Plan []Decision

// Decision is what is to become of a backup.
type Decision struct {
	Backup  *archive.Backup
	Remove  bool
	Reasons []string  // why it is kept or removed
	Locked  time.Time // until when it cannot be removed, though it should be
	Err     error     // why it could not be removed
	// Uncounted: it is not authenticated, though there are keys or signers, and so neither counted nor removed.
	Uncounted bool
}

// PlanPrune decides which backups are removed: complete ones that no rule keeps, and incomplete ones whose newest
// object is older than the grace. It never removes foreign, damaged and unreadable ones, nor partial ones, which no
// rule counts. Where backups were looked at with keys or signers, those whose metadata are not authenticated are neither counted
// nor removed: whoever can write to a store must not push good backups out of it. now should be the clock of
// the store. It changes nothing.
func PlanPrune(bs []*archive.Backup, p Policy, now time.Time) Plan {
	plan := make(Plan, len(bs))
	clusters := make(map[string][]*Decision)
	for i, b := range bs {
		d := &plan[i]
		d.Backup = b
		switch {
		case b.Status == archive.Incomplete && now.Sub(b.Modified) > p.grace():
			d.Remove = true
			d.Reasons = []string{"incomplete, untouched since " + b.Modified.UTC().Format(time.DateTime+"Z")}
		case b.Status == archive.Incomplete:
			d.Reasons = []string{"incomplete, but within the grace"}
		case b.Status != archive.Complete || b.Metadata == nil:
			d.Reasons = []string{string(b.Status)}
		case p.IncompleteOnly:
			d.Reasons = []string{"complete"}
		case !b.Vouched() && b.Checked():
			d.Uncounted, d.Reasons = true, []string{notAuthenticated(b)}
		case b.Metadata.Source.Kind == archive.KindPartial:
			d.Reasons = []string{"partial"}
		default:
			clusters[b.ID.GUID] = append(clusters[b.ID.GUID], d)
		}
	}
	for _, ds := range clusters {
		slices.SortFunc(ds, func(a, b *Decision) int { // newest first
			return cmp.Or(b.Backup.StartedAt().Compare(a.Backup.StartedAt()), b.Backup.ID.Compare(a.Backup.ID))
		})
		p.decide(ds, now)
	}
	return plan
}

// notAuthenticated says why a backup is neither counted nor removed.
func notAuthenticated(b *archive.Backup) string {
	var unsigned *archive.UnsignedError
	switch e := &b.Metadata.Encryption; {
	case errors.As(b.Problem, &unsigned):
		return "not authenticated: " + unsigned.Reason
	case e.Sealed():
		return "not authenticated: sealed, needs the private key of a recipient"
	default:
		return "not authenticated: needs key " + e.KeyID
	}
}

// decide applies the rules to the counted backups of a cluster, newest first.
func (p *Policy) decide(ds []*Decision, now time.Time) {
	keep := func(d *Decision, reason string) { d.Reasons = append(d.Reasons, reason) }
	started := func(d *Decision) time.Time { return d.Backup.StartedAt().UTC() }

	for i, d := range ds {
		if i < p.Last {
			keep(d, "last")
		}
		if i < p.FullCount {
			keep(d, "count")
		}
	}
	if !p.Within.IsZero() {
		from := p.Within.Before(now)
		for _, d := range ds {
			if !started(d).Before(from) {
				keep(d, "within")
			}
		}
	}
	for _, rule := range []struct {
		name   string
		count  int
		period func(t time.Time) string
	}{
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15h") }},
		{"daily", p.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{"weekly", p.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%04d-W%02d", y, w) }},
		{"monthly", p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		last, left := "", rule.count
		for _, d := range ds {
			if left <= 0 {
				break
			}
			if period := rule.period(started(d)); period != last {
				keep(d, rule.name+" "+period)
				last = period
				left--
			}
		}
	}
	if p.FullDays > 0 {
		from := Span{Days: p.FullDays}.Before(now)
		for _, d := range ds {
			if !started(d).After(from) {
				keep(d, "time: the newest that is old enough")
				break
			}
			keep(d, "time")
		}
	}
	if p.RequireVerified {
		for _, d := range ds {
			if !d.Backup.Verified.IsZero() {
				keep(d, "newest verified")
				break
			}
			// Without the key nobody vouches for a record, so that it counts, but does not make older ones superfluous.
			if r := d.Backup.Drill; r != nil && r.Passed() {
				keep(d, "verified, not checked")
			}
		}
	}
	for i, d := range ds {
		if len(d.Reasons) == 0 && i < max(p.Min, 1) {
			keep(d, "minimum")
		}
		if len(d.Reasons) == 0 {
			d.Remove, d.Reasons = true, []string{"no rule keeps it"}
		}
	}
}

// Removed returns the decisions to remove.
func (p Plan) Removed() []*Decision {
	var out []*Decision
	for i := range p {
		if p[i].Remove {
			out = append(out, &p[i])
		}
	}
	return out
}

// Pruning is a plan for a store, with the uploads that nobody will finish.
type Pruning struct {
	Bucket  storage.Bucket
	Plan    Plan
	Uploads []AbandonedUpload
}

// AbandonedUpload is to be aborted.
type AbandonedUpload struct {
	storage.Upload
	Err error // why it could not be
}

// PruneOptions says how a store is pruned.
type PruneOptions struct {
	Policy Policy
	// GUID, as of archive.Ref, is whose backups are looked at; empty: all.
	GUID string
	// DryRun: nothing is written, not even to learn the time of the store.
	DryRun bool
	Logger *slog.Logger // nil is silent
}

// PreparePrune looks at a store and plans what Execute does: PlanPrune by the clock of the store, the deletions that were
// cut off before, and uploads older than the grace of backups that are not being written to. The locks of all objects of what is to be
// removed are looked at; a locked backup is kept.
func PreparePrune(ctx context.Context, c *archive.Catalog, b storage.Bucket, o *PruneOptions) (*Pruning, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var all []*archive.Backup
	var none *archive.NotFoundError // of the GUID
	for backup, err := range c.Backups(ctx, o.GUID) {
		if errors.As(err, &none) && !none.Ambiguous {
			break // an upload of it may be left nevertheless
		}
		if err != nil {
			return nil, err
		}
		all = append(all, backup)
	}
	ours := func(id archive.ID) bool { // is what the GUID selects
		return o.GUID == "" || o.GUID == id.GUID || slices.ContainsFunc(all, func(b *archive.Backup) bool { return b.ID.GUID == id.GUID })
	}
	uploads, err := uploadsOf(ctx, b, ours)
	if errors.Is(err, storage.ErrPermission) {
		log.Info("unfinished uploads may not be listed", "err", err)
	} else if err != nil {
		return nil, err
	}
	if none != nil && len(uploads) == 0 {
		return nil, none
	}

	now, grace := time.Now(), o.Policy.grace()
	old := func(t time.Time) bool { return now.Sub(t) > grace }
	unfinished := func(b *archive.Backup) bool { return b.Status == archive.Incomplete }
	if !o.DryRun && (len(uploads) > 0 || slices.ContainsFunc(all, unfinished)) {
		if now, err = storeTime(ctx, b, log); err != nil {
			return nil, fmt.Errorf("the time of the store, by which the grace is counted: %w", err)
		}
	}
	p := &Pruning{Bucket: b, Plan: PlanPrune(all, o.Policy, now)}
	for i := range p.Plan {
		d := &p.Plan[i]
		if !d.Remove && d.Backup.BeingDeleted(ctx) {
			d.Remove, d.Reasons = true, []string{"its deletion was cut off"}
		}
		if !d.Remove {
			continue
		}
		until, err := d.Backup.LockedUntil(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, storage.ErrPermission):
			log.Info("whether it is locked may not be asked", "backup", d.Backup.ID.String(), "err", err)
		case err != nil:
			d.Remove, d.Err = false, err
			d.Reasons = append(d.Reasons, "whether it is locked is not known")
		case until.After(now):
			d.Remove, d.Locked = false, until
			d.Reasons = append(d.Reasons, "locked "+lockedText(until))
		}
	}
	for _, u := range uploads {
		id, _ := archive.ObjectID(u.Key)
		busy := slices.ContainsFunc(all, func(b *archive.Backup) bool { return b.ID == id && !old(b.Modified) })
		if old(u.Started) && !busy {
			p.Uploads = append(p.Uploads, AbandonedUpload{Upload: u})
		}
	}
	return p, nil
}

func lockedText(until time.Time) string {
	if !until.Before(storage.FarFuture) {
		return "without end"
	}
	return "until " + until.UTC().Format(time.DateTime+"Z")
}

// uploadsOf returns the unfinished uploads of backups.
func uploadsOf(ctx context.Context, b storage.Bucket, ours func(archive.ID) bool) ([]storage.Upload, error) {
	uploader, ok := storage.As[storage.Uploader](b)
	if !ok {
		return nil, nil
	}
	var out []storage.Upload
	for u, err := range uploader.Uploads(ctx, "") {
		if err != nil {
			return nil, err
		}
		if id, ok := archive.ObjectID(u.Key); ok && ours(id) {
			out = append(out, u)
		}
	}
	return out, nil
}

// storeTime returns what time it is by the clock of the store.
func storeTime(ctx context.Context, b storage.Bucket, log *slog.Logger) (time.Time, error) {
	r, err := Check(ctx, b)
	if err != nil {
		return time.Time{}, err
	}
	for _, s := range r.Steps[:2] { // written and listed
		if s.Err != nil {
			return time.Time{}, s.Err
		}
	}
	if r.Left != "" {
		log.Warn("the object that told the time of the store stays there", "object", r.Left, "store", b.String())
	}
	return time.Now().Add(r.Skew), nil
}

// Execute removes what the plan removes, and stops only when ctx is done, which is the error. What could not be removed
// has an Err then; its marker stays, so that the next run sees it.
func (p *Pruning) Execute(ctx context.Context) error {
	for _, d := range p.Plan.Removed() {
		d.Err = d.Backup.Delete(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	uploader, _ := storage.As[storage.Uploader](p.Bucket)
	for i := range p.Uploads {
		u := &p.Uploads[i]
		u.Err = uploader.AbortUpload(ctx, u.Upload)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

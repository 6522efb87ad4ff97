package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"encdump/dump"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
	"encdump/storage"
)

func newVerify() *cobra.Command {
	return command("verify [--backup-id ID | --all | --since TIME | --sample N] [--level LEVEL] [flags]", "check that a backup is what was written, and restore it to see",
		`verify checks a backup, the latest where none is named:

    metadata  the metadata are authentic and every object is there in its size
    digest    every object has the digest that the metadata tell
    decode    the whole stream decrypts and inflates
    restore   a drill: the backup is restored, and what came back is what was dumped

Each level includes those before it. The first two work without a key, but then the
metadata are taken as they are, since only the key tells whether they are authentic.
Where a key is found, it must be the right one. Damage is told by object, segment and,
with a key, by the bytes of SQL and the tables that it hits.

A drill starts a throwaway cluster of the backup's major version on this machine: on a
socket only, without fsync and WAL archiving, and removed at the end, also after a
failure or Ctrl-C. --into names another server instead: databases that are restored there
are dropped at the end, or made anew where they were there and empty; roles stay and get
the passwords of the backup, so it must not be one in use. Then it compares, with the contents that the backup's index tells: the number
and the fingerprint of every table's rows, sequences, large objects, roles with their
attributes and settings, settings of databases; and it dumps all schemas once more. The
result is written beside the backup, dump list and dump show tell it, and prune
--require-verified goes by it.

Status 0: all of it is right. 7: damaged, or what came back differs. 1: older than
--max-age, where it is the one that is named, or the latest. 3: inconclusive, neither
passed nor failed: a program, an extension, a locale or room on the disk is missing here,
or the versions do not allow to compare; what to install is said. Of several backups, the
worst counts.

--sample picks, for a daily run: of each cluster the latest backup and, from day to day in
turn, others of all ages.`, atMostOne, runVerify)
}

// verified is the report about a backup as JSON.
type verified struct {
	BackupID      string     `json:"backup_id"`
	Store         string     `json:"store"`
	Level         dump.Level `json:"level"`
	OK            bool       `json:"ok"`
	Result        string     `json:"result"` // passed, failed, inconclusive or error
	Authenticated bool       `json:"authenticated"`
	StartedAt     time.Time  `json:"started_at"`
	PlainBytes    int64      `json:"plain_bytes,omitempty"`
	Damage        []damage   `json:"damage"`
	Lost          []lost     `json:"lost,omitempty"`
	Stale         string     `json:"stale,omitempty"`
	Findings      []string   `json:"findings,omitempty"`
	Inconclusive  []open     `json:"inconclusive,omitempty"`
	Drill         *drilled   `json:"drill,omitempty"`
	Error         string     `json:"error,omitempty"`
}

type damage struct {
	Text   string `json:"text"`
	Object string `json:"object,omitempty"`
	// The range of the stored stream, and the first segment that it is in, where they are known.
	Stored  *script.Range `json:"stored,omitempty"`
	Segment *int64        `json:"segment,omitempty"`
}

type open struct {
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

type lost struct {
	Plain  script.Range `json:"plain"`
	Other  bool         `json:"other_sql"`
	Tables []lostTable  `json:"tables"`
}

type lostTable struct {
	Database script.Name  `json:"database"`
	Schema   script.Name  `json:"schema"`
	Table    script.Name  `json:"table"`
	Plain    script.Range `json:"plain"`
}

type drilled struct {
	Server       string    `json:"server"`
	StartedAt    time.Time `json:"started_at"`
	Seconds      float64   `json:"seconds"`
	Databases    int       `json:"databases"`
	Tables       int       `json:"tables"`
	Rows         int64     `json:"rows"`
	Sequences    int       `json:"sequences"`
	LargeObjects int64     `json:"large_objects"`
	Record       string    `json:"record,omitempty"`
}

func runVerify(ctx context.Context, f flags, args []string) error {
	level := dump.Level(f.text("level"))
	if !slices.Contains(dump.Levels, level) {
		return usage("metadata, digest, decode or restore", "--level %q is not known", string(level))
	}
	o, err := f.verifyOptions(level)
	if err != nil {
		return err
	}
	many := f.is("all") || f.text("since") != "" || f.number("sample") > 0
	if many && (len(args) > 0 || f.text("backup-id") != "" || f.text("at") != "") {
		return usage("", "one backup is named, and --all, --since and --sample are about several")
	}
	find := f.keyring
	if level == dump.LevelDecode || level == dump.LevelRestore {
		find = f.neededKeyring
	}
	keys, err := find(ctx)
	if err != nil {
		return err
	}
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	var backups []*archive.Backup
	latest := map[*archive.Backup]bool{} // of its cluster and store
	if many {
		for _, s := range stores {
			c, err := f.catalog(s, keys)
			if err != nil {
				return err
			}
			found, err := f.several(ctx, c, o)
			if err != nil {
				return err
			}
			backups = append(backups, found...)
			for _, b := range dump.Sample(found, 1, time.Now()) {
				latest[b] = true
			}
		}
		if len(backups) == 0 {
			return &archive.NotFoundError{What: "any to verify"}
		}
	} else {
		b, err := f.findIn(ctx, stores, args, keys, archive.Ref{Unauthenticated: true, Newest: true})
		if err != nil {
			return err
		}
		backups = append(backups, b)
		latest[b] = true
	}
	all := []verified{}
	worst := statusDone
	for _, b := range backups {
		o := *o
		if !latest[b] {
			o.NotBefore = time.Time{} // it is old, and may be
		}
		r, err := dump.Verify(ctx, b, &o)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v, status := asVerified(b, level, r, err)
		if worse(status, worst) {
			worst = status
		}
		all = append(all, v)
		printVerified(b, r, err, f.is("json"))
	}
	if f.is("json") {
		var document any = struct {
			Backups []verified `json:"backups"`
		}{all}
		if !many {
			document = all[0]
		}
		if err := printJSON(document); err != nil {
			return err
		}
	}
	if worst != statusDone {
		return &statusError{status: worst}
	}
	return nil
}

// verifyOptions reads how backups are verified.
func (f flags) verifyOptions(level dump.Level) (*dump.VerifyOptions, error) {
	read, err := f.readOptions()
	if err != nil {
		return nil, err
	}
	o := &dump.VerifyOptions{Level: level, Read: read, Progress: newProgress(), Logger: newLogger(f.is("verbose"))}
	if s := f.text("max-age"); s != "" {
		span, err := dump.ParseSpan(s)
		if err != nil || span.IsZero() {
			return nil, usage("", "--max-age %q is not a span, as 26h or 2d", s)
		}
		if span.Months > 0 && strings.Contains(s, "m") {
			return nil, usage("write hours, days or weeks, as 1h, 26h, 2d or 4w", "--max-age %q: m stands for months, which is hardly meant", s)
		}
		o.NotBefore = span.Before(time.Now())
	}
	if level != dump.LevelRestore {
		for _, name := range []string{"into", "temp-dir", "bin-dir", "no-record"} {
			if f.Changed(name) && f.Lookup(name).Value.String() != f.Lookup(name).DefValue && os.Getenv(variable(name)) == "" {
				return nil, usage("", "--%s goes with --level restore", name)
			}
		}
		return o, nil
	}
	o.Drill = dump.DrillOptions{
		TempDir: f.text("temp-dir"), BinDir: f.text("bin-dir"), Jobs: f.jobs(), Record: !f.is("no-record"), Tool: tool(),
	}
	if f.Changed("into") {
		dsn := f.text("into")
		if postgres.DSNHasPassword(dsn) {
			o.Logger.Warn("a password in --into can be seen by every user of this machine; use ~/.pgpass or PGPASSWORD")
		}
		o.Drill.Into, o.Drill.IntoDatabase = &postgres.Config{DSN: dsn, Logger: o.Logger}, postgres.DSNDatabase(dsn)
	}
	return o, nil
}

// several returns the backups of a store that --all, --since and --sample name.
func (f flags) several(ctx context.Context, c *archive.Catalog, o *dump.VerifyOptions) ([]*archive.Backup, error) {
	since, err := f.since("since")
	if err != nil {
		return nil, err
	}
	var all []*archive.Backup
	for b, err := range c.Backups(ctx, f.text("guid")) {
		var none *archive.NotFoundError
		if errors.As(err, &none) && !none.Ambiguous || errors.Is(err, storage.ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		ours := b.Status == archive.Complete || b.Status == archive.Damaged || b.Status == archive.Unreadable
		if !ours && (b.Status != archive.Foreign || !o.Read.AllowUnauthenticated) || b.StartedAt().Before(since) {
			o.Logger.Debug("not verified", "backup", b.ID.String(), "status", string(b.Status))
			continue
		}
		all = append(all, b)
	}
	if n := f.number("sample"); n > 0 {
		all = dump.Sample(all, n, time.Now())
	}
	return all, nil
}

// worse tells whether a status outranks another.
func worse(a, b int) bool {
	rank := []int{statusDone, statusInPart, statusUsage, statusLocked, statusNotFound, statusKey, statusFailed, statusDamaged}
	return slices.Index(rank, a) > slices.Index(rank, b)
}

// asVerified makes the document, and decides on the status.
func asVerified(b *archive.Backup, level dump.Level, r *dump.VerifyReport, err error) (v verified, status int) {
	v = verified{BackupID: b.ID.String(), Store: b.Bucket().String(), Level: level, StartedAt: b.StartedAt(), Damage: []damage{}}
	consider := func(s int, result string) {
		if worse(s, status) {
			status, v.Result = s, result
		}
	}
	v.Result = "passed"
	if err != nil {
		_, s := explain(err)
		consider(s, "error")
		v.Error = err.Error()
	}
	if r == nil {
		return v, status
	}
	v.OK = err == nil && r.OK()
	v.Authenticated, v.PlainBytes, v.Stale, v.Findings = r.Authenticated, r.PlainBytes, r.Stale, r.Findings
	if len(r.Inconclusive) > 0 || r.Drill != nil && r.Drill.Unrecorded != nil {
		consider(statusInPart, "inconclusive")
	}
	if r.Stale != "" {
		consider(statusFailed, "failed")
	}
	if len(r.Damage)+len(r.Findings) > 0 {
		consider(statusDamaged, "failed")
	}
	for _, d := range r.Damage {
		out := damage{Text: d.Error()}
		var e *archive.DamageError
		if errors.As(d, &e) {
			out.Object = e.Object
			if e.Stored.Length > 0 {
				segment := int64(e.Stored.Offset) / archive.SegmentSize
				out.Stored, out.Segment = &e.Stored, &segment
			}
		}
		v.Damage = append(v.Damage, out)
	}
	for _, p := range r.Inconclusive {
		v.Inconclusive = append(v.Inconclusive, open{p.Text, p.Hint})
	}
	for _, l := range r.Lost {
		out := lost{Plain: l.Plain, Other: l.Other, Tables: []lostTable{}}
		for _, t := range l.Tables {
			out.Tables = append(out.Tables, lostTable{t.Database, t.Schema, t.Table, t.Range})
		}
		v.Lost = append(v.Lost, out)
	}
	if d := r.Drill; d != nil {
		v.Drill = &drilled{
			d.Server, d.StartedAt, d.Duration.Round(time.Millisecond).Seconds(), d.Databases, d.Tables, d.Rows, d.Sequences, d.LargeObjects, d.Record,
		}
	}
	return v, status
}

// printVerified says what was found: what is wrong on standard error, and that all is well on standard output.
func printVerified(b *archive.Backup, r *dump.VerifyReport, err error, quiet bool) {
	if r == nil {
		r = &dump.VerifyReport{}
	}
	for _, d := range r.Damage {
		report(d, "")
	}
	for _, l := range r.Lost {
		say("%s: %s", b.ID, describeLoss(l))
	}
	for _, x := range r.Findings {
		report(fmt.Errorf("%s: %s", b.ID, x), "")
	}
	if r.Stale != "" {
		hint := "is dump create still running as planned?"
		if b.StartedAt().After(time.Now()) {
			hint = "compare the clock of this machine with that of the one that makes the backups"
		}
		report(fmt.Errorf("%s: %s", b.ID, r.Stale), hint)
	}
	for _, x := range r.Inconclusive {
		say("inconclusive: %s: %s", b.ID, oneLine(x.Text))
		if x.Hint != "" {
			say("hint: %s", x.Hint)
		}
	}
	if err != nil {
		hint, _ := explain(err)
		report(err, hint)
	}
	if d := r.Drill; d != nil && d.Unrecorded != nil {
		report(fmt.Errorf("%s: the record of the drill could not be written: %w", b.ID, d.Unrecorded), "it needs the right to write to the store; --no-record leaves it out")
	}
	if err != nil || quiet || !r.OK() {
		return
	}
	text := fmt.Sprintf("%s: %s ok", b.ID, r.Level)
	if r.PlainBytes > 0 {
		text += ", " + size(r.PlainBytes) + " of SQL"
	}
	if d := r.Drill; d != nil {
		text += fmt.Sprintf(", restored into PostgreSQL %s in %v: %s, equal", d.Server, d.Duration.Round(100*time.Millisecond), compared(d.Tables, d.Rows))
	}
	if !r.Authenticated {
		text += ", not authenticated"
		if len(b.Keys()) == 0 {
			text += ": no key"
		}
	}
	fmt.Println(text)
}

// describeLoss says what damage reaches.
func describeLoss(l dump.Loss) string {
	text := fmt.Sprintf("lost are bytes %d to %d of the SQL", l.Plain.Offset, l.Plain.End()-1)
	var hit []string
	for _, t := range l.Tables {
		hit = append(hit, fmt.Sprintf("rows of table %s (bytes %d to %d)", printable(t.String()), t.Range.Offset, t.Range.End()-1))
	}
	if l.Other {
		hit = append(hit, "statements")
	}
	return text + ": " + strings.Join(hit, ", ")
}

// drillText tells the newest drill of a backup: "verified 3 days ago: 41 tables, 9,000,003 rows, equal"; empty where there was none.
func drillText(b *archive.Backup) string {
	r := b.Drill
	switch {
	case r == nil:
		return ""
	case r.Passed():
		text := fmt.Sprintf("verified %s: %s, equal", age(r.VerifiedAt), compared(r.Tables, int64(r.Rows)))
		if !b.DrillChecked() {
			text += " (as its record says, which only the key can tell to be true)"
		}
		return text
	}
	return fmt.Sprintf("DRILL FAILED %s: %s", age(r.VerifiedAt), count(int64(r.Findings), "finding"))
}

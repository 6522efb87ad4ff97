package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"encdump/dump"
	"encdump/dump/archive"
)

func newPrune() *cobra.Command {
	return command("prune {--keep-last N | --keep-daily N | … | --incomplete-only} [flags]", "remove backups that need not be kept",
		`prune removes the backups that no rule keeps. Each rule is applied to the backups of each
cluster by itself; a backup stays when one rule keeps it:

    --keep-last N, --keep-within SPAN,
    --keep-hourly N, --keep-daily N, --keep-weekly N, --keep-monthly N, --keep-yearly N
    --retention-full N --retention-full-type count: the newest N
    --retention-full N --retention-full-type time:  all that are younger than N days, and
        the newest of the older ones, so that there is always one that is N days old: of
        two, the older stays until the younger is old enough

Whatever they say, the newest --keep-min stay. Only complete backups count. Partial,
foreign and damaged ones are neither counted nor removed, and where a key is at hand,
neither are those that it does not authenticate: give every key in use.

What was never finished is removed when its newest object, by the clock of the store, is
older than --grace, which must be longer than any object takes to be written; so are
uploads that a crash has left. Nothing without a marker is removed as garbage. A deletion
that was cut off is finished.

A backup of which an object is locked is kept, and the plan says until when. The plan is
shown first. On a terminal prune asks; elsewhere it wants --yes, and prints nothing then.
What could not be removed is reported, with status 3, and tried again the next time.`, noArguments, runPrune)
}

// policy reads the rules.
func (f flags) policy() (p dump.Policy, err error) {
	p = dump.Policy{
		Last: f.number("keep-last"), Hourly: f.number("keep-hourly"), Daily: f.number("keep-daily"), Weekly: f.number("keep-weekly"),
		Monthly: f.number("keep-monthly"), Yearly: f.number("keep-yearly"), Min: f.number("keep-min"),
		RequireVerified: f.is("require-verified"), IncompleteOnly: f.is("incomplete-only"), Grace: f.duration("grace"),
	}
	if p.Within, err = dump.ParseSpan(f.text("keep-within")); err != nil {
		return p, usage("", "--keep-within %v", err)
	}
	switch kind := f.text("retention-full-type"); kind {
	case "count":
		p.FullCount = f.number("retention-full")
	case "time":
		p.FullDays = f.number("retention-full")
	default:
		return p, usage("count or time", "--retention-full-type %q is not known", kind)
	}
	switch {
	case p.Min < 1:
		return p, usage("dump delete removes one by name", "--keep-min 0: the newest complete backup of a cluster is never pruned")
	case p.Grace == 0:
		return p, usage("as --grace 24h", "--grace 0 would remove what is being made")
	case p.IncompleteOnly && !p.IsZero():
		return p, usage("", "--incomplete-only removes no complete backup, so that rules which keep some mean nothing")
	case p.IsZero() && !p.IncompleteOnly:
		return p, usage("as --keep-daily 7 --keep-weekly 4; --incomplete-only removes only what was never finished", "no rule says what is to be kept")
	}
	return p, nil
}

func runPrune(ctx context.Context, f flags, _ []string) error {
	policy, err := f.policy()
	if err != nil {
		return err
	}
	keys, err := f.keyring(ctx)
	if err != nil {
		return err
	}
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	log := newLogger(f.is("verbose"))
	show := !f.is("json") && (f.is("dry-run") || !f.is("yes") || f.is("verbose") || stderrIsTerminal())
	var all []*dump.Pruning
	var failed error // the first store's that could not be looked at
	removed, failures := 0, 0
	for _, s := range stores {
		catalog, err := f.catalog(s, keys)
		if err != nil {
			return err
		}
		p, err := dump.PreparePrune(ctx, catalog, s, &dump.PruneOptions{
			Policy: policy, GUID: f.text("guid"), DryRun: f.is("dry-run"), Logger: log,
		})
		var none *archive.NotFoundError
		switch {
		case err != nil && (len(stores) == 1 || ctx.Err() != nil):
			return err
		case err != nil:
			failed = cmp.Or(failed, err)
			if !errors.As(err, &none) || none.Ambiguous { // the GUID need not be in all of them
				failures++
				say("error: %s: %v", s, oneLine(err.Error()))
			}
			continue
		}
		all = append(all, p)
		removed += len(p.Plan.Removed()) + len(p.Uploads)
		out := 0
		for _, d := range p.Plan {
			if d.Uncounted {
				out++
			}
		}
		if out > 0 {
			say("warning: %s: %s not authenticated here, and neither counted nor removed; --dry-run tells which key it needs", s, count(int64(out), "backup"))
		}
		if len(keys) == 0 {
			say("warning: %s: no key is at hand, so that times and sizes are taken as the store tells them", s)
		}
		if show {
			if err := showPruning(p); err != nil {
				return err
			}
		}
	}
	if len(all) == 0 {
		return failed
	}
	if removed > 0 && !f.is("dry-run") {
		if !f.is("yes") {
			if err := confirm(ctx, fmt.Sprintf("remove these %d for good?", removed)); err != nil {
				return err
			}
		}
		for _, p := range all {
			if err := p.Execute(ctx); err != nil {
				return &statusError{err, "run the same command again to remove the rest", statusFailed}
			}
		}
	}
	report := []prunedStore{}
	for _, p := range all {
		r := prunedStore{Store: p.Bucket.String(), Backups: []prunedBackup{}, Uploads: []prunedUpload{}}
		for _, d := range p.Plan {
			b := prunedBackup{
				BackupID: d.Backup.ID.String(), GUID: d.Backup.ID.GUID, Status: d.Backup.Status, StartedAt: d.Backup.StartedAt(),
				Bytes: d.Backup.Bytes, Action: "keep", Reasons: d.Reasons,
			}
			if d.Remove {
				b.Action = "remove"
			}
			if !d.Locked.IsZero() {
				b.Locked = &d.Locked
			}
			if d.Err != nil {
				failures++
				b.Error = d.Err.Error()
				say("error: %s in %s was not removed: %s", d.Backup.ID, p.Bucket, oneLine(b.Error))
			}
			r.Backups = append(r.Backups, b)
		}
		for _, u := range p.Uploads {
			j := prunedUpload{Object: u.Key, UploadID: u.ID, StartedAt: u.Started}
			if u.Err != nil {
				failures++
				j.Error = u.Err.Error()
				say("error: the upload of %s in %s was not aborted: %s", u.Key, p.Bucket, oneLine(j.Error))
			}
			r.Uploads = append(r.Uploads, j)
		}
		report = append(report, r)
	}
	if f.is("json") {
		if err := printJSON(struct {
			DryRun bool          `json:"dry_run"`
			Stores []prunedStore `json:"stores"`
		}{f.is("dry-run"), report}); err != nil {
			return err
		}
	}
	if failures > 0 {
		return &statusError{status: statusInPart}
	}
	return nil
}

// What prune does, as JSON.
type (
	prunedStore struct {
		Store   string         `json:"store"`
		Backups []prunedBackup `json:"backups"`
		Uploads []prunedUpload `json:"uploads"` // that are aborted
	}
	prunedBackup struct {
		BackupID  string         `json:"backup_id"`
		GUID      string         `json:"backup_guid"`
		Status    archive.Status `json:"status"` // before
		StartedAt time.Time      `json:"started_at"`
		Bytes     int64          `json:"bytes"`
		Action    string         `json:"action"` // keep or remove
		Reasons   []string       `json:"reasons"`
		Locked    *time.Time     `json:"locked_until,omitempty"`
		Error     string         `json:"error,omitempty"` // why it was not removed
	}
	prunedUpload struct {
		Object    string    `json:"object"`
		UploadID  string    `json:"upload_id"`
		StartedAt time.Time `json:"started_at"`
		Error     string    `json:"error,omitempty"`
	}
)

// showPruning prints a plan.
func showPruning(p *dump.Pruning) error {
	fmt.Printf("%s:\n", p.Bucket)
	rows := [][]string{{"  ACTION", "BACKUP ID", "STARTED", "STORED", "REASON"}}
	var freed int64
	for _, d := range p.Plan {
		action := "keep"
		if d.Remove {
			action = "remove"
			freed += d.Backup.Bytes
		}
		rows = append(rows, []string{"  " + action, d.Backup.ID.String(), instant(d.Backup.StartedAt()), size(d.Backup.Bytes), joinWords(d.Reasons)})
	}
	for _, u := range p.Uploads {
		rows = append(rows, []string{"  abort", "upload of " + printable(u.Key), instant(u.Started), "-", "never finished"})
	}
	if err := table(os.Stdout, rows); err != nil {
		return err
	}
	fmt.Printf("%d of %d backup(s) to remove, %s; %d upload(s) to abort\n", len(p.Plan.Removed()), len(p.Plan), size(freed), len(p.Uploads))
	return nil
}

package main

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"encdump/crypto"
	"encdump/dump"
	"encdump/dump/archive"
	"encdump/storage"
)

func newCopy() *cobra.Command {
	return command("copy {--backup-id ID | --guid GUID | --all} --from URL --to URL [flags]", "copy backups to another store, as they are",
		`copy brings one backup, all of a cluster (--guid) or all (--all) from one store to another,
byte for byte, and checks digests on the way. Backups that are incomplete, damaged or made
by other programs are not copied with the others; one that is foreign is copied by its ID.

It needs no key. Where one is at hand, the metadata must be authentic; without one the
report says "not authenticated".

What the destination has already, in the right size and with the right digest, is not sent
again: a copy that was interrupted goes on when it is started again, object by object, and
a copy that lost an object or has a damaged one is mended. With --guid and --all, backups
that are complete at the destination are looked at in its listing only. Another backup of
the same ID is never touched. Where the source turns out to be damaged, nothing stays at
the destination that was not complete there before.`, atMostOne, runCopy)
}

// copied is the fate of a backup as JSON.
type copied struct {
	BackupID      string `json:"backup_id"`
	Store         string `json:"store"`
	Status        string `json:"status"` // copied, present or failed
	Authenticated bool   `json:"authenticated"`
	Objects       int    `json:"objects"` // that were sent
	Bytes         int64  `json:"bytes"`   // of these
	Error         string `json:"error,omitempty"`
}

func runCopy(ctx context.Context, f flags, args []string) error {
	all := f.is("all")
	named := f.text("backup-id") != "" || len(args) > 0
	switch {
	case all && named:
		return usage("", "--all copies everything, and one backup is named")
	case !all && !named && f.text("guid") == "":
		return usage("--backup-id ID, --guid GUID or --all; dump list shows what there is", "no backup named")
	case len(f.list("to")) == 0:
		return usage("--to URL", "no destination")
	}
	keys, err := f.keyring(ctx)
	if err != nil {
		return err
	}
	var sources []storage.Bucket
	if from := f.text("from"); from != "" {
		sources, err = f.open(ctx, []string{from})
	} else {
		sources, err = f.stores(ctx)
	}
	if err != nil {
		return err
	}
	destinations, err := f.open(ctx, f.list("to"))
	if err != nil {
		return err
	}
	backups, err := f.toCopy(ctx, sources, args, keys)
	if err != nil {
		return err
	}

	report := []copied{}
	var failed error // the first
	failures := 0
	for _, b := range backups {
		for _, dst := range destinations {
			r, err := dump.Copy(ctx, b, dst, archive.CopyOptions{Jobs: f.number("connections"), Quick: !named}, newProgress())
			if ctx.Err() != nil {
				return &statusError{err, goesOn, statusFailed}
			}
			c := copied{b.ID.String(), dst.String(), "copied", b.Vouched(), r.Copied, r.Bytes, ""}
			doubt := ""
			if !b.Vouched() {
				doubt = ", not authenticated"
			}
			switch {
			case err != nil:
				c.Status, c.Error = "failed", err.Error()
				if failures++; failed == nil {
					failed = err
				}
				if len(backups)*len(destinations) > 1 {
					say("error: %s to %s: %v", b.ID, dst, oneLine(err.Error()))
				}
			case r.Copied == 0:
				c.Status = "present"
				if f.is("verbose") {
					say("%s is in %s already%s", b.ID, dst, doubt)
				}
			case stderrIsTerminal() || f.is("verbose"):
				say("%s is in %s: %d object(s), %s sent%s", b.ID, dst, r.Copied, size(r.Bytes), doubt)
			}
			report = append(report, c)
		}
	}
	if f.is("json") {
		if err := printJSON(struct {
			Copies []copied `json:"copies"`
		}{report}); err != nil {
			return err
		}
	}
	switch {
	case failures == 0:
		return nil
	case failures < len(report):
		return &statusError{status: statusInPart}
	case len(report) > 1:
		_, status := explain(failed)
		return &statusError{status: status}
	}
	return copyError(failed)
}

const goesOn = "run the same command again: it goes on with what has arrived"

// copyError adds what an unfinished copy leaves behind to an error of dump.Copy.
func copyError(err error) error {
	var damage *archive.DamageError
	var other *archive.OtherBackupError
	if errors.As(err, &damage) || errors.As(err, &other) {
		return err
	}
	hint, status := explain(err)
	if status == statusFailed {
		hint = goesOn
	}
	return &statusError{err, hint, status}
}

// toCopy returns the backups that were named; of several, the newest first, so that what matters most arrives first.
func (f flags) toCopy(ctx context.Context, sources []storage.Bucket, args []string, keys crypto.Keyring) ([]*archive.Backup, error) {
	if f.text("backup-id") != "" || len(args) > 0 {
		b, err := f.findIn(ctx, sources, args, keys, archive.Ref{Unauthenticated: true})
		return []*archive.Backup{b}, err
	}
	var out []*archive.Backup
	for _, s := range sources {
		catalog, err := f.catalog(s, keys)
		if err != nil {
			return nil, err
		}
		for b, err := range catalog.Backups(ctx, f.text("guid")) {
			if err != nil {
				return nil, err
			}
			has := func(o *archive.Backup) bool { return o.ID == b.ID }
			switch {
			case b.Status == archive.Damaged || b.Status == archive.Unreadable:
				say("warning: not copied: %v", b.Problem)
			case b.Status == archive.Complete && !slices.ContainsFunc(out, has):
				out = append(out, b)
			}
		}
	}
	slices.SortFunc(out, func(a, b *archive.Backup) int { return b.ID.Compare(a.ID) })
	return out, nil
}

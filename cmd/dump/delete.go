package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"encdump/dump/archive"
)

func newDelete() *cobra.Command {
	return command("delete --backup-id ID [flags]", "delete a backup",
		`delete removes all objects of one backup, its metadata first, so that a removal that was
cut off leaves an incomplete backup, which delete removes when it is run again. It shows
what would be removed and asks at the terminal; without one it wants --yes.`, atMostOne, runDelete)
}

func runDelete(ctx context.Context, f flags, args []string) error {
	if f.text("backup-id") == "" && len(args) == 0 {
		return usage("--backup-id ID; dump list shows what there is", "no backup named")
	}
	b, err := f.find(ctx, args, nil, archive.Ref{Unauthenticated: true})
	if err != nil {
		return err
	}
	objects := b.Objects()
	if f.is("json") && (f.is("dry-run") || f.is("yes")) {
		if err := printJSON(struct {
			BackupID string   `json:"backup_id"`
			Store    string   `json:"store"`
			Objects  []string `json:"objects"`
			Bytes    int64    `json:"bytes"`
			DryRun   bool     `json:"dry_run"`
		}{b.ID.String(), b.Bucket().String(), objects, b.Bytes, f.is("dry-run")}); err != nil {
			return err
		}
	} else if f.is("dry-run") || !f.is("yes") {
		fmt.Printf("%s in %s, %s, %s:\n", describe(b), b.Bucket(), b.Status, size(b.Bytes))
		for _, o := range objects {
			fmt.Println("  " + o)
		}
	}
	if f.is("dry-run") {
		return nil
	}
	if !f.is("yes") {
		if err := confirm(ctx, fmt.Sprintf("delete these %d objects for good?", len(objects))); err != nil {
			return err
		}
	}
	if err := b.Delete(ctx); err != nil {
		return &statusError{err, "run the same command again to remove the rest", statusFailed}
	}
	if stderrIsTerminal() || f.is("verbose") {
		say("deleted %s", b.ID)
	}
	return nil
}

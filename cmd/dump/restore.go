package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"encdump/dump"
	"encdump/dump/archive"
)

func newRestore() *cobra.Command {
	return command("restore [--backup-id ID] [flags]", "write the SQL of a backup to standard output, for psql",
		`restore decrypts a backup and writes its SQL to standard output:

    dump restore --backup-id ID | psql --quiet --dbname postgres

Without an ID it takes the latest and says which. Nothing is written before its
digest was checked. Use "set -o pipefail" in scripts: psql takes the end of its input
for success, and only the status of dump tells that the end came too early.`, atMostOne, runRestore)
}

func runRestore(ctx context.Context, f flags, args []string) error {
	o, err := f.readOptions()
	if err != nil {
		return err
	}
	keys, err := f.neededKeyring(ctx)
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{})
	if err != nil {
		return err
	}
	if f.text("backup-id") == "" && len(args) == 0 {
		say("restoring %s", describe(b))
	}
	return dump.Restore(ctx, b, os.Stdout, o, progressUnlessOutput())
}

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"encdump/dump"
	"encdump/dump/archive"
	"encdump/storage/file"
)

func newFetch() *cobra.Command {
	return command("fetch --backup-id ID [flags]", "download a backup, as SQL or as it is",
		`fetch writes the SQL of a backup to a file, mode 0600, by default ./<backup-id>.dump. The
file appears when it is whole, and not at all when something is wrong with the backup.

With --encrypted it copies the backup's objects into a folder instead, as they are; such
a folder is a store, for this program and for a recovery by hand. An interrupted fetch
goes on when it is started again: objects that are there, in the right size and with the
right digest, are not fetched again. The unit is the object: of a part of 1 GB that was
under way, nothing is kept.`, atMostOne, runFetch)
}

func runFetch(ctx context.Context, f flags, args []string) error {
	if f.text("backup-id") == "" && len(args) == 0 && f.text("at") == "" {
		return usage("--backup-id ID, or --backup-id latest; dump list shows what there is", "no backup named")
	}
	output := f.text("output")
	encrypted := f.is("encrypted")
	if encrypted && output == "-" {
		return usage("name a folder with --output", "--encrypted fetches several objects, which do not fit one stream")
	}
	o, err := f.readOptions()
	if err != nil {
		return err
	}
	keyring := f.neededKeyring
	if encrypted {
		keyring = f.keyring
	}
	keys, err := keyring(ctx)
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{Unauthenticated: encrypted})
	if err != nil {
		return err
	}
	if encrypted {
		o := archive.CopyOptions{Jobs: f.number("connections")}
		if _, err := dump.Copy(ctx, b, file.New(output), o, newProgress()); err != nil {
			return copyError(err)
		}
		if stderrIsTerminal() || f.is("verbose") {
			say("%s is in %s", b.ID, output)
		}
		return nil
	}
	switch {
	case output == "-":
		return dump.Restore(ctx, b, os.Stdout, o, progressUnlessOutput())
	case isFolder(output) || strings.HasSuffix(output, "/"):
		output = filepath.Join(output, b.ID.String()+".dump")
	}
	if strings.HasPrefix(filepath.Base(output), ".") {
		return usage("", "--output %s: files whose names begin with a dot are for what is being written", output)
	}
	if err := dump.FetchSQL(ctx, b, output, o, newProgress()); err != nil {
		return err
	}
	if stderrIsTerminal() || f.is("verbose") {
		say("%s: SQL in the clear, to be removed when it has served", output)
	}
	return nil
}

// progressUnlessOutput draws nothing where the output goes to the same terminal.
func progressUnlessOutput() dump.Progress {
	if term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	return newProgress()
}

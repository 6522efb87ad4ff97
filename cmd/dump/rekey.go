package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"encdump/crypto"
	"encdump/dump"
	"encdump/dump/archive"
)

func newRekey() *cobra.Command {
	return command("rekey --backup-id ID {[--new-key-file FILE] | --recipient FILE.pem} [flags]", "encrypt a backup with another key",
		`rekey decrypts a backup and encrypts it anew in the same store, by streaming: nothing plain
touches a disk. The new backup has an ID and a key of its own kind, and says in its
metadata which one it replaces; it keeps the times of the old one. The old one is deleted
only after the new one was decoded to its end, and stays with --keep-old.

The new key is --new-key-file, or --recipient for a sealed backup, or the first key that
is found, which after "dump key rotate" is the new one. Key files and --identity are for
reading the old one. Interrupted, it goes on when it is started again: what was complete
is not made twice. Whoever has a copy of the old backup and the old key still reads that.`, atMostOne, runRekey)
}

func runRekey(ctx context.Context, f flags, args []string) error {
	if f.text("backup-id") == "" && len(args) == 0 {
		return usage("--backup-id ID; dump key list shows which backup needs which key", "no backup named")
	}
	writer, err := f.writerOptions(ctx)
	if err != nil {
		return err
	}
	keys, err := f.neededKeyring(ctx)
	if err != nil {
		return err
	}
	var key *crypto.Key
	switch path := f.text("new-key-file"); {
	case len(writer.Recipients) > 0:
	case path != "":
		if key, err = crypto.ReadKeyFile(path); err != nil {
			return &statusError{fmt.Errorf("new key: %w", err), "make one with: dump key generate --key-file " + path, statusKey}
		}
	default:
		own := keys.Passphrases()
		if len(own) == 0 {
			return noKeyError("no new key", hintNewKey)
		}
		key = own[0]
	}
	if key != nil {
		if err := checkNewKey(key, writer.Derivation); err != nil {
			return err
		}
	}
	b, err := f.find(ctx, args, keys, archive.Ref{})
	if err != nil {
		return err
	}
	if err := b.Usable(false); err != nil {
		return err
	}
	switch e := &b.Metadata.Encryption; {
	case key != nil && !e.Sealed() && e.KeyID == key.ID():
		return usage("name another one with --new-key-file, or make one with: dump key rotate", "%s is encrypted with key %s already", b.ID, e.KeyID)
	case b.HasSignature() && writer.Sign == nil:
		return usage("--sign-key FILE.pem", "%s is signed, and the new backup would not be", b.ID)
	}
	writer.Key = key
	r, err := dump.Rekey(ctx, b, &dump.RekeyOptions{
		Archive: *writer,
		Read:    archive.ReadOptions{Jobs: f.jobs(), Connections: f.number("connections")},
		KeepOld: f.is("keep-old"), Tool: tool(), Progress: newProgress(), Logger: newLogger(f.is("verbose")),
	})
	if err != nil {
		return err
	}
	if f.is("json") {
		return printJSON(struct {
			*archive.Metadata
			Resumed bool `json:"resumed"`
			Removed bool `json:"removed"` // the old one
		}{r.Metadata, r.Resumed, r.Removed})
	}
	if stderrIsTerminal() || f.is("verbose") {
		text := "replaces %s, which is deleted"
		if !r.Removed {
			text = "replaces %s, which is kept"
		}
		say("backup %s "+text, r.Metadata.BackupID, b.ID)
	}
	return nil
}

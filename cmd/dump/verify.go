package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"encdump/crypto"
	"encdump/dump"
	"encdump/dump/archive"
)

func newVerify() *cobra.Command {
	return command("verify [--backup-id ID] [--level LEVEL] [flags]", "check that a backup is what was written",
		`verify checks a backup, the latest where none is named:

    metadata  the metadata are authentic and every object is there in its size
    digest    every object has the digest that the metadata tell
    decode    the whole stream decrypts and inflates

Each level includes those before it. The first two work without a key, but then the
metadata are taken as they are, since only the key tells whether they are authentic.
Where a key is found, it must be the right one.`, atMostOne, runVerify)
}

func runVerify(ctx context.Context, f flags, args []string) error {
	level := dump.Level(f.text("level"))
	if !slices.Contains(dump.Levels, level) {
		return usage("metadata, digest or decode", "--level %q is not known", string(level))
	}
	o, err := f.readOptions()
	if err != nil {
		return err
	}
	var keys crypto.Keyring
	if level == dump.LevelDecode {
		keys, err = f.neededKeyring(ctx)
	} else {
		keys, err = f.keyring(ctx)
	}
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{Unauthenticated: true, Newest: true})
	if err != nil {
		return err
	}
	r, err := dump.Verify(ctx, b, level, o, newProgress())
	if err != nil {
		if r != nil { // what was found before
			for _, d := range r.Damage {
				say("error: %v", d)
			}
		}
		return err
	}
	if f.is("json") {
		out := struct {
			BackupID      string     `json:"backup_id"`
			Store         string     `json:"store"`
			Level         dump.Level `json:"level"`
			OK            bool       `json:"ok"`
			Authenticated bool       `json:"authenticated"`
			PlainBytes    int64      `json:"plain_bytes,omitempty"`
			Damage        []string   `json:"damage"`
		}{b.ID.String(), b.Bucket().String(), level, len(r.Damage) == 0, r.Authenticated, r.PlainBytes, []string{}}
		for _, d := range r.Damage {
			out.Damage = append(out.Damage, d.Error())
		}
		if err := printJSON(out); err != nil {
			return err
		}
	}
	if len(r.Damage) > 0 {
		for _, d := range r.Damage {
			say("error: %v", d)
		}
		_, status := explain(r.Damage[0])
		return &statusError{status: status}
	}
	if !f.is("json") {
		text := fmt.Sprintf("%s: %s ok", b.ID, level)
		if level == dump.LevelDecode {
			text += ", " + size(r.PlainBytes) + " of SQL"
		}
		if !r.Authenticated {
			text += ", not authenticated"
			if len(keys) == 0 {
				text += ": no key"
			}
		}
		fmt.Println(text)
	}
	return nil
}
